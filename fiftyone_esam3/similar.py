"""Everything like the labels that are selected: in their own image, and in others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fiftyone.core.labels as fol
import numpy as np

import efficientsam3 as es3

from .collage import Cutting, cut, paste, without_strip
from .labels import ERROR_FIELD, presence_keys, to_detections
from .prompts import Box, read_prompts
from .runs import (
    ASKED,
    OF_ONE_SAMPLE,
    RunError,
    Step,
    Steps,
    by_chunks,
    check_field,
    check_samples,
    digest,
)
from .shared import COMPUTING, keep, load_core, stamp
from .speed import remember

NEGATIVE_TAGS = {"negative", "not this", "not_this"}
MOST_CUTTINGS = 4


@dataclass(frozen=True)
class Example:
    """A label that shows what is looked for, or what is not. cutting: for other images."""

    sample: str
    label: str
    box: Box
    cutting: Cutting


def find_similar(
    samples: Any,
    chosen: Sequence[Mapping[str, Any]],
    *,
    negative: Sequence[str] = (),
    concept: str | None = None,
    name: str | None = None,
    label_field: str = "similar",
    model: str,
    threshold: float = 0.5,
    max_instances: int | None = None,
    again: bool = False,
    **options: Any,
) -> Steps:
    """Labels what is like some labels.

    Args:
        samples: images to search.
        chosen: labels as the App selects them: ``sample_id``, ``field``, ``label_id`` of each.
            One that is tagged "negative", or has ``sam_label=False``, shows what is not meant.
        negative: ids of further labels that do.
        concept: words that go with the examples; None: their look alone.
        name: the class of what is found; by default that of the examples.
        label_field, model, threshold, max_instances, again, options: as in ``segment_concepts``.

    Raises:
        RunError: nothing selected, or nothing positive, or labels without a box.
    """
    check_samples(samples)
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    dataset = samples._root_dataset
    examples = read_examples(dataset, chosen, negative)
    named = name or concept or next(e.label for e in examples if e.cutting.positive)
    yield Step(0, len(samples), f"loading {model}")
    with COMPUTING:
        core = load_core(model, **options)
    keep(core)
    limits = {"threshold": threshold, "max_instances": max_instances}
    asked = digest(
        {
            "model": model,
            "stamp": stamp(model),
            "examples": [(e.sample, e.box.corners.tolist(), e.cutting.positive) for e in examples],
            "concept": concept,
            "name": named,
            **limits,
            **options,
        }
    )

    def work(view: Any) -> None:
        for sample in view:
            try:
                with COMPUTING:
                    found = search(core, sample.id, sample.filepath, examples, concept, limits)
            except OF_ONE_SAMPLE as error:
                sample[ERROR_FIELD] = f"{type(error).__name__}: {error}"
            else:
                detections = to_detections(found, [named] * len(found))
                presence = presence_keys({named: max(found.concept_presence.values())})
                sample[label_field] = fol.Detections(
                    detections=detections, concept_presence=presence, **{ASKED: asked}
                )
                if sample.has_field(ERROR_FIELD):
                    sample[ERROR_FIELD] = None
            sample.save()

    summary = yield from by_chunks(samples, label_field, asked, work, again=again)
    remember(model, summary)
    count = samples.count(f"{label_field}.detections")
    return {
        **summary,
        "field": label_field,
        "model": model,
        "instances": {named: int(count)},
        "examples": len(examples),
    }


def search(
    core: es3.ImageModel,
    sample: str,
    path: str,
    examples: Sequence[Example],
    concept: str | None,
    limits: Mapping[str, Any],
) -> es3.Instances:
    """What is like the examples in one image.

    Its own positive examples are shown where they are. An image that has none is read beside
    cuttings of the others.
    """
    words = None if concept is None else [concept]
    own = [e for e in examples if e.sample == sample]
    if any(e.cutting.positive for e in own):
        boxes, signs = _boxes(own)
        return core.segment(path, words, boxes=boxes, box_labels=signs, **limits)
    from efficientsam3.pixels import read_rgb

    image = read_rgb(path).permute(1, 2, 0).numpy()
    others = sorted(
        (e for e in examples if e.sample != sample), key=lambda e: not e.cutting.positive
    )
    collage = paste(image, [e.cutting for e in others[:MOST_CUTTINGS]])
    boxes, signs = collage.boxes, collage.signs
    if own:
        shown, not_this = _boxes(own)
        boxes, signs = np.concatenate([boxes, shown]), np.concatenate([signs, not_this])
    found = core.segment(collage.pixels, words, boxes=boxes, box_labels=signs, **limits)
    return without_strip(found, collage.size)


def _boxes(examples: Sequence[Example]) -> tuple[Any, Any]:
    corners = np.stack([e.box.corners for e in examples])
    return corners, np.array([int(e.cutting.positive) for e in examples])


def read_examples(
    dataset: Any, chosen: Sequence[Mapping[str, Any]], negative: Sequence[str] = ()
) -> list[Example]:
    """The selected labels, with their pixels.

    Raises:
        RunError: none is selected or left, none is positive, or one has no box.
    """
    from efficientsam3.pixels import read_rgb

    if not chosen:
        raise RunError(
            "no labels are selected; open a sample, click on boxes or masks, and try again"
        )
    by_sample: dict[str, list[Mapping[str, Any]]] = {}
    for one in chosen:
        by_sample.setdefault(one["sample_id"], []).append(one)
    out = []
    for sample in dataset.select(list(by_sample)):
        image = read_rgb(sample.filepath).permute(1, 2, 0).numpy()
        for one in by_sample[sample.id]:
            label = _find(sample, one)
            if label is None:  # it was deleted since
                continue
            (box,) = read_prompts({"prompt_field": label}, image.shape[:2]).boxes or (None,)
            if box is None:
                raise RunError(f"the box {label.bounding_box} has no area in {sample.filepath}")
            unwanted = label.id in negative or not box.sign or NEGATIVE_TAGS & set(label.tags)
            cutting = cut(image, box.corners.tolist(), not unwanted)
            out.append(Example(sample.id, label.label or "similar", box, cutting))
    if not any(e.cutting.positive for e in out):
        raise RunError(
            "no selected label shows what to look for: all are gone, or tagged 'negative'; select "
            "one that is like what you want"
        )
    return out


def _find(sample: Any, one: Mapping[str, Any]) -> Any:
    """The selected label."""
    held = sample[one["field"]]
    listed = held.detections if isinstance(held, fol.Detections) else [held]
    label = next((d for d in listed if d is not None and d.id == one["label_id"]), None)
    if label is not None and not isinstance(label, fol.Detection):
        raise RunError(
            f"the field {one['field']!r} holds {type(label).__name__}; examples are detections"
        )
    return label
