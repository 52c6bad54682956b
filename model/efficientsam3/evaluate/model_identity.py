"""What identifies a loaded model, so that a later run can tell whether it is still the same."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from ..predictor import ImageModel


def model_identity(model: ImageModel) -> dict[str, Any]:
    """All of a model that its results depend on, as plain values.

    Args:
        model: The model, loaded.

    Returns:
        The version of this package, and the model's name, weights, context length, dtype and speed.
    """
    return {
        "efficientsam3": __version__,
        "model": model.name,
        "weights": weights_digest(model)[:16],
        "context": model.config.context,
        "dtype": str(model.dtype).removeprefix("torch."),
        "speed": model.speed,
    }


def weights_digest(model: ImageModel) -> str:
    """A digest of the weights, see ``checkpoints.adapter.digest_weights``.

    The learned weights are read again, because the inference form folds and casts some parts when
    they are first used, and the digest must not depend on what the model was used for before.

    Args:
        model: The model, loaded.

    Returns:
        64 hexadecimal digits.
    """
    if not hasattr(model, "learned"):  # an exported folder, which has no learned weights
        return hashlib.sha256(repr(model.key).encode()).hexdigest()
    from ..checkpoints.adapter import digest_weights

    return digest_weights(model.learned().state_dict().items())
