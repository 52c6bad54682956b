"""Models in other runtimes' files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clicks import ClickFiles, ExportError, export_clicks

_LATER = {"ClickFiles": "clicks", "ExportError": "clicks", "export_clicks": "clicks"}

__all__ = ["ClickFiles", "ExportError", "export_clicks"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
