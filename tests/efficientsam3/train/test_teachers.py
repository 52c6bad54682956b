"""Teachers stay frozen, and get the input that they were trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficientsam3.errors import ArgumentError
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.train.teachers import SAM, SAM2, Frozen, ImageTeacher, Preprocessing, TextTeacher

from .conftest import tiny_net


def frozen_batch_norm() -> Frozen:
    return Frozen(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)))


def test_a_frozen_module_never_trains() -> None:
    teacher = frozen_batch_norm()
    student = nn.ModuleDict({"teacher": teacher, "student": nn.Conv2d(3, 4, 1)})
    student.train()
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert student["student"].training


def test_its_output_stays_the_same_after_training_mode() -> None:
    teacher = frozen_batch_norm()
    x = torch.randn(2, 3, 5, 5)
    before = teacher(x)
    teacher.module.train()
    for parameter in teacher.module.parameters():
        parameter.requires_grad_(True)
    again = teacher(x)
    assert torch.equal(before, again)
    assert not again.requires_grad
    assert teacher.module[1].num_batches_tracked == 0


def test_encoders_of_a_model() -> None:
    config, net = tiny_net()
    image, text = ImageTeacher.of(net, config), TextTeacher.of(net, config)
    pixels = torch.randn(2, 3, config.resolution, config.resolution)
    with torch.no_grad():
        want = net.part("trunk")(pixels)
        words = net.part("text")(tokenize(["red apple"], config.context))
    assert torch.equal(image(pixels), want)
    assert image.shape == tuple(want.shape[1:])
    assert torch.equal(text.encode(["red apple"])[0], words)
    assert text.shape == (16, 16)


def test_teachers_differ_by_their_weights() -> None:
    config, net = tiny_net()
    first = ImageTeacher.of(net, config).describe()
    assert first == ImageTeacher.of(net, config).describe()
    with torch.no_grad():
        net.part("trunk").pos_embed[0, 0, 0] += 1
    assert first != ImageTeacher.of(net, config).describe()


class Means(nn.Module):
    """Means of patches of 16 pixels: (B, 3, r, r) -> (B, 3, r / 16, r / 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: Tensor | None = None

    def forward(self, pixels: Tensor) -> dict[str, Any]:
        self.seen = pixels
        return {"map": nn.functional.avg_pool2d(pixels, 16)}


def other(own: Preprocessing | None, **options: Any) -> ImageTeacher:
    return ImageTeacher(
        Means(),
        3,
        8,
        "means",
        resolution=64,
        preprocessing=own,
        select=lambda out: out["map"],
        **options,
    )


def test_another_encoder_gets_its_own_normalization() -> None:
    teacher = other(SAM2)
    pixels = torch.ones(1, 3, 64, 64)  # white, as the student sees it
    out = teacher(pixels)
    assert out.shape == (1, 3, 8, 8)
    seen = teacher.module.seen
    assert seen.shape == (1, 3, 1024, 1024)
    white = (1 - torch.tensor(SAM2.mean)) / torch.tensor(SAM2.std)
    torch.testing.assert_close(seen[0, :, 500, 500], white)
    torch.testing.assert_close(out[0, :, 3, 3], white)


def test_a_teacher_that_keeps_the_aspect() -> None:
    teacher = other(SAM)
    # The left half of a wide image is white, the right black; the student sees it squashed.
    pixels = torch.ones(1, 3, 64, 64)
    pixels[..., 32:] = -1
    out = teacher(pixels, [(100, 200)])
    seen = teacher.module.seen
    assert (seen[0, :, 512:] == 0).all()  # padding below
    assert (seen[0, :, :512] != 0).all()
    white = (1 - torch.tensor(SAM.mean)) / torch.tensor(SAM.std)
    black = (0 - torch.tensor(SAM.mean)) / torch.tensor(SAM.std)
    # Its map is cut to the image and squashed like the student's: no row shows padding.
    torch.testing.assert_close(out[0, :, 0, 1], white)
    torch.testing.assert_close(out[0, :, 7, 1], white)
    torch.testing.assert_close(out[0, :, 7, 6], black)
    with pytest.raises(ArgumentError, match="sizes"):
        teacher(pixels)


def test_a_map_of_another_width_is_refused() -> None:
    teacher = ImageTeacher(Means(), 4, 8, "means", resolution=64, select=lambda out: out["map"])
    with pytest.raises(ArgumentError, match=r"\(1, 3, 4, 4\), not \(B, 4, h, w\)"):
        teacher(torch.zeros(1, 3, 64, 64))
    teacher = ImageTeacher(Means(), 4, 8, "means", resolution=64)
    with pytest.raises(ArgumentError, match="gives dict"):
        teacher(torch.zeros(1, 3, 64, 64))
