"""What the adapters refuse, and how they miss a package."""

from __future__ import annotations

import importlib
from typing import Any

from efficientsam3.errors import EfficientSam3Error


class AdapterError(EfficientSam3Error, ValueError):
    """Detections, settings or files that an adapter cannot use."""


class MissingPackageError(EfficientSam3Error, ImportError):
    """An optional package is not installed. It is never installed in mid-run."""


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # it is there, and lacks something of its own
        raise MissingPackageError(
            f'this needs the package {package}: pip install "efficientsam3[{extra}]"'
        ) from error
