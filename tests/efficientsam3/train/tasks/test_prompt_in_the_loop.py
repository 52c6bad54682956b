"""The prompt in the loop: prompts, added points, losses and learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.config import ModelConfig, tiny_config
from efficientsam3.data.sample import TrainingSample
from efficientsam3.errors import MissingPartError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.geometry import Exemplars
from efficientsam3.nn.layers import cxcywh_to_xyxy
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.features import open_features
from efficientsam3.train.features.extract import extract_image_features
from efficientsam3.train.pictures import SMALL
from efficientsam3.train.tasks.image_distillation import ImageCollator
from efficientsam3.train.tasks.prompt_in_the_loop import (
    FrozenHeads,
    PromptInTheLoop,
    answer_loss,
    mask_losses,
    refine,
)
from efficientsam3.train.tasks.prompted_batches import Prompt, PromptCollator, PromptedSettings
from efficientsam3.train.teachers import ImageTeacher
from efficientsam3.viz.contact_sheet import GAP

from ..conftest import Shapes, TinyTrunk, tiny_net, train_steps

Teacher = tuple[ModelConfig, Detector]

IMAGES = ImageCollator(tiny_config(parts=("geometry", "masks")))


def draw(sample: TrainingSample, seed: int = 0, **settings: float) -> list[Prompt]:
    chosen = PromptedSettings(**{"prompts": 8, **settings})  # type: ignore[arg-type]
    return PromptCollator(IMAGES, chosen).draw(sample, np.random.default_rng(seed))


# Prompts ------------------------------------------------------------------------------------


def test_boxes_without_noise_are_the_objects(shapes: Shapes) -> None:
    sample = shapes[0]
    prompts = draw(sample, box=1, point=0, box_noise=0)
    boxes = sorted(p.boxes[0].tolist() for p in prompts)
    want = sorted(sample.boxes_in_unit().tolist())
    assert np.allclose(boxes, want, atol=1e-6)  # each object once, by itself


def test_the_noise_of_boxes_is_limited(shapes: Shapes) -> None:
    sample = shapes[0]
    corners = cxcywh_to_xyxy(sample.boxes_in_unit())
    shifts = []
    for seed in range(200):
        for prompt in draw(sample, seed, box=1, point=0, box_noise=0.1, box_noise_limit=0.02):
            box = cxcywh_to_xyxy(prompt.boxes)
            nearest = (corners - box).abs().amax(1).argmin()
            shifts.append((box - corners[nearest])[0].numpy())
    assert np.abs(shifts).max() == pytest.approx(0.02, abs=1e-5)
    assert 0.005 < np.std(shifts) < 0.02


def test_points_lie_on_their_object(shapes: Shapes) -> None:
    sample = shapes[1]
    either = sample.mask(0) | sample.mask(1)
    for seed in range(50):
        for prompt in draw(sample, seed, box=0, point=1):
            x, y = (prompt.points[0] * torch.tensor([80, 60])).tolist()
            assert either[int(y), int(x)]


def test_points_of_the_data_set_are_used(shapes: Shapes) -> None:
    sample = replace(shapes[0], points=np.array([[20, 15], [60, 30]], np.float32))
    found = {tuple(p.points[0].tolist()) for p in draw(sample, box=0, point=1)}
    assert found == {(0.25, 0.25), (0.75, 0.5)}


def test_shares_of_kinds(shapes: Shapes) -> None:
    kinds = np.zeros(3)
    for seed in range(300):
        (prompt,) = draw(shapes[0], seed, prompts=1, box=1, point=1, phrase=2)
        kinds += [len(prompt.boxes), len(prompt.points), bool(prompt.phrase)]
        assert prompt.phrase in ("", "rectangle", "left one")  # no absent concept
    assert np.allclose(kinds / 300, [0.25, 0.25, 0.5], atol=0.08)


def test_crowds_and_boxes_without_area_are_no_prompts(shapes: Shapes) -> None:
    sample = replace(shapes[0], crowd=np.array([True, False]))
    assert len(draw(sample)) == 1
    flat = sample.boxes.copy()
    flat[1, 2] = flat[1, 0]
    assert draw(replace(sample, boxes=flat)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box": 0, "point": 0}, "box is 0; it must be above 0 if point and phrase are 0"),
        ({"point": -1}, "point is -1; it must be 0 or more"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PromptedSettings(**settings)  # type: ignore[arg-type]


def test_each_row_is_one_prompt(shapes: Shapes) -> None:
    collate = PromptCollator(IMAGES, PromptedSettings(iterations=3))
    samples = [shapes[0], replace(shapes[1], boxes=shapes[1].boxes[:1], masks=shapes[1].masks[:1],
               queries=()), shapes[2]]  # fmt: skip
    batch = collate(samples, np.random.default_rng(0))
    assert batch.rows.tolist() == [0, 0, 1, 2, 2]
    valid = batch.exemplars.box_valid.sum(1) + batch.exemplars.point_valid.sum(1)
    assert valid.tolist() == [1] * 5
    assert batch.exemplars.points.shape == (5, 3, 2)
    assert batch.images.pixels.shape[0] == batch.size == 3


# Added points ----------------------------------------------------------------------------


def empty(count: int, places: int = 2) -> Exemplars:
    return Exemplars(
        torch.zeros(count, places, 2),
        torch.ones(count, places, dtype=torch.long),
        torch.zeros(count, places, dtype=torch.bool),
        torch.zeros(count, 1, 4),
        torch.ones(count, 1, dtype=torch.long),
        torch.zeros(count, 1, dtype=torch.bool),
    )


def test_a_point_is_added_where_masks_differ() -> None:
    teacher = torch.full((3, 10, 20), -1.0)
    student = teacher.clone()
    teacher[0, 2:6, 5:9] = 1  # the student misses it: positive
    student[1, 7:10, 0:5] = 1  # the student adds it: negative
    teacher[2, 0, :9] = 1  # nine pixels are too few
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(200):
        out = refine(empty(3), 1, teacher, student, 10, generator)
        assert out.point_valid.tolist() == [[False, True], [False, True], [False, False]]
        assert out.point_labels[:2, 1].tolist() == [1, 0]
        cells = out.points[:, 1] * torch.tensor([20.0, 10.0])
        assert torch.allclose(cells % 1, torch.tensor(0.5), atol=1e-4)  # the center of a pixel
        x, y = cells[0].int().tolist()
        assert 5 <= x < 9
        assert 2 <= y < 6
        seen.append((x, y))
        x, y = cells[1].int().tolist()
        assert x < 5
        assert y >= 7
    assert len(set(seen)) == 16  # any of the differing pixels


def test_equal_masks_add_no_point() -> None:
    same = torch.randn(1, 6, 6)
    out = refine(empty(1), 0, same, same, 1, torch.Generator())
    assert not out.point_valid.any()


# Losses -------------------------------------------------------------------------------------


def test_mask_losses_against_numpy() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 3, 5, 6))
    got = mask_losses(torch.tensor(ours), torch.tensor(theirs))
    p, t = 1 / (1 + np.exp(-ours)), 1 / (1 + np.exp(-theirs))
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = [
        1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)
    ]
    iou = [
        ((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum()
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert float(got["mask"]) == pytest.approx(entropy, rel=1e-5)
    assert float(got["dice"]) == pytest.approx(np.mean(dice), rel=1e-5)
    assert float(got["iou"]) == pytest.approx(np.mean(iou), rel=1e-5)
    nothing = torch.full((1, 4, 4), -9.0)
    assert float(mask_losses(nothing, nothing)["iou"]) == 1


def task_of(trunk: torch.nn.Module, teacher: Teacher, **settings: object) -> PromptInTheLoop:
    config, net = teacher
    chosen = PromptedSettings(**{"batch": 2, "prompts": 2, **settings})  # type: ignore[arg-type]
    return PromptInTheLoop(trunk, net, config, Shapes(), chosen, held_out=Shapes())


def test_the_teacher_as_student_has_no_error(teacher: Teacher) -> None:
    _, net = teacher
    task = task_of(net.part("trunk"), teacher, answer_weight=1.0)
    out = task.loss(task.module, next(task.batches(0, 0, 1)))
    assert float(out["mse"]) == 0
    assert float(out["iou"]) == 1


def test_frozen_heads_answer_as_the_whole_model(teacher: Teacher) -> None:
    """Heads that get the map answer as the whole model does."""
    config, net = teacher
    heads = FrozenHeads(net, config.context)
    pixels = Shapes()[0].pixels(config.resolution)
    exemplars = empty(1)._replace(
        boxes=torch.tensor([[[0.4, 0.5, 0.3, 0.4]]]), box_valid=torch.ones(1, 1, dtype=torch.bool)
    )
    with torch.no_grad():
        image = net.read_image(pixels)
        words = net.read_text(tokenize(["visual"], config.context))
        want = net.answer(image, *net.read_prompt(image, words, exemplars))
        masks = net.masks_of(image, want, 0, torch.tensor([3]))
        encoded = net.part("trunk")(pixels)
        read = heads.net.read_image(encoded)
        got = heads.answer(read, heads.text(["visual"]), exemplars)
        ours = heads.masks(got, torch.tensor([3]), read, torch.tensor([0]))
    torch.testing.assert_close(got.logits, want.logits)
    torch.testing.assert_close(ours, masks, atol=1e-4, rtol=1e-4)


def test_each_phrase_is_encoded_once(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    config, net = teacher
    heads = FrozenHeads(net, config.context)
    encoded, read_text = [], heads.net.read_text

    def counted(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(tokens))
        return read_text(tokens)

    monkeypatch.setattr(heads.net, "read_text", counted)
    features, mask = heads.text(["dog", "cat", "dog"])
    assert sum(encoded) == 2
    wanted, valid = read_text(tokenize(["dog", "cat", "dog"], config.context))
    torch.testing.assert_close(features, wanted)
    assert torch.equal(mask, valid)
    heads.to(torch.device("cpu"))  # weights may have changed their device
    heads.text(["dog"])
    assert sum(encoded) == 3


def test_the_loss_is_the_weighted_sum_of_its_terms(teacher: Teacher) -> None:
    weights = {"feature": 2.0, "cosine": 3.0, "mask": 0.5, "dice": 7.0, "answer": 11.0}
    names = {f"{k}_weight": v for k, v in weights.items()}
    task = task_of(TinyTrunk(), teacher, **names)
    with torch.no_grad():
        out = task.loss(task.module, next(task.batches(0, 0, 1)))
    parts = {k: float(v) for k, v in out.items()}
    total = sum(w * parts["mse" if k == "feature" else k] for k, w in weights.items())
    assert parts["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
def test_losses_are_means_over_iterations(teacher: Teacher, iterations: int) -> None:
    task = task_of(TinyTrunk().eval(), teacher, iterations=iterations, error_pixels=10**6)
    task.module.eval()
    with torch.no_grad():
        losses, pairs = task.compare(task.module, next(task.batches(0, 0, 1)))
    # No point is ever added, so all iterations are equal.
    assert len(pairs) == iterations
    parts = [mask_losses(ours, theirs) for theirs, ours in pairs]
    for name in ("mask", "dice", "iou"):
        assert float(losses[name]) == pytest.approx(float(parts[0][name]), rel=1e-4)


def test_points_change_the_answer(teacher: Teacher) -> None:
    task = task_of(TinyTrunk(), teacher, iterations=2, error_pixels=1)
    with torch.no_grad():
        _, pairs = task.compare(task.module, next(task.batches(0, 0, 1)))
    assert not torch.allclose(pairs[0][0], pairs[1][0])
    with torch.no_grad():
        _, again = task.compare(task.module, next(task.batches(0, 0, 1)))
    assert torch.equal(pairs[1][0], again[1][0])  # the same batch, the same points


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"exemplar_phrase": None},
        {"phrase": 2.0, "answer_weight": 1.0},
        {"feature_weight": 0.0, "box": 1.0, "point": 0.0, "iterations": 1},
    ],
)
def test_the_loss_falls(teacher: Teacher, settings: dict[str, object]) -> None:
    task = task_of(TinyTrunk(), teacher, **settings)
    with torch.no_grad():
        before = task.validate(task.module)
    train_steps(task, 30, lr=5e-3)
    task.module.eval()
    with torch.no_grad():
        after = task.validate(task.module)
    assert after["mask"] + after["dice"] < 0.9 * (before["mask"] + before["dice"])


def test_nothing_but_the_student_changes(teacher: Teacher) -> None:
    _, net = teacher
    before = {k: v.clone() for k, v in net.state_dict().items()}
    task = task_of(TinyTrunk(), teacher)
    assert {k.split(".")[0] for k in task.module.state_dict()} == {"trunk"}
    train_steps(task, 3)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in net.parameters())


def test_saved_maps_give_the_same_loss(teacher: Teacher, shapes: Shapes, tmp_path: Path) -> None:
    config, net = teacher
    extract_image_features(ImageTeacher.of(net, config), shapes, tmp_path)
    trunk, settings = TinyTrunk().eval(), PromptedSettings(batch=2, iterations=1)
    live = PromptInTheLoop(trunk, net, config, shapes, settings)
    saved = PromptInTheLoop(trunk, net, config, shapes, settings, open_features(tmp_path))
    with torch.no_grad():
        losses = [t.loss(t.module.eval(), next(t.batches(1, 0, 1))) for t in (live, saved)]
    for name in ("mse", "mask", "dice"):
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), rel=5e-3)


def test_images_without_objects_have_the_terms_of_the_map(teacher: Teacher) -> None:
    task = task_of(TinyTrunk(), teacher)
    samples = [
        replace(Shapes()[i], boxes=np.zeros((0, 4), np.float32), masks=(), queries=())
        for i in range(2)
    ]
    batch = PromptCollator(IMAGES, task.settings)(samples, np.random.default_rng(0))
    out = task.loss(task.module, batch)
    assert set(out) == {"loss", "mse", "cosine"}
    out["loss"].backward()


def test_pictures(teacher: Teacher) -> None:
    task = task_of(TinyTrunk(), teacher)
    with torch.no_grad():
        picture = task.pictures(task.module)["masks"]
    # Two iterations of two prompts on each of two images.
    assert picture.shape == (2 * (SMALL + GAP) + GAP, 4 * (SMALL + GAP) + GAP, 3)
    assert picture.dtype == np.uint8


def test_answers_are_compared(teacher: Teacher) -> None:
    config, net = teacher
    heads = FrozenHeads(net, config.context)
    with torch.no_grad():
        read = heads.net.read_image(net.part("trunk")(Shapes()[0].pixels(112)))
        answer = heads.answer(read, heads.text(["dog"]), empty(1))
        p = answer.logits.sigmoid().double()
        q = answer.presence.sigmoid().double()
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
        entropy -= (q * q.log() + (1 - q) * (1 - q).log()).mean()
    assert float(answer_loss(answer, answer)) == pytest.approx(float(entropy), rel=1e-5)


def test_a_teacher_without_mask_head_is_an_error() -> None:
    config, net = tiny_net(parts=("geometry",))
    with pytest.raises(MissingPartError, match="masks"):
        PromptInTheLoop(TinyTrunk(), net, config, Shapes())
