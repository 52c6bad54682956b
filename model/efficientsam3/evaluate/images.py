"""Evaluation on images: ask a model about every pair of a split, and score what it says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import ImageError
from .ask import ask
from .errors import AnnotationError, PredictionError
from .journal import Journal
from .predictions import read_predictions
from .records import Record
from .score import Progress, Report, check_options, score_images
from .truth import Truth

if TYPE_CHECKING:
    from ..image import ImageModel

FLOOR = 0.05
"""Predictions are kept from this score: average precision needs more than what is shown."""


def evaluate_images(
    model: ImageModel,
    truth: Truth,
    images: str | Path | Sequence[str | Path],
    journal: str | Path,
    *,
    prompt: str = "text",
    iou: str = "mask",
    threshold: float = 0.5,
    floor: float = FLOOR,
    restart: bool = False,
    skip_missing: bool = False,
    precision: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Ask ``model`` about every pair, then score its answers.

    Each picture is encoded once, and its phrases are asked together. Answers go to ``journal`` at
    once; a run that was stopped goes on there, and gives the same figures.

    Args:
        images: the folder of the pictures, or several that are searched in order.
        journal: a .jsonl file.
        prompt: a key of ``PROMPTS``. iou, threshold, precision: see ``score_images``.
        floor: predictions that score more than this are kept.
        restart: forget what an earlier run did.
        skip_missing: leave out pictures that are missing or cannot be read, and report them.
        progress: called after each picture.

    Raises:
        AnnotationError, ImageError, ResumeError: the message says the way out.
    """
    check_options(prompt, iou, threshold, floor)
    _need_abilities(model, prompt, iou)
    groups = truth.pictures
    files = find_pictures(truth, images, skip_missing=skip_missing)
    start, failed = time.perf_counter(), 0
    with Journal(journal, run_identity(model, truth, prompt, floor), restart=restart) as book:
        before = sum(picture in book.done for picture in groups)
        done = before
        for picture, pairs in groups.items():
            if picture in book.done:
                continue
            file = files.get(picture)
            try:
                if file is None:
                    raise ImageError(f"there is no picture {picture} in {_listed(images)}")
                book.add(picture, ask(model, file, pairs, prompt, floor))
            except ImageError as error:
                if not skip_missing:
                    record = f"image id {pairs[0].key[0]!r} of {truth.paths[0]}"
                    raise ImageError(f"{record}: {error}") from error
                book.fail(picture, str(error))
                failed += 1
            done += 1
            if progress is not None:
                progress(Progress(done, len(groups), before, failed, time.perf_counter() - start))
    return score_images(
        truth,
        read_predictions(journal, truth),
        prompt=prompt,
        iou=iou,
        threshold=threshold,
        precision=precision,
        settings={"model": model.name, "floor": floor},
    )


def find_pictures(
    truth: Truth, images: str | Path | Sequence[str | Path], *, skip_missing: bool = False
) -> dict[str, Path]:
    """Where the pictures are: by the file's path below a folder, or its bare name there.

    Raises:
        AnnotationError: a folder or pictures are missing; names some, and their records.
    """
    folders = [Path(f) for f in ([images] if isinstance(images, (str, Path)) else images)]
    for folder in folders:
        if not folder.is_dir():
            raise AnnotationError(f"there is no folder of images at {folder}")
    out, missing = {}, []
    for picture, pairs in truth.pictures.items():
        places = [place for f in folders for place in (f / picture, f / Path(picture).name)]
        file = next((place for place in places if place.is_file()), None)
        if file is not None:
            out[picture] = file
        else:
            missing.append(f"{picture} (image id {pairs[0].key[0]!r})")
    if missing and (not skip_missing or not out):
        total = len(truth.pictures)
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise AnnotationError(
            f"{len(missing)} of {total} pictures of {truth.paths[0]} are not in "
            f"{_listed(images)}: {listed}. Name the right folder, or leave them out "
            "(--skip-missing, skip_missing=True)"
        )
    return out


def _listed(images: str | Path | Sequence[str | Path]) -> str:
    return str(images) if isinstance(images, (str, Path)) else " or ".join(map(str, images))


def _need_abilities(model: ImageModel, prompt: str, iou: str) -> None:
    """Say before hours of work what the model cannot do."""
    needed = {"text": "concepts", "exemplar": "exemplars", "box": "interactive"}[prompt]
    if needed not in model.abilities:
        model.require(needed)
    if iou == "mask" and prompt != "box" and "masks" not in model.abilities:
        raise PredictionError(
            f"{model.name} has no mask head; compare boxes instead (--iou box, iou='box')"
        )


def run_identity(model: ImageModel, truth: Truth, prompt: str, floor: float) -> Record:
    """What answers depend on, as plain values: a run goes on only where all is the same."""
    return {
        "efficientsam3": __version__,
        "model": model.name,
        "weights": weights_digest(model),
        "context": model.config.context,
        "dtype": str(model.dtype).removeprefix("torch."),
        "speed": model.speed,
        "prompt": prompt,
        "floor": floor,
        "annotations": truth.digest(),
        "negatives": truth.negatives,
    }


def weights_digest(model: ImageModel) -> str:
    """What tells whether weights are the same: of each tensor its shape and some of its values."""
    import torch

    out = hashlib.sha256()
    for name, tensor in sorted(model.net.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 1024)].to("cpu", torch.float32)
        out.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return out.hexdigest()
