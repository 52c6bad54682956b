"""All kinds of inputs, by name."""

from __future__ import annotations

from collections.abc import Callable

from . import annotations, commands, files, operators, prompts, runs
from .runner import Kind

MODULES = (files, annotations, prompts, runs, commands, operators)
ALL: dict[str, Callable[[], Kind]] = {
    kind.name: kind for module in MODULES for kind in module.KINDS
}
