"""Errors of the adapters, and the import of optional packages."""

from __future__ import annotations

import importlib
from typing import Any

from efficientsam3.errors import EfficientSam3Error, MissingPackageError

__all__ = ["AdapterError", "MissingPackageError", "require"]


class AdapterError(EfficientSam3Error, ValueError):
    """Detections, settings or files that an adapter cannot use."""


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package. Nothing is ever installed at run time.

    Args:
        module: Full name of the module.
        extra: Extra of efficientsam3 that installs the package, for the error message.

    Returns:
        The module.

    Raises:
        MissingPackageError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise  # the package is installed and lacks a dependency of its own
        raise MissingPackageError(
            f'this needs the package {package}: pip install "efficientsam3[{extra}]"'
        ) from error
