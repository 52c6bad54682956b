"""Interoperation with Ultralytics: masks for YOLO's boxes, its trackers, datasets for YOLO.

Ultralytics is licensed under AGPL-3.0. It is an extra, imported when a function that needs it is
called, and is told not to install packages. Its images are BGR and are converted here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from efficientsam3.concepts import Concepts, read_classes
from efficientsam3.errors import ImageError
from efficientsam3.loading import load
from efficientsam3.predictor import ImageModel
from efficientsam3.segment_files import find_images
from efficientsam3.types import Array

from .detections import (
    CLASS_NAME,
    check_class_names,
    compact_masks,
    mask_patches,
    read_names,
    to_detections,
)
from .detector import ConceptDetector
from .errors import AdapterError, require
from .images import ColorOrder, check_color, read_pixels, to_rgb
from .tracking import NO_ID, CutTest, Tracker, with_ids
from .yolo import Task, YoloWriter

logger = logging.getLogger(__name__)

TRACKERS = {
    "bytetrack": ("byte_tracker", "BYTETracker"),
    "botsort": ("bot_sort", "BOTSORT"),
    "ocsort": ("oc_sort", "OCSORT"),
}


def require_ultralytics(module: str) -> Any:
    """Import a module of Ultralytics, with its automatic installation switched off.

    Args:
        module: Full name of the module.

    Returns:
        The module.

    Raises:
        MissingPackageError: Ultralytics is not installed.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    return require(module, "ultralytics")


# Results -------------------------------------------------------------------------------------


def to_results(
    detections: Any,
    image: Any,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    path: str = "image.jpg",
    color: ColorOrder = "rgb",
) -> Any:
    """Convert ``sv.Detections`` to Ultralytics' ``Results``, for ``plot``, ``save_txt`` and others.

    Masks become dense tensors of N * H * W bytes. ``Results.save_txt`` joins parts and drops
    holes; ``YoloWriter`` keeps them.

    Args:
        detections: ``sv.Detections`` of the image.
        image: The image, as ``model.segment`` takes it.
        class_names: Names of all classes by ``class_id``; by default those of the detections.
        path: Path of the image, from which Ultralytics derives names of saved files.
        color: Order of the channels, if ``image`` is an array.

    Returns:
        ``ultralytics.engine.results.Results``.

    Raises:
        AdapterError: ``class_names`` lacks a class.
        MissingPackageError: Ultralytics is not installed.
    """
    import torch

    check_color(color)
    kind = require_ultralytics("ultralytics.engine.results").Results
    count = len(detections)
    classes = detections.class_id if detections.class_id is not None else np.zeros(count, int)
    scores = detections.confidence if detections.confidence is not None else np.ones(count)
    names: dict[int, str]
    if isinstance(class_names, Mapping):
        names = dict(class_names)
    elif class_names is not None:
        names = dict(enumerate(class_names))
    else:
        names = dict(zip(classes.tolist(), read_names(detections), strict=True))
    unknown = set(classes.tolist()) - set(names)
    if unknown:
        raise AdapterError(
            f"class_names has no class {min(unknown)}; it has {len(names)}. Name every class_id."
        )
    columns = [detections.xyxy, scores[:, None], classes[:, None]]
    if detections.tracker_id is not None:
        columns.insert(1, detections.tracker_id[:, None])
    masks = detections.mask
    return kind(
        orig_img=read_pixels(image, color, "bgr"),
        path=path,
        names=names,
        boxes=torch.from_numpy(np.concatenate(columns, 1).astype(np.float32)),
        masks=None if masks is None else torch.from_numpy(np.asarray(masks)),
    )


def prompts_from_results(results: Any) -> Any:
    """Convert YOLO's ``Results`` to ``sv.Detections``, for ``segment_boxes`` or as exemplars.

    Args:
        results: ``ultralytics.engine.results.Results`` of one image.

    Returns:
        ``sv.Detections`` with class numbers and names; existing masks become compact.
    """
    sv = require("supervision", "supervision")
    detections = sv.Detections.from_ultralytics(results)
    height, width = results.orig_shape
    if detections.mask is not None:
        masks = np.asarray(detections.mask, bool)
        crops = [patch.crop((height, width)) for patch in mask_patches(masks)]
        detections.mask = compact_masks(crops, (height, width))
    names = [results.names[int(i)] for i in detections.class_id]
    detections.data[CLASS_NAME] = np.array(names, dtype=str)
    if detections.tracker_id is not None:
        detections.tracker_id = detections.tracker_id.astype(int)
    return detections


def segment_boxes(model: ImageModel | ConceptDetector, results: Any) -> Any:
    """Add masks to YOLO's boxes.

    >>> results = segment_boxes(model, YOLO("yolo11n.pt")("street.jpg"))

    Args:
        model: A model of ``efficientsam3.load``, or a detector.
        results: Ultralytics' ``Results`` of one image, or a list of them.

    Returns:
        ``Results`` with masks, or a list of them.
    """
    detector = model if isinstance(model, ConceptDetector) else ConceptDetector(model)
    if isinstance(results, (list, tuple)):
        return [segment_boxes(detector, one) for one in results]
    image = results.orig_img  # BGR
    frame = image if detector.color == "bgr" else to_rgb(image, "bgr")
    masked = detector.segment_boxes(frame, prompts_from_results(results))
    return to_results(masked, image, class_names=results.names, path=results.path, color="bgr")


# Trackers ------------------------------------------------------------------------------------


class UltralyticsTracker(Tracker):
    """ByteTrack, BoT-SORT or OC-SORT of Ultralytics, with the interface of the other trackers.

    Masks, data and the detector's boxes stay as they are. An identity can change its class;
    ``PerClassTracker`` prevents that.

    >>> tracker = UltralyticsTracker("bytetrack.yaml", track_buffer=60)

    Args:
        tracker: A settings file, as Ultralytics' ``model.track(tracker=...)`` takes it.
        color: Order of the channels of frames.
        end_at_cuts: Whether all tracks end where a frame begins another scene.
        **settings: Values that replace those of the file.

    Raises:
        AdapterError: The file has no such setting, or names a tracker that is not supported.
        MissingPackageError: Ultralytics or lap is not installed.
    """

    def __init__(
        self,
        tracker: str = "bytetrack.yaml",
        *,
        color: ColorOrder = "rgb",
        end_at_cuts: bool = True,
        **settings: Any,
    ) -> None:
        check_color(color)
        require("lap", "ultralytics")  # else Ultralytics tries to install it
        path = require_ultralytics("ultralytics.utils.checks").check_yaml(tracker)
        defaults = {**require_ultralytics("ultralytics.utils").YAML.load(path), "device": "cpu"}
        unknown = sorted(set(settings) - set(defaults))
        if unknown:
            raise AdapterError(
                f"{tracker} has no {', '.join(unknown)}; it has {', '.join(sorted(defaults))}"
            )
        self._settings = SimpleNamespace(**{**defaults, **settings})
        name = self._settings.tracker_type
        if name not in TRACKERS:
            raise AdapterError(
                f"{tracker} names the tracker {name!r}, which needs more than boxes and frames; "
                f"choose one of {', '.join(TRACKERS)}"
            )
        self.color: ColorOrder = color
        module, cls = TRACKERS[name]
        self._factory = getattr(require_ultralytics(f"ultralytics.trackers.{module}"), cls)
        self._cuts = CutTest(end_at_cuts)
        self.reset()

    def update(
        self, detections: Any, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Assign identities to the detections of the next frame.

        Args:
            detections: ``sv.Detections`` of the frame.
            frame: (H, W, 3) uint8. BoT-SORT reads its pixels, the others only its size.
            timestamp: Not used.

        Returns:
            The same detections in the same order, with ``tracker_id``.
        """
        if self._cuts.is_cut(frame):
            self._tracker = self._factory(self._settings)
            self._scene += 1
        count = len(detections)
        classes = detections.class_id if detections.class_id is not None else np.zeros(count)
        scores = detections.confidence if detections.confidence is not None else np.ones(count)
        rows = np.concatenate([detections.xyxy, scores[:, None], classes[:, None]], 1)
        size = frame.shape[:2] if frame is not None else (1, 1)
        results = require_ultralytics("ultralytics.engine.results")
        boxes = results.Boxes(rows.astype(np.float32), size)
        bgr = frame
        if frame is not None and self.color == "rgb":
            bgr = np.ascontiguousarray(frame[..., ::-1])
        ids = np.full(count, NO_ID)
        for row in self._tracker.update(boxes, bgr):
            # columns: x0, y0, x1, y1, identity, score, class, row of the detection
            ids[int(row[7])] = self._ids.setdefault((self._scene, int(row[4])), len(self._ids))
        self._last = with_ids(detections, ids)
        return self._last

    def reset(self) -> None:
        """Forget all tracks. Identities start from 0 again."""
        self._tracker = self._factory(self._settings)
        self._cuts.reset()
        self._scene = 0
        self._ids: dict[tuple[int, int], int] = {}
        self._last = None


# Datasets ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnnotatedDataset:
    """A dataset made by ``auto_annotate``."""

    data: Path
    """Its ``data.yaml``, as ``yolo segment train data=...`` takes it."""
    images: int
    """Number of images."""
    objects: int
    """Number of objects."""
    failed: dict[Path, str]
    """Images that could not be read, each with the reason."""
    left_out: int = 0
    """Number of objects that were not written, because their mask has no pixel."""


def auto_annotate(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    concepts: Concepts,
    output_dir: str | os.PathLike[str],
    model: ImageModel | str,
    *,
    threshold: float = 0.5,
    presence: str = "multiply",
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    max_instances: int | None = 300,
    val: float = 0.1,
    task: Task = "segment",
    tolerance: float = 0.0,
) -> AnnotatedDataset:
    """Make a YOLO dataset from images and words. Ultralytics is not needed.

    One image is in memory at a time. An image without objects is written as background. An image
    that cannot be read is left out and named in the result.

    >>> dataset = auto_annotate("photos", ["dog", "yellow car"], "dogs", model)
    >>> YOLO("yolo11n-seg.yaml").train(data=dataset.data)

    Args:
        data: Image files, folders (with their subfolders) or patterns; one or several.
        concepts: Noun phrases, or a mapping from classes to their phrases: the classes, in this
            order.
        output_dir: A new or empty folder.
        model: A model, or its name for ``efficientsam3.load``.
        threshold: Objects with a score above it are written.
        presence: As in ``ConceptDetector``.
        nms: As in ``ConceptDetector``.
        class_agnostic: As in ``ConceptDetector``.
        overlap_metric: As in ``ConceptDetector``.
        max_instances: At most this many objects of an image.
        val: Fraction of the images for validation, in [0, 1), spread evenly; at least one image
            where there are two or more and ``val`` is not 0.
        task: "segment" writes polygons, "detect" boxes.
        tolerance: Polygons are simplified by at most this many pixels. 0 keeps every pixel.

    Returns:
        The dataset's files and counts.

    Raises:
        AdapterError: An argument is invalid.
        ImageError: No image could be read.
    """
    if not 0 <= val < 1:
        raise AdapterError(f"val is a fraction of the images, at least 0 and below 1; got {val}")
    check_class_names(concepts if isinstance(concepts, str) else list(concepts))
    classes = read_classes(concepts) or {}
    given = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    sources = find_images([os.fspath(one) for one in given], os.fspath(output_dir))
    writer = YoloWriter(output_dir, list(classes), task=task, tolerance=tolerance)
    if isinstance(model, str):
        model = load(model)
    detector = ConceptDetector(
        model,
        classes,
        threshold=threshold,
        presence=presence,
        nms=nms,
        class_agnostic=class_agnostic,
        overlap_metric=overlap_metric,
        max_instances=max_instances,
    )
    images, objects, failed = 0, 0, {}
    for number, source in enumerate(sources):
        path = source.path
        try:
            instances = detector.find(path)
        except ImageError as error:
            logger.warning("%s", error)
            failed[path] = str(error)
            continue
        chosen = int((number + 1) * val) > int(number * val)
        last = number == len(sources) - 1
        if val and len(sources) > 1 and last and "val" not in writer.splits:
            chosen = True
        split = "val" if chosen else "train"
        found = to_detections(instances, class_names=list(classes), keep_empty=True)
        labels = writer.add(path, found, split=split)
        images, objects = images + 1, objects + len(labels.read_text().splitlines())
    if not images:
        raise ImageError(
            f"none of the {len(sources)} images could be read; the first one: "
            f"{next(iter(failed.values()))}"
        )
    return AnnotatedDataset(writer.close(), images, objects, failed, writer.left_out)
