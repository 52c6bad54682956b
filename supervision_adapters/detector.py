"""A detector of concepts for Supervision: images in, `sv.Detections` out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efficientsam3.concepts import Concepts, plain_concepts, read_classes
from efficientsam3.io.images import ImageLike
from efficientsam3.masks.nms import DEFAULT_NMS, check_overlap, nms_rows
from efficientsam3.masks.overlap import box_iou
from efficientsam3.masks.tiles import check_tile
from efficientsam3.outputs import OBJECT, EncodedExemplars, EncodedImage
from efficientsam3.predictor import ImageModel
from efficientsam3.prompts import check_limits, check_presence
from efficientsam3.segmenter import VISUAL
from efficientsam3.types import Array, Instances, join

from .detections import (
    CLASS_NAME,
    BoxSource,
    MaskFormat,
    check_formats,
    compact_masks,
    read_names,
    to_detections,
)
from .errors import AdapterError, require
from .exemplars import Exemplars, are_encoded, group_exemplars
from .images import ColorOrder, check_color, read_pixels, to_rgb

MASK_SCORE = "mask_score"
"""Key in ``Detections.data`` of the quality that ``segment_boxes`` predicts, in [0, 1]."""

MIN_BOX_IOU = 0.5
"""Without an interactive head, a box takes an instance whose extent has at least this IoU."""


class ConceptDetector:
    """Finds every instance of some concepts.

    The detector may be called from several threads; the model answers one call at a time.

    >>> detector = ConceptDetector(es3.load("efficientsam3-tinyvit-11m"), ["person", "bus"])
    >>> detections = detector.predict("street.jpg")
    >>> sv.MaskAnnotator().annotate(scene, detections)

    Args:
        model: A model of ``efficientsam3.load``.
        concepts: Noun phrases, or a mapping from classes to their phrases such as
            {"vehicle": ["car", "truck"]}; ``class_id`` numbers phrases or classes from 0.
        threshold: Detections with a score above it are returned.
        presence: "multiply": ``confidence`` contains the presence of the concept as a factor.
            "separate": it does not; ``data["presence"]`` is beside it either way.
        nms: Of two masks of one class that overlap by more, the weaker one is dropped. None keeps
            all but those that two phrases of a class found.
        class_agnostic: Whether masks of different classes are compared too, by ``nms`` or 0.5.
        overlap_metric: "iou", or "iom": the intersection over the smaller mask.
        max_instances: At most this many detections of an image, best first. None keeps all.
        mask_format: See ``to_detections``.
        box_source: See ``to_detections``.
        color: Order of the channels of arrays. Frames of OpenCV and of Supervision's video tools
            are "bgr". Paths and PIL images have a known order.
        tile: Tiles of large pictures, as ``ImageModel.segment`` takes it. It goes with concepts,
            not with exemplars.
    """

    def __init__(
        self,
        model: ImageModel,
        concepts: Concepts = (),
        *,
        threshold: float = 0.5,
        presence: str = "multiply",
        nms: float | None = None,
        class_agnostic: bool = False,
        overlap_metric: str = "iou",
        max_instances: int | None = None,
        mask_format: MaskFormat | None = "compact",
        box_source: BoxSource = "mask",
        color: ColorOrder = "rgb",
        tile: Any = None,
    ) -> None:
        check_tile(tile)
        check_formats(mask_format, box_source)
        check_color(color)
        check_limits(threshold, max_instances, nms)
        check_presence(presence)
        check_overlap(class_agnostic, overlap_metric)
        self.model = model
        self.threshold, self.nms, self.max_instances = threshold, nms, max_instances
        self.presence = presence
        self.class_agnostic, self.overlap_metric = class_agnostic, overlap_metric
        self.mask_format: MaskFormat | None = mask_format
        self.box_source: BoxSource = box_source
        self.color: ColorOrder = color
        self.tile = tile
        self._lock = threading.Lock()
        self._classes: dict[str, list[str]] = {}
        self.set_concepts(concepts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of ``class_id``: phrases, where they were given as such."""
        return list(self._classes)

    @property
    def classes(self) -> dict[str, list[str]]:
        """The phrases of each class."""
        return {name: list(phrases) for name, phrases in self._classes.items()}

    def set_concepts(self, concepts: Concepts) -> None:
        """Replace the concepts. The text features of a phrase are computed once.

        Args:
            concepts: Noun phrases, or a mapping from classes to their phrases.
        """
        self._classes = _read_classes(concepts)

    def __repr__(self) -> str:
        concepts = plain_concepts(self._classes)
        return f"ConceptDetector({self.model.name!r}, {concepts!r}, color={self.color!r})"

    # Concepts ---------------------------------------------------------------------------

    def predict(
        self,
        images: ImageLike | EncodedImage | Sequence[ImageLike],
        *,
        concepts: Concepts | None = None,
        exemplars: Any = None,
        exemplar_labels: Any = None,
        threshold: float | None = None,
        include_source_image: bool = False,
    ) -> Any:
        """Find every instance of the concepts.

        Args:
            images: A path, PIL image, array (H, W, C) in the detector's channel order, tensor
                (C, H, W) or encoded image; or a list of such.
            concepts: Other concepts for this call, which ``class_id`` then numbers.
            exemplars: Boxes in the one image that show what to find: ``sv.Detections`` whose
                class names are the concepts; a mapping from concept to (K, 4) xyxy pixels; or
                (K, 4) alone, for a single concept, or without a concept for an object that
                needs no name ("visual"). Or examples of another image, from ``exemplars``, for
                any number of images.
            exemplar_labels: 1 for "like this", 0 for "not like this": (K,), or a mapping by
                concept. All 1 by default.
            threshold: Another threshold for this call.
            include_source_image: Keep the image in ``metadata["source_image"]``, (H, W, 3) uint8
                in the detector's channel order. Such detections of several images cannot be
                merged by Supervision.

        Returns:
            ``sv.Detections``, or a list of them for a list of images.

        Raises:
            AdapterError: There is nothing to find, or exemplars do not fit the call.
        """
        classes = dict(self._classes) if concepts is None else _read_classes(concepts)
        batch = list(images) if isinstance(images, (list, tuple)) else None
        if batch is not None and exemplars is not None and not are_encoded(exemplars):
            raise AdapterError(
                f"exemplars are boxes in one image, and there are {len(batch)} images: "
                "call predict once for each image, with its own exemplars, or show those of one "
                "image to all with predict(images, exemplars=detector.exemplars(image, boxes))"
            )
        grouped = group_exemplars(exemplars, exemplar_labels, list(classes))
        classes |= {name: [name] for name in grouped if name not in classes}
        if not classes:
            raise AdapterError(
                "nothing to find: ConceptDetector(model, ['person']), set_concepts(['person']), "
                "predict(image, concepts=['person']), or exemplars"
            )
        out, given = [], [images] if batch is None else batch
        for image, found in zip(
            given, self._find_each(given, classes, grouped, threshold), strict=True
        ):
            detections = to_detections(
                found,
                class_names=list(classes),
                mask_format=self.mask_format,
                box_source=self.box_source,
            )
            if include_source_image:
                detections.metadata["source_image"] = self._pixels(image)
            out.append(detections)
        return out[0] if batch is None else out

    def exemplars(
        self, image: ImageLike | EncodedImage, exemplars: Any, exemplar_labels: Any = None
    ) -> dict[str, EncodedExemplars]:
        """Encode examples with their image, to find the same in other images.

        >>> shown = detector.exemplars("mug.jpg", [[10, 20, 210, 220]])
        >>> detections = detector.predict(["shelf.jpg", "table.jpg"], exemplars=shown)

        Args:
            image: The image that they are in, as ``predict`` takes it.
            exemplars: Boxes, as ``predict`` takes them.
            exemplar_labels: As in ``predict``.

        Returns:
            What ``predict`` takes as ``exemplars``, by concept.

        Raises:
            AdapterError: There is no example, or one does not fit.
        """
        grouped = group_exemplars(exemplars, exemplar_labels, list(self._classes))
        if not grouped:
            raise AdapterError("there is no example: pass boxes, such as [[10, 20, 210, 220]]")
        with self._lock:
            encoded = self._encode(image)
            return {name: self.model.exemplar(encoded, **s.drawn()) for name, s in grouped.items()}

    def __call__(self, images: Any) -> Any:
        """Call ``predict``, as ``sv.InferenceSlicer`` does for single tiles and for lists."""
        return self.predict(images)

    def slicer(
        self, slice_wh: int | None = None, overlap_wh: int | None = None, **options: Any
    ) -> Any:
        """Make an ``sv.InferenceSlicer``, which finds small objects in large images by tiles.

        Parts of an object in neighboring tiles are joined where they share much of the smaller
        part.

        Args:
            slice_wh: Side of a tile in pixels; by default the model's resolution.
            overlap_wh: Pixels that neighboring tiles share; by default an eighth of a tile.
            **options: Further options of ``sv.InferenceSlicer``: ``thread_workers``,
                ``batch_size``, ...

        Returns:
            The slicer; call it with an image.
        """
        sv = require("supervision", "supervision")
        side = slice_wh if slice_wh is not None else self.model.config.resolution
        settings = {
            "overlap_filter": sv.OverlapFilter.NON_MAX_MERGE,
            "overlap_metric": sv.OverlapMetric.IOS,
            "compact_masks": self.mask_format == "compact",
            **options,
        }
        overlap = overlap_wh if overlap_wh is not None else side // 8
        return sv.InferenceSlicer(self, slice_wh=side, overlap_wh=overlap, **settings)

    def find(self, image: ImageLike | EncodedImage, threshold: float | None = None) -> Instances:
        """Find the detector's concepts in one image, as instances of the core.

        Args:
            image: As ``predict`` takes it.
            threshold: Another threshold for this call.

        Returns:
            The instances, in the order of the classes.

        Raises:
            AdapterError: The detector has no concepts.
        """
        if not self._classes:
            raise AdapterError("nothing to find: call set_concepts(['person']) first")
        return self._find(image, self._classes, {}, threshold)

    def _find_each(
        self,
        images: Sequence[Any],
        classes: Mapping[str, list[str]],
        exemplars: Mapping[str, Exemplars],
        threshold: float | None,
    ) -> list[Instances]:
        """The instances of each image; without exemplars, images are read in batches."""
        if exemplars or len(images) == 1:
            return [self._find(image, classes, exemplars, threshold) for image in images]
        settings = {**self._settings(threshold), "class_agnostic": self.class_agnostic}
        pixels = [to_rgb(image, self.color) for image in images]
        with self._lock:
            return self.model.segment(pixels, dict(classes), tile=self.tile, **settings)

    def _settings(self, threshold: float | None) -> dict[str, Any]:
        return {
            "threshold": self.threshold if threshold is None else threshold,
            "presence": self.presence,
            "nms": self.nms,
            "max_instances": self.max_instances,
            "overlap_metric": self.overlap_metric,
        }

    def _find(
        self,
        image: ImageLike | EncodedImage,
        classes: Mapping[str, list[str]],
        exemplars: Mapping[str, Exemplars],
        threshold: float | None,
    ) -> Instances:
        settings = self._settings(threshold)
        by_text = {name: words for name, words in classes.items() if name not in exemplars}
        is_drawn = any(shown.boxes is not None for shown in exemplars.values())
        if self.tile is not None and is_drawn:
            raise AdapterError(
                f"exemplars are in one place of the picture, and tile={self.tile!r} reads each "
                "tile by itself: name concepts, or use a detector with tile=None"
            )
        with self._lock:
            if not exemplars:
                settings["class_agnostic"] = self.class_agnostic
            if self.tile is None:
                source: Any = self._encode(image)
            else:
                source, settings["tile"] = to_rgb(image, self.color), self.tile
            if not exemplars:
                return self.model.segment(source, by_text, **settings)
            parts = [self.model.segment(source, by_text, **settings)] if by_text else []
            parts += [
                self.model.segment(
                    source,
                    None if name == VISUAL else {name: classes[name]},
                    **shown.arguments(),
                    **settings,
                )
                for name, shown in exemplars.items()
            ]
        found = join(parts)
        if self.class_agnostic:
            limit = DEFAULT_NMS if self.nms is None else self.nms
            rows = nms_rows(found, None, None, limit, overlap_metric=self.overlap_metric)
            found = found[rows]
        names = list(classes)
        order = np.argsort([names.index(label) for label in found.labels], kind="stable")
        if self.max_instances is not None and len(found) > self.max_instances:
            best = np.argsort(-found.scores, kind="stable")[: self.max_instances]
            order = order[np.isin(order, best)]
        return found[order]

    # Single objects ---------------------------------------------------------------------

    def segment(
        self,
        image: ImageLike | EncodedImage,
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
    ) -> Any:
        """Segment one object for each of N prompts, by ``ImageModel.segment_objects``.

        Args:
            image: As ``predict`` takes it.
            boxes: (N, 4) xyxy in pixels.
            points: (N, K, 2) xy in pixels.
            point_labels: (N, K) 1 on the object, 0 off it, -1 padding.
            masks: (N, 1, h, w) mask logits of an earlier result, to refine.

        Returns:
            ``sv.Detections`` with N rows, in the order of the prompts; a row whose mask has no
            pixel keeps the predicted box. The class is "object", whose ``class_id`` follows
            those of the detector's concepts.
        """
        with self._lock:
            found = self.model.segment_objects(
                self._encode(image),
                boxes=boxes,
                points=points,
                point_labels=point_labels,
                masks=masks,
            )
        return self._objects(found, keep_empty=True)

    def everything(self, image: ImageLike | EncodedImage, **settings: Any) -> Any:
        """Segment all things without a word, by ``ImageModel.segment_everything``.

        Args:
            image: As ``predict`` takes it.
            **settings: Arguments of ``ImageModel.segment_everything``: ``points_per_side``,
                ``threshold``, ``tile``, ... Those of the detector do not hold.

        Returns:
            ``sv.Detections`` of the class "object", as ``segment`` numbers it; ``confidence`` is
            the predicted IoU.
        """
        with self._lock:
            found = self.model.segment_everything(to_rgb(image, self.color), **settings)
        return self._objects(found)

    def segment_boxes(self, image: ImageLike | EncodedImage, detections: Any) -> Any:
        """Add masks to the boxes of any detector.

        A model with an interactive head segments each box. Another model takes the boxes as
        exemplars of their class names, and each box gets the instance whose extent fits best.

        Args:
            image: As ``predict`` takes it.
            detections: ``sv.Detections`` of the image.

        Returns:
            The detections with masks. Order, boxes, classes, identities and data stay as they
            are; ``data["mask_score"]`` is the predicted IoU of the mask, or the IoU of its
            extent and the box. A box for which nothing is found has an empty mask and score 0.
        """
        sv = require("supervision", "supervision")
        with self._lock:
            encoded = self._encode(image)
            height, width = encoded.size
            limits = np.array([width, height, width, height], np.float32)
            boxes = np.clip(np.asarray(detections.xyxy, np.float32), 0, limits).reshape(-1, 4)
            valid = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
            crops: list[tuple[Array, Any]] = [(np.zeros((0, 0), bool), (0, 0, 0, 0))] * len(boxes)
            scores = np.zeros(len(boxes), np.float32)
            if len(valid) and "interactive" in self.model.abilities:
                found = self.model.segment_objects(encoded, boxes=boxes[valid])
                for row, place in enumerate(valid.tolist()):
                    crops[place], scores[place] = found.crop(row), found.scores[row]
            elif len(valid):
                names = np.array(read_names(detections))
                named = CLASS_NAME in detections.data  # a class number is no phrase
                for name in dict.fromkeys(names[valid]):
                    rows = valid[names[valid] == name]
                    concept = str(name) if named else None
                    found = self.model.segment(encoded, concept, boxes=boxes[rows], threshold=0)
                    for box, row, overlap in match_boxes(boxes[rows], found):
                        crops[rows[box]], scores[rows[box]] = found.crop(row), overlap
        mask: Any = compact_masks(crops, encoded.size)
        return sv.Detections(
            xyxy=detections.xyxy.copy(),
            mask=mask.to_dense() if self.mask_format == "dense" else mask,
            confidence=detections.confidence,
            class_id=detections.class_id,
            tracker_id=detections.tracker_id,
            data={**detections.data, MASK_SCORE: scores.clip(0, 1)},
            metadata=dict(detections.metadata),
        )

    def _objects(self, found: Instances, keep_empty: bool = False) -> Any:
        """Detections of the class "object", which follows the detector's concepts."""
        return to_detections(
            found,
            class_names=list(dict.fromkeys([*self._classes, OBJECT])),
            mask_format=self.mask_format,
            box_source=self.box_source,
            keep_empty=keep_empty,
        )

    def _encode(self, image: ImageLike | EncodedImage) -> EncodedImage:
        return self.model.encode(to_rgb(image, self.color))

    def _pixels(self, image: ImageLike | EncodedImage) -> Array:
        if isinstance(image, EncodedImage):
            raise AdapterError("an encoded image has no pixels; include_source_image needs them")
        return read_pixels(image, self.color, self.color)


def _read_classes(concepts: Concepts) -> dict[str, list[str]]:
    is_empty = isinstance(concepts, (Mapping, list, tuple)) and not len(concepts)
    return {} if is_empty else read_classes(concepts) or {}


def match_boxes(boxes: Array, found: Instances) -> list[tuple[int, int, float]]:
    """Pair boxes with instances whose extents fit, each used at most once.

    Args:
        boxes: (K, 4) xyxy in pixels.
        found: Instances of the same image.

    Returns:
        Triples (box, instance, IoU of the box and the mask's extent), with an IoU of at least
        ``MIN_BOX_IOU``.
    """
    from scipy.optimize import linear_sum_assignment

    extents = np.array([found.crop(i)[1] for i in range(len(found))], np.float32).reshape(-1, 4)
    iou = box_iou(boxes, extents)
    # Between instances of nearly equal IoU, the one with the higher score is taken.
    rows, columns = linear_sum_assignment(iou + 0.1 * found.scores, maximize=True)
    return [
        (int(r), int(c), float(iou[r, c]))
        for r, c in zip(rows, columns, strict=True)
        if iou[r, c] >= MIN_BOX_IOU
    ]
