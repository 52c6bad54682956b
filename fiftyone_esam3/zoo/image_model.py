"""The image model of the zoo: prompts come from the fields of samples, and labels go back.

Arguments and prompt fields have the names of FiftyOne's own SAM models.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import fiftyone.core.frame as fofr
import fiftyone.core.labels as fol
import fiftyone.core.sample as fos
import fiftyone.utils.torch as fout
import numpy as np
import torch
from numpy.typing import NDArray

import efficientsam3 as es3
from efficientsam3.masks.tiles import check_tile
from efficientsam3.outputs import OBJECT
from efficientsam3.prompts import check_limits
from efficientsam3.segmenter import VISUAL

from ..image_items import FixedSize, ImageGetItem, Item, encode_items, make_item
from ..inference import segment_concepts, segment_objects, segment_prompted
from ..labels import ERROR_FIELD, describe_error, to_detections
from ..ownership.merge import Found, group_by_class
from ..prompts import PROMPT_KEYS, SHAPE_KEYS, Clicks
from .config import PromptedModel, ZooConfig

logger = logging.getLogger(__name__)

MIN_SCORE = 0.5
"""The lowest score of an instance where no other is given."""


class EfficientSam3Config(ZooConfig):
    """The arguments of an :class:`EfficientSam3`.

    Args:
        d: a dictionary with these keys:

            variant: a model name, or the folder of a saved model.
            classes (None): the concepts to look for: a list of phrases, one phrase, or a mapping
                of class names to phrases; the labels get the class.
            operation_mode ("concept"): ``"concept"`` finds all instances of the concepts, with
                boxes and points as examples; ``"visual"`` segments one object for each box, each
                set of points, or each pair of them.
            prompt_field (None): a field with boxes or points of each sample. ``apply_model``
                takes this argument and the next three too.
            box_prompt_field (None): a field with boxes.
            point_prompt_field (None): a field with points.
            text_prompt_field (None): a field with the concepts of each sample: text, a list of
                texts, labels, or a dictionary of class names and phrases.
            threshold (0.5): the lowest score in concept mode, in [0, 1].
            confidence_thresh (None): the lowest score in both modes; in concept mode it replaces
                ``threshold``. ``apply_model`` takes it too.
            presence ("multiply"): in concept mode, whether scores contain the presence of their
                concept: "multiply" or "separate"; see ``ImageModel.segment``. The labels have the
                attribute ``presence`` either way.
            max_instances (None): the largest number of instances in an image, in concept mode.
            nms (None): in concept mode, suppress an instance whose mask has a greater overlap
                than this with a better one of its class.
            class_agnostic (False): see ``ImageModel.segment``. Instances that examples find are
                compared too.
            overlap_metric ("iou"): "iou" or "iom"; see ``ImageModel.segment``.
            points_mask_index (None): which of three masks to take for points without a box, by
                area: 0 is the smallest, 2 the largest. By default the mask with the best score.
            tile (None): in concept mode, tiles of large pictures: "auto", the side of a tile in
                pixels, or (side, overlap). See ``ImageModel.segment``.
            existing ("refuse"): what happens to labels that the field holds; see
                ``segment_concepts``. ``apply_model`` takes it too. All questions are asked again.
            overlap (0.5): see ``segment_concepts``. ``apply_model`` takes it too.
            checkpoint, base, text, context, device, dtype, speed, adapter: see
                ``efficientsam3.load``.
    """

    OPTIONS: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        **ZooConfig.OPTIONS,
        **dict.fromkeys(PROMPT_KEYS, (None, str)),
        "max_instances": (None, int),
        "points_mask_index": (None, (0, 1, 2)),
        "tile": (None, None),
        "get_item_cls": (f"{ImageGetItem.__module__}.{ImageGetItem.__name__}", str),
    }

    def __init__(self, d: dict[str, Any]) -> None:
        super().__init__(d)
        check_tile(self.tile)
        if self.dtype is None and self.use_half_precision:
            self.dtype: Any = "bfloat16"


class EfficientSam3(fout.TorchImageModelWithPrompts, PromptedModel):
    """EfficientSAM3 on images, and on single frames of videos.

    It builds a ``GetItem``, so FiftyOne reads images in worker processes and writes labels in the
    background. It is a ``SamplesMixin`` too, so it receives the samples and can record errors on
    them.

    Args:
        config: the arguments.
    """

    FIELDS: ClassVar[tuple[str, ...]] = PROMPT_KEYS

    def __init__(self, config: EfficientSam3Config) -> None:
        super().__init__(config)
        self._device = torch.device(self._model.device)
        self._using_gpu = self._device.type in ("cuda", "mps")
        self._read_fields()
        self._failures = 0
        # By dataset, the errors that are written at the end; None outside of a context.
        self._late_errors: dict[str, tuple[Any, dict[str, str]]] | None = None
        self._embedding_failed = False
        self._last_embeddings: Any = None
        self._last_image: tuple[str, es3.EncodedImage] | None = None

    # What FiftyOne asks for -----------------------------------------------------------------

    @property
    def core(self) -> es3.ImageModel:
        """The model of the core package."""
        return self._model

    @property
    def has_collate_fn(self) -> bool:
        """True: the images of a batch keep their own sizes."""
        return True

    @staticmethod
    def collate_fn(batch: list[Item]) -> list[Item]:
        """Give the batch unchanged.

        Args:
            batch: the items of a batch.
        """
        return batch

    @property
    def has_embeddings(self) -> bool:
        """True: an embedding is the mean of the image encoder's features."""
        return True

    def build_get_item(self, field_mapping: Mapping[str, str] | None = None) -> ImageGetItem:
        """The function that the workers of a data loader call for each sample.

        Args:
            field_mapping: further fields, by the keys of ``ImageGetItem``.
        """
        module, _, name = self.config.get_item_cls.rpartition(".")
        get_item = getattr(importlib.import_module(module), name)
        return get_item(field_mapping={**self._fields, **(field_mapping or {})})

    def __enter__(self) -> EfficientSam3:
        if self._fields is not self._loaded_fields:  # apply_model, not compute_embeddings
            self._check_request()
            self._begin()
        self._failures = 0
        self._late_errors = {}
        self._embedding_failed = False
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._end()
        late, self._late_errors = self._late_errors or {}, None
        for dataset, messages in late.values():
            dataset.set_values(ERROR_FIELD, messages, key_field="id")
        if self._failures:
            logger.warning(
                "%d images had errors; the field %r of each sample holds the reason",
                self._failures,
                ERROR_FIELD,
            )

    def _check_request(self) -> None:
        """Raise errors that would otherwise be logged for every batch."""
        has_shapes = bool(set(self._fields) & set(SHAPE_KEYS))
        if self.operation_mode == "visual":
            self._model.require("interactive")
            if not has_shapes:
                raise es3.PromptError(
                    "operation_mode is 'visual' and no field holds boxes or points; pass "
                    "prompt_field='<field>' to apply_model"
                )
            return
        self._model.require("exemplars" if has_shapes else "concepts")
        check_limits(self.config.min_score(MIN_SCORE), self.config.max_instances, self.config.nms)
        has_words = "text_prompt_field" in self._fields or self.config.concepts()
        if not has_shapes and not has_words:
            raise es3.PromptError(
                "nothing to look for; pass classes=['person', ...] to load_zoo_model, or "
                "text_prompt_field='<field>' or prompt_field='<field>' to apply_model"
            )

    def _load_model(self, config: EfficientSam3Config) -> es3.ImageModel:
        return config.load()

    def _build_transforms(self, config: EfficientSam3Config) -> tuple[FixedSize, bool]:
        return FixedSize(self._model.config.resolution), False

    # Labels ---------------------------------------------------------------------------------

    def predict(self, img: Any, sample: Any = None) -> fol.Detections | None:
        """Segment one image; see :meth:`predict_all`.

        Args:
            img: one image.
            sample: its sample or frame.
        """
        return self.predict_all([img], None if sample is None else [sample])[0]

    def predict_all(self, imgs: Iterable[Any], samples: Any = None) -> list[fol.Detections | None]:
        """Segment images.

        Args:
            imgs: items of :meth:`build_get_item`, paths, PIL images, (H, W, 3) uint8 arrays or
                (3, H, W) tensors.
            samples: the samples or frames of the images. Their fields hold the prompts of images
                that are not items, and errors are recorded on them.

        Returns:
            detections for each image; None for an item, or an image with a sample, that failed.

        Raises:
            ImageError: an image without a sample cannot be read.
            PromptError: the prompts of an image without a sample are invalid.
        """
        imgs = list(imgs)
        samples = [None] * len(imgs) if samples is None else samples
        items = [self._read_item(img, one) for img, one in zip(imgs, samples, strict=True)]
        if len(items) > 1 and self.config.tile is None:
            items = encode_items(self._model, items)
        return [
            self._predict_one(img, sample, item)
            for img, sample, item in zip(imgs, samples, items, strict=True)
        ]

    def _predict_one(self, img: Any, sample: Any, item: Item) -> fol.Detections | None:
        error, labels = item.error, None
        if error is None:
            try:
                labels = self._segment(item)
            except es3.PromptError as refused:
                error = refused
        if error is not None and sample is None and not isinstance(img, Item):
            raise error
        self._record(item, sample, error)
        if labels is None or sample is None or self._applied is None:
            return labels
        return self._applied.join(sample, self._found(item, labels))

    def _found(self, item: Item, labels: fol.Detections) -> Found:
        """The labels by their questions: the classes, or in visual mode all prompts together."""
        if self.operation_mode == "visual":
            return Found({OBJECT: list(labels.detections)})
        own = item.prompts.concepts
        asked = list(self.config.concepts() if own is None else own)
        asked += [name or VISUAL for name in item.prompts.by_label()]
        return group_by_class(labels, asked)

    def _read_item(self, img: Any, sample: Any) -> Item:
        if isinstance(img, Item):
            return img
        values = {}
        for key, path in self._fields.items() if sample is not None else ():
            name = path.removeprefix("frames.")
            if not sample.has_field(name):
                message = f"{key}: there is no field {name!r}; a frame needs a frame field"
                return Item(error=es3.PromptError(message))
            values[key] = sample[name]
        return make_item(img, values)

    def _record(self, item: Item, sample: Any, error: Exception | None) -> None:
        """Log an error and record it on the sample; after a success, clear an old record."""
        message = "; ".join(item.prompts.notes) if error is None else describe_error(error)
        if message:
            self._failures += 1
            has_source = item.source in message
            logger.warning("%s", message if has_source else f"{item.source}: {message}")
            if sample is not None:
                self._write_error(sample, message)
        elif sample is not None and _has_error_field(sample):
            # The field is not loaded here, so None alone would not count as a change.
            sample[ERROR_FIELD] = ""
            sample[ERROR_FIELD] = None

    def _write_error(self, sample: Any, message: str) -> None:
        """Record an error on a sample, now or when the context of the model ends.

        FiftyOne saves batches of samples in a thread. That thread fails if the dataset gets a new
        field at the same time, so the field is added after the last batch is saved.
        """
        late, dataset = self._late_errors, sample.dataset
        is_image = type(sample) in (fos.Sample, fos.SampleView)  # no patch and no frame
        if late is None or dataset is None or not is_image or _has_error_field(sample):
            sample[ERROR_FIELD] = message
        else:
            _, messages = late.setdefault(dataset.name, (dataset, {}))
            messages[sample.id] = message

    def _segment(self, item: Item) -> fol.Detections:
        c = self.config
        if self.operation_mode == "visual":
            return segment_objects(
                self._model,
                item.image,
                item.prompts,
                classes=c.filter_classes,
                min_confidence=c.confidence_thresh,
                points_mask_index=c.points_mask_index,
            )
        return segment_concepts(
            self._model,
            item.image,
            item.prompts,
            c.concepts(),
            classes=c.filter_classes,
            threshold=c.min_score(MIN_SCORE),
            presence=c.presence,
            max_instances=c.max_instances,
            nms=c.nms,
            class_agnostic=c.class_agnostic,
            overlap_metric=c.overlap_metric,
            phrases=c.phrases(),
            tile=c.tile,
        )

    def predict_interactive(
        self,
        sample: Any = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        prompt_classes: Sequence[str] | None = None,
    ) -> fol.Detections:
        """Segment objects by clicks and boxes; the image is encoded once for many calls.

        Args:
            sample: the sample to segment. None: the last one again.
            boxes: (N, 4) xyxy pixels, one box for each object.
            points: N lists of xy pixels, one list for each object.
            point_labels: N lists of 1 (on the object) or 0 (off it). None: all 1.
            prompt_classes: N class names.
        """
        if sample is not None and (self._last_image is None or self._last_image[0] != sample.id):
            self._last_image = (sample.id, self._model.encode(sample.filepath))
        if self._last_image is None:
            raise es3.PromptError("no image is encoded yet; pass a sample first")
        clicks = None
        if points is not None:
            sets = [np.asarray(xy, np.float32).reshape(-1, 2) for xy in points]
            signs = [[1] * len(xy) for xy in sets] if point_labels is None else point_labels
            clicks = [
                Clicks(None, xy, np.asarray(s, np.int64)) for xy, s in zip(sets, signs, strict=True)
            ]
        corners = None if boxes is None else np.asarray(boxes, np.float32)
        found = segment_prompted(
            self._model, self._last_image[1], corners, clicks, self.config.points_mask_index
        )
        return fol.Detections(detections=to_detections(found, prompt_classes))

    # Embeddings -----------------------------------------------------------------------------

    def embed(self, arg: Any) -> Any:
        """The embedding of one image, (D,) float32.

        Args:
            arg: the image.
        """
        return self.embed_all([arg])[0]

    def embed_all(self, args: Iterable[Any]) -> Any:
        """The embeddings of images.

        The first item of a run that cannot be read raises its error; later ones give None.
        FiftyOne accepts None for a failed embedding only after an exception.

        Args:
            args: images as in :meth:`predict_all`.

        Returns:
            (N, D) float32, or a list with None where an item failed.
        """
        embeddings = [self._embed_one(arg) for arg in args]
        found = [e for e in embeddings if e is not None]
        self._last_embeddings = np.stack(found) if len(found) == len(embeddings) else embeddings
        return self._last_embeddings

    def get_embeddings(self) -> Any:
        """The last result of :meth:`embed_all`."""
        return self._last_embeddings

    def _embed_one(self, arg: Any) -> NDArray[np.float32] | None:
        item = self._read_item(arg, None)
        if item.image is not None:
            return self._model.embed(item.image)
        if isinstance(arg, Item) and self._embedding_failed:
            logger.warning("%s", item.error)
            return None
        self._embedding_failed = True
        raise item.error or es3.ImageError("there is no image")


def _has_error_field(sample: Any) -> bool:
    """Whether the dataset has the error field; a sample with selected fields cannot tell."""
    dataset = sample.dataset
    if dataset is None:
        return sample.has_field(ERROR_FIELD)
    if isinstance(sample, (fofr.Frame, fofr.FrameView)):
        return dataset.has_frame_field(ERROR_FIELD)
    return dataset.has_sample_field(ERROR_FIELD)
