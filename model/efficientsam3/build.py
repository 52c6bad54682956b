"""From numbers to a model: the only file that knows how the parts fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .nn.decoder import Decoder, DotProductScoring
from .nn.detector import Detector
from .nn.fusion import FusionEncoder
from .nn.geometry import GeometryEncoder
from .nn.interactive import InteractiveHead
from .nn.masks import MaskHead
from .nn.memory import Memory
from .nn.multiplex import MultiplexMemory
from .nn.neck import Neck
from .nn.perceiver import Perceiver
from .nn.student import BACKBONES, StudentTrunk
from .nn.text import ClipText, MobileClipText
from .nn.vit import VisionTransformer


@dataclass(frozen=True)
class VitConfig:
    """A ViT image encoder. ``window``: cells a side of a window and of the position table.
    ``stem``: channels of a convolutional stem, for learning from scratch; 0: none, as SAM3.
    """

    width: int = 1024
    depth: int = 32
    heads: int = 16
    hidden: int = 4736
    patch: int = 14
    window: int = 24
    everywhere: tuple[int, ...] = (7, 15, 23, 31)
    stem: int = 0


@dataclass(frozen=True)
class MemoryConfig:
    """What a tracker keeps of a frame, and how the next reads it; the defaults are SAM3's.

    depth: layers of memory attention. latents, cells: a Perceiver (EdgeTAM) keeps so many tokens
    without a place, and cells x cells with one; the grid's side is a multiple of ``cells``. 0 and
    0: a token a cell of the grid. perceiver_depth: its layers.
    adopt: of ``TrackSettings``, where nothing else is asked for: 0 as in SAM3, whose memory draws
    as well as its detector; a memory that learned for an hour does not.
    """

    depth: int = 4
    latents: int = 0
    cells: int = 0
    perceiver_depth: int = 2
    adopt: float = 0.0

    def __post_init__(self) -> None:
        if min(self.depth, self.perceiver_depth) < 1 or min(self.latents, self.cells) < 0:
            raise ValueError(
                "a memory has 1 or more layers of either kind and 0 or more latents and cells; "
                f"got {self}"
            )
        if not 0 <= self.adopt <= 1:
            raise ValueError(f"adopt is an IoU between 0 and 1; got {self.adopt}")

    @property
    def perceives(self) -> bool:
        """Whether there is a Perceiver."""
        return bool(self.latents or self.cells)


@dataclass(frozen=True)
class StudentConfig:
    """A student image encoder of other sizes than the released ones.

    encoder: a name of ``BACKBONES``, whose family it is. options: timm's for that family, as
    ``{"embed_dim": (32, 64), "depth": (2, 4)}``; with three stages its stride is 16.
    """

    encoder: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TextConfig:
    """A text encoder. ``kind``: "mobileclip", "mobileclip-mixer" (RepMixer ends) or "clip"."""

    kind: str
    width: int
    depth: int
    heads: int
    vocabulary: int = 49408


TEXTS = {
    "mobileclip-s0": TextConfig("mobileclip-mixer", 512, 4, 8),
    "mobileclip-s1": TextConfig("mobileclip", 512, 12, 8),
    "mobileclip2-l": TextConfig("mobileclip", 768, 12, 12),
    "sam3": TextConfig("clip", 1024, 24, 16),
}
VISIONS: dict[str, VitConfig | None] = {**dict.fromkeys(BACKBONES), "sam3": VitConfig()}
"""Image encoders by name; None: a timm backbone with upstream's projection."""

REQUIRED = ("trunk", "neck", "text", "fusion", "decoder", "scoring")
OPTIONAL = (
    "geometry",
    "masks",
    "interactive",
    "interactive_neck",
    "propagation_neck",
    "memory",
    "multiplex",
)


@dataclass(frozen=True)
class ModelConfig:
    """All numbers of a model; ``config.json`` of a saved one.

    Args:
        vision, text: a name of ``VISIONS`` / ``TEXTS``, or numbers of another encoder.
        context: tokens of a phrase, start and end included.
        parts: optional parts that the model has, of ``OPTIONAL``.
        scales: pyramid levels in the checkpoint, finest first (SAM3.1 has no 0.5).
        resolution: pixels a side of the input; ``grid``: cells a side of the coarsest level.
        mean, std: of the input normalisation, on pixels in [0, 1].
        boxed_masks: masks end where their boxes do. SAM3's know by themselves which of two dogs
            is theirs; a model that learned for hours knows where a dog is, and the box says which.
        nms: overlap of masks from which the worse of two instances is dropped, where nothing else
            is asked for; None: instances are not compared, as in SAM3, which says each once.
        memory: of the part of that name.
    """

    vision: str | VitConfig | StudentConfig
    text: str | TextConfig
    context: int
    parts: tuple[str, ...] = ("geometry", "masks")
    scales: tuple[float, ...] = (4, 2, 1, 0.5)
    resolution: int = 1008
    grid: int = 72
    trunk_width: int = 1024
    width: int = 256
    heads: int = 8
    hidden: int = 2048
    geometry_layers: int = 3
    fusion_layers: int = 6
    decoder_layers: int = 6
    queries: int = 200
    mean: float = 0.5
    std: float = 0.5
    boxed_masks: bool = False
    nms: float | None = None
    memory: MemoryConfig = MemoryConfig()

    def __post_init__(self) -> None:
        if isinstance(self.vision, str) and self.vision not in VISIONS:
            raise ValueError(f"unknown image encoder {self.vision!r}; known: {', '.join(VISIONS)}")
        if isinstance(self.text, str) and self.text not in TEXTS:
            raise ValueError(f"unknown text encoder {self.text!r}; known: {', '.join(TEXTS)}")
        if self.context < 3:
            raise ValueError(f"context is {self.context}; start, one word and end need 3")
        unknown = set(self.parts) - set(OPTIONAL)
        if unknown:
            raise ValueError(f"unknown parts {sorted(unknown)}; known: {', '.join(OPTIONAL)}")
        cells = self.memory.cells
        if cells and self.grid % cells:
            fit = [n for n in range(2, self.grid) if self.grid % n == 0]
            raise ValueError(
                f"{cells} cells a side of perceived tokens do not divide a grid of {self.grid}; "
                f"these do: {', '.join(map(str, fit))}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``config.json`` holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of ``to_dict``; also reads JSON's lists."""

        def tuples(raw: dict[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}

        values = tuples(values)
        vision = values.get("vision")
        if isinstance(vision, dict):
            kind = StudentConfig if "encoder" in vision else VitConfig
            values["vision"] = kind(**tuples(vision))
        if isinstance(values.get("text"), dict):
            values["text"] = TextConfig(**values["text"])
        if isinstance(values.get("memory"), dict):
            values["memory"] = MemoryConfig(**values["memory"])
        return cls(**values)


def tiny_config(**changes: Any) -> ModelConfig:
    """A model of the same architecture that answers in milliseconds: for tests."""
    config = ModelConfig(
        vision=VitConfig(width=32, depth=2, heads=2, hidden=48, window=4, everywhere=(1,)),
        text=TextConfig("mobileclip-mixer", 32, 1, 2),
        context=16,
        parts=("geometry", "masks", "interactive", "interactive_neck", "memory"),
        resolution=112,
        grid=8,
        trunk_width=32,
        width=16,
        heads=2,
        hidden=32,
        geometry_layers=1,
        fusion_layers=2,
        decoder_layers=2,
        queries=12,
    )
    return dataclasses.replace(config, **changes)


def _trunk(c: ModelConfig) -> nn.Module:
    if isinstance(c.vision, StudentConfig):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in c.vision.options.items()}
        return StudentTrunk(c.vision.encoder, c.trunk_width, options)
    vit = VISIONS[c.vision] if isinstance(c.vision, str) else c.vision
    if vit is None:
        return StudentTrunk(str(c.vision), c.trunk_width)
    return VisionTransformer(
        vit.width,
        vit.depth,
        vit.heads,
        vit.hidden,
        vit.patch,
        c.grid,
        vit.window,
        vit.everywhere,
        vit.stem,
    )


def _text(c: ModelConfig) -> nn.Module:
    t = TEXTS[c.text] if isinstance(c.text, str) else c.text
    if t.kind == "clip":
        return ClipText(t.width, t.depth, t.heads, c.context, t.vocabulary, c.width)
    mixers = t.kind == "mobileclip-mixer"
    return MobileClipText(
        t.width, t.depth, t.heads, c.context, mixers=mixers, vocabulary=t.vocabulary, out=c.width
    )


def _memory(c: ModelConfig) -> Memory:
    m, width = c.memory, c.width // 4
    perceiver = None
    if m.perceives:
        perceiver = Perceiver(width, m.latents, m.cells, m.perceiver_depth)
    return Memory(c.width, width, c.hidden, m.depth, c.grid, perceiver=perceiver)


def _parts(c: ModelConfig) -> dict[str, nn.Module]:
    def neck() -> Neck:
        return Neck(c.scales, c.grid, c.trunk_width, c.width)

    make: dict[str, Callable[[], nn.Module]] = {
        "trunk": lambda: _trunk(c),
        "neck": neck,
        "text": lambda: _text(c),
        "geometry": lambda: GeometryEncoder(c.width, c.heads, c.hidden, c.geometry_layers),
        "fusion": lambda: FusionEncoder(c.width, c.heads, c.hidden, c.fusion_layers),
        "decoder": lambda: Decoder(c.width, c.heads, c.hidden, c.decoder_layers, c.queries),
        "scoring": lambda: DotProductScoring(c.width, c.hidden),
        "masks": lambda: MaskHead(c.width, c.heads, boxed=c.boxed_masks),
        "interactive_neck": neck,
        "propagation_neck": neck,
        "interactive": lambda: InteractiveHead(c.width, c.heads, c.hidden, c.resolution),
        "memory": lambda: _memory(c),
        "multiplex": lambda: MultiplexMemory(c.width, c.heads, c.hidden, grid=c.grid),
    }
    wanted = (*REQUIRED, *c.parts)
    return {name: build() for name, build in make.items() if name in wanted}


def build(config: ModelConfig, device: torch.device | str = "cpu") -> Detector:
    """An untrained model of ``config``; with ``device="meta"`` its shapes alone."""
    with torch.device(device):
        return Detector(_parts(config))
