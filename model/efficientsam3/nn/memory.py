"""The video memory of SAM3's tracker.

A frame is stored, for each object, as memory tokens (image features fused with the mask, one for
each cell) and an object pointer (from the mask decoder's token). The features of the next frame
attend to both. ``video.memory_tracker`` runs these parts.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import LayerNorm2d, Mlp, as_weights, linear
from .memory_attention import MemoryAttention, MemoryTokens, RotaryTables
from .perceiver import Perceiver
from .positions import encode_ages, encode_grid, rotary_grid

MEMORY_FRAMES = 7
"""Frames of SAM3's memory that are read at once."""

MASK_WIDTHS = (1, 4, 16, 64, 256)
"""Channels of one mask and of the convolutions that encode it."""


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution in the dtype of its weights.

    Args:
        layer: The convolution.
        x: (B, C, H, W) in any floating-point dtype.

    Returns:
        The result, in the dtype of the weights.
    """
    return layer(as_weights(x, layer.weight))


class MaskDownsampler(nn.Module):
    """Encodes masks at a sixteenth of their size.

    Args:
        width: Channels of the output.
        size: Side S to which masks are resized.
        widths: Channels of the input and of each convolution.
    """

    def __init__(self, width: int, size: int, widths: tuple[int, ...] = MASK_WIDTHS) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1), LayerNorm2d(b), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(widths[-1], width, 1))

    def forward(self, masks: Tensor) -> Tensor:
        """Encode masks.

        Args:
            masks: (B, widths[0], h, w).

        Returns:
            (B, width, S / 16, S / 16).
        """
        if masks.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            masks = F.interpolate(masks.float(), size, mode="bilinear", antialias=True)
        for layer in self.encoder:  # norms return float32; convolutions may have another dtype
            masks = convolve(layer, masks) if isinstance(layer, nn.Conv2d) else layer(masks)
        return masks


class ConvNextBlock(nn.Module):
    """A ConvNeXt block.

    Args:
        width: Number of channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Update a map.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        y = self.norm(convolve(self.dwconv, x)).permute(0, 2, 3, 1)
        y = self.gamma * linear(self.pwconv2, F.gelu(linear(self.pwconv1, y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    """Fuses image features and a mask to memory features.

    Args:
        width: Channels C of the image features.
        memory_width: Channels of the memory; None: C, without a projection.
        mask_size: Side to which masks are resized.
        widths: Channels of the masks and of each convolution.
    """

    def __init__(
        self,
        width: int,
        memory_width: int | None,
        mask_size: int,
        widths: tuple[int, ...] = MASK_WIDTHS,
    ) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(width, mask_size, widths)
        self.pix_feat_proj = nn.Conv2d(width, width, 1)
        self.fuser = nn.Sequential(ConvNextBlock(width), ConvNextBlock(width))
        self.out_proj = None if memory_width is None else nn.Conv2d(width, memory_width, 1)

    def project(self, features: Tensor) -> Tensor:
        """Project the image features; needed once for a frame.

        Args:
            features: (B, C, h, w).

        Returns:
            (B, C, h, w).
        """
        return convolve(self.pix_feat_proj, features)

    def fuse(self, projected: Tensor, masks: Tensor) -> Tensor:
        """Fuse projected features with masks.

        Args:
            projected: (1 or B, C, h, w) from ``project``.
            masks: (B, widths[0], H, W), scaled and shifted.

        Returns:
            (B, memory width, h, w) float32.
        """
        fused = self.fuser(projected.float() + self.mask_downsampler(masks).float())
        return fused.float() if self.out_proj is None else convolve(self.out_proj, fused).float()

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Project and fuse.

        Args:
            features: (B, C, h, w).
            masks: (B, 1, H, W), scaled and shifted.

        Returns:
            (B, memory width, h, w) float32.
        """
        return self.fuse(self.project(features), masks)


class Memory(nn.Module):
    """The parts of a tracker checkpoint beside the interactive head.

    Args:
        width: Channels C of the image features.
        memory_width: Channels of the memory.
        hidden: Width of the feed-forward layers.
        depth: Layers of the memory attention.
        grid: Cells a side of the coarsest level.
        frames: Memory frames that are read at once; conditioning frames count as one.
        perceiver: Compresses a frame's memory to few tokens; None for one token a cell.
    """

    def __init__(
        self,
        width: int = 256,
        memory_width: int = 64,
        hidden: int = 2048,
        depth: int = 4,
        grid: int = 72,
        frames: int = MEMORY_FRAMES,
        perceiver: Perceiver | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.perceiver = perceiver
        self.encoder = MemoryEncoder(width, memory_width, 16 * grid)
        self.attention = MemoryAttention(width, memory_width, hidden, depth)
        self.frame_positions = nn.Parameter(torch.zeros(frames, 1, 1, memory_width))
        self.no_memory_position = nn.Parameter(torch.zeros(1, 1, width))
        self.no_object_pointer = nn.Parameter(torch.zeros(1, width))
        self.no_object = nn.Parameter(torch.zeros(1, memory_width))
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.pointer = Mlp(width, width, width, width)
        self.pointer_position = nn.Linear(width, memory_width)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the position tables. The method has timm's name for this."""
        width, memory_width = self.no_object_pointer.shape[1], self.no_object.shape[1]
        g, device = self.grid, self.no_object.device
        cos, sin = rotary_grid(g, g, width)
        tables = {
            "cos": cos,
            "sin": sin,
            "image_places": encode_grid(g, g, width, device),
            "places": encode_grid(g, g, memory_width, device),
        }
        if self.perceiver is not None:
            tables |= self._perceived_tables(self.perceiver, width, memory_width, device)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        self.image_places: Tensor
        self.places: Tensor
        self.token_places: Tensor

    def _perceived_tables(
        self, perceiver: Perceiver, width: int, memory_width: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Compute tables of Perceiver tokens: none for global ones, window centers for the grid."""
        cells, unplaced = perceiver.cells, perceiver.unplaced
        side = self.grid // cells if cells else 1
        cos, sin = rotary_grid(cells, cells, width, side, (side - 1) / 2)
        places = encode_grid(cells, cells, memory_width, device)
        return {
            "token_cos": F.pad(cos, (0, 0, unplaced, 0), value=1.0),
            "token_sin": F.pad(sin, (0, 0, unplaced, 0)),
            "token_places": F.pad(places, (0, 0, unplaced, 0)),
        }

    @property
    def frames(self) -> int:
        """Memory frames that are read at once."""
        return len(self.frame_positions)

    @property
    def pointer_tokens(self) -> int:
        """Tokens into which an object pointer is split, because it is wider than the memory."""
        return self.no_object_pointer.shape[1] // self.no_object.shape[1]

    def rotary_tables(self) -> RotaryTables:
        """Return the rotary tables."""
        if self.perceiver is None:
            return RotaryTables(self.cos, self.sin)
        return RotaryTables(self.cos, self.sin, self.token_cos, self.token_sin)

    # Writing ---------------------------------------------------------------

    def tokens(self, projected: Tensor, masks: Tensor, present: Tensor) -> Tensor:
        """Encode a frame for B objects.

        Args:
            projected: (1 or B, C, h, w) from ``encoder.project``.
            masks: (B, 1, H, W) in [0, 1].
            present: (B,) bool, whether the object is in the frame.

        Returns:
            (B, T, memory width): one token for each cell, or the Perceiver's tokens.
        """
        encoded = self.encoder.fuse(projected, 20 * masks - 10).flatten(2).transpose(1, 2)
        encoded = torch.where(present[:, None, None], encoded, encoded + self.no_object)
        return encoded if self.perceiver is None else self.perceiver(encoded, self.places)

    def point(self, token: Tensor, present: Tensor) -> Tensor:
        """Compute object pointers.

        Args:
            token: (B, C) mask decoder tokens.
            present: (B,) bool, whether the object is in the frame.

        Returns:
            (B, C) float32.
        """
        return torch.where(present[:, None], self.pointer(token).float(), self.no_object_pointer)

    # Reading -------------------------------------------------------------

    def look(self, features: Tensor) -> Tensor:
        """Apply the part of the attention that does not depend on the memory.

        Args:
            features: (B, C, h, w) coarse features of a frame.

        Returns:
            (B, N, C).
        """
        x = features.float().flatten(2).transpose(1, 2)
        return self.attention.look(x + 0.1 * self.image_places, self.rotary_tables())

    def gather(
        self,
        tokens: Tensor,
        when: Tensor,
        pointers: Tensor,
        ages: Tensor,
        valid: Tensor | None = None,
    ) -> MemoryTokens:
        """Add encodings of time and place to memories.

        Args:
            tokens: (B, F, T, memory width) memory tokens of F frames.
            when: (B, F) age of each frame: 0 for a conditioning frame, otherwise 1 (the last
                frame) to ``frames`` - 1.
            pointers: (B, P, C) object pointers.
            ages: (B, P) ages of the pointers; the oldest that is read has 1.
            valid: (B, P) bool, True where a pointer exists; None: all do.

        Returns:
            The memories, for ``recall``.
        """
        batch = len(tokens)
        since = self.frame_positions.flatten(1)[when - 1]  # the last row is "conditioning"
        places = self.places if self.perceiver is None else self.token_places
        keys = (tokens + (places + since[:, :, None])).flatten(1, 2)
        aged, cut = self.cut_pointers(pointers, ages)
        values = torch.cat([tokens.flatten(1, 2), cut.to(tokens.dtype)], 1)
        keys = torch.cat([keys, aged], 1)
        if valid is not None:
            placed = valid.new_ones(batch, values.shape[1] - cut.shape[1])
            valid = torch.cat([placed, valid.repeat_interleave(self.pointer_tokens, 1)], 1)
        return MemoryTokens(keys, values, cut.shape[1], valid)

    def cut_pointers(self, pointers: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
        """Split object pointers into tokens of the memory's width.

        Args:
            pointers: (B, P, C) object pointers.
            ages: (B, P) ages of the pointers; the oldest that is read has 1.

        Returns:
            Keys with encodings of time, and values, (B, P * ``pointer_tokens``, memory width).
        """
        cut = pointers.unflatten(2, (-1, self.no_object.shape[1])).flatten(1, 2)
        encoded = encode_ages(ages, self.no_object_pointer.shape[1])
        aged = linear(self.pointer_position, encoded).float()
        # A form of ``repeat_interleave`` that exporters follow.
        each = torch.cat([aged] * self.pointer_tokens, -1).reshape(cut.shape)
        return cut + each, cut

    def recall(self, looked: Tensor, memory: MemoryTokens) -> Tensor:
        """Let a frame attend to the memories of B objects.

        Args:
            looked: (1 or B, N, C) from ``look``.
            memory: From ``gather``.

        Returns:
            (B, C, h, w) features conditioned on the memory.
        """
        seen = self.attention.recall(looked, memory, self.rotary_tables())
        return seen.transpose(1, 2).unflatten(2, (self.grid, self.grid))
