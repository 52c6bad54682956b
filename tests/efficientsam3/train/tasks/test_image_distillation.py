"""Distillation of an image encoder: losses by hand, learning, saved features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from efficientsam3.config import ModelConfig
from efficientsam3.errors import DataError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.neck import enlarge
from efficientsam3.train.errors import FeatureFileError, SettingsError
from efficientsam3.train.features import open_features
from efficientsam3.train.features.extract import extract_image_features
from efficientsam3.train.features.upstream import write_upstream
from efficientsam3.train.pictures import SMALL
from efficientsam3.train.tasks.image_distillation import (
    ImageDistillation,
    ImageSettings,
    MapStudent,
    feature_losses,
    pad_as_upstream,
)
from efficientsam3.train.teachers import ImageTeacher
from efficientsam3.viz.contact_sheet import GAP

from ..conftest import Shapes, TinyTrunk, train_steps

Teacher = tuple[ModelConfig, Detector]


def test_losses_by_hand() -> None:
    # Two cells of two channels: (3, 4) against (3, 4), and (1, 0) against (0, 2).
    student = torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)
    error, apart = feature_losses(student, teacher)
    assert float(error) == pytest.approx((0 + 0 + 1 + 4) / 4)
    assert float(apart) == pytest.approx((0 + 1) / 2)
    error, _ = feature_losses(student, teacher, mse="sum")
    assert float(error) == pytest.approx((0 + 5) / 2)
    valid = torch.tensor([[[False, True]]])
    error, apart = feature_losses(student, teacher, valid, "sum")
    assert float(error) == pytest.approx(5)
    assert float(apart) == pytest.approx(1)
    nothing = feature_losses(student, teacher, torch.zeros(1, 1, 2, dtype=torch.bool))
    assert [float(x) for x in nothing] == [0, 0]


def test_losses_against_numpy() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 3, 5, 4, 4))
    valid = random.random((3, 4, 4)) < 0.6
    error, apart = feature_losses(*map(torch.tensor, (student, teacher, valid)), mse="sum")
    cells = [(b, y, x) for b, y, x in np.ndindex(3, 4, 4) if valid[b, y, x]]
    squared, cosines = [], []
    for b, y, x in cells:
        s, t = student[b, :, y, x], teacher[b, :, y, x]
        squared.append(((s - t) ** 2).sum())
        cosines.append(s @ t / np.linalg.norm(s) / np.linalg.norm(t))
    assert float(error) == pytest.approx(np.mean(squared), rel=1e-5)
    assert float(apart) == pytest.approx(1 - np.mean(cosines), rel=1e-5)


def test_the_map_of_a_student_is_enlarged_to_the_grid_of_the_teacher() -> None:
    trunk = TinyTrunk(8).eval()
    student = MapStudent(trunk, 8, 8, 8)
    pixels = torch.randn(1, 3, 112, 112)
    assert trunk(pixels).shape == (1, 8, 4, 4)
    assert torch.equal(student(pixels), enlarge(trunk(pixels), 8))
    assert list(dict(student.named_children())) == ["trunk"]
    wide = MapStudent(trunk, 8, 8, 12)
    assert wide(pixels).shape == (1, 12, 8, 8)


def test_the_loss_falls_with_a_teacher(teacher: Teacher, shapes: Shapes) -> None:
    config, net = teacher
    task = ImageDistillation(
        TinyTrunk(),
        config,
        shapes,
        ImageTeacher.of(net, config),
        settings=ImageSettings(batch=4),
        held_out=shapes,
    )
    with torch.no_grad():
        before = task.validate(task.module)
    first, last = train_steps(task, 60)
    assert last < 0.5 * first
    task.module.eval()
    with torch.no_grad():
        after = task.validate(task.module)
    assert after["mse"] < 0.6 * before["mse"]
    assert after["cosine"] < 0.6 * before["cosine"]
    with torch.no_grad():
        picture = task.pictures(task.module)["features"]
    assert picture.shape == (4 * (SMALL + GAP) + GAP, 3 * (SMALL + GAP) + GAP, 3)
    assert picture.dtype == np.uint8
    assert picture[GAP : GAP + SMALL, 2 * GAP + SMALL : 2 * (GAP + SMALL)].std() > 10


def test_saved_features_give_the_same_loss(
    teacher: Teacher, shapes: Shapes, tmp_path: Path
) -> None:
    config, net = teacher
    live_teacher = ImageTeacher.of(net, config)
    extract_image_features(live_teacher, shapes, tmp_path)
    trunk = TinyTrunk()
    settings = ImageSettings(batch=2)
    live = ImageDistillation(trunk, config, shapes, live_teacher, settings=settings)
    saved = ImageDistillation(
        trunk, config, shapes, features=open_features(tmp_path), settings=settings
    )
    losses = []
    for task in (live, saved):
        task.module.eval()
        with torch.no_grad():
            losses.append(task.loss(task.module, next(task.batches(3, 0, 1))))
    assert losses[0].keys() == losses[1].keys() == {"loss", "mse", "cosine"}
    for name in losses[0]:
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), rel=1e-3)


def test_the_form_of_the_squared_error(teacher: Teacher, shapes: Shapes) -> None:
    config, net = teacher
    parts = []
    for mse in ("mean", "sum"):
        task = ImageDistillation(
            TinyTrunk().eval(),
            config,
            shapes,
            ImageTeacher.of(net, config),
            settings=ImageSettings(batch=2, mse=mse, mse_weight=0.5, cosine_weight=3),
        )
        torch.manual_seed(0)
        task.module.trunk = TinyTrunk().eval()
        with torch.no_grad():
            out = task.loss(task.module, next(task.batches(0, 0, 1)))
        assert float(out["loss"]) == pytest.approx(
            0.5 * float(out["mse"]) + 3 * float(out["cosine"]), rel=1e-5
        )
        parts.append(float(out["mse"]))
    assert parts[1] == pytest.approx(32 * parts[0], rel=1e-4)
    with pytest.raises(SettingsError, match="mse is 'max'; it must be one of mean, sum"):
        ImageSettings(mse="max")


def test_a_teacher_of_another_width_gets_a_projection(teacher: Teacher, shapes: Shapes) -> None:
    config, _ = teacher
    sam = ImageTeacher(nn.Conv2d(3, 5, 14, 14), 5, 8, "sam", resolution=112)
    task = ImageDistillation(TinyTrunk(), config, shapes, sam, settings=ImageSettings(batch=4))
    assert {k.split(".")[0] for k in task.module.state_dict()} == {"trunk", "projection"}
    first, last = train_steps(task, 40)
    assert last < 0.7 * first


def test_unusable_teachers_and_features_are_errors(
    teacher: Teacher, shapes: Shapes, tmp_path: Path
) -> None:
    config, net = teacher
    with pytest.raises(DataError, match="pass a teacher"):
        ImageDistillation(TinyTrunk(), config, shapes)
    with pytest.raises(FeatureFileError, match="8 x 8 cells"):
        wrong = ImageTeacher(net.part("trunk"), 32, 9, "x")
        ImageDistillation(TinyTrunk(), config, shapes, wrong)
    live_teacher = ImageTeacher.of(net, config)
    with pytest.raises(DataError, match="empty"):
        ImageDistillation(TinyTrunk(), config, Shapes(0), live_teacher)
    extract_image_features(live_teacher, Shapes(2), tmp_path)
    with pytest.raises(FeatureFileError, match="lacks the features of 2 samples"):
        ImageDistillation(TinyTrunk(), config, shapes, features=open_features(tmp_path))


# Upstream's preparation, for its features -----------------------------------------------------


def test_the_preparation_of_upstream(shapes: Shapes) -> None:
    sample = shapes[0]  # 60 x 80
    pixels, valid = pad_as_upstream(sample, 112, 8)
    assert pixels.shape == (1, 3, 112, 112)
    assert (pixels[..., 84:, :] == 0).all()  # 60 / 80 of 112
    assert valid.tolist() == [[True] * 8] * 6 + [[False] * 8] * 2
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shown = pixels[0, :, :84].mean((1, 2)) * std + mean
    image = torch.from_numpy(sample.image).float().mean((0, 1)) / 255
    torch.testing.assert_close(shown, image, atol=0.01, rtol=0)


def test_features_of_upstream_can_be_learned_from(
    teacher: Teacher, shapes: Shapes, tmp_path: Path
) -> None:
    config, net = teacher
    with torch.no_grad():
        maps = {
            shapes.key(i): net.part("trunk")(pad_as_upstream(shapes[i], 112, 8)[0])[0].numpy()
            for i in range(len(shapes))
        }
    write_upstream(tmp_path, maps.items())
    task = ImageDistillation(
        net.part("trunk"),
        config,
        shapes,
        features=open_features(tmp_path, (32, 8, 8)),
        settings=ImageSettings(batch=2),
        padded=True,
    )
    batch = next(task.batches(0, 0, 1))
    assert batch.valid is not None
    out = task.loss(task.module, batch)  # the teacher as student has no error
    assert float(out["mse"]) < 1e-5
    assert float(out["cosine"]) < 1e-4
