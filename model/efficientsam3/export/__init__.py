"""Models in other runtimes' files."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .clicks import ClickFiles, export_clicks
    from .errors import ExportError
    from .folder import export_model

_MODULES = {
    ".clicks": "ClickFiles export_clicks",
    ".errors": "ExportError",
    ".folder": "export_model",
}

__all__ = ["ClickFiles", "ExportError", "export_clicks", "export_model"]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
