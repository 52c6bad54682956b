"""Label many samples: all instances of concepts, all things, or the object of each prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import fiftyone.core.labels as fol

from efficientsam3 import ImageModel
from efficientsam3.concepts import Concepts, plain_concepts, read_classes
from efficientsam3.everything import check_everything
from efficientsam3.masks.nms import check_overlap
from efficientsam3.masks.tiles import check_tile, parse_tile
from efficientsam3.outputs import OBJECT
from efficientsam3.prompts import check_limits, check_presence

from .. import inference
from ..image_items import Item
from ..labels import to_labels
from ..ownership.merge import OVERLAP, REFUSE, Found, group_by_class
from ..prompts import Prompts, prompt_digests, read_sample_concepts
from .checks import (
    SHAPE_LABELS,
    check_field,
    check_samples,
    check_text_field,
    read_patches,
    whole_samples,
)
from .image_task import LabelTask
from .run import class_settings, count_instances, digest_settings, run_over_images
from .steps import RunError, Steps


def segment_concepts(
    samples: Any,
    concepts: Concepts = (),
    *,
    text_field: str | None = None,
    label_field: str = "esam3",
    model: str,
    threshold: float = 0.5,
    presence: str = "multiply",
    max_instances: int | None = None,
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    tile: Any = None,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
    num_workers: int = 0,
    batch_size: int | None = None,
    **options: Any,
) -> Steps:
    """Segment all instances of concepts.

    Concepts that an earlier run with the same settings searched a sample for are not searched for
    again: their labels stay as people left them. New concepts are added to them.

    Args:
        samples: images, or a view of them.
        concepts: phrases, or a mapping of class names to phrases: the labels get the class.
        text_field: a field with the concepts of each sample, instead of ``concepts``.
        label_field: the field for ``Detections``. It is made if it does not exist.
        model: a model name, or the folder of a saved model.
        threshold: see ``ImageModel.segment``.
        presence: see ``ImageModel.segment``.
        max_instances: see ``ImageModel.segment``.
        nms: see ``ImageModel.segment``.
        class_agnostic: see ``ImageModel.segment``. Labels that are there are not compared.
        overlap_metric: see ``ImageModel.segment``.
        tile: see ``ImageModel.segment``; also text such as "1008,128", as forms give it.
        existing: what happens to labels that the field holds. "refuse" refuses where people's
            labels are at stake, and replaces others of these questions; "add" keeps all and
            appends what overlaps none; "replace" replaces unchanged labels of earlier runs, and
            keeps those of people; "overwrite" replaces all.
        overlap: the IoU from which a new label counts as one that is there, in [0, 1].
        restart: also ask questions that were answered with these settings.
        num_workers: the number of threads that read images ahead.
        batch_size: the number of images that are encoded together. More than one changes scores by
            rounding. None: 1 on a CPU, 16 elsewhere. Where tiles are read, it is 1.
        **options: further arguments of ``efficientsam3.load``: device, dtype, speed, ...

    Raises:
        RunError: the samples or fields cannot be used.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
        PromptError: a concept or a limit is invalid.
        MissingAbilityError: the weights cannot do it.
    """
    check_samples(samples)
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    classes = {} if text_field and not concepts else read_classes(concepts) or {}
    if text_field is not None:
        check_text_field(samples, text_field)
    limits: dict[str, Any] = {"threshold": threshold, "max_instances": max_instances, "nms": nms}
    check_limits(**limits)
    check_presence(presence)
    if presence != "multiply":
        limits["presence"] = presence
    check_overlap(class_agnostic, overlap_metric)
    if class_agnostic or overlap_metric != "iou":
        limits.update(class_agnostic=class_agnostic, overlap_metric=overlap_metric)
    tile = parse_tile(tile) if isinstance(tile, str) else tile
    if check_tile(tile) is not None:
        limits["tile"] = list(tile) if isinstance(tile, tuple) else tile

    settings = digest_settings(model, {**limits, **options})
    fields = {} if text_field is None else {"text_prompt_field": text_field}

    def questions(prompts: Mapping[str, Any]) -> dict[str, str]:
        if text_field is not None:
            own = read_sample_concepts(prompts.get("text_prompt_field"))
            return class_settings(own, settings)
        return class_settings(classes, settings)

    def answer(core: ImageModel, sample: Any, item: Item, asked: Collection[str]) -> Found:
        prompts = replace(item.prompts, concepts=tuple(asked))
        own = classes if text_field is None else {}
        found = inference.segment_concepts(core, item.image, prompts, phrases=own, **limits)
        return group_by_class(found, asked)

    summary = yield from run_over_images(
        samples,
        LabelTask(
            label_field,
            questions,
            answer,
            prompt_fields=fields,
            existing=existing,
            overlap=overlap,
            batch_size=batch_size if tile is None else 1,
        ),
        model=model,
        request={"concepts": plain_concepts(classes), **limits, **fields},
        ability="concepts",
        restart=restart,
        num_workers=num_workers,
        options=options,
    )
    return {**summary, "instances": count_instances(samples, label_field)}


def segment_everything(
    samples: Any,
    *,
    label_field: str = "everything",
    model: str,
    points_per_side: int = 32,
    threshold: float = 0.8,
    stability_threshold: float = 0.95,
    nms: float = 0.7,
    max_instances: int | None = None,
    tile: Any = None,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Segment all things in images without a word; the labels are "object".

    Args:
        samples: images, or a view of them.
        label_field: the field for ``Detections``. It is made if it does not exist.
        model: a model name, or the folder of a saved model.
        points_per_side: see ``ImageModel.segment_everything``.
        threshold: see ``ImageModel.segment_everything``.
        stability_threshold: see ``ImageModel.segment_everything``.
        nms: see ``ImageModel.segment_everything``.
        max_instances: see ``ImageModel.segment_everything``.
        tile: see ``ImageModel.segment``; also text such as "1008,128", as forms give it.
        existing: what happens to labels that the field holds; see :func:`segment_concepts`.
        overlap: the IoU from which a new label counts as one that is there, in [0, 1].
        restart: also ask again what was answered with these settings.
        num_workers: the number of threads that read images ahead.
        **options: further arguments of ``efficientsam3.load``.

    Raises:
        RunError: the samples or the field cannot be used.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
        PromptError: a limit is invalid.
        MissingAbilityError: the weights have no interactive head.
    """
    check_samples(samples)
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    tile = parse_tile(tile) if isinstance(tile, str) else tile
    limits = {
        "points_per_side": points_per_side,
        "threshold": threshold,
        "stability_threshold": stability_threshold,
        "nms": nms,
        "max_instances": max_instances,
        "tile": tile,
    }
    check_everything(**limits)
    questions = {OBJECT: digest_settings(model, {"everything": True, **limits, **options})}

    def answer(core: ImageModel, sample: Any, item: Item, asked: Collection[str]) -> Found:
        return group_by_class(to_labels(core.segment_everything(item.image, **limits)), asked)

    summary = yield from run_over_images(
        samples,
        LabelTask(label_field, lambda _: questions, answer, existing=existing, overlap=overlap),
        model=model,
        request={"everything": True, **limits},
        ability="interactive",
        restart=restart,
        num_workers=num_workers,
        options=options,
    )
    return {**summary, "instances": count_instances(samples, label_field)}


def segment_prompts(
    samples: Any,
    prompt_field: str,
    *,
    label_field: str | None = None,
    selected: Sequence[Mapping[str, Any]] = (),
    model: str,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
    num_workers: int = 0,
    **options: Any,
) -> Steps:
    """Segment the object that each box, or the points of each keypoint, shows.

    Args:
        samples: images, or a view of them. Labels that the view hides are no prompts. In a view of
            patches, each patch is one prompt.
        prompt_field: a field with Detections or Keypoints.
        label_field: the field for ``Detections``. None: ``<prompt_field>_masks``.
        selected: only these labels are prompts, as the App selects labels; see ``find_similar``.
        model: a model name, or the folder of a saved model.
        existing: what happens to labels that the field holds. "refuse" refuses where people's
            labels are at stake, and replaces others of these questions; "add" keeps all and
            appends what overlaps none; "replace" replaces unchanged labels of earlier runs, and
            keeps those of people; "overwrite" replaces all.
        overlap: the IoU from which a new label counts as one that is there, in [0, 1].
        restart: also ask questions that were answered with these settings.
        num_workers: the number of threads that read images ahead.
        **options: further arguments of ``efficientsam3.load``.

    Raises:
        RunError: the samples or fields cannot be used.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
        MissingAbilityError: the weights cannot do it.
    """
    if samples._is_patches:
        selected = [*selected, *read_patches(samples)]
        samples = whole_samples(samples)
    check_samples(samples)
    check_field(samples, prompt_field, kinds=SHAPE_LABELS)
    if selected:
        chosen = [one["label_id"] for one in selected if one["field"] == prompt_field]
        if not chosen:
            raise RunError(
                f"no selected label is in {prompt_field!r}; they are in {selected[0]['field']!r}"
            )
        samples = samples.select_labels(ids=chosen, fields=prompt_field)
    label_field = label_field or f"{prompt_field}_masks"
    if label_field == prompt_field:
        raise RunError(
            f"{prompt_field!r} holds the prompts, which would be overwritten; name another field"
        )
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)

    settings = digest_settings(model, options)

    def questions(prompts: Mapping[str, Any]) -> dict[str, str]:
        digests = prompt_digests(prompts["prompt_field"])
        return {id: f"{settings} {digest}" for id, digest in digests.items()}

    def answer(core: ImageModel, sample: Any, item: Item, asked: Collection[str]) -> Found:
        boxes = tuple(b for b in item.prompts.boxes if b.id in asked)
        clicks = tuple(c for c in item.prompts.clicks if c.id in asked)
        masks = inference.segment_each(core, item.image, Prompts(boxes=boxes, clicks=clicks))
        return Found({id: [masks[id]] if id in masks else [] for id in asked})

    fields = {"prompt_field": prompt_field}
    summary = yield from run_over_images(
        samples,
        LabelTask(
            label_field,
            questions,
            answer,
            prompt_fields=fields,
            existing=existing,
            overlap=overlap,
        ),
        model=model,
        request=fields,
        ability="interactive",
        restart=restart,
        num_workers=num_workers,
        options=options,
    )
    return {**summary, "instances": count_instances(samples, label_field)}
