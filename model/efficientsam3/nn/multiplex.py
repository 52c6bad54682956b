"""The video memory of SAM3.1's tracker (object multiplex): sixteen objects share one pass.

Objects have slots in a bucket. A frame is stored, for each bucket, as one token for each cell and
one object pointer for each slot; the image features of the frame, which all buckets share, are
stored beside them. ``video.multiplex_tracker`` runs these parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interactive import InteractiveFeatures, MaskDecoder, ObjectMasks
from .layers import Mlp, dot_product_attention, layer_norm, linear, merge_heads, split_heads
from .memory import MemoryEncoder
from .memory_attention import RotaryTables
from .positions import FourierPositions, encode_ages, encode_grid, rotary_grid, rotate


class BucketTokens(NamedTuple):
    """The memory of one bucket, as the attention reads it."""

    values: Tensor
    """(1, M, C) memory tokens. Tokens of frames come first, frame by frame, then object
    pointers."""
    image: Tensor
    """(1, M, C) image features at the same places; 0 for object pointers."""
    positions: Tensor
    """(1, M, C) encodings of time and place."""
    pointers: int
    """How many of the M tokens, at the end, are object pointers and have no place."""


class MultiplexLayer(nn.Module):
    """Pre-norm layer: the frame attends to itself, then to the memory.

    Queries and keys of the second attention are sums of two projections: of what the layer
    computes or remembers, and of the image features.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "out"):
                self.add_module(f"{attention}_{part}_proj", nn.Linear(width, width))
        self.image_cross_attn_q_proj = nn.Linear(width, width)
        self.image_cross_attn_k_proj = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def look(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Apply the self-attention, which does not depend on the memory.

        Args:
            x: (1, N, C).
            tables: Rotary tables.

        Returns:
            (1, N, C).
        """
        y = layer_norm(self.norm1, x)
        q, k, v = (linear(p, y) for p in (self.self_attn_q_proj, self.self_attn_k_proj,
                                          self.self_attn_v_proj))  # fmt: skip
        return x + linear(self.self_attn_out_proj, self._attend(q, k, v, tables, 0))

    def recall(
        self, x: Tensor, image: Tensor, memory: BucketTokens, tables: RotaryTables
    ) -> Tensor:
        """Apply the attention to the memory and the feed-forward layer.

        Args:
            x: (1, N, C).
            image: (1, N, C) image features of the frame.
            memory: Memory of a bucket.
            tables: Rotary tables.

        Returns:
            (1, N, C).
        """
        q = linear(self.image_cross_attn_q_proj, image)
        q = q + linear(self.cross_attn_q_proj, layer_norm(self.norm2, x))
        k = linear(self.image_cross_attn_k_proj, memory.image)
        k = k + linear(self.cross_attn_k_proj, memory.values)
        k = k + memory.positions.to(k.dtype)
        v = linear(self.cross_attn_v_proj, memory.values)
        read = self._attend(q, k, v, tables, memory.pointers)
        x = x + linear(self.cross_attn_out_proj, read)
        return x + linear(self.linear2, F.gelu(linear(self.linear1, layer_norm(self.norm3, x))))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, tables: RotaryTables, unplaced: int
    ) -> Tensor:
        """Attend with rotary positions; the last ``unplaced`` keys have none."""
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        q = rotate(q, tables.cos, tables.sin)
        placed = k.shape[2] - unplaced
        frames = k[:, :, :placed].unflatten(2, (-1, len(tables.cos)))
        k = torch.cat([rotate(frames, tables.cos, tables.sin).flatten(2, 3), k[:, :, placed:]], 2)
        return merge_heads(dot_product_attention(q, k, v))


class MultiplexAttention(nn.Module):
    """Layers of the memory attention.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.
    """

    def __init__(self, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MultiplexLayer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def recall(
        self, looked: Tensor, image: Tensor, memory: BucketTokens, tables: RotaryTables
    ) -> Tensor:
        """Apply all but the first self-attention, which the buckets of a frame share.

        Args:
            looked: (1, N, C) after the first self-attention.
            image: (1, N, C) image features of the frame.
            memory: Memory of a bucket.
            tables: Rotary tables.

        Returns:
            (1, N, C) float32.
        """
        x = self.layers[0].recall(looked, image, memory, tables)
        for layer in self.layers[1:]:
            x = layer.recall(layer.look(x, tables), image, memory, tables)
        return layer_norm(self.norm, x)


class BucketMaskDecoder(MaskDecoder):
    """Decodes three masks for each slot of a bucket, without prompts.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        slots: Objects S of a bucket.
    """

    def __init__(self, width: int, heads: int, hidden: int, slots: int) -> None:
        super().__init__(width, heads, hidden)
        self.iou_token = nn.Embedding(slots, width)
        self.obj_score_token = nn.Embedding(slots, width)
        self.mask_tokens = nn.Embedding(3 * slots, width)
        self.output_hypernetworks_mlps = self.output_hypernetworks_mlps[:3]
        self.iou_prediction_head = Mlp(width, width, width, 3)

    def decode_bucket(
        self, features: InteractiveFeatures, positions: Tensor, used: Tensor
    ) -> ObjectMasks:
        """Decode the masks of a bucket.

        Args:
            features: Features of one image, the coarse ones conditioned on the memory.
            positions: (N, C) encodings of its coarse cells.
            used: (S, C) whether each slot has an object, as embeddings.

        Returns:
            M = 3 masks for each of the S slots. ``quality`` is not limited to [0, 1].
        """
        slots = len(used)
        masks = self.mask_tokens.weight.unflatten(0, (slots, 3)) + used[:, None]
        own = [self.obj_score_token.weight, self.iou_token.weight, masks.flatten(0, 1)]
        tokens, image = self.transformer(
            torch.cat(own).float()[None],
            features.coarse.float().flatten(2).transpose(1, 2),
            positions,
        )
        found = tokens[0, 2 * slots :].unflatten(0, (slots, 3))
        logits = self.draw(found, self.upscale(image, features)[0])
        quality = self.iou_prediction_head(tokens[0, slots : 2 * slots]).float()
        presence = self.pred_obj_score_head(tokens[0, :slots]).float()[:, 0]
        return ObjectMasks(logits, quality, found, presence)


class MultiplexMemory(FourierPositions):
    """SAM3.1's tracker, without the interactive head.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Layers of the memory attention.
        grid: Cells a side of the coarsest level.
        slots: Objects S of a bucket.
        frames: Memory frames that are read at once; conditioning frames count as one.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 4,
        grid: int = 72,
        slots: int = 16,
        frames: int = 7,
    ) -> None:
        super().__init__(width)
        self.grid = grid
        self.frame_positions = nn.Parameter(torch.zeros(frames, 1, 1, width))
        self.no_object = nn.Parameter(torch.zeros(slots, width))
        self.output_valid = nn.Parameter(torch.zeros(slots, width))
        self.output_invalid = nn.Parameter(torch.zeros(slots, width))
        self.no_object_pointer = nn.Linear(width, width)
        self.pointer = Mlp(width, width, width, width)
        self.pointer_position = nn.Linear(width, width)
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.object_pointer = Mlp(width, width, width, width)
        # The inputs are a mask and a conditioning flag for each object.
        widths = (2 * slots, 16, 64, 256, 1024)
        self.encoder = MemoryEncoder(width, None, 16 * grid, widths)
        self.attention = MultiplexAttention(width, heads, hidden, depth)
        self.masks = BucketMaskDecoder(width, heads, hidden, slots)
        cos, sin = rotary_grid(grid, grid, width // heads)
        places = encode_grid(grid, grid, width, self.no_object.device)
        for name, table in {"cos": cos, "sin": sin, "places": places}.items():
            self.register_buffer(name, table, persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        self.places: Tensor

    def init_non_persistent_buffers(self) -> None:
        """Compute the position tables. The method has timm's name for this."""
        heads = self.attention.layers[0].heads
        width, grid = self.no_object.shape[1], self.grid
        self.cos, self.sin = rotary_grid(grid, grid, width // heads)
        self.places = encode_grid(grid, grid, width, self.no_object.device)

    @property
    def slots(self) -> int:
        """Objects of a bucket."""
        return len(self.no_object)

    @property
    def frames(self) -> int:
        """Memory frames that are read at once."""
        return len(self.frame_positions)

    # Writing ---------------------------------------------------------------

    def tokens(
        self,
        projected: Tensor,
        masks: Tensor,
        slots: Sequence[int],
        given: Sequence[int],
        present: Sequence[int],
    ) -> Tensor:
        """Encode a frame for a bucket.

        Args:
            projected: (1, C, h, w) from ``encoder.project``.
            masks: (B, H, W) in [0, 1], of B objects.
            slots: B slots of these objects.
            given: Slots of the objects whose masks are given and not tracked.
            present: Slots of the objects that are in the frame.

        Returns:
            (N, C): one token for each cell.
        """
        channels = masks.new_zeros(1, 2 * self.slots, *masks.shape[1:])
        channels[0, list(slots)] = 2 * masks - 1
        channels[0, [self.slots + slot for slot in given]] = 1
        encoded = self.encoder.fuse(projected, channels).flatten(2)[0].T
        absent = [slot for slot in range(self.slots) if slot not in present]
        return encoded + self.no_object[absent].sum(0)

    def point(self, token: Tensor, present: Tensor) -> Tensor:
        """Compute object pointers of masks that are given or clicked.

        Args:
            token: (B, C) mask tokens of the interactive head.
            present: (B,) bool, whether the object is in the frame.

        Returns:
            (B, C) float32.
        """
        return self.suppress(self.object_pointer(token).float(), present)

    def point_tracked(self, token: Tensor, present: Tensor) -> Tensor:
        """Compute object pointers of masks that are tracked.

        Args:
            token: (B, C) mask tokens of ``masks``.
            present: (B,) bool, whether the object is in the frame.

        Returns:
            (B, C) float32.
        """
        return self.suppress(self.pointer(token).float(), present)

    def suppress(self, pointers: Tensor, present: Tensor) -> Tensor:
        """Change the pointers of absent objects.

        Args:
            pointers: (B, C).
            present: (B,) bool, whether the object is in the frame.

        Returns:
            (B, C).
        """
        return torch.where(present[:, None], pointers, self.no_object_pointer(pointers))

    # Reading -------------------------------------------------------------

    def look(self, features: Tensor) -> Tensor:
        """Apply the part of the attention that does not depend on the memory.

        Args:
            features: (1, C, h, w) coarse features of a frame.

        Returns:
            (1, N, C).
        """
        x = features.float().flatten(2).transpose(1, 2)
        return self.attention.layers[0].look(x + 0.1 * self.places, self._tables())

    def gather(
        self, tokens: Tensor, images: Tensor, when: Tensor, pointers: Tensor, ages: Tensor
    ) -> BucketTokens:
        """Add encodings of time and place to the memory of a bucket.

        Args:
            tokens: (F, N, C) memory tokens of F frames.
            images: (F, N, C) image features of these frames.
            when: (F,) position of each frame, from 1 to ``frames`` - 1; 0: out of range.
            pointers: (P, S, C) object pointers of P frames.
            ages: (P,) ages of the pointers; the oldest that is read has 1.

        Returns:
            The memory, for ``recall``.
        """
        since = self.frame_positions.flatten(1)[when - 1]  # the last row is "out of range"
        placed = (self.places + since[:, None]).flatten(0, 1)
        aged = linear(self.pointer_position, encode_ages(ages, self.places.shape[1])).float()
        count = pointers.shape[0] * pointers.shape[1]
        values = torch.cat([tokens.flatten(0, 1), pointers.flatten(0, 1).to(tokens.dtype)])
        positions = torch.cat([placed, aged.repeat_interleave(pointers.shape[1], 0)])
        image = F.pad(images.flatten(0, 1), (0, 0, 0, count))
        return BucketTokens(values[None], image[None], positions[None], count)

    def recall(self, looked: Tensor, features: Tensor, memory: BucketTokens) -> Tensor:
        """Let a frame attend to the memory of a bucket.

        Args:
            looked: (1, N, C) from ``look``.
            features: (1, C, h, w) coarse features of the frame.
            memory: From ``gather``.

        Returns:
            (1, C, h, w) features conditioned on the memory.
        """
        image = features.flatten(2).transpose(1, 2)
        seen = self.attention.recall(looked, image, memory, self._tables())
        return seen.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def find(self, features: InteractiveFeatures, used: Sequence[int]) -> ObjectMasks:
        """Decode the masks of a bucket.

        Args:
            features: Features of the frame, the coarse ones from ``recall``.
            used: Slots that have an object.

        Returns:
            M = 3 masks for each slot.
        """
        valid = torch.zeros(self.slots, 1, dtype=torch.bool, device=self.no_object.device)
        valid[list(used)] = True
        embeddings = torch.where(valid, self.output_valid, self.output_invalid)
        positions = self.encode_grid(self.grid, self.grid)
        return self.masks.decode_bucket(features, positions, embeddings)

    def _tables(self) -> RotaryTables:
        return RotaryTables(self.cos, self.sin)
