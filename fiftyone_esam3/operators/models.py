"""Which model a form offers first, and what it says of each."""

from __future__ import annotations

from collections.abc import Iterable

from efficientsam3.checkpoints.hub import cached_models
from efficientsam3.variants import EMBEDDED, VARIANTS, Packaged

from ..runs.run import recall_speed

FALLBACK_MODEL = "efficientsam3-tinyvit-11m"


def default_model(available: Iterable[str] | None = None) -> str:
    """The model that needs no download, where there is one.

    Args:
        available: the models whose weights are on this machine. None: they are searched for.
    """
    known = set(cached_models() if available is None else available)
    return EMBEDDED if EMBEDDED in known else min(known, default=FALLBACK_MODEL)


def describe_model(name: str, available: bool) -> str:
    """A model's name and size, and its speed where it is known.

    Args:
        name: the name of the model.
        available: whether its weights are on this machine.
    """
    row = VARIANTS[name]
    parts = [name]
    if row.params_millions == row.params_millions:  # NaN: the model's folder is missing
        parts.append(f"{row.params_millions:.0f} M parameters")
    seconds = recall_speed(name) if available else None
    if seconds is not None:
        parts.append(f"{seconds:.2g} s an image here")
    if isinstance(row.weights, Packaged):
        parts.append("in the package" if available else "not in this installation")
    else:
        parts.append("on this machine" if available else "is downloaded first")
    return " · ".join(parts)
