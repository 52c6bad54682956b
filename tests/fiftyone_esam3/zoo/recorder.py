"""A core model that records its calls."""

from __future__ import annotations

from typing import Any


class Recorder:
    """Record the calls of a core model."""

    def __init__(self, core: Any) -> None:
        self.core, self.calls = core, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def encode(self, image: Any) -> Any:
        self.calls.append(("encode", {}))
        return self.core.encode(image)

    def segment(self, image: Any, concepts: Any = None, **kwargs: Any) -> Any:
        self.calls.append((concepts, kwargs))
        return self.core.segment(image, concepts, **kwargs)
