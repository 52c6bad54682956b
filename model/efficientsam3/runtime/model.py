"""The image model of an exported folder, which runs without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..bpe import Tokenizer
from ..errors import MissingAbilityError
from ..exemplar_prompts import ExemplarPrompts
from ..io.samples import ImageLike, read_rgb_array
from ..model_steps import Answers, ObjectAnswers, Shown
from ..outputs import EncodedImage
from ..segmenter import TEXT_CACHE, Segmenter
from ..text_cache import TextCache
from ..types import Array
from .manifest import Manifest, read_manifest
from .pixels import normalize
from .sessions import open_sessions


@dataclass(eq=False)
class RuntimeFeatures:
    """Features of one image."""

    image: dict[str, Array]
    """Outputs of the image graph."""
    masks: dict[str, Array] = field(default_factory=dict)
    """Outputs of the mask graph that need no prompt, computed when first needed."""
    frame: dict[str, Array] = field(default_factory=dict)
    """Features of the interactive head, computed when first needed."""

    @property
    def tokens(self) -> Array:
        """(1, N, C) tokens of the coarsest pyramid level."""
        return self.image["tokens"]


class ExportedModel(Segmenter):
    """A model of an exported folder; ``load`` makes one.

    It has the methods of ``ImageModel`` that segment images, and gives the same ``Instances``.

    Args:
        folder: A folder that ``export_model`` wrote.
        device: Name of the runtime's device; None for the CPU.

    Attributes:
        name: The model's name.
        config: Resolution, grid, context, nms, negative_exemplars and point_exemplars.
        device: Name of the runtime's device.
        dtype: The precision of the folder.
        speed: "exact" or "fast".
        manifest: What the folder holds.
        key: Equal for models of the same folder or of a copy of it.
        abilities: What it can do, of "concepts", "exemplars", "masks", "interactive".

    Raises:
        CheckpointError: The folder is damaged or of another version.
        MissingPackageError: The runtime is not installed.
        ArgumentError: The runtime does not know the device.
    """

    def __init__(self, folder: str | os.PathLike[str], device: str | None = None) -> None:
        place = Path(folder)
        self.manifest: Manifest = read_manifest(place)
        m = self.manifest
        self._sessions = open_sessions(place, m, device)
        self._tokenizer = Tokenizer.read(place / m.tokenizer["file"])
        self.name, self.speed, self.dtype = m.name, m.speed, m.precision
        self.device = self._sessions.device
        self.config = SimpleNamespace(
            resolution=m.preprocessing["resolution"],
            grid=m.preprocessing["grid"],
            context=m.tokenizer["context"],
            nms=m.postprocessing["nms"],
            negative_exemplars=m.config["negative_exemplars"],
            point_exemplars=m.config.get("point_exemplars", True),
        )
        self.key = (m.name, m.backend, m.precision, m.speed, *sorted(m.files.items()))
        self._folder = place.absolute()
        self.abilities = frozenset(m.abilities)
        self._texts = TextCache(TEXT_CACHE)
        self._batch_size = 4

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles read the folder again."""
        return type(self), (self._folder, self.device)

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"ExportedModel({m.name!r}, {m.precision} by {m.backend} on {self.device}, "
            f"speed={m.speed!r})"
        )

    def require(self, ability: str) -> None:
        """Check that the exported weights have an ability.

        Args:
            ability: "concepts", "exemplars", "masks", "interactive" or "video".

        Raises:
            MissingAbilityError: They do not; the message says which part is missing.
        """
        if ability in self.abilities:
            return
        missing = " and no ".join(self.manifest.missing.get(ability, [ability]))
        raise MissingAbilityError(
            f"{self.name} cannot do this: the exported folder has no {missing}. Export a model "
            "that has it, or use the model in PyTorch: load(name) without backend. "
            f"It can: {', '.join(sorted(self.abilities)) or 'encode images'}."
        )

    # Images -----------------------------------------------------------------------------

    def preprocess(self, image: ImageLike) -> Array:
        """Resize and normalize an image.

        Args:
            image: A path, PIL image, (H, W, C) RGB array or (C, H, W) tensor.

        Returns:
            (1, 3, R, R) float32.

        Raises:
            ImageError: The image cannot be read.
        """
        return self._normalize(read_rgb_array(image))

    def _normalize(self, rgb: Array) -> Array:
        p = self.manifest.preprocessing
        return normalize(rgb, p["resolution"], p["mean"], p["std"])

    def _read(self, image: ImageLike) -> tuple[RuntimeFeatures, tuple[int, int]]:
        rgb = read_rgb_array(image)
        found = self._sessions.run("image", pixels=self._normalize(rgb))
        return RuntimeFeatures(found), (rgb.shape[0], rgb.shape[1])

    def embed(self, image: ImageLike | EncodedImage) -> Array:
        """An embedding of the image for similarity search: the mean over the coarsest level.

        Args:
            image: As ``encode`` takes it.

        Returns:
            (D,) float32.
        """
        tokens: Array = self._encode_one(image).features.tokens
        return tokens[0].mean(0, np.float32)

    def embed_patches(self, image: ImageLike | EncodedImage) -> Array:
        """The coarsest level of the image encoder's feature pyramid.

        Args:
            image: As ``encode`` takes it.

        Returns:
            (D, rows, columns) float32.
        """
        tokens: Array = self._encode_one(image).features.tokens
        side = self.config.grid
        return tokens[0].T.reshape(-1, side, side).astype(np.float32)

    # Prompts ----------------------------------------------------------------------------

    def _expect_prompts(self) -> None:
        self._sessions.prepare(["text", "heads", "mask_image", "masks"])

    def _answer(
        self, features: RuntimeFeatures, phrases: list[str], shown: Sequence[Shown]
    ) -> Answers:
        words, valid = (np.stack(parts) for parts in zip(*self._read_text(phrases), strict=True))
        given = shown or [Shown(features.image["bare_prompt"], np.ones((1, 1), bool))]
        count = len(phrases)
        tokens = np.concatenate([one.tokens for one in given], 1).repeat(count, 0)
        keep = np.concatenate([one.valid for one in given], 1).repeat(count, 0)
        prompt, valid = np.concatenate([words, tokens], 1), np.concatenate([valid, keep], 1)
        found = self._sessions.run("heads", **features.image, prompt=prompt, valid=valid)
        return Answers(
            _sigmoid(found["logits"]),
            _sigmoid(found["presence"]),
            found["boxes"],
            {**found, "prompt": prompt, "valid": valid},
        )

    def _read_text(self, phrases: list[str]) -> list[tuple[Array, Array]]:
        """Features and masks of phrases; those of recent phrases come from a cache."""

        def encode(new: list[str]) -> list[tuple[Array, Array]]:
            ids = self._tokenizer(new, self.config.context)
            words = self._sessions.run("text", ids=ids)["words"]
            return list(zip(words, ids != 0, strict=True))

        return self._texts.read(phrases, encode)

    def _read_exemplars(self, features: RuntimeFeatures, exemplars: ExemplarPrompts) -> Shown:
        """Encode exemplars; the graph takes at least one of each kind."""
        e, known = exemplars, features.image
        points, point_labels, point_valid = _at_least_one(e.points, e.point_labels)
        boxes, box_labels, box_valid = _at_least_one(e.boxes, e.box_labels)
        shown = self._sessions.run(
            "exemplars",
            tokens=known["tokens"],
            exemplar_keys=known["exemplar_keys"],
            exemplar_values=known["exemplar_values"],
            points=points,
            point_labels=point_labels,
            point_valid=point_valid,
            boxes=boxes,
            box_labels=box_labels,
            box_valid=box_valid,
        )["shown"]
        return Shown(shown, np.concatenate([point_valid, box_valid, np.ones((1, 1), bool)], 1))

    def _masks(
        self, features: RuntimeFeatures, answers: Answers, row: int, queries: Array
    ) -> Array:
        shared = self._mask_features(features)
        raw = {name: value[row : row + 1] for name, value in answers.raw.items()}
        chosen = {name: raw.pop(name)[:, queries] for name in ("queries", "boxes")}
        return self._sessions.run("masks", **raw, **chosen, **shared)["masks"][0]

    def _mask_features(self, features: RuntimeFeatures) -> dict[str, Array]:
        if not features.masks:
            self._sessions.release("heads")  # both would keep a quarter of the highest memory
            features.masks = self._sessions.run("mask_image", **features.image)
        return features.masks

    def object_masks(self, features: RuntimeFeatures, chosen: Array) -> Array:
        """Mask logits of objects that a model with late fusion finds.

        Args:
            features: Features of an image.
            chosen: (Q,) bool, which of its Q objects.

        Returns:
            (K, h, w) for K chosen objects.
        """
        shared, found = self._mask_features(features), features.image
        if not chosen.any():
            return np.zeros((0, *shared["pixel_features"].shape[-2:]), np.float32)
        queries, boxes = found["objects"][:, chosen], found["places"][:, chosen]
        masks: Array = self._sessions.run("masks", queries=queries, boxes=boxes, **shared)["masks"]
        return masks[0]

    def run_graph(self, graph: str, **inputs: Array) -> dict[str, Array]:
        """Run a graph of the folder.

        Args:
            graph: Its name.
            **inputs: Inputs by name; those that the graph does not have are left out.

        Returns:
            The outputs by name.

        Raises:
            CheckpointError: The runtime cannot read the graph's file.
        """
        return self._sessions.run(graph, **inputs)

    def frame_features(self, features: RuntimeFeatures) -> dict[str, Array]:
        """The outputs of the graph "frame", computed once.

        Args:
            features: Features of an image, which keep the result.
        """
        if not features.frame:
            features.frame = self._sessions.run("frame", **features.image)
        return features.frame

    def _answer_objects(
        self,
        features: RuntimeFeatures,
        xy: Array,
        labels: Array,
        earlier: Array | None,
        multimask: bool,
    ) -> ObjectAnswers:
        frame = self.frame_features(features)
        count, side = len(xy), 4 * self.config.grid
        if xy.shape[1]:
            sparse = self._sessions.run("points", points=xy, labels=labels)["sparse"]
        else:
            sparse = np.zeros((count, 0, features.tokens.shape[2]), np.float32)
        given = earlier is not None
        mask_input = earlier if given else np.zeros((count, 1, side, side), np.float32)
        found = self._sessions.run(
            "objects",
            **frame,
            sparse=sparse,
            mask_input=mask_input,  # type: ignore[arg-type]
            has_mask=np.full((count, 1, 1, 1), given, np.float32),
        )
        chosen = slice(1, None) if multimask else slice(0, 1)
        presence = _sigmoid(found["presence"])
        return ObjectAnswers(found["logits"][:, chosen], found["quality"][:, chosen], presence)


def _at_least_one(rows: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Rows (1, K, D), labels (1, K) and which are valid (1, K); one row that is not for none."""
    valid = np.ones(len(rows), bool)
    if not len(rows):
        rows, labels = np.full((1, rows.shape[1]), 0.5, np.float32), np.ones(1, np.int64)
        valid = np.zeros(1, bool)
    return rows[None].astype(np.float32), labels[None], valid[None]


def _sigmoid(x: Array) -> Array:
    """The logistic function, (...,) float32, without overflow."""
    return (0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))).astype(np.float32)
