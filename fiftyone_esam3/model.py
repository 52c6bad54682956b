"""The model as FiftyOne runs it: prompts in from fields, labels out, one image at a time.

Arguments and prompt fields have the names of FiftyOne's own SAM models. All computing is the
core's; what is decided here is which question to ask of which image.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.frame as fofr
import fiftyone.core.labels as fol
import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import fiftyone.zoo.models as fozm
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as transforms

import efficientsam3 as es3
from efficientsam3.image import VISUAL
from efficientsam3.pixels import read_rgb

from .labels import ERROR_FIELD, presence_keys, to_detections
from .prompts import PROMPT_KEYS, SHAPE_KEYS, Clicks, Prompts, read_prompts, unique
from .shared import load_core

logger = logging.getLogger(__name__)

_MODES = ("concept", "visual")


class EfficientSam3Config(fout.TorchImageModelConfig, fozm.HasZooModel):
    """How an :class:`EfficientSam3` is loaded and what it is asked.

    Args:
        variant: a model of the table, or a folder of a saved model.
        classes (None): the concepts to look for: a list of phrases, or one phrase.
        operation_mode ("concept"): ``"concept"`` finds all instances of the concepts, with boxes
            and points as examples; ``"visual"`` segments one object for each box, each set of
            points, or each pair of them.
        prompt_field, box_prompt_field, point_prompt_field, text_prompt_field (None): fields that
            hold each sample's own prompts; ``apply_model`` takes them too.
        threshold (0.5): the least confidence in concept mode. ``confidence_thresh``, here or in
            ``apply_model``, takes its place and holds in both modes.
        max_instances (None): the most instances in an image, in concept mode.
        nms (None): in concept mode, drop an instance whose mask has a greater IoU than this with
            a better one of its concept.
        points_mask_index (None): which of three masks to take for points without a box, from 0,
            the smallest, to 2, the largest; the best one by default.
        checkpoint, base, text, context, device, dtype, speed: see :func:`efficientsam3.load`.
    """

    def __init__(self, d: dict[str, Any]) -> None:
        d = dict(self.init(d))
        if isinstance(d.get("classes"), str):
            d["classes"] = [d["classes"]]
        elif d.get("classes") is not None:
            d["classes"] = list(d["classes"])
        super().__init__(d)
        self.variant = self.parse_string(d, "variant")
        self.operation_mode = self.parse_string(d, "operation_mode", default="concept")
        self.prompt_field = self.parse_string(d, "prompt_field", default=None)
        self.box_prompt_field = self.parse_string(d, "box_prompt_field", default=None)
        self.point_prompt_field = self.parse_string(d, "point_prompt_field", default=None)
        self.text_prompt_field = self.parse_string(d, "text_prompt_field", default=None)
        self.threshold = self.parse_number(d, "threshold", default=0.5)
        self.max_instances = self.parse_int(d, "max_instances", default=None)
        self.nms = self.parse_number(d, "nms", default=None)
        self.points_mask_index = self.parse_int(d, "points_mask_index", default=None)
        self.checkpoint = self.parse_raw(d, "checkpoint", default=None)
        self.base = self.parse_raw(d, "base", default=None)
        self.text = self.parse_string(d, "text", default=None)
        self.context = self.parse_int(d, "context", default=None)
        self.dtype = self.parse_raw(d, "dtype", default=None)
        self.speed = self.parse_string(d, "speed", default="exact")
        self.get_item_cls = self.parse_string(d, "get_item_cls", default=f"{__name__}.ImageGetItem")
        self._check(d)

    def _check(self, d: Mapping[str, Any]) -> None:
        unknown = sorted(set(d) - set(vars(self)))
        if unknown:
            inherited = vars(fout.TorchImageModelConfig({}))
            own = ["classes", "confidence_thresh", *(k for k in vars(self) if k not in inherited)]
            raise ValueError(f"unknown arguments {unknown}; known are {', '.join(own)}")
        _check_mode(self.operation_mode)
        if self.points_mask_index not in (None, 0, 1, 2):
            raise ValueError(f"points_mask_index is {self.points_mask_index}; it can be 0, 1 or 2")
        for concept in self.classes or ():
            if not isinstance(concept, str) or not concept.strip():
                raise ValueError(f"classes has {concept!r}; each must be a word or a phrase")

    @property
    def prompt_fields(self) -> dict[str, str]:
        """The fields named when loading, by key of ``PROMPT_KEYS``."""
        return {k: v for k in PROMPT_KEYS if (v := getattr(self, k)) is not None}


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise ValueError(f"operation_mode is {mode!r}; it can be 'concept' or 'visual'")


# Images and prompts on their way in ---------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One image and its prompts, as a data loader hands them to the model.

    image: (3, H, W) uint8 RGB, or None if it could not be read. error: why there is nothing to
    segment. source: the file's path, if there is one.
    """

    image: torch.Tensor | None = None
    prompts: Prompts = field(default_factory=Prompts)
    error: es3.EfficientSam3Error | None = None
    source: str = ""


class ImageGetItem(fout.GetItem):
    """Reads one sample's image and prompts, in a data loader's worker.

    Args:
        field_mapping: names of fields by ``"filepath"`` and by the keys of ``PROMPT_KEYS``.
    """

    IMAGE_KEY = "filepath"

    def __init__(self, field_mapping: Mapping[str, str] | None = None) -> None:
        prompts = [k for k in PROMPT_KEYS if k in (field_mapping or {})]
        self._keys = [self.IMAGE_KEY, *prompts]
        super().__init__(field_mapping=field_mapping)

    @property
    def required_keys(self) -> list[str]:
        """The image's key, and those of the prompts that are mapped to a field."""
        return list(self._keys)

    def __call__(self, d: Mapping[str, Any]) -> Item:
        return make_item(d[self.IMAGE_KEY], d)


class ImageGetItemForVideo(ImageGetItem):
    """The same for a frame of a video, whose pixels are there already.

    FiftyOne finds this class by its name, where it feeds frames through a ``GetItem``.
    """

    IMAGE_KEY = "image"


def make_item(image: Any, values: Mapping[str, Any]) -> Item:
    """An item from a path or an image, and the values of prompt fields by ``PROMPT_KEYS``.

    What cannot be read becomes an item that says so: an exception in a data loader would cost the
    whole batch.
    """
    source = image if isinstance(image, str) else ""
    try:
        rgb = read_rgb(image)
    except es3.ImageError as error:
        return Item(error=error, source=source)
    try:
        prompts = read_prompts(values, (rgb.shape[1], rgb.shape[2]))
    except es3.PromptError as error:
        return Item(rgb, error=error, source=source)
    return Item(rgb, prompts, source=source)


class FixedSize:
    """Any image as (3, side, side) uint8 RGB: crops of one size, which a batch needs."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Any) -> torch.Tensor:
        # As the core resizes, so that the core's own resizing of the result changes nothing.
        rgb = read_rgb(image)[None].contiguous()
        return transforms.resize(rgb, [self.side, self.side], antialias=True)[0]


# The model ----------------------------------------------------------------------------------


class EfficientSam3(fout.TorchImageModelWithPrompts, fom.SamplesMixin):
    """EfficientSAM3 on images, and on the frames of videos.

    It builds a ``GetItem``, so FiftyOne reads images in worker processes and writes labels in the
    background; it is a ``SamplesMixin`` too, so it is handed the samples, and can record on them
    what could not be done.

    Args:
        config: an :class:`EfficientSam3Config`.

    Attributes:
        marks: further attributes of every ``Detections`` that it finds.
    """

    def __init__(self, config: EfficientSam3Config) -> None:
        super().__init__(config)
        self._device = torch.device(self._model.device)
        self._using_gpu = self._device.type in ("cuda", "mps")
        self._loaded_fields = config.prompt_fields
        self._fields = self._loaded_fields
        self._failures = 0
        self._embedding_failed = False
        self._last_embeddings: Any = None
        self._last_image: tuple[str, es3.EncodedImage] | None = None
        self.marks: dict[str, Any] = {}

    # What FiftyOne asks about it

    @property
    def has_collate_fn(self) -> bool:
        """True: images of a batch keep their own sizes."""
        return True

    @staticmethod
    def collate_fn(batch: list[Item]) -> list[Item]:
        """The batch as it is."""
        return batch

    @property
    def has_embeddings(self) -> bool:
        """True: the mean of the image encoder's features."""
        return True

    @property
    def operation_mode(self) -> str:
        """``"concept"`` or ``"visual"``; can be set."""
        return str(self.config.operation_mode)

    @operation_mode.setter
    def operation_mode(self, mode: str) -> None:
        _check_mode(mode)
        self.config.operation_mode = mode

    @property
    def core(self) -> es3.ImageModel:
        """The model that answers."""
        return self._model

    @property
    def needs_fields(self) -> dict[str, str]:
        """The fields that hold prompts, by key of ``PROMPT_KEYS``; ``apply_model`` sets them."""
        return self._fields

    @needs_fields.setter
    def needs_fields(self, fields: dict[str, str]) -> None:
        if fields is self._loaded_fields:  # apply_model puts back what it found
            self._fields = fields
            return
        unknown = sorted(set(fields) - set(PROMPT_KEYS))
        if unknown:
            raise ValueError(
                f"unknown arguments {unknown}; fields with prompts are {', '.join(PROMPT_KEYS)}, "
                "and all else is an argument of load_zoo_model"
            )
        kept = self._loaded_fields
        if set(fields) & set(SHAPE_KEYS):
            kept = {k: v for k, v in kept.items() if k not in SHAPE_KEYS}
        self._fields = {**kept, **fields}

    def build_get_item(self, field_mapping: Mapping[str, str] | None = None) -> ImageGetItem:
        """What a data loader's workers do with each sample."""
        module, _, name = self.config.get_item_cls.rpartition(".")
        get_item = getattr(importlib.import_module(module), name)
        return get_item(field_mapping={**self._fields, **(field_mapping or {})})

    def __enter__(self) -> EfficientSam3:
        if self._fields is not self._loaded_fields:  # in apply_model, not for embeddings
            self._check_question()
        self._failures = 0
        self._embedding_failed = False
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        if self._failures:
            logger.warning(
                "there was trouble with %d images; the field %r of each says what",
                self._failures,
                ERROR_FIELD,
            )

    def check(self, fields: Mapping[str, str]) -> None:
        """Raises what would be wrong with every image, as ``apply_model`` with these fields would.

        Args:
            fields: of prompts, by key of ``PROMPT_KEYS``.
        """
        before = self._fields
        self.needs_fields = dict(fields)
        try:
            self._check_question()
        finally:
            self._fields = before

    def _check_question(self) -> None:
        """Raises what would otherwise go wrong, and be logged, for every batch."""
        shapes = bool(set(self._fields) & set(SHAPE_KEYS))
        if self.operation_mode == "visual":
            self._need("interactive")
            if not shapes:
                raise es3.PromptError(
                    "operation_mode is 'visual' and no field holds boxes or points; pass "
                    "prompt_field='<field>' to apply_model"
                )
            return
        self._need("exemplars" if shapes else "concepts")
        if not 0 <= self._threshold() <= 1:
            raise es3.PromptError(f"confidence_thresh is {self._threshold()}; it can be 0 to 1")
        if not shapes and "text_prompt_field" not in self._fields and not self._concepts():
            raise es3.PromptError(
                "nothing to look for; pass classes=['person', ...] to load_zoo_model, or "
                "text_prompt_field='<field>' or prompt_field='<field>' to apply_model"
            )

    def _need(self, ability: str) -> None:
        if ability not in self._model.abilities:
            raise es3.MissingAbilityError(
                f"the weights of {self._model.name} cannot do {ability!r}, only "
                f"{', '.join(sorted(self._model.abilities)) or 'embeddings'}; load the model "
                "with base='<a checkpoint that can>'"
            )

    def _load_model(self, config: EfficientSam3Config) -> es3.ImageModel:
        dtype = config.dtype
        if dtype is None and config.use_half_precision:
            dtype = "bfloat16"
        return load_core(
            config.variant,
            checkpoint=config.checkpoint,
            text=config.text,
            context=config.context,
            base=config.base,
            device=config.device,
            dtype=dtype,
            speed=config.speed,
        )

    def _build_transforms(self, config: EfficientSam3Config) -> tuple[FixedSize, bool]:
        return FixedSize(self._model.config.resolution), False

    # Labels

    def predict(self, img: Any, sample: Any = None) -> fol.Detections | None:
        """Labels of one image; see :meth:`predict_all`."""
        return self.predict_all([img], None if sample is None else [sample])[0]

    def predict_all(self, imgs: Iterable[Any], samples: Any = None) -> list[fol.Detections | None]:
        """Labels of each image.

        Args:
            imgs: items of :meth:`build_get_item`; or paths, PIL images, (H, W, 3) uint8 arrays or
                (3, H, W) tensors.
            samples: the samples, or frames, that they belong to. Their fields hold the prompts of
                images that are not items, and they are told what could not be done.

        Returns:
            detections by image; None for an item, or an image with a sample, that failed.

        Raises:
            ImageError, PromptError: for any other image that failed.
        """
        imgs = list(imgs)
        samples = [None] * len(imgs) if samples is None else samples
        return [self._predict_one(img, sample) for img, sample in zip(imgs, samples, strict=True)]

    def _predict_one(self, img: Any, sample: Any) -> fol.Detections | None:
        item = self._item(img, sample)
        error, labels = item.error, None
        if error is None:
            try:
                labels = self._segment(item)
            except es3.PromptError as refused:
                error = refused
        if error is not None and sample is None and not isinstance(img, Item):
            raise error
        self._report(item, sample, error)
        return labels

    def _item(self, img: Any, sample: Any) -> Item:
        if isinstance(img, Item):
            return img
        values = {}
        for key, path in self._fields.items() if sample is not None else ():
            name = path.removeprefix("frames.")
            if not sample.has_field(name):
                return Item(
                    error=es3.PromptError(
                        f"{key}: there is no {name!r} here; a frame of a video needs a frame field"
                    )
                )
            values[key] = sample[name]
        return make_item(img, values)

    def _report(self, item: Item, sample: Any, error: Exception | None) -> None:
        """Tells the log and the sample what went wrong; after a success, clears its old record."""
        trouble = "; ".join(item.prompts.notes)
        if error is not None:
            trouble = f"{type(error).__name__}: {error}"
        if trouble:
            self._failures += 1
            known = item.source in trouble  # also where there is no path to tell
            logger.warning("%s", trouble if known else f"{item.source}: {trouble}")
            if sample is not None:
                sample[ERROR_FIELD] = trouble
        elif sample is not None and _has_error_field(sample):
            # The field is not loaded here, and None instead of nothing would not be saved.
            sample[ERROR_FIELD] = ""
            sample[ERROR_FIELD] = None

    def _segment(self, item: Item) -> fol.Detections:
        if self.operation_mode == "visual":
            found = fol.Detections(detections=self._objects(item.image, item.prompts))
        else:
            found = self._instances(item.image, item.prompts)
        for name, value in self.marks.items():
            found[name] = value
        return found

    def _concepts(self) -> tuple[str, ...]:
        """What to look for where a sample does not say.

        To FiftyOne ``apply_model(classes=...)`` is a filter. Asking for just what passes it gives
        the labels that the filter would, and also finds classes that were not named when loading.
        """
        loaded = unique(self.config.classes or ())
        chosen = self.config.filter_classes
        if chosen is None:
            return loaded
        return (*(c for c in loaded if c in chosen), *sorted(set(unique(chosen)) - set(loaded)))

    def _threshold(self) -> float:
        confidence = self.config.confidence_thresh
        return float(self.config.threshold if confidence is None else confidence)

    def _instances(self, image: Any, prompts: Prompts) -> fol.Detections:
        """All instances of each concept; one with examples is searched for with its examples."""
        chosen = self.config.filter_classes
        concepts = self._concepts() if prompts.concepts is None else prompts.concepts
        examples = prompts.by_label()
        if chosen is not None:
            concepts = tuple(c for c in concepts if c in chosen)
            examples = {c: shown for c, shown in examples.items() if c in chosen}
        if not concepts and not examples:
            return fol.Detections()

        most = self.config.max_instances
        limits = {"threshold": self._threshold(), "max_instances": most, "nms": self.config.nms}
        encoded = self._model.encode(image)
        detections: list[fol.Detection] = []
        presence: dict[str, float] = {}
        words_alone = [c for c in concepts if c not in examples]
        if words_alone:
            found = self._model.segment(encoded, words_alone, **limits)
            detections += to_detections(found)
            presence.update(found.concept_presence)
        for label, shown in examples.items():
            word = label if label is not None and label in concepts else VISUAL
            found = self._model.segment(encoded, [word], **_as_examples(shown), **limits)
            name = label or VISUAL
            detections += to_detections(found, [name] * len(found))
            presence[name] = found.concept_presence[word]
        if most is not None and examples:  # each answer kept to the limit, but not their sum
            best = sorted(detections, key=lambda d: -d.confidence)[:most]
            kept = {d.id for d in best}
            detections = [d for d in detections if d.id in kept]
        return fol.Detections(detections=detections, concept_presence=presence_keys(presence))

    def _objects(self, image: Any, prompts: Prompts) -> list[fol.Detection]:
        """One object for each box, set of points, or pair of them, in their order."""
        boxes, clicks = prompts.boxes, prompts.clicks
        if boxes and clicks and len(boxes) != len(clicks):
            raise es3.PromptError(
                f"{len(boxes)} boxes and {len(clicks)} keypoints; in 'visual' mode the first box "
                "goes with the first keypoint and so on, so there must be as many"
            )
        names = [b.label or (clicks[i].label if clicks else None) for i, b in enumerate(boxes)]
        names = names or [c.label for c in clicks]
        chosen = self.config.filter_classes
        asked = [i for i, name in enumerate(names) if chosen is None or name in chosen]
        if not asked:
            return []
        found = self._ask_for_objects(
            self._model.encode(image),
            np.stack([boxes[i].corners for i in asked]) if boxes else None,
            [clicks[i] for i in asked] if clicks else None,
        )
        if self.config.confidence_thresh is not None:
            kept = np.flatnonzero(found.scores >= self.config.confidence_thresh)
            found, asked = found[kept], [asked[k] for k in kept]
        return to_detections(found, [names[i] for i in asked])

    def _ask_for_objects(
        self,
        image: es3.EncodedImage,
        boxes: NDArray[np.float32] | None,
        clicks: Sequence[Clicks] | None,
    ) -> es3.Instances:
        """One instance for each box, set of points, or pair of them, in their order."""
        if clicks is None:
            return self._model.segment_objects(image, boxes=boxes)
        points, signs = _padded(clicks)
        several = boxes is None  # a click is ambiguous: the part, the object, the group
        found = self._model.segment_objects(
            image, boxes=boxes, points=points, point_labels=signs, multimask=several
        )
        if not several:
            return found
        best = 3 * np.arange(len(clicks))  # three candidates for each, the best first
        rank = self.config.points_mask_index
        if rank is not None:
            area = np.array([int(found.crop(i)[0].sum()) for i in range(len(found))])
            best += area.reshape(-1, 3).argsort(axis=1, kind="stable")[:, rank]
        return found[best]

    def predict_interactive(
        self,
        sample: Any = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        prompt_classes: Sequence[str] | None = None,
    ) -> fol.Detections:
        """Objects for clicks and boxes in one image, which is read only once for many calls.

        Args:
            sample: the sample to segment; None: the last one again.
            boxes: (N, 4) xyxy pixels, one for each object.
            points: N lists of xy pixels, one list for each object.
            point_labels: N lists of 1 (on it) or 0 (off it); all 1 if omitted.
            prompt_classes: N classes.
        """
        if sample is not None and (self._last_image is None or self._last_image[0] != sample.id):
            self._last_image = (sample.id, self._model.encode(sample.filepath))
        if self._last_image is None:
            raise es3.PromptError("no image yet; pass a sample first")
        clicks = None
        if points is not None:
            sets = [np.asarray(xy, np.float32).reshape(-1, 2) for xy in points]
            signs = [[1] * len(xy) for xy in sets] if point_labels is None else point_labels
            clicks = [
                Clicks(None, xy, np.asarray(s, np.int64)) for xy, s in zip(sets, signs, strict=True)
            ]
        corners = None if boxes is None else np.asarray(boxes, np.float32)
        found = self._ask_for_objects(self._last_image[1], corners, clicks)
        return fol.Detections(detections=to_detections(found, prompt_classes))

    # Embeddings

    def embed(self, arg: Any) -> Any:
        """The embedding of one image, (D,) float32."""
        return self.embed_all([arg])[0]

    def embed_all(self, args: Iterable[Any]) -> Any:
        """The embeddings of images: (N, D) float32, or a list with None where an item failed.

        The first item of a run that cannot be read raises its error, later ones are None: to
        FiftyOne, None is an embedding that failed only where an exception said that some did. At
        its default batch size of 1 each costs just itself.
        """
        embeddings = [self._embed_one(arg) for arg in args]
        whole = [e for e in embeddings if e is not None]
        self._last_embeddings = np.stack(whole) if len(whole) == len(embeddings) else embeddings
        return self._last_embeddings

    def get_embeddings(self) -> Any:
        """What :meth:`embed_all` returned last."""
        return self._last_embeddings

    def _embed_one(self, arg: Any) -> NDArray[np.float32] | None:
        item = self._item(arg, None)
        if item.image is not None:
            return self._model.embed(item.image)
        if isinstance(arg, Item) and self._embedding_failed:
            logger.warning("%s", item.error)
            return None
        self._embedding_failed = True
        raise item.error or es3.ImageError("there is no image")


def _has_error_field(sample: Any) -> bool:
    """Whether the dataset has the field; a sample with selected fields does not know."""
    dataset = sample.dataset
    if dataset is None:
        return sample.has_field(ERROR_FIELD)
    if isinstance(sample, (fofr.Frame, fofr.FrameView)):
        return dataset.has_frame_field(ERROR_FIELD)
    return dataset.has_sample_field(ERROR_FIELD)


def _as_examples(shown: Prompts) -> dict[str, Any]:
    """Boxes and clicks of one class as arguments of ``ImageModel.segment``."""
    examples: dict[str, Any] = {}
    if shown.boxes:
        examples["boxes"] = np.stack([b.corners for b in shown.boxes])
        examples["box_labels"] = np.array([b.sign for b in shown.boxes])
    if shown.clicks:
        examples["points"] = np.concatenate([c.points for c in shown.clicks])
        examples["point_labels"] = np.concatenate([c.signs for c in shown.clicks])
    return examples


def _padded(clicks: Sequence[Clicks]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clicks on N objects as (N, K, 2) xy pixels and (N, K) labels, where -1 is padding."""
    most = max(len(c.points) for c in clicks)
    points = np.zeros((len(clicks), most, 2), np.float32)
    signs = np.full((len(clicks), most), -1, np.int64)
    for row, one in enumerate(clicks):
        points[row, : len(one.points)] = one.points
        signs[row, : len(one.points)] = one.signs
    return points, signs
