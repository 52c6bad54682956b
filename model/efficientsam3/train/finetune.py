"""Fine-tune a model on a small data set: one call from annotations to an adapter."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.adapter import ADAPTER_FILE, Adapter
from ..errors import ArgumentError, CheckpointError, shorten
from .logs import Progress
from .recipe import Stage, run_recipe
from .recipes.common import rank_and_world
from .recipes.finetune import RECIPE, Options

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class FinetuneResult:
    """What ``finetune`` returns.

    Attributes:
        adapter: File of the adapter, for ``efficientsam3.load(..., adapter=...)``.
        before: Figures of the model on the held-out images; empty if none are held out, and in all
            but the first of several processes.
        after: The same of the model with the adapter.
        record: The content of the run's ``recipe.json``.
    """

    adapter: Path
    before: Mapping[str, float]
    after: Mapping[str, float]
    record: Mapping[str, Any]


def finetune(
    model: PathLike,
    data: PathLike,
    images: PathLike,
    out: PathLike,
    *,
    held_out_data: PathLike | None = None,
    held_out_images: PathLike | None = None,
    steps: int | None = None,
    overrides: Mapping[str, str] | None = None,
    restart: bool = False,
    accept_changes: bool = False,
    on_stage: Callable[[Stage, bool], None] | None = None,
    on_progress: Callable[[Stage, Progress], None] | None = None,
    **options: Any,
) -> FinetuneResult:
    """Fine-tune a model on annotated images, and write what changed as an adapter.

    A run that was stopped continues when the function is called again in the same way. Figures are
    those of SA-Co on images that are held out, before and after: cgF1, pmF1 and IL_MCC.

    >>> result = finetune("efficientsam3-tinyvit-11m", "coco.json", "images", "runs/boats")
    >>> model = efficientsam3.load("efficientsam3-tinyvit-11m", adapter=result.adapter)

    Args:
        model: A name of ``list_models()``, or a saved folder.
        data: Annotations in COCO's format, whose categories are the phrases, or in SA-Co's.
        images: Folder of the images.
        out: Folder of the run; it gets ``adapter.safetensors``.
        held_out_data: Annotations of images for the figures. None: some images are held out.
        held_out_images: Folder of these images.
        steps: Steps of training. None: by the number of images.
        overrides: Settings of the training loop as text, by ``loop.NAME``; see ``LoopSettings``.
        restart: Delete the run in the folder, and start again.
        accept_changes: Continue although options or data differ from those of the folder's run.
        on_stage: See ``run_recipe``.
        on_progress: See ``run_recipe``.
        **options: Other fields of ``train.recipes.finetune.Options``: ``parts``, ``adapt``,
            ``rank``, ``held_out``, ``batch``, ``lr``, ``seed`` and more.

    Returns:
        The adapter and the figures.

    Raises:
        ArgumentError: An option does not exist.
        SettingsError: An option has a wrong value.
        DataError: The data are damaged or incomplete, or have nothing to learn from.
        CheckpointError: The folder holds another run, or a finished one without its adapter.
        TrainingStopped: A signal stopped the run; everything is saved.
        EfficientSam3Error: As ``load`` and ``run_recipe``.
    """
    known = [f.name for f in dataclasses.fields(Options)]
    if unknown := sorted(set(options) - set(known)):
        raise ArgumentError(f"unknown options {', '.join(unknown)}; known: {', '.join(known)}")
    given = {**options, "data": data, "images": images, "model": _model(model)}
    given |= {"held_out_data": held_out_data, "held_out_images": held_out_images}
    for name in ("data", "images", "held_out_data", "held_out_images", "checkpoint", "base"):
        if given.get(name):  # absolute, so that a run can be continued from another folder
            given[name] = str(Path(given[name]).absolute())
    for name in ("adapt", "parts"):
        if isinstance(given.get(name), str):
            raise ArgumentError(f"{name} is a list of parts; got {shorten(given[name])}")
        if given.get(name) is not None:
            given[name] = tuple(given[name])
    # Options hold a missing text as an empty one.
    texts = {f.name for f in dataclasses.fields(Options) if isinstance(f.default, str)}
    given = {k: "" if v is None and k in texts else v for k, v in given.items()}
    record = run_recipe(
        dataclasses.replace(RECIPE, options=Options(**given)),
        Path(out),
        steps=steps,
        overrides=overrides,
        restart=restart,
        accept_changes=accept_changes,
        on_stage=on_stage,
        on_progress=on_progress,
    )
    path = Path(out) / ADAPTER_FILE
    if rank_and_world()[0]:  # one process writes
        return FinetuneResult(path, {}, {}, record)
    if not path.is_file():
        raise CheckpointError(
            f"{path} was moved or deleted, and the run is done: put it back, or start again with "
            "--restart (restart=True)"
        )
    figures = Adapter.load(path).figures
    return FinetuneResult(path, figures.get("before", {}), figures.get("after", {}), record)


def _model(model: PathLike) -> str:
    """A model's name; a folder by its absolute path."""
    return str(Path(model).absolute()) if Path(model).is_dir() else str(model)
