"""Teachers: encoders that are looked at and never change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..build import ModelConfig
from ..nn.detector import Detector
from ..nn.neck import enlarge
from ..nn.tokenizer import tokenize


class Frozen(nn.Module):
    """A module that is in evaluation mode for ever and takes no gradient.

    Answers are computed without recording them for backpropagation; ``train()`` and
    ``requires_grad_()`` leave it as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.freeze()

    def freeze(self) -> None:
        """Put everything below back, whatever someone did to it."""
        self.module.eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.training = False

    def train(self, mode: bool = True) -> Frozen:
        """Nothing to train: stays in evaluation mode."""
        self.freeze()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Frozen:
        """Nothing to learn: stays without gradients."""
        self.freeze()
        return self

    def forward(self, *args: Any) -> Any:
        self.module.eval()
        with torch.no_grad():
            return self.module(*args)


def digest(module: nn.Module) -> str:
    """The first 16 digits of the sha256 of a module's weights, by name."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name}{tuple(value.shape)}".encode())
        content = value.detach().float().cpu().contiguous()
        hasher.update(content.numpy().tobytes())
    return hasher.hexdigest()[:16]


class ImageTeacher(Frozen):
    """Any image encoder as a teacher of maps.

    It is shown what the student is shown, the image squashed to a square in the student's
    normalisation, and changes that to what it was trained on.

    Args:
        module: (B, 3, r, r) pixels -> (B, C, h, w), or something from which ``select`` takes
            such a map. On its device.
        channels: C. grid: cells a side of the student's level of scale 1, to which the map is
            resized.
        name: what features on disk remember it by.
        resolution, mean, std: of the pixels that it is given (the student's).
        own: what the module was trained on, where that differs from the student's.
        select: takes the map out of the module's output.
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
        own: Preparation | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(module)
        self.channels, self.grid, self.name = channels, grid, name
        self.resolution, self.mean, self.std = resolution, mean, std
        self.own, self.select = own, select
        self._digest: str | None = None

    @classmethod
    def of(cls, detector: Detector, config: ModelConfig, name: str = "sam3") -> ImageTeacher:
        """The image encoder of a loaded model."""
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
        """Of one image's map."""
        return self.channels, self.grid, self.grid

    def describe(self) -> dict[str, Any]:
        """What its maps depend on, as plain values."""
        if self._digest is None:  # seconds for a large one
            self._digest = digest(self.module)
        own = None if self.own is None else self.own.describe()
        shown = {"resolution": self.resolution, "mean": self.mean, "std": self.std, "own": own}
        return {"name": self.name, "digest": self._digest, "grid": self.grid, **shown}

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Args:
            pixels: (B, 3, resolution, resolution), the student's. sizes: height and width of
                each original image, for a teacher that keeps the aspect.

        Returns: (B, C, grid, grid) float32, without gradient.
        """
        with torch.no_grad():
            pixels = pixels.to(next(self.module.parameters()).device)
            if self.own is None:
                return enlarge(self._map(pixels), self.grid)
            rgb = pixels * self.std + self.mean
            shown, used = self.own.show(rgb, sizes)
            encoded = self._map(shown)
            if used is None:
                return resize(encoded, self.grid)
            rows = [
                resize(_corner(one[None], share), self.grid)
                for one, share in zip(encoded, used, strict=True)
            ]
            return torch.cat(rows)

    def _map(self, pixels: Tensor) -> Tensor:
        out = super().forward(pixels)
        found = out if self.select is None else self.select(out)
        shaped = isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] == self.channels
        if not shaped:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"teacher {self.name!r} gives {got}, not (B, {self.channels}, h, w); pass select= "
                "to take its map out"
            )
        return found.float()


class Preparation:
    """How an image must look for a teacher that was not trained on squashed, centred pixels.

    Args:
        resolution: pixels a side that the module reads.
        mean, std: of red, green and blue, on pixels in [0, 1].
        keep_aspect: the longest side is ``resolution``, the rest zeros on the right or below
            (SAM); else the image is squashed (SAM2).
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
        mean, std = list(self.mean), list(self.std)
        return {"resolution": self.resolution, "mean": mean, "std": std, "aspect": self.keep_aspect}

    def show(
        self, rgb: Tensor, sizes: Sequence[tuple[int, int]] | None
    ) -> tuple[Tensor, list[tuple[float, float]] | None]:
        """Args:
            rgb: (B, 3, r, r) in [0, 1], squashed. sizes: of the originals.

        Returns: (B, 3, R, R) for the module; and of each image the share of rows and columns
            that it fills, None where that is all.
        """
        mean = rgb.new_tensor(self.mean).view(3, 1, 1)
        std = rgb.new_tensor(self.std).view(3, 1, 1)
        if not self.keep_aspect:
            return (resize(rgb, self.resolution) - mean) / std, None
        if sizes is None:
            raise TypeError("a teacher that keeps the aspect needs the sizes of the images")
        shown, used = [], []
        for image, (height, width) in zip(rgb, sizes, strict=True):
            scale = self.resolution / max(height, width)
            rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
            sized = F.interpolate(
                image[None], (rows, columns), mode="bilinear", antialias=True, align_corners=False
            )[0]
            sized = (sized - mean) / std
            shown.append(F.pad(sized, (0, self.resolution - columns, 0, self.resolution - rows)))
            used.append((rows / self.resolution, columns / self.resolution))
        return torch.stack(shown), used


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAM = Preparation(1024, IMAGENET_MEAN, IMAGENET_STD, keep_aspect=True)
SAM2 = Preparation(1024, IMAGENET_MEAN, IMAGENET_STD)


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear (B, C, h, w) -> (B, C, size, size), antialiased where it shrinks."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(
        x, (size, size), mode="bilinear", align_corners=False, antialias=size < x.shape[-1]
    )


def _corner(encoded: Tensor, share: tuple[float, float]) -> Tensor:
    """The cells of a padded map that show the image."""
    rows = max(1, round(encoded.shape[-2] * share[0]))
    columns = max(1, round(encoded.shape[-1] * share[1]))
    return encoded[..., :rows, :columns]


class Encoder(nn.Module):
    """Image encoder and pyramid: (B, 3, R, R) pixels -> levels, coarsest first."""

    def __init__(self, trunk: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, neck

    def forward(self, pixels: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.neck(self.trunk(pixels), (2, 1, 0))
        return levels


class PyramidTeacher(Frozen):
    """A whole model's image encoder and pyramid as a teacher of what its heads read.

    Args:
        module: pixels in the student's size and normalisation -> levels of scale 1, 2 and 4,
            each (B, C, h, w).
    """

    def __init__(self, module: nn.Module, name: str = "sam3") -> None:
        super().__init__(module)
        self.name = name
        self._digest: str | None = None

    @classmethod
    def of(cls, detector: Detector, name: str = "sam3") -> PyramidTeacher:
        """The encoder of a loaded model."""
        return cls(Encoder(detector.part("trunk"), detector.part("neck")), name)

    def describe(self) -> dict[str, Any]:
        """What its levels depend on, as plain values."""
        if self._digest is None:
            self._digest = digest(self.module)
        return {"name": self.name, "digest": self._digest}

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, R, R) -> float32 levels without gradient, coarsest first."""
        return [level.float() for level in super().forward(pixels)]


class TextTeacher(Frozen):
    """A text encoder as a teacher of tokens: phrases -> features a token.

    Args:
        module: (B, L) tokens -> (B, L, C); a model's ``text`` part. context: the longest L.
    """

    def __init__(self, module: nn.Module, context: int, name: str = "sam3") -> None:
        super().__init__(module)
        self.context, self.name = context, name
        self.width: int = module.projector.out_features  # type: ignore[union-attr, assignment]
        self._digest: str | None = None

    @classmethod
    def of(cls, detector: Detector, config: ModelConfig, name: str = "sam3") -> TextTeacher:
        """The text encoder of a loaded model."""
        return cls(detector.part("text"), config.context, name)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one phrase's features."""
        return self.context, self.width

    def describe(self) -> dict[str, Any]:
        """What its features depend on, as plain values."""
        if self._digest is None:
            self._digest = digest(self.module)
        return {"name": self.name, "digest": self._digest, "context": self.context}

    def read(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Phrases -> (B, context, C) float32 features and their (B, context) tokens."""
        tokens = tokenize(list(phrases), self.context)
        tokens = tokens.to(next(self.module.parameters()).device)
        return self(tokens).float(), tokens
