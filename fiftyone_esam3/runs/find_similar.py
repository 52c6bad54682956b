"""Find everything that looks like selected labels, in their own image and in others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fiftyone.core.labels as fol
import numpy as np
import numpy.typing as npt

import efficientsam3 as es3
from efficientsam3.errors import format_numbers, shorten
from efficientsam3.io.images import read_rgb
from efficientsam3.prompts import check_limits

from ..image_items import Item
from ..labels import to_labels
from ..ownership.merge import OVERLAP, REFUSE, Found, group_by_class
from ..prompts import Box, read_prompts
from .checks import check_field, check_samples, whole_samples
from .collage import Cutout, cut_out, make_collage, without_strip
from .image_task import LabelTask
from .run import digest_settings, run_over_images
from .steps import RunError, Steps

NEGATIVE_TAGS = {"negative", "not this", "not_this"}
MAX_CUTOUTS = 4


@dataclass(frozen=True)
class Example:
    """A selected label.

    Attributes:
        sample: the id of its sample.
        label: its class name.
        box: its box in its own image.
        cutout: its pixels, for other images.
    """

    sample: str
    label: str
    box: Box
    cutout: Cutout


def find_similar(
    samples: Any,
    selected: Sequence[Mapping[str, Any]],
    *,
    negative: Sequence[str] = (),
    concept: str | None = None,
    name: str | None = None,
    label_field: str = "similar",
    model: str,
    threshold: float = 0.5,
    max_instances: int | None = None,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Segment everything that looks like selected labels.

    Args:
        samples: the images to search. For a view of patches, the images that they were cut from.
        selected: labels as the App selects them: ``sample_id``, ``field`` and ``label_id`` of
            each. A label with the tag "negative", or with ``sam_label=False``, is a negative
            example.
        negative: ids of further labels that are negative examples.
        concept: a phrase that goes with the examples. None: the examples alone.
        name: the class name of what is found. None: the phrase, or the class of the examples.
        label_field: the field for ``Detections``. It is made if it does not exist.
        model: a model name, or the folder of a saved model.
        threshold: see ``ImageModel.segment``.
        max_instances: see ``ImageModel.segment``.
        existing: what happens to labels that the field holds; see ``segment_concepts``.
        overlap: see ``segment_concepts``.
        restart: also search samples that were searched with these examples and settings.
        num_workers: the number of threads that read images ahead.
        **options: further arguments of ``efficientsam3.load``.

    Raises:
        RunError: no label is selected, none is positive, or one has no box.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
        PromptError: a limit is invalid.
    """
    samples = whole_samples(samples)
    check_samples(samples)
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    limits: dict[str, Any] = {"threshold": threshold, "max_instances": max_instances}
    check_limits(**limits)
    examples = read_examples(samples._root_dataset, selected, negative)
    found_name = name or concept or next(e.label for e in examples if e.cutout.positive)

    def answer(core: es3.ImageModel, sample: Any, item: Item, asked: Any) -> Found:
        found = search_image(core, sample.id, item.pixels, examples, concept, limits)
        presence = {found_name: max(found.concept_presence.values())}
        named = replace(found, labels=[found_name] * len(found), concept_presence=presence)
        return group_by_class(to_labels(named), asked)

    arguments = {
        "examples": [(e.sample, e.box.corners.tolist(), e.cutout.positive) for e in examples],
        "concept": concept,
        "name": found_name,
        **limits,
    }
    questions = {found_name: digest_settings(model, {**arguments, **options})}
    summary = yield from run_over_images(
        samples,
        LabelTask(label_field, lambda _: questions, answer, existing=existing, overlap=overlap),
        model=model,
        request=arguments,
        ability="exemplars",
        restart=restart,
        num_workers=num_workers,
        options=options,
    )
    count = int(samples.count(f"{label_field}.detections"))
    return {**summary, "instances": {found_name: count}, "examples": len(examples)}


def search_image(
    core: es3.ImageModel,
    sample: str,
    image: npt.NDArray[np.uint8],
    examples: Sequence[Example],
    concept: str | None,
    limits: Mapping[str, Any],
) -> es3.Instances:
    """Find what looks like the examples in one image.

    An image with positive examples of its own is searched with these. Any other image is read
    beside cutouts of the examples.

    Args:
        core: the model.
        sample: the id of the image's sample.
        image: (H, W, 3) uint8 RGB.
        examples: the examples of all samples.
        concept: a phrase that goes with the examples, or None.
        limits: ``threshold`` and ``max_instances``.
    """
    words = None if concept is None else [concept]
    own = [e for e in examples if e.sample == sample]
    if any(e.cutout.positive for e in own):
        boxes, signs = _boxes(own)
        return core.segment(image, words, boxes=boxes, box_labels=signs, **limits)
    others = [e.cutout for e in examples if e.sample != sample]
    others.sort(key=lambda cutout: not cutout.positive)
    collage = make_collage(image, others[:MAX_CUTOUTS])
    boxes, signs = collage.boxes, collage.signs
    if own:
        own_boxes, own_signs = _boxes(own)
        boxes, signs = np.concatenate([boxes, own_boxes]), np.concatenate([signs, own_signs])
    found = core.segment(collage.pixels, words, boxes=boxes, box_labels=signs, **limits)
    return without_strip(found, collage.size)


def _boxes(examples: Sequence[Example]) -> tuple[Any, Any]:
    corners = np.stack([e.box.corners for e in examples])
    return corners, np.array([int(e.cutout.positive) for e in examples])


def read_examples(
    dataset: Any, selected: Sequence[Mapping[str, Any]], negative: Sequence[str] = ()
) -> list[Example]:
    """Read the selected labels and their pixels.

    Args:
        dataset: the dataset of the labels.
        selected: see :func:`find_similar`.
        negative: see :func:`find_similar`.

    Raises:
        RunError: no label is selected, all were deleted, none is positive, or one has no box.
    """
    keys = ("sample_id", "field", "label_id")
    if isinstance(selected, str) or not all(
        isinstance(one, Mapping) and all(key in one for key in keys) for one in selected
    ):
        raise RunError(
            f"selected is a list of labels, each with {', '.join(keys)}, as "
            f"session.selected_labels gives them; got {shorten(selected)}"
        )
    if not selected:
        raise RunError(
            "no labels are selected; open a sample, click on boxes or masks, and try again, or "
            "select patches in a view of patches"
        )
    by_sample: dict[str, list[Mapping[str, Any]]] = {}
    for one in selected:
        by_sample.setdefault(one["sample_id"], []).append(one)
    out = []
    for sample in dataset.select(list(by_sample)):
        image = read_rgb(sample.filepath).permute(1, 2, 0).numpy()
        for one in by_sample[sample.id]:
            label = _find_label(sample, one)
            if label is None:  # deleted since it was selected
                continue
            (box,) = read_prompts({"prompt_field": label}, image.shape[:2]).boxes or (None,)
            if box is None:
                shown = format_numbers(np.float32(label.bounding_box))
                raise RunError(f"the box {shown} has no area in {sample.filepath}")
            unwanted = label.id in negative or not box.sign or NEGATIVE_TAGS & set(label.tags)
            cutout = cut_out(image, box.corners.tolist(), not unwanted)
            out.append(Example(sample.id, label.label or "similar", box, cutout))
    if not any(e.cutout.positive for e in out):
        raise RunError(
            "no selected label shows what to look for: all are deleted, or tagged 'negative'; "
            "select one that is like what you want"
        )
    return out


def _find_label(sample: Any, selected: Mapping[str, Any]) -> Any:
    held = sample[selected["field"]]
    if held is not None and not isinstance(held, (fol.Detections, fol.Detection)):
        raise RunError(
            f"the field {selected['field']!r} holds {type(held).__name__}; examples are detections"
        )
    listed = held.detections if isinstance(held, fol.Detections) else [held]
    return next((d for d in listed if d is not None and d.id == selected["label_id"]), None)
