"""The whole network: encoders, pyramid and heads.

``Detector`` is the form that is trained. ``FoldedDetector`` is made from it for inference and gives
the same results with less arithmetic.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingPartError
from .features import Answer, ImageFeatures
from .geometry import Exemplars
from .interactive import InteractiveFeatures, InteractiveHead
from .layers import cast
from .masks import FoldedMaskHead, within
from .neck import FoldedLevel, Neck
from .positions import encode_grid
from .student import StudentTrunk

_FIRST_USE = threading.Lock()
"""Held while parts are changed that are prepared when they are first used. It is not an attribute,
so that networks can be copied."""


class Detector(nn.Module):
    """Image encoder, text encoder, pyramid and heads.

    Args:
        parts: Modules by name: ``trunk``, ``neck``, ``text``, ``fusion``, ``decoder``, ``scoring``;
            and, where the weights have them, ``geometry``, ``masks``, ``interactive``,
            ``interactive_neck``, ``memory``, ``propagation_neck``, ``multiplex``.
    """

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def part(self, name: str) -> Any:
        """The part of that name.

        Args:
            name: such as "trunk", "masks", "memory".

        Raises:
            MissingPartError: the model has no such part.
        """
        part = self._modules.get(name)
        if part is None:
            raise MissingPartError(
                f"this model has no part {name!r}; it has {', '.join(self._modules)}. Load weights "
                "that have it"
            )
        return part

    def has(self, name: str) -> bool:
        """Whether the network has a part.

        Args:
            name: Such as "trunk", "masks", "memory".
        """
        return self._modules.get(name) is not None

    # Images ------------------------------------------------------------------------------

    def read_image(self, pixels: Tensor) -> ImageFeatures:
        """Encode images.

        Args:
            pixels: (B, 3, R, R) normalized pixels.

        Returns:
            Features of the B images.
        """
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
        """Compute the pyramid level of scale 1.

        Args:
            encoded: (B, C, h, w) map of the image encoder.

        Returns:
            (B, 256, g, g).
        """
        return self.part("neck")(encoded, (2,))[0]

    def _mask_features(self, encoded: Tensor) -> list[Tensor]:
        return self.part("neck")(encoded, (1, 0))

    def read_frame(self, encoded: Tensor) -> InteractiveFeatures:
        """Compute the tracker's features of a frame.

        Args:
            encoded: (1, C, h, w) map of the image encoder.

        Returns:
            The features.
        """
        head = self.part("interactive")
        return head.read_frame(*self.part("interactive_neck")(encoded))

    # Prompts -----------------------------------------------------------------------------

    def read_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode phrases.

        Args:
            tokens: (B, L) token ids; 0 is padding.

        Returns:
            (B, L, C) features and (B, L) bool, True where a token is valid.
        """
        return self.part("text")(tokens), tokens != 0

    def read_prompt(
        self,
        image: ImageFeatures,
        text: tuple[Tensor, Tensor],
        exemplars: Exemplars | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Join text and exemplars to prompt tokens.

        Args:
            image: Features of one image, or of B images.
            text: From ``read_text``.
            exemplars: Exemplars of B prompts, or None.

        Returns:
            (B, L, C) prompt tokens and (B, L) bool, True where a token is valid.
        """
        return join_prompt(text, self.read_exemplars(image, exemplars))

    def read_exemplars(
        self, image: ImageFeatures, exemplars: Exemplars | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode exemplars, which attend to the image that they are drawn on.

        Args:
            image: Features of one image, or of B images.
            exemplars: Exemplars of B prompts; None for the class token alone.

        Returns:
            (B, E, C) prompt tokens, the class token last, and (B, E) bool, True where a token is
            valid.
        """
        geometry, given = self.part("geometry"), (image.tokens, image.grid, image.geometry)
        if exemplars is not None:
            shown: tuple[Tensor, Tensor] = geometry(*given, exemplars)
            return shown
        if image.bare_prompt is None:
            image.bare_prompt = geometry(*given, batch=len(image.tokens))[0]
        bare = image.bare_prompt
        return bare, torch.ones(bare.shape[:2], dtype=torch.bool, device=bare.device)

    def answer(
        self,
        image: ImageFeatures,
        prompt: Tensor,
        mask: Tensor,
        alone: tuple[Tensor, Tensor] | None = None,
    ) -> Answer:
        """Detect the instances of B prompts.

        Args:
            image: Features of one image, which all prompts share, or of B images.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.
            alone: Further queries for training, see ``Decoder.forward``.

        Returns:
            The detections, without masks.
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
        """Compute masks of selected queries of one prompt.

        Args:
            image: Features of one image, or of as many images as prompts.
            answer: From ``answer``.
            row: Index of the prompt.
            queries: (K,) indices of the queries.

        Returns:
            (K, 4 * rows, 4 * columns) mask logits.
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
        """Return the mask head's input from the two finer pyramid levels, computed once.

        Args:
            image: Features of the images, which keep the result.

        Returns:
            One map for each level.
        """
        if image.mask_features is None:
            image.mask_features = self._mask_features(image.map)
        return image.mask_features

    def interactive_features(self, image: ImageFeatures) -> InteractiveFeatures:
        """Return the features of the interactive head, computed once.

        Args:
            image: Features of one image, which keep the result.

        Returns:
            The features.
        """
        if image.interactive is None:
            image.interactive = self.part("interactive").without_memory(self.frame_features(image))
        return image.interactive

    def frame_features(self, image: ImageFeatures) -> InteractiveFeatures:
        """Return the tracker's features of a frame, computed once.

        Args:
            image: Features of one frame, which keep the result.

        Returns:
            The features.
        """
        if image.frame is None:
            image.frame = self.read_frame(image.map)
        return image.frame

    def presence_bias(self) -> Tensor:
        """The bias of the presence head, (1,), which a calibration changes."""
        bias: Tensor = self.part("decoder").presence_token_head.layers[-1].bias
        return bias

    def object_bias(self) -> Tensor | None:
        """The bias of the scores of objects, None: they are scalar products without a bias."""
        return None

    def folded(self, dtype: torch.dtype, *, pooled: bool) -> FoldedDetector:
        """Make the inference form, see ``fold``.

        Args:
            dtype: Dtype of the costly linear layers and convolutions.
            pooled: Whether the fusion encoder pools keys and values.
        """
        return FoldedDetector(self, dtype, pooled=pooled)


class FoldedDetector(Detector):
    """A detector for inference, made by ``fold``.

    Batch norms are folded into convolutions, pyramid and mask head have their folded forms, and
    terms of positions are computed once.

    Args:
        learned: A trained detector; it does not change, and tensors that are neither folded nor
            cast are shared with it.
        dtype: Dtype of the costly linear layers and convolutions.
        pooled: Whether the fusion encoder's self-attention averages keys and values over 2 x 2
            cells.
    """

    def __init__(self, learned: Detector, dtype: torch.dtype, *, pooled: bool) -> None:
        # Modules are copied and tensors are not, so tensors that are not folded or cast are shared.
        tensors = [*learned.parameters(), *learned.buffers()]
        parts: dict[str, Any] = copy.deepcopy(
            dict(learned.named_children()), {id(t): t for t in tensors}
        )
        neck = parts.pop("neck")
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
        """Cast the costly parts. The rest, and all that computes coordinates, stays float32."""
        trunk = self.part("trunk")
        if isinstance(trunk, StudentTrunk):
            trunk.cast(dtype)
        else:
            cast(trunk, dtype)
        cast(self.part("fusion"), dtype)
        self.part("decoder").memory_dtype = dtype

    def _read_levels(self, encoded: Tensor, neck_name: str, head: str) -> InteractiveFeatures:
        """Compute what a mask decoder reads of a frame."""
        with _FIRST_USE:
            neck = self.part(neck_name)
            if isinstance(neck, Neck):  # folded when first used: most sessions have no clicks
                masks = self.part(head).masks
                after = [masks.conv_s0, masks.conv_s1, None]
                levels = zip(neck.levels, after, strict=False)
                folded = [FoldedLevel(level, neck.grid, self.dtype, a) for level, a in levels]
                neck = nn.ModuleList(folded)
                setattr(self, neck_name, neck)
        fine, middle, coarse = (level(encoded).float() for level in neck)
        return InteractiveFeatures(coarse, middle, fine)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # nn.Module's own
        self._places = {}  # computed again on the new device
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _placed(self, grid: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        if grid not in self._places:
            self._places[grid] = super()._placed(grid)
        return self._places[grid]

    def coarse_level(self, encoded: Tensor) -> Tensor:
        """Compute the pyramid level of scale 1.

        Args:
            encoded: (B, C, h, w) map of the image encoder.

        Returns:
            (B, 256, g, g).
        """
        return self.coarse(encoded)

    def _mask_features(self, encoded: Tensor) -> list[Tensor]:
        return self.part("masks").read_image(encoded)

    def _read_masks(
        self, head: Any, args: tuple[Any, ...], queries: Tensor, features: list[Tensor]
    ) -> Tensor:
        return head.read_masks(queries, head.read_pixels(*args, features))

    def read_frame(self, encoded: Tensor) -> InteractiveFeatures:
        """Compute the tracker's features of a frame.

        Args:
            encoded: (1, C, h, w) map of the image encoder.

        Returns:
            The features.
        """
        return self._read_levels(encoded, "interactive_neck", "interactive")

    def read_tracked(self, encoded: Tensor) -> InteractiveFeatures:
        """Compute the features of a frame in which SAM3.1 looks for objects.

        Args:
            encoded: (1, C, h, w) map of the image encoder.

        Returns:
            The features.
        """
        return self._read_levels(encoded, "propagation_neck", "multiplex")

    def tracker(self, name: str = "memory") -> tuple[InteractiveHead, Any]:
        """Return the interactive head and the memory, which is cast at the first call.

        Args:
            name: "memory" (SAM3) or "multiplex" (SAM3.1).
        """
        memory = self.part(name)
        with _FIRST_USE:
            if not self._memory_is_cast:
                cast(memory.encoder, self.dtype)
                cast(memory.attention, self.dtype)
                if name == "memory" and memory.perceiver is not None:
                    cast(memory.perceiver, self.dtype)
                self._memory_is_cast = True
        return self.part("interactive"), memory


def join_prompt(text: tuple[Tensor, Tensor], shown: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Join text and encoded exemplars to prompt tokens.

    Args:
        text: From ``Detector.read_text``, of B prompts.
        shown: From ``Detector.read_exemplars``, of this or of other images, for B prompts or for
            one, which is repeated.

    Returns:
        (B, L, C) prompt tokens and (B, L) bool, True where a token is valid.
    """
    (words, valid), (tokens, keep) = text, shown
    batch = len(words)
    prompt = torch.cat([words, tokens.expand(batch, -1, -1)], 1)
    return prompt, torch.cat([valid, keep.expand(batch, -1)], 1)


@torch.no_grad()
def fold(
    learned: Detector, dtype: torch.dtype = torch.float32, *, pooled: bool = False
) -> FoldedDetector:
    """Make the inference form of a detector.

    Args:
        learned: A trained detector; it does not change and shares tensors with the result.
        dtype: Dtype of the costly linear layers and convolutions; the rest stays float32.
        pooled: Average keys and values of the fusion encoder's self-attention over 2 x 2 cells,
            which is about four times cheaper and approximate.

    Returns:
        The folded detector.
    """
    return learned.folded(dtype, pooled=pooled)


def share(folded: FoldedDetector, learned: Detector, fresh: Detector) -> None:
    """Replace tensors that a folded detector shares with one detector by those of another.

    Of weights that are mapped from a file, only pages that are read take memory. Folding reads
    most of them. With the same weights mapped again, the pages that were read can be released.

    Args:
        folded: The folded detector, changed in place.
        learned: The detector that it was made from.
        fresh: A detector with the same weights.
    """
    ours = (*learned.parameters(), *learned.buffers())
    twins = dict(zip(map(id, ours), (*fresh.parameters(), *fresh.buffers()), strict=True))
    for module in folded.modules():
        for tensors in (module._parameters, module._buffers):
            for key, value in tensors.items():
                tensors[key] = twins.get(id(value), value)  # type: ignore[assignment]
