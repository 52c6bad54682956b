"""Build a network from its configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .config import REQUIRED, TEXTS, VISIONS, LateConfig, ModelConfig, StudentConfig
from .nn.decoder import Decoder, DotProductScoring
from .nn.detector import Detector
from .nn.fusion import FusionEncoder
from .nn.geometry import GeometryEncoder
from .nn.interactive import InteractiveHead
from .nn.late_detector import LateDetector
from .nn.late_masks import PixelHead
from .nn.late_objects import ObjectDecoder
from .nn.late_prompts import PromptDecoder
from .nn.masks import MaskHead
from .nn.memory import Memory
from .nn.multiplex import MultiplexMemory
from .nn.neck import Neck, StageNeck
from .nn.perceiver import Perceiver
from .nn.student import StudentTrunk
from .nn.text import ClipText, MobileClipText
from .nn.vit import VisionTransformer


def _trunk(c: ModelConfig) -> nn.Module:
    if isinstance(c.vision, StudentConfig):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in c.vision.options.items()}
        lean, stages = c.vision.lean, c.late is not None
        return StudentTrunk(c.vision.encoder, c.trunk_width, options, lean=lean, stages=stages)
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
    if c.late is not None and isinstance(c.vision, StudentConfig):
        make |= _late_parts(c, c.late, c.vision)
    wanted = (*REQUIRED, *c.parts)
    return {name: build() for name, build in make.items() if name in wanted}


def _late_parts(
    c: ModelConfig, late: LateConfig, vision: StudentConfig
) -> dict[str, Callable[[], nn.Module]]:
    fine = tuple(vision.options["embed_dim"][:-1])
    sizes = c.width, c.heads, c.hidden
    return {
        "neck": lambda: StageNeck((c.trunk_width,), c.width),
        "interactive_neck": lambda: StageNeck((*fine, c.trunk_width), c.width),
        "fusion": lambda: ObjectDecoder(
            *sizes,
            late.depth,
            late.object_depth,
            c.queries,
            fine[1],
            late.windows,
            late.coarse,
        ),
        "decoder": lambda: PromptDecoder(
            *sizes, late.prompt_depth, c.context, late.space, late.rescoring
        ),
        "masks": lambda: PixelHead(c.width, (fine[0], fine[1]), late.pixel_widths, late.refinement),
    }


def build(config: ModelConfig, device: torch.device | str = "cpu") -> Detector:
    """Build an untrained network.

    Args:
        config: The configuration.
        device: Device of the weights; "meta" for shapes without values.

    Returns:
        The network.
    """
    with torch.device(device):
        parts = _parts(config)
        if config.late is None:
            return Detector(parts)
        parts.pop("scoring")
        return LateDetector(parts)
