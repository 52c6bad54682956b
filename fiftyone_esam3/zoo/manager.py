"""Connect FiftyOne's ``download_zoo_model`` and ``delete_zoo_model`` with the weights.

FiftyOne imports this file whenever it reads its list of models, so it imports nothing heavy.
"""

from __future__ import annotations

import fiftyone.core.models as fom

from .source import download_model


class WeightsManagerConfig(fom.ModelManagerConfig):
    """The settings of a :class:`WeightsManager`.

    Args:
        d: a dictionary with the key ``model``, the name of a model.
    """

    def __init__(self, d: dict[str, object]) -> None:
        super().__init__(d)
        self.model = self.parse_string(d, "model")


class WeightsManager(fom.ModelManager):
    """Download weights with the core, into the Hugging Face cache."""

    def _download_model(self, model_path: str) -> None:
        download_model(self.config.model, model_path)
