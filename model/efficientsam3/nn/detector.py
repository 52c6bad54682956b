"""EfficientSAM3 as a whole: how the parts read an image, a prompt, and answer.

``Detector`` is the mathematics as it is learned; ``FoldedDetector`` is made from one for
inference and answers the same with less arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .decoder import Decoded
from .geometry import Exemplars
from .interactive import InteractiveFeatures, InteractiveHead
from .layers import cast
from .masks import FoldedMaskHead, within
from .memory import Memory
from .neck import FoldedLevel, Neck
from .positions import encode_grid
from .student import StudentTrunk

T = TypeVar("T")


class MissingPartError(RuntimeError):
    """A part that the question needs is not in this model."""


@dataclass
class ImageFeatures:
    """What is known of B images before anything is asked of them.

    map: (B, C, h, w) of the image encoder. tokens: (B, N, 256) of the coarsest pyramid
    level. seen: tokens after the fusion encoder's first self-attention. geometry: keys and
    values of the geometry encoder. grid: rows and columns of the N tokens.
    The rest is made when first asked for.
    """

    map: Tensor
    tokens: Tensor
    seen: Tensor
    geometry: list[tuple[Tensor, Tensor]]
    grid: tuple[int, int]
    bare_prompt: Tensor | None = None
    mask_features: list[Tensor] | None = field(default=None, repr=False)
    interactive: InteractiveFeatures | None = field(default=None, repr=False)
    frame: InteractiveFeatures | None = field(default=None, repr=False)

    def take(self, rows: Tensor) -> ImageFeatures:
        """Tokens for one prompt each: image ``rows[i]`` for prompt i. rows: (P,).

        ``map``, and so what masks are made of, stays that of the B images.
        """
        geometry = [(keys[rows], values[rows]) for keys, values in self.geometry]
        return ImageFeatures(self.map, self.tokens[rows], self.seen[rows], geometry, self.grid)


@dataclass(frozen=True)
class Answer:
    """Detections of B prompts.

    logits: (B, Q). presence: (B,) logits. boxes: (B, Q, 4) cxcywh in [0, 1].
    queries: (B, Q, C). memory: (B, N, C) fused tokens. prompt, mask: (B, L, C), (B, L).
    layers: what each decoder layer said, for training.
    """

    logits: Tensor
    presence: Tensor
    boxes: Tensor
    queries: Tensor
    memory: Tensor
    prompt: Tensor
    mask: Tensor
    layers: list[Decoded]


class Detector(nn.Module):
    """Image encoder, text encoder, pyramid and heads.

    Args:
        parts: modules by name: ``trunk``, ``neck``, ``text``, ``fusion``, ``decoder``,
            ``scoring``; and where the weights have them ``geometry``, ``masks``,
            ``interactive``, ``interactive_neck``, ``propagation_neck``, ``memory``.
    """

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def part(self, name: str) -> Any:
        """The part of that name, or ``MissingPartError``."""
        part = self._modules.get(name)
        if part is None:
            raise MissingPartError(name)
        return part

    def has(self, name: str) -> bool:
        """Whether there is a part of that name."""
        return self._modules.get(name) is not None

    def forward(self, work: Callable[[Detector], T]) -> T:
        """Do some work with this model, for training: what wraps a model to share it between
        devices counts on its work being a forward call.
        """
        return work(self)

    # What an image is asked once -------------------------------------------------------

    def read_image(self, pixels: Tensor) -> ImageFeatures:
        """(B, 3, R, R) normalised pixels -> features."""
        encoded = self.part("trunk")(pixels)
        level = self.coarse_level(encoded)
        grid = (level.shape[-2], level.shape[-1])
        tokens = level.flatten(2).transpose(1, 2).float()
        seen = self.part("fusion").read_image(tokens, self._placed(grid)[0], grid)
        positions = self._positions(grid)
        geometry = []
        if self.has("geometry"):
            geometry = self.part("geometry").read_image(tokens, positions)
        return ImageFeatures(encoded, tokens, seen, geometry, grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        weight = self.part("decoder").query_embed.weight
        return encode_grid(*grid, weight.shape[1], weight.device)

    def _placed(self, grid: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        positions = self._positions(grid)
        return self.part("fusion").place(positions), self.part("decoder").place(positions)

    def coarse_level(self, encoded: Tensor) -> Tensor:
        """The pyramid's level of scale 1, of the image encoder's map."""
        return self.part("neck")(encoded, (2,))[0]

    def _mask_features(self, encoded: Tensor) -> list[Tensor]:
        return self.part("neck")(encoded, (1, 0))

    def read_frame(self, encoded: Tensor) -> InteractiveFeatures:
        """The image encoder's map (1, C, h, w) -> what the tracker reads of a frame."""
        head = self.part("interactive")
        return head.read_frame(*self.part("interactive_neck")(encoded))

    # What each prompt asks -------------------------------------------------------------

    def read_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) tokens -> (B, L, C) features and (B, L) mask, True where there is a word."""
        return self.part("text")(tokens), tokens != 0

    def read_prompt(
        self,
        image: ImageFeatures,
        text: tuple[Tensor, Tensor],
        exemplars: Exemplars | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text and exemplars -> prompt tokens (B, L, C) and mask (B, L)."""
        geometry = self.part("geometry")
        words, valid = text
        batch = words.shape[0]
        if exemplars is None:
            if image.bare_prompt is None:
                given = image.tokens, image.grid, image.geometry
                image.bare_prompt = geometry(*given, batch=len(image.tokens))[0]
            shown = image.bare_prompt.expand(batch, -1, -1)
            keep = valid.new_ones(batch, 1)
        else:
            shown, keep = geometry(image.tokens, image.grid, image.geometry, exemplars)
        return torch.cat([words, shown], 1), torch.cat([valid, keep], 1)

    def answer(
        self,
        image: ImageFeatures,
        prompt: Tensor,
        mask: Tensor,
        alone: tuple[Tensor, Tensor] | None = None,
    ) -> Answer:
        """Args:
        image: features of one image, shared by B prompts, or of B images.
        prompt: (B, L, C). mask: (B, L), True where valid.
        alone: further queries for training, as in ``Decoder.forward``.
        """
        fusion_places, decoder_places = self._placed(image.grid)
        memory = self.part("fusion")(image.seen, fusion_places, image.grid, prompt, mask)
        layers = self.part("decoder")(memory, decoder_places, image.grid, prompt, mask, alone)
        queries, boxes, presence = layers[-1]
        logits = self.part("scoring")(queries, prompt, mask)
        return Answer(
            logits, presence.float(), boxes.float(), queries, memory, prompt, mask, layers
        )

    def masks_of(self, image: ImageFeatures, answer: Answer, row: int, queries: Tensor) -> Tensor:
        """Masks of some queries (K,) of one prompt: (K, 4 * rows, 4 * columns) logits.

        Args:
            row: which of the answer's prompts (and of the image's, if it holds as many).
        """
        head = self.part("masks")
        one = slice(row, row + 1)
        features = [f[one] if f.shape[0] > 1 else f for f in self.mask_features(image)]
        chosen = answer.queries[row, queries][None]
        args = answer.memory[one], image.grid, answer.prompt[one], answer.mask[one]
        masks = self._read_masks(head, args, chosen, features)[0]
        return within(masks, answer.boxes[row, queries]) if head.boxed else masks

    def _read_masks(
        self, head: Any, args: tuple[Any, ...], queries: Tensor, features: list[Tensor]
    ) -> Tensor:
        return head(*args, queries, features)

    def mask_features(self, image: ImageFeatures) -> list[Tensor]:
        """What the mask head reads of the pyramid's two finer levels, made once an image."""
        if image.mask_features is None:
            image.mask_features = self._mask_features(image.map)
        return image.mask_features

    def interactive_features(self, image: ImageFeatures) -> InteractiveFeatures:
        """Features of the interactive head, made once an image."""
        if image.interactive is None:
            image.interactive = self.part("interactive").without_memory(self.frame_features(image))
        return image.interactive

    def frame_features(self, image: ImageFeatures) -> InteractiveFeatures:
        """Features of a frame of a video for the tracker, made once an image."""
        if image.frame is None:
            image.frame = self.read_frame(image.map)
        return image.frame


class FoldedDetector(Detector):
    """A ``Detector`` for inference, made by ``fold``.

    Batch norms are in the convolutions, pyramid and mask head are folded, what positions add
    is computed once.
    """

    def __init__(self, learned: Detector, dtype: torch.dtype, *, pooled: bool) -> None:
        # Modules are copied, tensors are not: what is not folded or cast is shared.
        tensors = [*learned.parameters(), *learned.buffers()]
        parts: dict[str, Any] = copy.deepcopy(
            dict(learned.named_children()), {id(t): t for t in tensors}
        )
        neck = parts.pop("neck")
        for unread in ("multiplex", "propagation_neck"):
            parts.pop(unread, None)  # SAM3.1's tracker is not run
        super().__init__(parts)
        self.dtype = dtype
        self.eval()
        if isinstance(parts["trunk"], StudentTrunk):
            parts["trunk"].fold_norms()
        self.coarse = FoldedLevel(neck.levels[2], neck.grid, dtype)
        if "masks" in parts:
            self.masks = FoldedMaskHead(parts["masks"], neck, dtype)
        parts["fusion"].pooled = pooled
        self._cast(dtype)
        self._places: dict[tuple[int, int], tuple[list[Tensor], Tensor]] = {}
        self._memory_is_cast = False
        self.requires_grad_(False)

    def _cast(self, dtype: torch.dtype) -> None:
        """Only what costs: the rest, and all that gives coordinates, stays float32."""
        trunk = self.part("trunk")
        if isinstance(trunk, StudentTrunk):
            trunk.cast(dtype)
        else:
            cast(trunk, dtype)
        cast(self.part("fusion"), dtype)
        self.part("decoder").memory_dtype = dtype

    def _fold_interactive(self, neck: Neck) -> nn.ModuleList:
        masks = self.part("interactive").masks
        after = [masks.conv_s0, masks.conv_s1, None]
        levels = [FoldedLevel(neck.levels[i], neck.grid, self.dtype, after[i]) for i in range(3)]
        return nn.ModuleList(levels)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # nn.Module's own
        self._places = {}  # another device
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _placed(self, grid: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        if grid not in self._places:
            self._places[grid] = super()._placed(grid)
        return self._places[grid]

    def coarse_level(self, encoded: Tensor) -> Tensor:
        return self.coarse(encoded)

    def _mask_features(self, encoded: Tensor) -> list[Tensor]:
        return self.part("masks").read_image(encoded)

    def _read_masks(
        self, head: Any, args: tuple[Any, ...], queries: Tensor, features: list[Tensor]
    ) -> Tensor:
        return head.read_masks(queries, head.read_pixels(*args, features))

    def read_frame(self, encoded: Tensor) -> InteractiveFeatures:
        neck = self.part("interactive_neck")
        if isinstance(neck, Neck):  # most sessions never click: folded at the first
            neck = self.interactive_neck = self._fold_interactive(neck)
        fine, middle, coarse = (level(encoded).float() for level in neck)
        return InteractiveFeatures(coarse, middle, fine)

    def tracker(self) -> tuple[InteractiveHead, Memory]:
        """The parts that track, ready to run: images need no memory, so it is cast at the first."""
        memory = self.part("memory")
        if not self._memory_is_cast:
            cast(memory.encoder, self.dtype)
            cast(memory.attention, self.dtype)
            if memory.perceiver is not None:
                cast(memory.perceiver, self.dtype)
            self._memory_is_cast = True
        return self.part("interactive"), memory


@torch.no_grad()
def fold(
    learned: Detector, dtype: torch.dtype = torch.float32, *, pooled: bool = False
) -> FoldedDetector:
    """Make the inference form of ``learned``, which stays as it is and shares what it can.

    Args:
        dtype: of linear maps and convolutions that cost; the rest stays float32.
        pooled: pool keys and values of the fusion encoder's self-attention 2 x 2 (about
            four times cheaper, approximate).
    """
    return FoldedDetector(learned, dtype, pooled=pooled)


def share(folded: FoldedDetector, learned: Detector, fresh: Detector) -> None:
    """Let ``folded`` share with ``fresh`` what it shares with ``learned``.

    Of weights mapped from a file, only what is touched takes memory. Folding touches most:
    with the same weights mapped anew, those pages can go.
    """
    ours = (*learned.parameters(), *learned.buffers())
    twins = dict(zip(map(id, ours), (*fresh.parameters(), *fresh.buffers()), strict=True))
    for module in folded.modules():
        for tensors in (module._parameters, module._buffers):
            for key, value in tensors.items():
                tensors[key] = twins.get(id(value), value)  # type: ignore[assignment]
