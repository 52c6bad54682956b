"""Evaluate a model on images: predict every pair of a split, then score the predictions."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..concepts import Concepts, PhraseWarning, read_classes
from ..errors import AnnotationError, ImageError, join_names
from ..io.batches import batched
from ..io.identity import content_digest, identity
from ..io.jsonl import SUFFIX, RunFile, describe_changes, read_head
from ..io.paths import describe_unnamed
from ..prompts import check_batch_size
from .errors import PredictionError
from .ground_truth import GroundTruth
from .model_identity import model_identity
from .predict import predict_pairs
from .predictions import PREDICTIONS, last_records, read_predictions
from .report import Progress, Report
from .score import check_settings, score_images

if TYPE_CHECKING:
    from torch import Tensor

    from ..predictor import ImageModel

logger = logging.getLogger(__name__)

MIN_SCORE = 0.05
"""Default score above which predictions are kept: average precision needs the low ones too."""


def evaluate_images(
    model: ImageModel,
    truth: GroundTruth,
    images: str | Path | Sequence[str | Path],
    run_file: str | Path,
    *,
    prompt: str = "text",
    iou: str = "mask",
    threshold: float = 0.5,
    min_score: float = MIN_SCORE,
    restart: bool = False,
    skip_missing: bool = False,
    ap: bool = True,
    concepts: Concepts | None = None,
    batch_size: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Predict every pair of a split with a model, and score the predictions.

    Each image is encoded once for all its phrases. Its predictions are written to ``run_file`` at
    once; a stopped run continues there and gives the same metrics. Images that have changed are
    predicted again; where the model, the annotations, ``prompt`` or ``min_score`` differ from those
    of the earlier run, all are, and a warning is logged.

    Args:
        model: The model.
        truth: The split.
        images: The folder of the images, or several that are searched in order.
        run_file: The file of predictions; its name ends in .jsonl.
        prompt: "text": the phrase. "exemplar": the box of the largest instance. "box": the box of
            each instance, to the interactive head.
        iou: What is compared, "mask" or "box".
        threshold: Predictions count that score at least this; not for average precision.
        min_score: Predictions are kept that score more than this, at most ``threshold``.
        restart: Predict all images again.
        skip_missing: Leave out images that are missing or cannot be read, and report them.
        ap: Whether to compute COCO's average precision.
        concepts: With prompt "text": a mapping from phrases of the split, such as categories, to
            the phrases that the model is asked instead.
        batch_size: Images that are in memory, and are encoded, together. With 1, a run that was
            stopped and continued gives the same to the bit; with more, to rounding.
        progress: Called after each image.

    Raises:
        AnnotationError: images are missing.
        ImageError: an image cannot be read.
        MissingAbilityError: the model cannot be prompted in this way.
        PromptError: ``batch_size`` is not a whole number from 1.
        PredictionError: a setting is wrong, or the model has no masks to compare.
        RunFileError: ``run_file`` is another file.
    """
    from ..io.images import read_rgb_of_size

    check_settings(prompt, iou, threshold, min_score)
    _check_abilities(model, prompt, iou)
    classes = None if concepts is None else check_concepts(concepts, truth, prompt)
    pairs = truth.images
    files = find_image_files(truth, images, skip_missing=skip_missing)
    identities = {name: identity(files[name]) if name in files else None for name in pairs}
    asked = {
        **model_identity(model),
        "prompt": prompt,
        "min_score": min_score,
        "annotations": content_digest(truth.paths),
        "negatives": truth.negatives,
        "concepts": classes,
    }
    start, failed = time.perf_counter(), 0
    with RunFile(run_file, PREDICTIONS, asked, restart=restart) as run, warnings.catch_warnings():
        # Phrases of a split are not what a user types.
        warnings.simplefilter("ignore", PhraseWarning)
        pending = run.pending(identities)
        before = len(pairs) - len(pending)
        done = before
        for batch in batched(pending, check_batch_size(batch_size)):
            read: dict[str, Tensor] = {}
            errors: dict[str, ImageError] = {}
            for name in batch:
                try:
                    if name not in files:
                        raise ImageError(f"there is no image {name} in {_listed(images)}")
                    read[name] = read_rgb_of_size(files[name], pairs[name][0].size)
                except ImageError as error:
                    if not skip_missing:
                        record = f"image id {pairs[name][0].key[0]!r} of {truth.paths[0]}"
                        raise ImageError(f"{record}: {error}") from error
                    errors[name] = error
            encoded = dict(
                zip(read, model.encode([*read.values()], batch_size=batch_size), strict=True)
            )
            for name in batch:
                if name in errors:
                    run.fail(name, str(errors[name]), identity=identities[name])
                else:
                    image = encoded[name]
                    found = predict_pairs(model, image, pairs[name], prompt, min_score, classes)
                    run.add(name, found, identity=identities[name])
                done, failed = done + 1, failed + (name in errors)
                if progress is not None:
                    seconds = time.perf_counter() - start
                    progress(Progress(done, len(pairs), before, failed, seconds))
    return score_images(
        truth,
        read_predictions(run_file, truth),
        prompt=prompt,
        iou=iou,
        threshold=threshold,
        ap=ap,
        settings={"model": model.name, "min_score": min_score},
    )


def warn_of_changes(
    run_file: str | Path, truth: GroundTruth, images: str | Path | Sequence[str | Path] = ()
) -> None:
    """Log what changed since the predictions of a run file were made; they are scored as they are.

    Args:
        run_file: A file of ``evaluate_images``; other files do not say what they were made of.
        truth: The split.
        images: The folder of the images, or several.

    Raises:
        AnnotationError: there is no such folder, or no image of the split in it.
        RunFileError: ``run_file`` is another file.
    """
    path = Path(run_file)
    if path.suffix != SUFFIX:
        return
    made_for = read_head(path, PREDICTIONS)["asked"].get("annotations")
    if made_for not in (None, content_digest(truth.paths)):
        logger.warning(
            "%s was predicted for other content of the annotations; with --model all is predicted "
            "again",
            path,
        )
    if not images:
        return
    files = find_image_files(truth, images, skip_missing=True)
    records = last_records(path)
    changes = {
        name: describe_changes(records[name]["identity"], identity(file))
        for name, file in files.items()
        if name in records
    }
    if changed := [name for name, change in changes.items() if change]:
        logger.warning(
            "%s was predicted from other files for %d of %d images, the first of them %s: %s; with "
            "--model these are predicted again",
            *(path, len(changed), len(files), changed[0], changes[changed[0]]),
        )


def find_image_files(
    truth: GroundTruth, images: str | Path | Sequence[str | Path], *, skip_missing: bool = False
) -> dict[str, Path]:
    """Find the images of a split, by their path below a folder or their bare name in it.

    Args:
        truth: The split.
        images: The folder of the images, or several that are searched in order.
        skip_missing: Whether images may be missing, if not all are.

    Returns:
        The file of each image by its name in the annotations.

    Raises:
        AnnotationError: a folder or images are missing; the message names some.
    """
    folders = _folders(images)
    for folder in folders:
        if not folder.is_dir():
            raise AnnotationError(f"there is no folder of images at {folder}")
    found, missing = {}, []
    for name, pairs in truth.images.items():
        places = [place for f in folders for place in (f / name, f / Path(name).name)]
        file = next((place for place in places if os.path.isfile(place)), None)
        if file is not None:
            found[name] = file
        else:
            missing.append(f"{name} (image id {pairs[0].key[0]!r})")
    if missing and (not skip_missing or not found):
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise AnnotationError(
            f"{len(missing)} of {len(truth.images)} images of {truth.paths[0]} are not in "
            f"{_listed(images)}: {listed}. Name the right folder, or leave them out "
            "(--skip-missing, skip_missing=True)"
        )
    return found


def describe_passed_over(images: str | Path | Sequence[str | Path], found: Iterable[Path]) -> str:
    """Count the files of the folders of images that a split does not name, by suffix.

    Args:
        images: The folder of the images, or several.
        found: The images of the split, as ``find_image_files`` gives them.

    Returns:
        One sentence; "" where there are none.
    """
    return describe_unnamed(_folders(images), found)


def _folders(images: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(f) for f in ([images] if isinstance(images, (str, Path)) else images)]


def check_concepts(
    concepts: Concepts, truth: GroundTruth, prompt: str = "text"
) -> dict[str, list[str]]:
    """Check a mapping from phrases of a split to the phrases that a model is asked instead.

    Args:
        concepts: The mapping.
        truth: The split.
        prompt: How the model is prompted.

    Returns:
        The mapping, normalized.

    Raises:
        PredictionError: The model is not prompted by text, or the split has no such phrase.
        PromptError: A phrase is wrong.
    """
    if prompt != "text":
        raise PredictionError(f"concepts are asked with prompt 'text'; got prompt {prompt!r}")
    classes = read_classes(concepts) or {}
    known = {pair.phrase for pair in truth.pairs}
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise PredictionError(
            f"{truth.paths[0]} does not ask for {join_names(unknown)}; it asks for "
            f"{join_names(sorted(known), 8)}. A mapping has the form {{category: [phrases]}}"
        )
    return classes


def _listed(images: str | Path | Sequence[str | Path]) -> str:
    return str(images) if isinstance(images, (str, Path)) else " or ".join(map(str, images))


def _check_abilities(model: ImageModel, prompt: str, iou: str) -> None:
    """Raise before hours of work what the model cannot do."""
    model.require({"text": "concepts", "exemplar": "exemplars", "box": "interactive"}[prompt])
    if iou == "mask" and prompt != "box" and "masks" not in model.abilities:
        raise PredictionError(
            f"{model.name} has no mask head; compare boxes instead (--iou box, iou='box')"
        )
