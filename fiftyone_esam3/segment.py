"""Labels for many samples: of concepts, or one mask for each box or keypoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fiftyone.core.fields as fof
import fiftyone.core.labels as fol

from .prompts import unique
from .runs import ASKED, RunError, Step, Steps, by_chunks, check_field, check_samples, digest
from .shared import COMPUTING, keep, stamp
from .source import load_model
from .speed import remember

SHAPES = (fol.Detections, fol.Detection, fol.Keypoints, fol.Keypoint)
WORDS = (fol.Classification, fol.Classifications, fol.Detections, fol.Detection)


def segment_concepts(
    samples: Any,
    concepts: Sequence[str] = (),
    *,
    text_field: str | None = None,
    label_field: str = "esam3",
    model: str,
    threshold: float = 0.5,
    max_instances: int | None = None,
    nms: float | None = None,
    again: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Labels every instance of some concepts.

    Args:
        samples: images, or a view of them.
        concepts: phrases. text_field: a field with each sample's own, instead.
        label_field: gets ``Detections``; made if need be.
        model: a name of the table, or a folder of a saved model.
        threshold, max_instances, nms: see ``ImageModel.segment``.
        again: label samples anew that have this question's labels.
        num_workers: processes that read images; 0 in the App.
        **options: of ``efficientsam3.load``: device, dtype, speed, ...

    Raises:
        RunError, PromptError, MissingAbilityError: before any work, where no sample can be done.
    """
    check_samples(samples)
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    words = unique(concepts)
    if not words and text_field is None:
        raise RunError("nothing to look for: name a concept, or a field with each sample's own")
    if text_field is not None:
        check_words(samples, text_field)
    if not 0 <= threshold <= 1:
        raise RunError(f"threshold is {threshold}; it can be 0 to 1")
    fields = {} if text_field is None else {"text_prompt_field": text_field}
    limits = {"threshold": threshold, "max_instances": max_instances, "nms": nms}
    arguments = {"classes": list(words) or None, **limits, **options}
    return (yield from _label(samples, label_field, model, arguments, fields, again, num_workers))


def segment_prompts(
    samples: Any,
    prompt_field: str,
    *,
    label_field: str | None = None,
    model: str,
    again: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Gives every box, or every keypoint's points, the mask of the object that it shows.

    Args:
        prompt_field: Detections or Keypoints. label_field: by default ``<prompt_field>_masks``.

    The rest is as in :func:`segment_concepts`.
    """
    check_samples(samples)
    check_field(samples, prompt_field, kinds=SHAPES)
    label_field = label_field or f"{prompt_field}_masks"
    if label_field == prompt_field:
        raise RunError(
            f"{prompt_field!r} holds the prompts, which would be overwritten; name another field"
        )
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    fields = {"prompt_field": prompt_field}
    arguments = {"operation_mode": "visual", **options}
    return (yield from _label(samples, label_field, model, arguments, fields, again, num_workers))


def check_words(samples: Any, name: str) -> None:
    """Refuses a field that cannot hold concepts.

    Raises:
        RunError: it is not there, or holds neither text nor labels.
    """
    field = samples.get_field_schema().get(name)
    if isinstance(field, fof.StringField):
        return
    if isinstance(field, fof.ListField) and not isinstance(field.field, fof.FloatField):
        return
    check_field(samples, name, kinds=WORDS)


def _label(
    samples: Any,
    label_field: str,
    name: str,
    arguments: dict[str, Any],
    fields: dict[str, str],
    again: bool,
    num_workers: int,
) -> Steps:
    yield Step(0, len(samples), f"loading {name}")
    with COMPUTING:
        model = load_model(name, **arguments)
    keep(model.core)
    model.check(fields)
    asked = digest({"model": name, "stamp": stamp(name), **arguments, **fields})
    model.marks = {ASKED: asked}

    def work(view: Any) -> None:
        with COMPUTING:
            view.apply_model(
                model,
                label_field=label_field,
                num_workers=num_workers,
                batch_size=4 if num_workers else 1,
                skip_failures=False,
                progress=False,
                **fields,
            )

    least = 16 * num_workers or 1  # each chunk starts its own processes
    summary = yield from by_chunks(samples, label_field, asked, work, again=again, least=least)
    remember(name, summary)
    found = samples.count_values(f"{label_field}.detections.label")
    counts = {str(k): int(n) for k, n in sorted(found.items(), key=lambda kv: -kv[1])[:20]}
    return {**summary, "field": label_field, "model": name, "instances": counts}
