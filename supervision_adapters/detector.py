"""A detector of concepts that Supervision's tools take: images in, `sv.Detections` out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from efficientsam3.image import VISUAL, EncodedImage, ImageModel
from efficientsam3.pixels import ImageLike, read_rgb
from efficientsam3.prompts import read_array, read_concepts
from efficientsam3.types import Array, Instances, join

from .detections import (
    CLASS_NAME,
    BoxSource,
    MaskFormat,
    check_formats,
    compact,
    read_names,
    to_detections,
)
from .errors import AdapterError, require

Colour = Literal["rgb", "bgr"]

MASK_SCORE = "mask_score"
"""Key of what ``segment_boxes`` believes of its masks, [0, 1]."""

FIT = 0.5
"""Without an interactive head, a box takes an instance whose extents overlap it this much (IoU)."""


class Exemplars(NamedTuple):
    """Boxes that show a concept. boxes: (K, 4) xyxy pixels. labels: (K,) 1 like this, 0 not."""

    boxes: Array
    labels: Array


class ConceptDetector:
    """Finds every instance of some concepts, as Supervision's detectors do.

    >>> detector = ConceptDetector(es3.load("efficientsam3-tinyvit-11m"), ["person", "bus"])
    >>> detections = detector.predict("street.jpg")
    >>> sv.MaskAnnotator().annotate(scene, detections)

    It may be called from several threads; the model answers one at a time.

    Args:
        model: of ``efficientsam3.load``.
        concepts: noun phrases; ``class_id`` counts them.
        threshold: detections score more than this.
        nms_iou: drop a mask that overlaps a better one of its concept by more than this IoU.
        mask_format, box_source: as ``to_detections`` takes them.
        color: order of the channels in arrays. "rgb" unless said; frames of OpenCV and of
            Supervision's video tools are "bgr". Paths and PIL images know theirs.
        max_detections: of an image, the best.
    """

    def __init__(
        self,
        model: ImageModel,
        concepts: str | Sequence[str] = (),
        *,
        threshold: float = 0.5,
        nms_iou: float | None = None,
        mask_format: MaskFormat | None = "compact",
        box_source: BoxSource = "mask",
        color: Colour = "rgb",
        max_detections: int | None = None,
    ) -> None:
        check_formats(mask_format, box_source)
        check_color(color)
        self.model = model
        self.threshold, self.nms_iou, self.max_detections = threshold, nms_iou, max_detections
        self.mask_format: MaskFormat | None = mask_format
        self.box_source: BoxSource = box_source
        self.color: Colour = color
        self._lock = threading.Lock()
        self._concepts: list[str] = []
        self.set_concepts(concepts)

    @property
    def class_names(self) -> list[str]:
        """The concepts, in the order that ``class_id`` counts."""
        return list(self._concepts)

    def set_concepts(self, concepts: str | Sequence[str]) -> None:
        """Look for these from now on. The model reads each phrase once ever."""
        self._concepts = (read_concepts(concepts) or []) if len(concepts) else []

    def __repr__(self) -> str:
        return f"ConceptDetector({self.model.name!r}, {self._concepts!r}, color={self.color!r})"

    # Concepts ---------------------------------------------------------------------------

    def predict(
        self,
        images: ImageLike | EncodedImage | Sequence[ImageLike],
        *,
        concepts: str | Sequence[str] | None = None,
        exemplars: Any = None,
        exemplar_labels: Any = None,
        threshold: float | None = None,
        include_source_image: bool = False,
    ) -> Any:
        """Every instance of the concepts: ``sv.Detections``, or a list of them for a list.

        Args:
            images: a path, PIL image, array (H, W, C) of the detector's colour order, tensor
                (C, H, W), encoded image; or a list of such.
            concepts: other ones, for this call; ``class_id`` then counts these.
            exemplars: boxes in the one image that show what is meant: ``sv.Detections`` whose
                class names are the concepts; {concept: (K, 4) xyxy pixels}; or (K, 4) alone,
                for a single concept, or without any for what needs no name ("visual").
            exemplar_labels: 1 for "like this", 0 for "not like this"; (K,), or by concept.
            threshold: another one, for this call.
            include_source_image: keep the image in ``metadata["source_image"]``, (H, W, 3)
                uint8 of the detector's colour order. Such detections of several images do not
                merge.
        """
        names = self.class_names
        if concepts is not None:
            names = (read_concepts(concepts) or []) if len(concepts) else []
        limit = self.threshold if threshold is None else threshold
        batch = list(images) if isinstance(images, (list, tuple)) else None
        if batch is not None and exemplars is not None:
            raise AdapterError(
                f"exemplars are boxes in one image, and there are {len(batch)}: "
                "call predict once for each image, with its own"
            )
        shown = group_exemplars(exemplars, exemplar_labels, names)
        names += [name for name in shown if name not in names]
        if not names:
            raise AdapterError(
                "nothing to find: ConceptDetector(model, ['person']), set_concepts(['person']), "
                "predict(image, concepts=['person']), or exemplars"
            )
        out = []
        for image in [images] if batch is None else batch:
            found = self._find(image, names, shown, limit)
            detections = to_detections(
                found,
                class_names=names,
                mask_format=self.mask_format,
                box_source=self.box_source,
            )
            if include_source_image:
                detections.metadata["source_image"] = self._pixels(image)
            out.append(detections)
        return out[0] if batch is None else out

    def __call__(self, images: Any) -> Any:
        """As ``predict``: a callback of ``sv.InferenceSlicer``, for single tiles and for lists."""
        return self.predict(images)

    def slicer(
        self, slice_wh: int | None = None, overlap_wh: int | None = None, **options: Any
    ) -> Any:
        """An ``sv.InferenceSlicer`` that finds small things in large images, tile by tile.

        Parts of an object in neighbouring tiles become one: they are joined where they share
        much of the smaller one.

        Args:
            slice_wh: pixels a side of a tile; the model's own resolution if omitted.
            overlap_wh: pixels that neighbours share; an eighth of a tile if omitted.
            options: of ``sv.InferenceSlicer``: ``thread_workers``, ``batch_size``, ...
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

    def find(
        self,
        image: ImageLike | EncodedImage,
        threshold: float | None = None,
    ) -> Instances:
        """The detector's concepts in one image, as the core's instances."""
        if not self._concepts:
            raise AdapterError("nothing to find: set_concepts(['person']) first")
        limit = self.threshold if threshold is None else threshold
        return self._find(image, self._concepts, {}, limit)

    def _find(
        self,
        image: ImageLike | EncodedImage,
        names: Sequence[str],
        shown: Mapping[str, Exemplars],
        threshold: float,
    ) -> Instances:
        settings: dict[str, Any] = {
            "threshold": threshold,
            "nms": self.nms_iou,
            "max_instances": self.max_detections,
        }
        by_name = [name for name in names if name not in shown]
        with self._lock:
            encoded = self._encode(image)
            parts = [self.model.segment(encoded, by_name, **settings)] if by_name else []
            parts += [
                self.model.segment(
                    encoded,
                    None if name == VISUAL else name,
                    boxes=boxes,
                    box_labels=labels,
                    **settings,
                )
                for name, (boxes, labels) in shown.items()
            ]
        found = join(parts)
        order = np.argsort([names.index(label) for label in found.labels], kind="stable")
        if self.max_detections is not None and len(found) > self.max_detections:
            best = np.argsort(-found.scores, kind="stable")[: self.max_detections]
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
        """One mask for each of N prompts, as ``model.segment_objects``: ``sv.Detections``."""
        with self._lock:
            found = self.model.segment_objects(
                self._encode(image),
                boxes=boxes,
                points=points,
                point_labels=point_labels,
                masks=masks,
            )
        return to_detections(found, mask_format=self.mask_format, box_source=self.box_source)

    def segment_boxes(self, image: ImageLike | EncodedImage, detections: Any) -> Any:
        """Give the boxes of any detector masks.

        A model that answers boxes (ability "interactive") makes a mask of each. Another one takes
        the boxes as exemplars of their classes' names, and each box gets the instance that it
        encloses best.

        Returns:
            Detections with masks, and otherwise as they came: order, boxes, classes, identities
            and data, and ``data["mask_score"]``: the mask's predicted IoU, or the overlap of its
            extents with the box. A box for which nothing was found has an empty mask and score 0.
        """
        sv = require("supervision", "supervision")
        with self._lock:
            encoded = self._encode(image)
            height, width = encoded.size
            limits = np.array([width, height, width, height], np.float32)
            boxes = np.clip(np.asarray(detections.xyxy, np.float32), 0, limits).reshape(-1, 4)
            usable = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
            crops: list[tuple[Array, Any]] = [(np.zeros((0, 0), bool), (0, 0, 0, 0))] * len(boxes)
            scores = np.zeros(len(boxes), np.float32)
            if len(usable) and "interactive" in self.model.abilities:
                found = self.model.segment_objects(encoded, boxes=boxes[usable])
                for row, place in enumerate(usable.tolist()):
                    crops[place], scores[place] = found.crop(row), found.scores[row]
            elif len(usable):
                names = np.array(read_names(detections))
                named = CLASS_NAME in detections.data  # a number says nothing to the model
                for name in dict.fromkeys(names[usable]):
                    rows = usable[names[usable] == name]
                    concept = str(name) if named else None
                    found = self.model.segment(encoded, concept, boxes=boxes[rows], threshold=0)
                    for box, row, overlap in fit(boxes[rows], found):
                        crops[rows[box]], scores[rows[box]] = found.crop(row), overlap
        mask: Any = compact(crops, encoded.size)
        return sv.Detections(
            xyxy=detections.xyxy.copy(),
            mask=mask.to_dense() if self.mask_format == "dense" else mask,
            confidence=detections.confidence,
            class_id=detections.class_id,
            tracker_id=detections.tracker_id,
            data={**detections.data, MASK_SCORE: scores.clip(0, 1)},
            metadata=dict(detections.metadata),
        )

    # Images -----------------------------------------------------------------------------

    def _encode(self, image: ImageLike | EncodedImage) -> EncodedImage:
        return self.model.encode(self._rgb(image))

    def _rgb(self, image: ImageLike | EncodedImage) -> Any:
        return flip(image) if self.color == "bgr" else image

    def _pixels(self, image: ImageLike | EncodedImage) -> Array:
        if isinstance(image, EncodedImage):
            raise AdapterError("an encoded image has no pixels; include_source_image needs them")
        rgb = read_rgb(self._rgb(image)).permute(1, 2, 0).contiguous().numpy()
        return np.ascontiguousarray(rgb[..., ::-1]) if self.color == "bgr" else rgb


def fit(boxes: Array, found: Instances) -> list[tuple[int, int, float]]:
    """Pairs of (K, 4) boxes and instances whose masks fill them, each used once.

    Returns:
        (box, instance, IoU of the box and the mask's extents), of IoU at least ``FIT``.
    """
    from scipy.optimize import linear_sum_assignment

    extents = np.array([found.crop(i)[1] for i in range(len(found))], np.float32).reshape(-1, 4)
    low = np.maximum(boxes[:, None, :2], extents[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], extents[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
    other = (extents[:, 2:] - extents[:, :2]).prod(1)[None]
    overlap = shared / np.maximum(own + other - shared, 1e-6)
    # Of instances that fit alike, the one that the model believes in.
    rows, columns = linear_sum_assignment(overlap + 0.1 * found.scores, maximize=True)
    return [
        (int(r), int(c), float(overlap[r, c]))
        for r, c in zip(rows, columns, strict=True)
        if overlap[r, c] >= FIT
    ]


def group_exemplars(exemplars: Any, labels: Any, names: Sequence[str]) -> dict[str, Exemplars]:
    """Exemplars in any of their forms -> boxes and signs by concept, in order."""
    if exemplars is None:
        if labels is not None:
            raise AdapterError("exemplar_labels are given without exemplars; pass both, or neither")
        return {}
    if isinstance(exemplars, Mapping):
        signs = labels if labels is not None else {}
        if not isinstance(signs, Mapping) or set(signs) - set(exemplars):
            raise AdapterError(
                "exemplars are by concept, so exemplar_labels are by the same: "
                "exemplars={'dog': boxes}, exemplar_labels={'dog': [1, 0]}"
            )
        return {name: _exemplars(boxes, signs.get(name)) for name, boxes in exemplars.items()}
    if hasattr(exemplars, "xyxy"):
        all_of = _exemplars(exemplars.xyxy, labels)
        written = np.array(read_names(exemplars, names or None))
        return {
            str(name): Exemplars(all_of.boxes[written == name], all_of.labels[written == name])
            for name in dict.fromkeys(written)
        }
    if len(names) > 1:
        raise AdapterError(
            f"exemplars show one concept, and there are {len(names)}: {', '.join(names)}. "
            f"Say which: exemplars={{{names[0]!r}: boxes}}"
        )
    return {names[0] if names else VISUAL: _exemplars(exemplars, labels)}


def _exemplars(boxes: Any, labels: Any) -> Exemplars:
    array = read_array(boxes, 4, "exemplars")
    signs = np.ones(len(array), np.int64) if labels is None else np.asarray(labels)
    if signs.shape != (len(array),):
        raise AdapterError(f"{len(array)} exemplars have labels of shape {signs.shape}")
    return Exemplars(array, signs)


def check_color(color: object) -> None:
    """Raises AdapterError for an order of channels that is none."""
    if color not in ("rgb", "bgr"):
        raise AdapterError(f"color is 'rgb' or 'bgr', the order of channels; got {color!r}")


def flip(image: Any) -> Any:
    """An array's channels in the other order; what is no array knows its own."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4):
        return image[..., [2, 1, 0]]
    return image
