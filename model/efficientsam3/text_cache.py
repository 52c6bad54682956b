"""Features of recent phrases, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Features = tuple[Any, Any]
"""Features (L, C) and mask (L,) of a phrase, as tensors or arrays."""


class TextCache:
    """Features and masks of the phrases that were used last. Threads may share it.

    Args:
        size: Number of phrases that are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._texts: OrderedDict[str, Features] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def clear(self) -> None:
        """Forget all phrases."""
        with self._lock:
            self._texts.clear()

    def read(
        self, phrases: Sequence[str], encode: Callable[[list[str]], Iterable[Features]]
    ) -> list[Features]:
        """Get the features of phrases, and encode those that are not kept.

        Two threads that ask for a new phrase at once may both encode it.

        Args:
            phrases: B phrases.
            encode: Encodes some phrases; gives one result for each.

        Returns:
            B features and masks.
        """
        with self._lock:
            found = {p: self._texts[p] for p in phrases if p in self._texts}
            for phrase in found:
                self._texts.move_to_end(phrase)
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in found]
        if new:
            found.update(zip(new, encode(new), strict=True))
            with self._lock:
                self._texts.update((phrase, found[phrase]) for phrase in new)
                while len(self._texts) > self.size:
                    self._texts.popitem(last=False)
        return [found[phrase] for phrase in phrases]
