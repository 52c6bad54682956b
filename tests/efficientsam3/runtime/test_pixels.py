"""Images are resized and normalized to the pixels of torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.io.images import normalize as normalize_tensor
from efficientsam3.io.images import read_rgb
from efficientsam3.io.samples import read_rgb_array
from efficientsam3.runtime.pixels import ROWS, normalize, resize

needs_fixed_point = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch resizes in floats on this processor",
)


@needs_fixed_point
@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(48, 64, 112), (300, 200, 112), (540, 961, 504), (112, 112, 112), (1, 1, 9), (1, 300, 56)],
)
def test_pixels_are_torchvision_s(height: int, width: int, side: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    np.testing.assert_array_equal(
        normalize(rgb, side, 0.45, 0.3), normalize_tensor(tensor, side, 0.45, 0.3).numpy()
    )


def test_large_images_are_resized_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    whole = resize(rgb, 40)
    assert rgb.size < ROWS
    monkeypatch.setattr("efficientsam3.runtime.pixels.ROWS", 1000)
    np.testing.assert_array_equal(resize(rgb, 40), whole)


@pytest.mark.parametrize("kind", ["gray", "rgba", "tensor", "sixteen bits"])
def test_images_of_any_kind_are_read_alike(kind: str) -> None:
    rng = np.random.default_rng(0)
    image = {
        "gray": rng.integers(0, 256, (9, 7), np.uint8),
        "rgba": rng.integers(0, 256, (9, 7, 4), np.uint8),
        "tensor": torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)),
        "sixteen bits": rng.integers(0, 65536, (9, 7, 3), np.uint16),
    }[kind]
    np.testing.assert_array_equal(read_rgb_array(image), read_rgb(image).permute(1, 2, 0).numpy())
