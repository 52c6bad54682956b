"""Configurations of networks, as ``config.json`` of a saved model holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config_fields import plain_fields
from .errors import ArgumentError, EfficientSam3Error, MissingAbilityError, shorten
from .nn.late_scores import STRONGEST
from .nn.student import BACKBONES
from .values import is_share


@dataclass(frozen=True)
class VitConfig:
    """Configuration of a ViT image encoder; the defaults are SAM3's.

    Attributes:
        width: Number of channels.
        depth: Number of blocks.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        patch: Pixels a side of a patch.
        window: Cells a side of a window and of the position table.
        everywhere: Indices of the blocks that attend over the whole grid.
        stem: Channels of a convolutional stem, for training from scratch; 0 for none.
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
    """Configuration of the video memory; the defaults are SAM3's.

    Attributes:
        depth: Layers of the memory attention.
        latents: Global tokens of a Perceiver memory (EdgeTAM); 0 for none.
        cells: Cells a side of a Perceiver's grid of tokens, which divides the model's grid; 0 for
            none. Without latents and cells a frame is stored as one token a cell.
        perceiver_depth: Layers of the Perceiver.
        adopt_detection_iou: Default of ``TrackSettings.adopt_detection_iou`` for this model.
        adopt_object_iou: With late fusion: a tracked object takes the mask of an object that the
            image encoder finds on the frame without a prompt, when the two have at least this IoU.
            0: masks are those of the memory, as in SAM3.
    """

    depth: int = 4
    latents: int = 0
    cells: int = 0
    perceiver_depth: int = 2
    adopt_detection_iou: float = 0.0
    adopt_object_iou: float = 0.0

    def __post_init__(self) -> None:
        if min(self.depth, self.perceiver_depth) < 1 or min(self.latents, self.cells) < 0:
            raise ArgumentError(
                "a memory has 1 or more layers of either kind and 0 or more latents and cells; "
                f"got {self}"
            )
        for name in ("adopt_detection_iou", "adopt_object_iou"):
            if not is_share(getattr(self, name)):
                raise ArgumentError(
                    f"{name} is an IoU between 0 and 1; got {getattr(self, name)!r}"
                )

    @property
    def perceives(self) -> bool:
        """Whether the memory is a Perceiver."""
        return bool(self.latents or self.cells)


@dataclass(frozen=True)
class StudentConfig:
    """Configuration of a student image encoder of another size than the released ones.

    Attributes:
        encoder: A name of ``BACKBONES``, which gives the family.
        options: Options of timm for that family, such as ``{"embed_dim": (32, 64), "depth":
            (2, 4)}``. With three stages the stride is 16.
        lean: Train the form that inference has, see ``StudentTrunk``.
    """

    encoder: str
    options: Mapping[str, Any]
    lean: bool = False


@dataclass(frozen=True)
class TextConfig:
    """Configuration of a text encoder.

    Attributes:
        kind: "mobileclip", "mobileclip-mixer" (with RepMixer blocks at both ends) or "clip".
        width: Channels of the transformer.
        depth: Number of transformer blocks.
        heads: Attention heads.
        vocabulary: Number of token ids.
    """

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
"""Image encoders by name; None for a timm backbone with upstream's projection."""

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

PART_NAMES = {
    "trunk": "image encoder",
    "neck": "feature pyramid",
    "text": "text encoder",
    "fusion": "fusion encoder",
    "decoder": "decoder",
    "scoring": "scoring",
    "geometry": "geometry encoder",
    "masks": "mask head",
    "interactive": "interactive head",
    "interactive_neck": "second neck",
    "propagation_neck": "third neck",
    "memory": "tracker",
    "multiplex": "SAM3.1 tracker",
}
"""Parts as messages name them."""

PARTS_OF_ABILITY = {
    "concepts": ("geometry",),
    "exemplars": ("geometry",),
    "masks": ("masks",),
    "interactive": ("interactive", "interactive_neck"),
    "video": ("interactive", "interactive_neck", "memory"),
}
"""The optional parts that each ability needs."""

MULTIPLEX_PARTS = ("interactive", "interactive_neck", "propagation_neck", "multiplex")
"""The parts of SAM3.1 that "video" needs instead."""


@dataclass(frozen=True)
class LateConfig:
    """Configuration of late fusion, which small models have: see ``nn.late_objects``.

    Attributes:
        depth: Layers of attention between the image's tokens.
        object_depth: Layers that refine the objects.
        prompt_depth: Layers that compare a prompt with the objects.
        pixel_widths: Channels of the pixel features of stride 4 and 8.
        space: Channels in which objects and phrases are compared.
        rescoring: Width of the networks that correct an object's score by the other objects of the
            image, see ``nn.late_scores``; 0: none.
        windows: Layers in which objects read windows of finer features, see ``nn.late_windows``.
        refinement: Channels of the network that corrects masks in the box of each object, see
            ``nn.late_refiner``; 0: none.
        coarse: Channels of a stage of stride 32 whose features are added to the tokens, see
            ``nn.late_coarse``; 0: none.
    """

    depth: int = 2
    object_depth: int = 2
    prompt_depth: int = 2
    pixel_widths: tuple[int, int] = (32, 64)
    space: int = 128
    rescoring: int = 0
    windows: int = 0
    refinement: int = 0
    coarse: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a network, as ``config.json`` of a saved model holds it.

    Attributes:
        vision: Image encoder: a name of ``VISIONS``, or a configuration.
        text: Text encoder: a name of ``TEXTS``, or a configuration.
        context: Tokens of a phrase, start and end included.
        parts: Optional parts that the network has, of ``OPTIONAL``.
        scales: Scales of the pyramid levels in the checkpoint, finest first (SAM3.1 has no 0.5).
        resolution: Pixels a side of the input.
        grid: Cells a side of the coarsest pyramid level.
        trunk_width: Channels of the image encoder's map.
        width: Channels of the heads.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        geometry_layers: Layers of the geometry encoder.
        fusion_layers: Layers of the fusion encoder.
        decoder_layers: Layers of the decoder.
        queries: Number of queries.
        mean: Mean of the normalization, on pixels in [0, 1].
        std: Standard deviation of the normalization.
        boxed_masks: Whether masks are cut at their boxes. Masks of SAM3 separate neighboring
            objects of one concept; those of a briefly trained model need the box for it.
        nms: Default IoU above which the weaker of two instances of a concept is dropped; None for
            no suppression, as in SAM3.
        memory: Configuration of the video memory.
        negative_exemplars: Whether the weights were trained with exemplars of what is not meant, as
            all released ones were. If not, such an exemplar has a warning.
        point_exemplars: Whether the geometry encoder reads points, which weights from files of
            Hugging Face transformers do not.
        late: Late fusion of image and prompt, with a student image encoder of three stages; None:
            the early fusion of SAM3.
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
    negative_exemplars: bool = True
    point_exemplars: bool = True
    late: LateConfig | None = None

    def __post_init__(self) -> None:
        if self.late is not None and self.late.rescoring and self.queries < STRONGEST:
            raise ArgumentError(
                f"scores that are corrected by the {STRONGEST} strongest objects need as many "
                f"queries; the configuration has {self.queries}"
            )
        if self.late is not None and not isinstance(self.vision, StudentConfig):
            raise ArgumentError(
                "late fusion reads the stages of a small image encoder: vision is a StudentConfig; "
                f"got {self.vision!r}"
            )
        if isinstance(self.vision, str) and self.vision not in VISIONS:
            raise ArgumentError(
                f"unknown image encoder {self.vision!r}; known: {', '.join(VISIONS)}"
            )
        if isinstance(self.text, str) and self.text not in TEXTS:
            raise ArgumentError(f"unknown text encoder {self.text!r}; known: {', '.join(TEXTS)}")
        if self.context < 3:
            raise ArgumentError(f"context is {self.context}; start, one word and end need 3")
        unknown = set(self.parts) - set(OPTIONAL)
        if unknown:
            raise ArgumentError(f"unknown parts {sorted(unknown)}; known: {', '.join(OPTIONAL)}")
        if self.memory.adopt_object_iou and (self.late is None or "masks" not in self.parts):
            raise ArgumentError(
                "adopt_object_iou needs late fusion and masks: other models find no objects "
                "without a prompt; set it to 0"
            )
        cells = self.memory.cells
        if cells and self.grid % cells:
            fit = [n for n in range(2, self.grid) if self.grid % n == 0]
            raise ArgumentError(
                f"{cells} cells a side of perceived tokens do not divide a grid of {self.grid}; "
                f"these do: {', '.join(map(str, fit))}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``config.json`` holds them."""
        return dataclasses.asdict(self)

    @property
    def abilities(self) -> frozenset[str]:
        """What a model with these parts can do: keys of ``PARTS_OF_ABILITY``."""
        own = {*self.parts}
        found = {ability for ability, parts in PARTS_OF_ABILITY.items() if own.issuperset(parts)}
        return frozenset(found | ({"video"} if self.multiplexed else set()))

    @property
    def multiplexed(self) -> bool:
        """Whether videos are tracked as in SAM3.1: sixteen objects share one pass."""
        return {*self.parts}.issuperset(MULTIPLEX_PARTS)

    def lacks(self, ability: str, name: str) -> EfficientSam3Error:
        """Make the error that a model lacks an ability, which says what part is missing.

        Args:
            ability: A key of ``PARTS_OF_ABILITY``.
            name: The model's name.
        """
        if str(ability) not in PARTS_OF_ABILITY:
            known = ", ".join(map(repr, PARTS_OF_ABILITY))
            return ArgumentError(f"an ability is one of {known}; got {shorten(ability)}")
        needed = PARTS_OF_ABILITY[ability]
        if ability == "video" and {"propagation_neck", "multiplex"} & {*self.parts}:
            needed = MULTIPLEX_PARTS
        missing = [PART_NAMES[p] for p in needed if p not in self.parts]
        also = " (every concept prompt passes through it)" if ability == "concepts" else ""
        return MissingAbilityError(
            f"{name} cannot do this: its weights have no {' and no '.join(missing)}{also}. "
            "Take a model that has it (`efficientsam3 models`), or, for a downloaded model, pass "
            "base=<a checkpoint that has it>, such as a full file of the same release. "
            f"It can: {', '.join(sorted(self.abilities)) or 'encode images'}."
        )

    def without(self, *parts: str) -> ModelConfig:
        """Return the configuration without some optional parts.

        Args:
            *parts: Names of the parts.
        """
        return dataclasses.replace(self, parts=tuple(p for p in self.parts if p not in parts))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Make a configuration from plain values.

        Args:
            values: What ``to_dict`` returns, also after a round trip through JSON.

        Returns:
            The configuration.

        Raises:
            ArgumentError: A field is missing or unknown, or has a value of another type or range.
        """
        try:
            vision = values.get("vision")
            kinds = {
                "vision": StudentConfig if "encoder" in (vision or ()) else VitConfig,
                "text": TextConfig,
                "memory": MemoryConfig,
                "late": LateConfig,
            }
            parts = {
                name: kind(**plain_fields(kind, values[name]))
                for name, kind in kinds.items()
                if isinstance(values.get(name), dict)
            }
            return cls(**plain_fields(cls, {**values, **parts}))
        except (TypeError, AttributeError) as error:
            raise ArgumentError(
                f"this is no model configuration of this version: {error}. Save the model again "
                "with this version, or load it with the version that saved it"
            ) from error


def tiny_config(**changes: Any) -> ModelConfig:
    """Return a small configuration of the same architecture, for tests.

    Args:
        **changes: Fields of ``ModelConfig`` to change.
    """
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


def tiny_late_config(**changes: Any) -> ModelConfig:
    """Return a small configuration with late fusion, for tests.

    Args:
        **changes: Fields of ``ModelConfig`` to change.
    """
    config = tiny_config(
        vision=StudentConfig(
            "repvit-m0.9", {"embed_dim": [8, 16, 24], "depth": [0, 1, 1]}, lean=True
        ),
        resolution=96,
        grid=6,
        queries=8,
        late=LateConfig(1, 1, 1, (8, 16), 16, rescoring=8, windows=1, refinement=8, coarse=8),
    )
    return dataclasses.replace(config, **changes)
