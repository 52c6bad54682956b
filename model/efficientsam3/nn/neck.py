"""The feature pyramid between image encoder and heads (a simple FPN as in ViTDet).

``Neck`` is the form that is trained. ``FoldedLevel`` gives the same levels with about half of the
arithmetic:

* A student's map has 32 x 32 cells and is enlarged to 72 x 72 before the neck. An operator that
  only mixes channels commutes with bilinear enlarging, so it runs on the small map.
* A transposed convolution without overlap and the 1 x 1 convolution after it are one linear map
  for each cell.
* A 3 x 3 convolution after such a map equals a 2 x 2 convolution at half the resolution with four
  times the outputs, one group for each cell of the 2 x 2 block.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import as_weights


def enlarge(x: Tensor, size: int) -> Tensor:
    """Resize a map bilinearly.

    Args:
        x: (B, C, h, w).
        size: Cells a side of the result.

    Returns:
        (B, C, size, size); ``x`` itself if it has this size.
    """
    if x.shape[-1] == size and x.shape[-2] == size:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


class Level(nn.Module):
    """One pyramid level: change the resolution, then 1 x 1 and 3 x 3 convolutions.

    Args:
        scale: Factor of the resolution: 4, 2, 1 or 0.5.
        width: Channels of the input.
        out: Channels of the output.
    """

    def __init__(self, scale: float, width: int, out: int) -> None:
        super().__init__()
        self.scale = scale
        ups = {4: 2, 2: 1}.get(int(scale), 0) if scale >= 1 else 0
        widths = [width // 2**i for i in range(ups + 1)]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) for a, b in itertools.pairwise(widths)
        )
        self.mix = nn.Conv2d(widths[-1], out, 1)
        self.smooth = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the level.

        Args:
            x: (B, width, g, g).

        Returns:
            (B, out, scale * g, scale * g).
        """
        x = as_weights(x, self.mix.weight)
        if self.scale < 1:
            x = F.max_pool2d(x, 2)
        for i, up in enumerate(self.up):
            x = up(F.gelu(x) if i else x)
        return self.smooth(self.mix(x))


class Neck(nn.Module):
    """Computes pyramid levels from the image encoder's map.

    Args:
        scales: Scale of each level, finest first, such as (4, 2, 1, 0.5).
        grid: Cells a side of the level of scale 1.
        width: Channels of the image encoder's map.
        out: Channels of the levels.
    """

    def __init__(
        self, scales: tuple[float, ...], grid: int, width: int = 1024, out: int = 256
    ) -> None:
        super().__init__()
        self.grid = grid
        self.levels = nn.ModuleList(Level(s, width, out) for s in scales)

    def forward(self, x: Tensor, levels: tuple[int, ...] = (0, 1, 2)) -> list[Tensor]:
        """Compute some levels.

        Args:
            x: (B, width, h, w) map of the image encoder.
            levels: Indices of the levels, 0 the finest.

        Returns:
            The levels, in the order of ``levels``.
        """
        x = enlarge(x, self.grid)
        return [self.levels[i](x) for i in levels]


class StageNeck(nn.Module):
    """Computes pyramid levels from the maps of the image encoder's stages.

    Fine levels come from fine stages, where ``Neck`` enlarges the last map by learned convolutions.

    Args:
        widths: Channels of the maps, finest first; the last one is the level of scale 1.
        out: Channels of the levels.
    """

    def __init__(self, widths: tuple[int, ...], out: int = 256) -> None:
        super().__init__()
        levels = [nn.Sequential(nn.Conv2d(width, out, 1)) for width in widths]
        levels[-1].append(nn.ReLU())
        levels[-1].append(nn.Conv2d(out, out, 3, padding=1))
        self.levels = nn.ModuleList(levels)

    def forward(
        self, maps: tuple[Tensor, ...], levels: tuple[int, ...] = (0, 1, 2)
    ) -> list[Tensor]:
        """Compute some levels.

        Args:
            maps: Maps of the image encoder's stages, finest first.
            levels: Indices of the levels, 0 the finest.

        Returns:
            The levels, in the order of ``levels``.
        """
        return [self.levels[i](as_weights(maps[i], self.levels[i][0].weight)) for i in levels]


def after_nearest(weight: Tensor) -> Tensor:
    """Fold nearest-neighbor doubling into the 3 x 3 convolution after it.

    Args:
        weight: (O, I, 3, 3) kernel.

    Returns:
        (4 * O, I, 2, 2) kernel at the lower resolution. Output group 2 * a + b is row a, column b
        of each 2 x 2 block.
    """
    # Row a of a block sees coarse rows (i - 1, i) if a is 0, (i, i + 1) if it is 1.
    top = torch.stack([weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]], 2)
    bottom = torch.stack([weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]], 2)
    groups = []
    for rows in (top, bottom):
        w = rows  # (O, I, 2, 3)
        groups.append(torch.stack([w[..., 0], w[..., 1] + w[..., 2]], -1))
        groups.append(torch.stack([w[..., 0] + w[..., 1], w[..., 2]], -1))
    return torch.cat(groups)


def after_blocks(weight: Tensor, blocks: Tensor) -> Tensor:
    """Fold a linear map to 2 x 2 blocks into the 3 x 3 convolution after it.

    Args:
        weight: (O, M, 3, 3) kernel.
        blocks: (2, 2, M, I) map of a cell to each cell of its block.

    Returns:
        (4 * O, I, 2, 2) kernel at the lower resolution, grouped as in ``after_nearest``.
    """
    o, i = weight.shape[0], blocks.shape[-1]
    out = weight.new_zeros(2, 2, o, i, 2, 2)
    for a in range(2):
        for b in range(2):
            for dy in range(3):
                for dx in range(3):
                    # Fine row 2i + a + dy - 1 is row sy of coarse row i + cy + a - 1.
                    fy, fx = a + dy + 1, b + dx + 1
                    cy, sy, cx, sx = fy // 2 - a, fy % 2, fx // 2 - b, fx % 2
                    out[a, b, :, :, cy, cx] += weight[:, :, dy, dx] @ blocks[sy, sx]
    return out.flatten(0, 2)


def double(
    x: Tensor, kernel: Tensor, bias: Tensor | None = None, base: Tensor | None = None
) -> Tensor:
    """Apply a grouped 2 x 2 kernel and interleave the groups to twice the resolution.

    Groups are computed one after the other, which needs a quarter of the memory.

    Args:
        x: (B, I, h, w), channels last.
        kernel: (4 * O, I, 2, 2) from ``after_nearest`` or ``after_blocks``.
        bias: (O,).
        base: (1 or B, O, 2h, 2w), added to the result.

    Returns:
        (B, O, 2h, 2w), channels last.
    """
    b, _, h, w = x.shape
    o = kernel.shape[0] // 4
    out = x.new_empty((b, 2 * h, 2 * w, o)).permute(0, 3, 1, 2)
    for group, part in enumerate(kernel.chunk(4)):
        row, column = divmod(group, 2)
        y = F.conv2d(x, part, bias, padding=1)[:, :, row : row + h, column : column + w]
        place = out[:, :, row::2, column::2]
        if base is None:
            place.copy_(y)
        else:
            torch.add(y, base[:, :, row::2, column::2], out=place)
    return out


def double_learned(x: Tensor, weight: Tensor) -> Tensor:
    """Double by nearest neighbor and convolve by 3 x 3, as one transposed convolution.

    For training, where the kernel changes in each step.

    Args:
        x: (B, I, h, w).
        weight: (O, I, 3, 3) kernel of the convolution.

    Returns:
        (B, O, 2h, 2w).
    """
    w = weight.flip(2, 3).transpose(0, 1)
    # A coarse cell is a 2 x 2 block, so its kernel is the sum of the kernels at four positions.
    corners = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    kernel = torch.stack([F.pad(w, corner) for corner in corners]).sum(0)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1)


class FoldedLevel(nn.Module):
    """A level for inference, optionally with a 1 x 1 convolution after it folded in.

    Args:
        level: A trained level of scale 4, 2 or 1.
        grid: Cells a side of the level of scale 1.
        dtype: Dtype of the 3 x 3 convolution.
        after: A 1 x 1 convolution that is the only reader of the level.
    """

    def __init__(
        self, level: Level, grid: int, dtype: torch.dtype, after: nn.Conv2d | None = None
    ) -> None:
        super().__init__()
        self.grid, self.scale = grid, int(level.scale)
        smooth, bias = level.smooth.weight.float(), level.smooth.bias.float()
        if after is not None:
            top = after.weight.float().flatten(1)
            smooth = torch.einsum("om,mixy->oixy", top, smooth)
            bias = top @ bias + after.bias.float()
        mix, mix_bias = level.mix.weight.float().flatten(1), level.mix.bias.float()

        def blocks(up: nn.ConvTranspose2d) -> Tensor:  # (I, M, 2, 2) -> (2, 2, M, I)
            return up.weight.float().permute(2, 3, 1, 0)

        first, first_bias = mix[None, None], mix_bias  # (s, s, O, I): what runs on the small map
        if self.scale == 2:
            first_bias = mix @ level.up[0].bias.float() + mix_bias
            first = mix @ blocks(level.up[0])
        elif self.scale == 4:
            first, first_bias = blocks(level.up[0]), level.up[0].bias.float()
            inner = mix @ blocks(level.up[1])
            inner_bias = mix @ level.up[1].bias.float() + mix_bias
            # The zero padding lies outside the inner map and its bias, so the border differs.
            probe = inner_bias.view(1, -1, 1, 1).expand(1, -1, 4, 4)
            border = F.conv2d(probe, smooth, padding=1)
            self._keep("border", border - border[:, :, 1:2, 1:2], dtype)
            bias = bias + border[0, :, 1, 1]
            smooth = after_blocks(smooth, inner)
        s = first.shape[0]
        # Float32 costs little on the small map.
        self._keep("first", first.flatten(0, 2)[..., None, None], torch.float32)
        self._keep("first_bias", first_bias.repeat(s * s), torch.float32)
        self._keep("smooth", smooth, dtype)
        self._keep("bias", bias, dtype)

    def _keep(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        form = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        value = value.detach().to(dtype).contiguous(memory_format=form)
        self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the level.

        Args:
            x: (B, C, h, w) map of the image encoder.

        Returns:
            (B, out, scale * grid, scale * grid).
        """
        x = F.conv2d(x.to(self.first.dtype), self.first, self.first_bias)
        x = enlarge(x.contiguous(memory_format=torch.channels_last), self.grid)
        x = torch.ops.aten.gelu_(x) if self.scale == 4 else x  # in place: the map is large
        x = x.to(self.smooth.dtype)
        if self.scale == 1:
            return F.conv2d(x, self.smooth, self.bias, padding=1)
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).view(b, h, w, 2, 2, c // 4)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)
        if self.scale == 2:
            return F.conv2d(x, self.smooth, self.bias, padding=1)
        out = double(x, self.smooth, self.bias)
        for edge, i in ((0, 0), (-1, 3)):
            out[:, :, edge, :] += self.border[:, :, i, 1:2]
            out[:, :, :, edge] += self.border[:, :, 1:2, i]
            for other, j in ((0, 0), (-1, 3)):
                corner = self.border[:, :, i, j]
                out[:, :, edge, other] += corner - self.border[:, :, i, 1] - self.border[:, :, 1, j]
        return out
