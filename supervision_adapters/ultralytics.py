"""EfficientSAM3 beside Ultralytics: masks for YOLO's boxes, its trackers, data for its training.

Ultralytics is AGPL-3.0. It is an extra, imported when a function that needs it is called, and
never installs packages for us. Its arrays are BGR; where a picture of it comes in or goes out, that
is taken care of.
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

from efficientsam3.batch import find_images
from efficientsam3.errors import ImageError
from efficientsam3.image import ImageModel
from efficientsam3.loading import load
from efficientsam3.pixels import read_rgb
from efficientsam3.types import Array

from .coco import check_names
from .detections import CLASS_NAME, compact, patches, read_names
from .detector import Colour, ConceptDetector, check_color, flip
from .errors import AdapterError, require
from .tracking import PENDING, identified, with_ids
from .yolo import YoloWriter

logger = logging.getLogger(__name__)

TRACKERS = {
    "bytetrack": ("byte_tracker", "BYTETracker"),
    "botsort": ("bot_sort", "BOTSORT"),
    "ocsort": ("oc_sort", "OCSORT"),
}


def need(module: str) -> Any:
    """A module of Ultralytics, which is told to install nothing by itself."""
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    return require(module, "ultralytics")


# Results -------------------------------------------------------------------------------------


def to_results(
    detections: Any,
    image: Any,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    path: str = "image.jpg",
    color: Colour = "rgb",
) -> Any:
    """``sv.Detections`` -> ``ultralytics.engine.results.Results``, for ``plot``, ``save_txt``, ...

    Masks are dense tensors there, N * H * W bytes. Their text rows join parts and drop holes;
    ``YoloWriter`` keeps them.

    Args:
        image: as ``model.segment`` takes it; arrays in the order of ``color``.
        class_names: of all classes, by ``class_id``; those of the detections if omitted.
        path: of the image, for the names of what is saved.
    """
    import torch

    check_color(color)
    kind = need("ultralytics.engine.results").Results
    rgb = read_rgb(flip(image) if color == "bgr" else image).permute(1, 2, 0)
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
    strangers = set(classes.tolist()) - set(names)
    if strangers:
        raise AdapterError(
            f"class_names has no class {min(strangers)}; it has {len(names)}. Name every class_id."
        )
    columns = [detections.xyxy, scores[:, None], classes[:, None]]
    if detections.tracker_id is not None:
        columns.insert(1, detections.tracker_id[:, None])
    masks = detections.mask
    return kind(
        orig_img=np.ascontiguousarray(rgb.numpy()[..., ::-1]),
        path=path,
        names=names,
        boxes=torch.from_numpy(np.concatenate(columns, 1).astype(np.float32)),
        masks=None if masks is None else torch.from_numpy(np.asarray(masks)),
    )


def prompts_from_results(results: Any) -> Any:
    """Results of YOLO -> ``sv.Detections``: boxes for ``segment_boxes``, or exemplars.

    Masks that are there become compact ones; classes keep their numbers and names.
    """
    sv = require("supervision", "supervision")
    detections = sv.Detections.from_ultralytics(results)
    height, width = results.orig_shape
    if detections.mask is not None:
        crops = [p.crop((height, width)) for p in patches(np.asarray(detections.mask, bool))]
        detections.mask = compact(crops, (height, width))
    names = [results.names[int(i)] for i in detections.class_id]
    detections.data[CLASS_NAME] = np.array(names, dtype=str)
    if detections.tracker_id is not None:
        detections.tracker_id = detections.tracker_id.astype(int)
    return detections


def segment_boxes(model: ImageModel | ConceptDetector, results: Any) -> Any:
    """Give YOLO's boxes masks: ``Results`` in, ``Results`` out, or a list of them.

    >>> results = segment_boxes(model, YOLO("yolo11n.pt")("street.jpg"))
    """
    detector = model if isinstance(model, ConceptDetector) else ConceptDetector(model)
    if isinstance(results, (list, tuple)):
        return [segment_boxes(detector, one) for one in results]
    picture = results.orig_img  # BGR
    frame = picture if detector.color == "bgr" else flip(picture)
    masked = detector.segment_boxes(frame, prompts_from_results(results))
    return to_results(masked, picture, class_names=results.names, path=results.path, color="bgr")


# Trackers ------------------------------------------------------------------------------------


class UltralyticsTracker:
    """ByteTrack, BoT-SORT or OC-SORT of Ultralytics, with the convention of the other trackers.

    Masks, data and the detector's own boxes come out as they went in; identities are from 0.
    A class is not kept: put it into ``PerClassTracker`` for that.

    >>> tracker = UltralyticsTracker("bytetrack.yaml", track_buffer=60)

    Args:
        tracker: a file of settings as ``model.track(tracker=...)`` takes it.
        color: order of the channels in frames.
        changes: settings other than the file's.
    """

    def __init__(
        self, tracker: str = "bytetrack.yaml", *, color: Colour = "rgb", **changes: Any
    ) -> None:
        check_color(color)
        require("lap", "ultralytics")  # else Ultralytics would look for it
        found = need("ultralytics.utils.checks").check_yaml(tracker)
        settings = {**need("ultralytics.utils").YAML.load(found), "device": "cpu"}
        strangers = sorted(set(changes) - set(settings))
        if strangers:
            raise AdapterError(
                f"{tracker} has no {', '.join(strangers)}; it has {', '.join(sorted(settings))}"
            )
        settings |= changes
        name = settings["tracker_type"]
        if name not in TRACKERS:
            raise AdapterError(
                f"{tracker} is of {name!r}, which needs more than boxes and frames; there are "
                f"{', '.join(TRACKERS)}"
            )
        self.color: Colour = color
        module, kind = TRACKERS[name]
        self._make = getattr(need(f"ultralytics.trackers.{module}"), kind)
        self._settings = SimpleNamespace(**settings)
        self._last: Any = None
        self.reset()

    def update(
        self, detections: Any, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Give the detections of the next frame their identities; -1 for those that get none.

        Args:
            frame: (H, W, 3) uint8. BoT-SORT looks at it; the others take its size alone.

        Returns:
            The same detections in the same order, with ``tracker_id``. The input is not changed.
        """
        count = len(detections)
        classes = detections.class_id if detections.class_id is not None else np.zeros(count)
        scores = detections.confidence if detections.confidence is not None else np.ones(count)
        rows = np.concatenate([detections.xyxy, scores[:, None], classes[:, None]], 1)
        size = frame.shape[:2] if frame is not None else (1, 1)
        boxes = need("ultralytics.engine.results").Boxes(rows.astype(np.float32), size)
        picture = frame
        if frame is not None and self.color == "rgb":
            picture = np.ascontiguousarray(flip(frame))
        ids = np.full(count, PENDING)
        for row in self._tracker.update(boxes, picture):
            # x0, y0, x1, y1, identity, score, class, place among the detections
            number = self._ids.setdefault(int(row[4]), len(self._ids))
            ids[int(row[7])] = number
        self._last = with_ids(detections, ids)
        return self._last

    def reset(self) -> None:
        """Forget everything: identities start from 0 again."""
        self._tracker = self._make(self._settings)
        self._ids: dict[int, int] = {}
        self._last = None

    @property
    def tracked_objects(self) -> Any:
        """The last frame's detections that have an identity."""
        return identified(self._last)

    def update_with_detections(self, detections: Any) -> Any:
        """As ``update``, under the name of Supervision's former trackers."""
        return self.update(detections)


# Datasets ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotated:
    """A dataset that was made.

    data: its ``data.yaml``, as ``yolo segment train data=...`` takes it. images, objects: how many.
    failed: what could not be read, by its path, with the reason.
    """

    data: Path
    images: int
    objects: int
    failed: dict[Path, str]


def auto_annotate(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    concepts: str | Sequence[str],
    output_dir: str | os.PathLike[str],
    model: ImageModel | str,
    *,
    conf: float = 0.5,
    iou: float | None = None,
    max_det: int | None = 300,
    val: float = 0.1,
) -> Annotated:
    """Make a YOLO segmentation dataset of pictures from words alone. Ultralytics is not needed.

    >>> done = auto_annotate("photos", ["dog", "yellow car"], "dogs", model)
    >>> YOLO("yolo11n-seg.yaml").train(data=done.data)

    One picture is in memory at a time. A picture without any object is an example of background;
    one that cannot be read is left out, and named in the answer.

    Args:
        data: pictures: files, folders with all under them, patterns.
        concepts: noun phrases: the classes, in this order.
        output_dir: new, or empty.
        model: that finds concepts, or its name for ``load``.
        conf: objects score more than this.
        iou: of two masks of a concept above which the weaker is dropped.
        max_det: objects of a picture, at most.
        val: share of the pictures that are for validation, spread evenly; at least one of two.
    """
    if not 0 <= val < 1:
        raise AdapterError(f"val is a share of the pictures, 0 or more and less than 1; got {val}")
    names = check_names([concepts] if isinstance(concepts, str) else concepts)
    given = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    sources = find_images([os.fspath(one) for one in given], os.fspath(output_dir))
    writer = YoloWriter(output_dir, names)
    if isinstance(model, str):
        model = load(model)
    detector = ConceptDetector(model, names, threshold=conf, nms_iou=iou, max_detections=max_det)
    images, objects, failed = 0, 0, {}
    for number, (path, _) in enumerate(sources):
        try:
            found = detector.predict(path)
        except ImageError as error:
            logger.warning("%s", error)
            failed[path] = str(error)
            continue
        chosen = int((number + 1) * val) > int(number * val)
        last = number == len(sources) - 1
        if val and len(sources) > 1 and last and "val" not in writer.splits:
            chosen = True
        split = "val" if chosen else "train"
        labels = writer.add(path, found, split=split)
        images, objects = images + 1, objects + len(labels.read_text().splitlines())
    if not images:
        raise ImageError(
            f"none of {len(sources)} pictures could be read; {next(iter(failed.values()))}"
        )
    return Annotated(writer.close(), images, objects, failed)
