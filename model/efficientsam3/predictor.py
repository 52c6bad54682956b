"""The image model: an image is encoded once, then any number of prompts are answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from .build import build
from .checkpoints.save import save_folder
from .checkpoints.sources import WeightsInMemory
from .concepts import read_phrase
from .config import ModelConfig
from .devices import best_device, best_dtype, find_device, parse_dtype
from .errors import ArgumentError, PromptError, shorten
from .exemplar_prompts import ExemplarPrompts, check_points
from .exemplars import exemplar_tensors, pack_exemplars
from .io.images import ImageLike, normalize, read_rgb
from .model_steps import Answers, ObjectAnswers, Shown
from .nn.detector import Detector, FoldedDetector, fold, join_prompt, share
from .nn.features import Answer, ImageFeatures, join_tokens
from .nn.tokenizer import tokenize
from .outputs import EncodedImage, Grounding
from .segmenter import TEXT_CACHE, VISUAL, Segmenter
from .text_cache import TextCache
from .types import Array


class ImageModel(Segmenter):
    """A model that segments concepts, instances like exemplars, and single objects.

    ``load`` makes one with weights, ``from_config`` an untrained one.

    Args:
        name: Name of the table or of a saved folder.
        config: The model's configuration.
        source: Returns the learned weights, in float32; it is called again for ``learned``. One
            with an attribute ``key`` is pickled with the model, instead of the weights.
        device: "cpu", "cuda", "mps". None: the fastest on this machine.
        dtype: float32, bfloat16 or float16. None: bfloat16 where the hardware computes in it.
        speed: "exact", or "fast": pooled keys and values in the fusion encoder.

    Attributes:
        name: Name of the table or of the saved folder.
        config: The model's configuration.
        device: Where it computes.
        dtype: The number format in which it computes.
        speed: "exact" or "fast".
        net: The network in its inference form.
        key: Equal for models with the same weights, number format and speed, in all processes.
        abilities: What the weights can do, of "concepts", "exemplars", "masks", "interactive",
            "video".

    Raises:
        ArgumentError: ``device``, ``dtype`` or ``speed`` has a wrong value.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        source: Callable[[], Detector],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        speed: str = "exact",
    ) -> None:
        if speed not in ("exact", "fast"):
            raise ArgumentError(f"speed is 'exact' or 'fast'; got {shorten(speed)}")
        self.name, self.config, self.speed = name, config, speed
        self.device = find_device(device) if device is not None else best_device()
        self.dtype = parse_dtype(dtype) if dtype is not None else best_dtype(self.device)
        self._source = source
        self.key = (getattr(source, "key", None) or uuid4().hex, self.dtype, speed)
        learned = source()
        self.net: FoldedDetector = fold(learned, self.dtype, pooled=speed == "fast")
        fresh = source()
        if fresh is not learned:
            share(self.net, learned, fresh)
        self.net.to(self.device)
        self.abilities = config.abilities
        self._texts = TextCache(TEXT_CACHE)
        # Prompts per batch; each needs about 60 MB at full size.
        self._batch_size = 4 if self.device.type == "cpu" else 16

    @classmethod
    def from_config(
        cls, config: ModelConfig, name: str = "untrained", **options: Any
    ) -> ImageModel:
        """Make an untrained model.

        Args:
            config: The model's configuration.
            name: The model's name.
            **options: ``device``, ``dtype`` and ``speed`` as in ``load``.
        """
        learned = build(config).eval().requires_grad_(False)
        return cls(name, config, WeightsInMemory(learned), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles read the weight files again, or hold weights that have no file."""
        source: Any = self._source
        if not hasattr(source, "key"):
            source = WeightsInMemory(source(), self.key[0])
        options: Any = {"device": str(self.device), "dtype": self.dtype, "speed": self.speed}
        return partial(type(self), self.name, self.config, source, **options), ()

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"ImageModel({self.name!r}, {dtype} on {self.device}, speed={self.speed!r})"

    def save(
        self, folder: str | os.PathLike[str], dtype: torch.dtype | str = torch.float32
    ) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``load(folder)`` reads them.

        Args:
            folder: The folder to write.
            dtype: Number format of matrices and kernels on disk; "float16" halves the file.

        Raises:
            CheckpointError: A weight is too large for ``dtype``.
        """
        save_folder(folder, self.name, self.config, self.learned(), parse_dtype(dtype))

    def learned(self) -> Detector:
        """The network as it was trained, in float32, for training, saving and export.

        It is not kept in memory beside the inference form: the weight files are read again.

        Raises:
            CheckpointError: The files have changed since the model was loaded.
        """
        return self._source()

    # Images ----------------------------------------------------------------------------

    def preprocess(self, image: ImageLike) -> Tensor:
        """Resize and normalize an image.

        Args:
            image: A path, PIL image, (H, W, C) RGB array or (C, H, W) tensor; see
                ``io.images.read_rgb``.

        Returns:
            (1, 3, R, R) float32, on the model's device.

        Raises:
            ImageError: The image cannot be read.
        """
        c = self.config
        return normalize(read_rgb(image).to(self.device), c.resolution, c.mean, c.std)

    def embed(self, image: ImageLike | EncodedImage) -> Array:
        """An embedding of the image for similarity search: the mean over the coarsest level.

        Args:
            image: As ``preprocess`` takes it, or from ``encode``.

        Returns:
            (D,) float32.
        """
        return self._encode_one(image).features.tokens[0].mean(0).float().cpu().numpy()

    def embed_patches(self, image: ImageLike | EncodedImage) -> Array:
        """The coarsest level of the image encoder's feature pyramid.

        Args:
            image: As ``preprocess`` takes it, or from ``encode``.

        Returns:
            (D, rows, columns) float32.
        """
        features = self._encode_one(image).features
        level = features.tokens[0].T.unflatten(1, features.grid)
        return level.float().cpu().numpy()

    # Prompts ---------------------------------------------------------------------------

    @torch.inference_mode()
    def ground(
        self,
        pixels: Tensor,
        concepts: Sequence[str | None],
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
    ) -> Grounding:
        """Run the model on preprocessed images and return all queries, one prompt per image.

        Args:
            pixels: (B, 3, R, R) from ``preprocess``.
            concepts: B phrases; None: the image's exemplars alone.
            boxes: (B, K, 4) cxcywh in [0, 1], exemplars.
            box_labels: (B, K) 1 positive, 0 negative. None: all 1.
            points: (B, K, 2) xy in [0, 1], exemplars.
            point_labels: (B, K) 1 positive, 0 negative. None: all 1.

        Returns:
            The raw outputs.

        Raises:
            PromptError: A shape or a value is wrong.
            MissingAbilityError: The weights lack the geometry encoder, or its part for points.
        """
        self.require("concepts")
        c = self.config
        shape = getattr(pixels, "shape", ())
        if len(shape) != 4 or shape[1:] != (3, c.resolution, c.resolution):
            raise PromptError(
                f"pixels are (B, 3, {c.resolution}, {c.resolution}) from preprocess(); "
                f"got {tuple(shape) or shorten(pixels)}"
            )
        if not torch.isfinite(pixels).all():
            raise PromptError("pixels hold NaN or infinite values; use preprocess(image)")
        if not isinstance(concepts, (list, tuple)) or len(concepts) != len(pixels):
            raise PromptError(f"{len(pixels)} images need {len(pixels)} concepts, one for each")
        names = [VISUAL if name is None else read_phrase(name) for name in concepts]
        exemplars = None
        if boxes is not None or points is not None:
            exemplars = pack_exemplars(
                len(pixels), self.device, boxes, box_labels, points, point_labels
            )
            check_points(c.point_exemplars, self.name, exemplars.points.shape[1])
        image = self.net.read_image(pixels.to(self.device))
        output = self._run_prompts(image, names, self.net.read_exemplars(image, exemplars))
        masks = None
        if "masks" in self.abilities:
            all_queries = torch.arange(output.logits.shape[1], device=self.device)
            masks = torch.stack(
                [self.net.masks_of(image, output, row, all_queries) for row in range(len(names))]
            )
        return Grounding(output.logits, output.presence, output.boxes, masks, output.memory)

    def _run_prompts(
        self, image: ImageFeatures, names: list[str], shown: tuple[Tensor, Tensor]
    ) -> Answer:
        prompt, mask = join_prompt(self._read_text(names), shown)
        return self.net.answer(image, prompt, mask)

    def _read_text(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Features and masks of phrases; those of recent phrases come from a cache."""

        def encode(new: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
            tokens = tokenize(new, self.config.context).to(self.device)
            return zip(*self.net.read_text(tokens), strict=True)

        features, masks = zip(*self._texts.read(names, encode), strict=True)
        return torch.stack(features), torch.stack(masks)

    # Steps of Segmenter -----------------------------------------------------------------

    @torch.inference_mode()
    def _read(self, image: ImageLike) -> tuple[ImageFeatures, tuple[int, int]]:
        rgb = read_rgb(image)
        return self.net.read_image(self.preprocess(rgb)), (rgb.shape[1], rgb.shape[2])

    @torch.inference_mode()
    def _read_several(
        self, images: Sequence[ImageLike]
    ) -> list[tuple[ImageFeatures, tuple[int, int]]]:
        pixels, sizes = [], []
        for image in images:
            rgb = read_rgb(image)
            pixels.append(self.preprocess(rgb))
            sizes.append((rgb.shape[1], rgb.shape[2]))
        return list(zip(self.net.read_image(torch.cat(pixels)).split(), sizes, strict=True))

    @torch.inference_mode()
    def _read_exemplars(self, features: ImageFeatures, exemplars: ExemplarPrompts) -> Shown:
        given = exemplar_tensors(exemplars, self.device)
        return Shown(*self.net.read_exemplars(features, given))

    @torch.inference_mode()
    def _answer_several(
        self, features: Sequence[ImageFeatures], phrases: list[str], shown: Sequence[Shown]
    ) -> Answers:
        return self._answer(join_tokens(features), phrases, shown)

    @torch.inference_mode()
    def _answer(
        self, features: ImageFeatures, phrases: list[str], shown: Sequence[Shown]
    ) -> Answers:
        if shown:
            tokens, valid = (torch.cat(parts, 1) for parts in zip(*shown, strict=True))
        else:
            tokens, valid = self.net.read_exemplars(features)
        return self._to_answers(self._run_prompts(features, phrases, (tokens, valid)))

    @staticmethod
    def _to_answers(output: Answer) -> Answers:
        scores, presence = output.logits.sigmoid(), output.presence.sigmoid()
        arrays = [t.cpu().numpy() for t in (scores, presence, output.boxes)]
        return Answers(arrays[0], arrays[1], arrays[2], output)

    @torch.inference_mode()
    def _masks(self, features: ImageFeatures, answers: Answers, row: int, queries: Array) -> Array:
        chosen = torch.from_numpy(queries).to(self.device)
        return self.net.masks_of(features, answers.raw, row, chosen).cpu().numpy()

    @torch.inference_mode()
    def _answer_objects(
        self,
        features: ImageFeatures,
        xy: Array,
        labels: Array,
        earlier: Array | None,
        multimask: bool,
    ) -> ObjectAnswers:
        prompts = (None if p is None else torch.from_numpy(p) for p in (xy, labels, earlier))
        output = self.net.part("interactive")(
            self.net.interactive_features(features),
            *(None if p is None else p.to(self.device) for p in prompts),
            multimask=multimask,
        )
        arrays = output.logits, output.quality, output.presence.sigmoid()
        return ObjectAnswers(*(t.cpu().numpy() for t in arrays))

    def require(self, ability: str) -> None:
        """Check that the weights have an ability.

        Args:
            ability: "concepts", "exemplars", "masks", "interactive" or "video".

        Raises:
            MissingAbilityError: They do not; the message says which part is missing.
        """
        if str(ability) not in self.abilities:
            raise self.config.lacks(ability, self.name)
