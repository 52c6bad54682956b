"""Items in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Take items some at a time, none before it is needed.

    Args:
        items: The items.
        size: Items of a batch, from 1. The last batch may have fewer.

    Yields:
        The batches, in order.
    """
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
