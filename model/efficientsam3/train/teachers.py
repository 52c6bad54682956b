"""Teachers: frozen encoders whose outputs a student learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import ArgumentError
from ..nn.detector import Detector
from ..nn.neck import enlarge
from ..nn.tokenizer import tokenize

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Frozen(nn.Module):
    """A module that stays in evaluation mode and takes no gradients.

    ``train()`` and ``requires_grad_()`` have no effect on it, also where it is part of a module
    that trains.

    Args:
        module: The module.
        name: Name by which saved features and checkpoints remember it.
    """

    def __init__(self, module: nn.Module, name: str = "sam3") -> None:
        super().__init__()
        self.module, self.name = module, name
        self._digest: str | None = None
        self.freeze()

    def freeze(self) -> None:
        """Put the module into evaluation mode, without gradients."""
        self.module.eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.training = False

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode.

        Args:
            mode: Has no effect.
        """
        self.freeze()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Frozen:
        """Stay without gradients.

        Args:
            requires_grad: Has no effect.
        """
        self.freeze()
        return self

    def forward(self, *args: Any) -> Any:
        """The module's output, computed without a graph for gradients.

        Args:
            *args: Arguments of the module.
        """
        self.module.eval()
        with torch.no_grad():
            return self.module(*args)

    def describe(self) -> dict[str, Any]:
        """What the outputs depend on, as plain values."""
        if self._digest is None:  # takes seconds for a large module
            self._digest = weights_digest(self.module)
        return {"name": self.name, "digest": self._digest}

    @property
    def device(self) -> torch.device:
        """Device of the module."""
        return next(self.module.parameters()).device


def weights_digest(module: nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a module's weights and their names.

    Args:
        module: The module.
    """
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name}{tuple(value.shape)}".encode())
        content = value.detach().float().cpu().contiguous()
        hasher.update(content.numpy().tobytes())
    return hasher.hexdigest()[:16]


class Preprocessing:
    """The input of a teacher that was not trained on squashed images with mean and std of 0.5.

    Args:
        resolution: Side of the module's input in pixels.
        mean: Mean of red, green and blue, of pixels in [0, 1].
        std: Standard deviation of red, green and blue.
        keep_aspect: The longer side is scaled to ``resolution``, and the rest of the square is
            zeros on the right or below (SAM); else the image is squashed to the square (SAM2).
    """

    def __init__(
        self,
        resolution: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        keep_aspect: bool = False,
    ) -> None:
        self.resolution, self.keep_aspect = resolution, keep_aspect
        self.mean, self.std = tuple(mean), tuple(std)

    def describe(self) -> dict[str, Any]:
        """The numbers, as plain values."""
        mean, std = list(self.mean), list(self.std)
        return {"resolution": self.resolution, "mean": mean, "std": std, "aspect": self.keep_aspect}

    def apply(
        self, rgb: Tensor, sizes: Sequence[tuple[int, int]] | None
    ) -> tuple[Tensor, list[tuple[float, float]] | None]:
        """Prepare images.

        Args:
            rgb: (B, 3, r, r) in [0, 1], squashed to a square.
            sizes: Height and width of each original image; needed to keep the aspect.

        Returns:
            (B, 3, R, R) input of the module; and for each image the shares of rows and columns that
            it fills, None where it fills the square.

        Raises:
            ArgumentError: The aspect is to be kept, and ``sizes`` is None.
        """
        mean = rgb.new_tensor(self.mean).view(3, 1, 1)
        std = rgb.new_tensor(self.std).view(3, 1, 1)
        if not self.keep_aspect:
            return (resize(rgb, self.resolution) - mean) / std, None
        if sizes is None:
            raise ArgumentError(
                "sizes is None; a teacher that keeps the aspect needs the (height, width) of each "
                "original image"
            )
        prepared, shares = [], []
        for image, (height, width) in zip(rgb, sizes, strict=True):
            scale = self.resolution / max(height, width)
            rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
            sized = F.interpolate(
                image[None], (rows, columns), mode="bilinear", antialias=True, align_corners=False
            )[0]
            sized = (sized - mean) / std
            prepared.append(F.pad(sized, (0, self.resolution - columns, 0, self.resolution - rows)))
            shares.append((rows / self.resolution, columns / self.resolution))
        return torch.stack(prepared), shares


SAM = Preprocessing(1024, IMAGENET_MEAN, IMAGENET_STD, keep_aspect=True)
SAM2 = Preprocessing(1024, IMAGENET_MEAN, IMAGENET_STD)


class ImageTeacher(Frozen):
    """An image encoder as a teacher of feature maps.

    It gets the student's input, the image squashed to a square in the student's normalization, and
    changes that to what it was trained on.

    Args:
        module: (B, 3, r, r) pixels -> (B, C, h, w), or an output from which ``select`` takes such
            a map. On its device.
        channels: C.
        grid: Cells a side of the student's map of scale 1, to which the teacher's is resized.
        name: Name by which saved features remember it.
        resolution: Side of the student's input in pixels.
        mean: Mean of the student's input.
        std: Standard deviation of the student's input.
        preprocessing: Input that the module was trained on, if it differs from the student's.
        select: Takes the map out of the module's output; None: the output is the map.
    """

    def __init__(
        self,
        module: nn.Module,
        channels: int,
        grid: int,
        name: str,
        *,
        resolution: int = 1008,
        mean: float = 0.5,
        std: float = 0.5,
        preprocessing: Preprocessing | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(module, name)
        self.channels, self.grid = channels, grid
        self.resolution, self.mean, self.std = resolution, mean, std
        self.preprocessing, self.select = preprocessing, select

    @classmethod
    def of(cls, detector: Detector, config: ModelConfig, name: str = "sam3") -> ImageTeacher:
        """The image encoder of a model.

        Args:
            detector: The model.
            config: Its configuration.
            name: Name by which saved features remember it.
        """
        return cls(
            detector.part("trunk"),
            config.trunk_width,
            config.grid,
            name,
            resolution=config.resolution,
            mean=config.mean,
            std=config.std,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image's map, (C, grid, grid)."""
        return self.channels, self.grid, self.grid

    def describe(self) -> dict[str, Any]:
        """What the maps depend on, as plain values."""
        own = None if self.preprocessing is None else self.preprocessing.describe()
        student = {"resolution": self.resolution, "mean": self.mean, "std": self.std, "own": own}
        return {**super().describe(), "grid": self.grid, **student}

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """The teacher's maps of images.

        Args:
            pixels: (B, 3, resolution, resolution), the student's input.
            sizes: Height and width of each original image, for a teacher that keeps the aspect.

        Returns:
            (B, C, grid, grid) float32, without gradient.

        Raises:
            ArgumentError: The module's output is not a map of C channels; ``sizes`` is missing.
        """
        with torch.no_grad():
            pixels = pixels.to(self.device)
            if self.preprocessing is None:
                return enlarge(self._map(pixels), self.grid)
            prepared, shares = self.preprocessing.apply(pixels * self.std + self.mean, sizes)
            encoded = self._map(prepared)
            if shares is None:
                return resize(encoded, self.grid)
            rows = [
                resize(_crop(one[None], share), self.grid)
                for one, share in zip(encoded, shares, strict=True)
            ]
            return torch.cat(rows)

    def _map(self, pixels: Tensor) -> Tensor:
        out = super().forward(pixels)
        found = out if self.select is None else self.select(out)
        is_map = isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] == self.channels
        if not is_map:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ArgumentError(
                f"teacher {self.name!r} gives {got}, not (B, {self.channels}, h, w); pass select= "
                "to take its map out"
            )
        return found.float()


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear interpolation, antialiased where it makes a map smaller.

    Args:
        x: (B, C, h, w).
        size: Side of the result.

    Returns:
        (B, C, size, size).
    """
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(
        x, (size, size), mode="bilinear", align_corners=False, antialias=size < x.shape[-1]
    )


def _crop(encoded: Tensor, share: tuple[float, float]) -> Tensor:
    """The cells of a padded map that the image fills."""
    rows = max(1, round(encoded.shape[-2] * share[0]))
    columns = max(1, round(encoded.shape[-1] * share[1]))
    return encoded[..., :rows, :columns]


class _Pyramid(nn.Module):
    """Image encoder and feature pyramid: (B, 3, R, R) pixels -> levels, coarsest first."""

    def __init__(self, trunk: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, neck

    def forward(self, pixels: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.neck(self.trunk(pixels), (2, 1, 0))
        return levels


class PyramidTeacher(Frozen):
    """Image encoder and feature pyramid of a model as a teacher of what its heads read.

    Args:
        module: Pixels in the student's size and normalization -> levels of scale 1, 2 and 4, each
            (B, C, h, w).
        name: Name by which checkpoints remember it.
    """

    @classmethod
    def of(cls, detector: Detector, name: str = "sam3") -> PyramidTeacher:
        """The image encoder and pyramid of a model.

        Args:
            detector: The model.
            name: Name by which checkpoints remember it.
        """
        return cls(_Pyramid(detector.part("trunk"), detector.part("neck")), name)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The teacher's levels of images.

        Args:
            pixels: (B, 3, R, R).

        Returns:
            float32 levels without gradient, coarsest first.
        """
        return [level.float() for level in super().forward(pixels)]


class TextTeacher(Frozen):
    """A text encoder as a teacher of token features.

    Args:
        module: (B, L) tokens -> (B, L, C); the part ``text`` of a model.
        context: Number of tokens L.
        name: Name by which saved features remember it.
    """

    def __init__(self, module: nn.Module, context: int, name: str = "sam3") -> None:
        super().__init__(module, name)
        self.context = context
        self.width: int = module.projector.out_features  # type: ignore[union-attr, assignment]

    @classmethod
    def of(cls, detector: Detector, config: ModelConfig, name: str = "sam3") -> TextTeacher:
        """The text encoder of a model.

        Args:
            detector: The model.
            config: Its configuration.
            name: Name by which saved features remember it.
        """
        return cls(detector.part("text"), config.context, name)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of one phrase's features, (L, C)."""
        return self.context, self.width

    def describe(self) -> dict[str, Any]:
        """What the features depend on, as plain values."""
        return {**super().describe(), "context": self.context}

    def encode(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The teacher's features of phrases.

        Args:
            phrases: B phrases.

        Returns:
            (B, L, C) float32 features, and their (B, L) tokens.
        """
        tokens = tokenize(list(phrases), self.context).to(self.device)
        return self(tokens).float(), tokens
