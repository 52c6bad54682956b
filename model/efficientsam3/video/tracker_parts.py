"""The parts of a model that ``MemoryTracker`` runs: in PyTorch, or graphs of an exported model.

Graphs compute objects one by one: on a CPU, larger batches are not faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ModelConfig
from ..io.images import ImageLike, read_rgb
from ..io.samples import read_rgb_array
from ..nn.features import ImageFeatures
from ..nn.interactive import InteractiveFeatures, InteractiveHead, ObjectMasks
from ..nn.late_detector import LateDetector
from ..nn.memory import MEMORY_FRAMES, Memory
from ..outputs import EncodedImage
from ..predictor import ImageModel
from ..runtime.model import ExportedModel, RuntimeFeatures
from ..types import Array
from .types import FoundObjects, TrackerFeatures

LEAST_SCORE = 0.1
"""Probability below which what the image encoder finds is not taken for an object."""


@dataclass(eq=False)
class TrackerParts:
    """What a tracker needs of a model."""

    head: InteractiveHead
    """Segments objects by points, masks and features that attended to the memory."""
    memory: Any
    """Writes and reads memories: ``nn.memory.Memory``, or ``nn.multiplex.MultiplexMemory``."""
    config: ModelConfig
    """The model's configuration."""
    device: torch.device
    """Device of the tensors that head and memory take and return."""
    dtype: torch.dtype
    """Number format of memory tokens."""
    read: Callable[[EncodedImage | ImageLike], TrackerFeatures]
    """Encodes a frame. Of an encoded image the features are shared."""
    find_objects: Callable[[Any], FoundObjects]
    """The likely objects of a frame, of ``TrackerFeatures.encoded``; late fusion alone has them."""


def tracker_parts(model: ImageModel | ExportedModel, part: str = "memory") -> TrackerParts:
    """The parts of a model with the ability "video".

    Args:
        model: The model.
        part: "memory" (SAM3) or "multiplex" (SAM3.1, which is not exported).
    """
    if isinstance(model, ExportedModel):
        config = ModelConfig.from_dict(model.manifest.config)
        # The interfaces of the modules, as far as trackers use them.
        head = cast(InteractiveHead, ExportedHead(model))
        memory = cast(Memory, ExportedMemory(model, config.grid))
        device = torch.device("cpu")
        return TrackerParts(
            head,
            memory,
            config,
            device,
            torch.float32,
            lambda image: _read_graph(model, image, shared=bool(config.memory.adopt_object_iou)),
            lambda encoded: _find_by_graph(model, encoded),
        )
    return TrackerParts(
        *model.net.tracker(part),
        model.config,
        model.device,
        model.net.dtype,
        lambda image: _read(model, image),
        lambda encoded: _find(model, encoded),
    )


def _read(model: ImageModel, image: EncodedImage | ImageLike) -> TrackerFeatures:
    net, adopts = model.net, bool(model.config.memory.adopt_object_iou)
    if isinstance(image, EncodedImage) or adopts:
        one = model.encode(image)  # raises if it is encoded by another model
        frame = net.frame_features(one.features)
        return TrackerFeatures(frame, one.size, encoded=one.features if adopts else None)
    rgb = read_rgb(image)
    features = net.read_frame(net.part("trunk")(model.preprocess(rgb)))
    return TrackerFeatures(features, (rgb.shape[1], rgb.shape[2]))


@torch.inference_mode()
def _find(model: ImageModel, encoded: ImageFeatures) -> FoundObjects:
    net = cast(LateDetector, model.net)
    objects = encoded.objects or net.find_objects(encoded)
    scores = objects.logits[0].sigmoid()
    keep = scores > LEAST_SCORE
    chosen = objects.queries[:, keep], objects.boxes[:, keep]
    logits = net.part("masks")(*chosen, net.mask_features(encoded)[0])
    return FoundObjects(logits[0], scores[keep], objects.queries[0, keep])


def _find_by_graph(model: ExportedModel, encoded: RuntimeFeatures) -> FoundObjects:
    scores = torch.from_numpy(encoded.image["found"][0]).sigmoid()
    keep = scores > LEAST_SCORE
    logits = torch.from_numpy(model.object_masks(encoded, keep.numpy()))
    looks = torch.from_numpy(encoded.image["objects"][0])
    return FoundObjects(logits, scores[keep], looks[keep])


def _read_graph(
    model: ExportedModel, image: EncodedImage | ImageLike, *, shared: bool
) -> TrackerFeatures:
    encoded = model.encode(image if isinstance(image, EncodedImage) else read_rgb_array(image))
    found = model.frame_features(cast(RuntimeFeatures, encoded.features))
    names = ("frame", "middle", "fine", "coarse")
    features = ExportedFrame(*(torch.from_numpy(found[name]) for name in names))
    return TrackerFeatures(
        cast(InteractiveFeatures, features),
        encoded.size,
        encoded=encoded.features if shared else None,
    )


class ExportedFrame(NamedTuple):
    """Features of a frame, with the fields of ``InteractiveFeatures``."""

    coarse: Tensor
    """(1, C, h, w)."""
    middle: Tensor
    """(1, C / 4, 2h, 2w)."""
    fine: Tensor
    """(1, C / 8, 4h, 4w)."""
    alone: Tensor
    """(1, C, h, w) ``coarse`` with the embedding of an image without memory."""


class MemoryInput(NamedTuple):
    """What a frame reads of the memories of B objects, as ``Memory.gather`` takes it."""

    tokens: Tensor
    """(B, F, T, memory width)."""
    when: Tensor
    """(B, F)."""
    pointers: Tensor
    """(B, P, C)."""
    ages: Tensor
    """(B, P)."""
    valid: Tensor | None = None
    """(B, P) bool; None: all pointers are valid."""


class ExportedHead:
    """The interactive head.

    Args:
        model: The model.
    """

    def __init__(self, model: ExportedModel) -> None:
        self._model = model

    def without_memory(self, frame: ExportedFrame) -> ExportedFrame:
        """Features of a frame that is treated as an image.

        Args:
            frame: Its features.
        """
        return frame._replace(coarse=frame.alone)

    def __call__(
        self,
        features: ExportedFrame,
        xy: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        *,
        multimask: bool = False,
    ) -> ObjectMasks:
        """Segment one object for each of B prompts; see ``InteractiveHead.forward``.

        Args:
            features: Features of a frame; ``coarse`` may have B rows.
            xy: (B, N, 2) points in [0, 1].
            labels: (B, N).
            mask_logits: (B, 1, 4h, 4w) of an earlier result.
            multimask: Whether to return three masks for each prompt.
        """
        run, rows = self._model.run_graph, []
        for i in range(len(xy)):
            sparse = run("points", points=_array(xy[i : i + 1]), labels=_array(labels[i : i + 1]))
            coarse = features.coarse[i : i + 1] if len(features.coarse) > 1 else features.coarse
            given = mask_logits is not None
            side = 4 * coarse.shape[-1]
            rows.append(
                run(
                    "objects",
                    coarse=_array(coarse),
                    middle=_array(features.middle),
                    fine=_array(features.fine),
                    sparse=sparse["sparse"],
                    mask_input=_array(mask_logits[i : i + 1])
                    if mask_logits is not None
                    else np.zeros((1, 1, side, side), np.float32),
                    has_mask=np.full((1, 1, 1, 1), given, np.float32),
                )
            )
        logits, quality, tokens, presence = (
            torch.from_numpy(np.concatenate([row[name] for row in rows]))
            for name in ("logits", "quality", "object_tokens", "presence")
        )
        chosen = slice(1, None) if multimask else slice(0, 1)
        return ObjectMasks(logits[:, chosen], quality[:, chosen], tokens[:, chosen], presence)


class ExportedMemory:
    """The video memory.

    Args:
        model: The model.
        grid: Cells a side of its features.

    Attributes:
        frames: Memory frames that are read at once.
        encoder: Has ``project``.
    """

    frames = MEMORY_FRAMES

    def __init__(self, model: ExportedModel, grid: int) -> None:
        self._model = model
        self._side = 16 * grid
        self.encoder = SimpleNamespace(project=lambda coarse: self._look(coarse, "projected"))

    def _look(self, coarse: Tensor, output: str) -> Tensor:
        return torch.from_numpy(self._model.run_graph("look", frame=_array(coarse))[output])

    def look(self, coarse: Tensor) -> Tensor:
        """The cells of a frame before they attend to a memory, (1, N, C).

        Args:
            coarse: (1, C, h, w) features of the frame.
        """
        return self._look(coarse, "looked")

    def tokens(self, projected: Tensor, masks: Tensor, present: Tensor) -> Tensor:
        """Encode a frame for B objects; see ``Memory.tokens``.

        Args:
            projected: (1, C, h, w) from ``encoder.project``.
            masks: (B, 1, H, W) in [0, 1].
            present: (B,) bool.
        """
        size = (self._side, self._side)
        if masks.shape[-2:] != size:
            masks = F.interpolate(masks.float(), size, mode="bilinear", antialias=True)
        return self._each(
            "remember", "entry", {"projected": projected}, mask=masks, present=present
        )

    def point(self, token: Tensor, present: Tensor) -> Tensor:
        """Object pointers, (B, C).

        Args:
            token: (B, C) mask decoder tokens.
            present: (B,) bool.
        """
        found = self._model.run_graph("pointer", token=_array(token), present=_array(present))
        return torch.from_numpy(found["pointer"])

    def mask_downsample(self, masks: Tensor) -> Tensor:
        """Prompts (B, 1, 4g, 4g) of given masks.

        Args:
            masks: (B, 1, 16g, 16g) in [0, 1].
        """
        return self._each("given_mask", "mask_prompt", {}, mask=masks)

    gather = MemoryInput

    def recall(self, looked: Tensor, memory: MemoryInput) -> Tensor:
        """Let a frame attend to the memories of B objects, (B, C, h, w).

        Args:
            looked: (1, N, C) from ``look``.
            memory: The memories.
        """
        out = []
        for i, entries in enumerate(memory.tokens):
            valid = slice(None) if memory.valid is None else memory.valid[i]
            found = self._model.run_graph(
                "recall",
                looked=_array(looked),
                entries=_array(entries[None]),
                when=_array(memory.when[i : i + 1]),
                pointers=_array(memory.pointers[i][valid][None]),
                ages=_array(memory.ages[i][valid][None]),
            )
            out.append(torch.from_numpy(found["recalled"]))
        return torch.cat(out)

    def _each(self, graph: str, output: str, shared: dict[str, Tensor], **each: Tensor) -> Tensor:
        """Run a graph for each row of the inputs ``each``."""
        given = {name: _array(x) for name, x in shared.items()}
        rows = [
            self._model.run_graph(
                graph, **given, **{name: _array(x[i : i + 1]) for name, x in each.items()}
            )[output]
            for i in range(len(next(iter(each.values()))))
        ]
        return torch.from_numpy(np.concatenate(rows))


def _array(x: Tensor) -> Array:
    x = x.float() if x.is_floating_point() else x
    return np.ascontiguousarray(x.numpy(force=True))
