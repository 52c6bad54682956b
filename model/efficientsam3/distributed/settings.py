"""What is asked of the workers, in a form that every machine understands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoints.sources import weight_sources
from ..errors import ArgumentError
from ..io.identity import content_digest
from ..variants import find_variant

LOAD_OPTIONS = ("checkpoint", "text", "context", "base", "device", "dtype", "speed", "backend")


@dataclass(frozen=True)
class Work:
    """What a worker does with an image.

    Attributes:
        model: A name of ``list_models()``, or the folder of a saved model, on every machine.
        load: Further arguments of ``efficientsam3.load``.
        arguments: Arguments of ``ImageModel.segment``; "concepts" is missing where each row has
            its own.
        batch_size: Images that are encoded together; None: what suits the device.
        cpus: Cores of a worker.
        tracking: How videos are tracked: "tracker" and "stride", as ``efficientsam3.track`` takes
            them.
    """

    model: str
    load: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    cpus: int = 1
    tracking: Mapping[str, Any] = field(default_factory=dict)


def model_asked(work: Work) -> dict[str, Any]:
    """The model and its weights, as plain values that are the same on all machines.

    Files are told by their content, and not by when they were written: they are written anew on
    each machine.

    Args:
        work: What is asked.

    Raises:
        ArgumentError: An option is none of ``efficientsam3.load``.
        UnknownModelError: There is no such model.
    """
    unknown = sorted(set(work.load) - set(LOAD_OPTIONS))
    if unknown:
        raise ArgumentError(
            f"load() has no argument {unknown[0]!r}; it has {', '.join(LOAD_OPTIONS)}"
        )
    checkpoint, base = work.load.get("checkpoint"), work.load.get("base")
    files, hub = weight_sources(work.model, checkpoint, base)
    weights = hub | {file.name: content_digest([file]) for file in files}
    folder = Path(work.model)
    name = folder.resolve().name if folder.is_dir() else find_variant(work.model).name
    kept = ("text", "context", "dtype", "speed", "backend")
    options = {k: str(work.load[k]) for k in kept if work.load.get(k) is not None}
    return {"efficientsam3": __version__, "model": name, "weights": weights, **options}


def digest(asked: Mapping[str, Any]) -> str:
    """A digest of what was asked, for the names of shards.

    Args:
        asked: Plain values.

    Returns:
        8 hexadecimal digits.
    """
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
