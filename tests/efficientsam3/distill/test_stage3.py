"""Stage 3 learns, in the loop and from any of the data sets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from efficientsam3.build import ModelConfig, build, tiny_config
from efficientsam3.distill.collate import Collator, PromptSettings
from efficientsam3.distill.data.batches import Joined, Shuffled, hold_out
from efficientsam3.distill.data.coco import Coco, Lvis
from efficientsam3.distill.data.saco import SaCo
from efficientsam3.distill.data.sample import TrainingSample
from efficientsam3.distill.errors import DataError
from efficientsam3.distill.feature_distillation import FeatureDistillation
from efficientsam3.distill.grounding import GroundingBatch, GroundingLoss
from efficientsam3.distill.held_out import score
from efficientsam3.distill.loop import LoopSettings, train
from efficientsam3.distill.losses import LossWeights
from efficientsam3.distill.scratch import prepare
from efficientsam3.distill.stage3 import Batches, GroundingTask
from efficientsam3.distill.teachers import PyramidTeacher
from efficientsam3.nn.detector import Detector

from .conftest import Shapes, coloured, replace, tiny_net
from .data.conftest import SIZE, packed, rectangle, write_image

TEXTS = {"box_only": 0.0, "text_and_box": 0.0}


def collator(config: ModelConfig, **changes: Any) -> Collator:
    return Collator(config, PromptSettings(**{"prompts": 3, **changes}))


def of_two(number: int) -> TrainingSample:
    return coloured(number % 2)


def task_of(net: Detector, config: ModelConfig, **changes: Any) -> GroundingTask:
    given = {"batch": 2, "workers": 0, "held_out": [coloured(0), coloured(1)], **changes}
    return GroundingTask(net, collator(config, **TEXTS), of_two, **given)


def equal(a: GroundingBatch, b: GroundingBatch) -> bool:
    same = torch.equal(a.pixels, b.pixels) and torch.equal(a.tokens, b.tokens)
    if a.exemplars is not None and b.exemplars is not None:
        same &= torch.equal(a.exemplars.boxes, b.exemplars.boxes)
    return same and torch.equal(a.targets.boxes, b.targets.boxes)


# Batches ------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    config, net = tiny_net()
    task = task_of(net, config, seed=3)
    task.collator = collator(config, prompts=2, box_only=0.4)
    stream = task.batches(0, 0, 1)
    first = [next(stream) for _ in range(3)]
    assert equal(next(task.batches(2, 0, 1)), first[2])
    # Ranks share them out.
    ranks = [next(task_of(net, config, seed=3).batches(0, rank, 2)) for rank in range(2)]
    own = task_of(net, config, seed=3).batches(0, 0, 1)
    assert all(equal(a, next(own)) for a in ranks)
    assert not equal(ranks[0], next(task_of(net, config, seed=4).batches(0, 0, 1)))


def test_each_epoch_has_each_sample_once() -> None:
    draw = Shuffled(Shapes(6), seed=1)
    epochs = [[draw(6 * e + i).key for i in range(6)] for e in range(3)]
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
    assert epochs[0] != epochs[1]
    with pytest.raises(DataError, match="the data set is empty"):
        Shuffled(Shapes(0))


def test_images_without_phrases_are_passed_over() -> None:
    config, _ = tiny_net()

    def draw(number: int) -> TrainingSample:
        return coloured(number) if number > 9 else replace(coloured(number), queries=())

    make = Batches(draw, collator(config), 2)
    one, same = (make(0, np.random.default_rng(0)) for _ in range(2))
    assert len(one.images)
    assert equal(one, same)


def test_workers_get_it() -> None:
    config, _ = tiny_net()
    make = pickle.loads(pickle.dumps(Batches(of_two, collator(config), 2)))
    rng = np.random.default_rng
    assert equal(make(1, rng(0)), Batches(of_two, collator(config), 2)(1, rng(0)))


# It learns ----------------------------------------------------------------------------------


def fresh() -> tuple[ModelConfig, Detector]:
    config = tiny_config(parts=("geometry", "masks"))
    return config, prepare(build(config))


def overfit(steps: int) -> tuple[list[float], dict[str, float]]:
    torch.manual_seed(0)
    config, net = fresh()
    weights = LossWeights(denoising=1.0, dense=1.0, align=1.0, padded_queries=12)
    task = task_of(net, config, criterion=GroundingLoss(weights, many_on_aux=True))
    optimiser = torch.optim.AdamW(net.parameters(), 8e-3, weight_decay=0)
    # Without a rate that ends at nothing, the last step decides whether an answer is kept.
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, max(steps, 20), pct_start=0.1)
    task.train_mode()
    losses = []
    for _, batch in zip(range(steps), task.batches(0, 0, 1), strict=False):
        loss = task.loss(net, batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        rate.step()
        losses.append(float(loss.detach()))
    net.eval()
    with torch.no_grad():
        return losses, task.validate(net)


def test_the_loss_falls() -> None:
    losses, _ = overfit(8)
    assert np.mean(losses[-2:]) < 0.85 * np.mean(losses[:2])


@pytest.mark.slow
def test_two_images_by_heart() -> None:
    losses, figures = overfit(200)
    assert losses[-1] < 0.5 * losses[0]
    assert figures["pmF1"] > 60
    assert figures["cgF1"] > 50


# In the loop ----------------------------------------------------------------------------------


def settings(**changes: Any) -> LoopSettings:
    return LoopSettings(**{
        "steps": 4, "lr": 1e-3, "ema": 0.9, "accelerator": "cpu", "validate_every": 2,
        "picture_every": 2, "save_every": 2, "log_every": 1, "schedule": "constant", **changes,
    })  # fmt: skip


def run(folder: Path, steps: int, *, resume: bool = False, **changes: Any) -> GroundingTask:
    config, net = fresh()
    given = {"criterion": GroundingLoss(LossWeights(denoising=1.0)), **changes}
    task = task_of(net, config, seed=5, **given)
    train(task, settings(steps=steps), folder, resume=resume, accept_changes=resume)
    return task


def test_resumed_is_as_if_never_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run(tmp_path / "whole", 4)
    torch.manual_seed(0)
    run(tmp_path / "cut", 2)
    torch.manual_seed(1)
    run(tmp_path / "cut", 4, resume=True)
    one, other = (load_file(tmp_path / f / "weights.safetensors") for f in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert not {k for k, v in one.items() if not torch.equal(v, other[k])}
    assert len((tmp_path / "cut" / "validation.csv").read_text().splitlines()) == 3
    assert sorted(p.name for p in (tmp_path / "cut" / "pictures").iterdir())
    report = json.loads((tmp_path / "cut" / "report.json").read_text())
    assert {"cgF1", "pmF1", "IL_MCC"} <= set(report["figures"])


def test_only_the_parts_asked_for_learn(tmp_path: Path) -> None:
    config, net = tiny_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    task = task_of(net, config)
    train(task, settings(steps=2, parts=("trunk", "neck"), validate_every=0), tmp_path)
    moved = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"trunk", "neck"}


def test_with_a_teacher_of_features(tmp_path: Path) -> None:
    config, net = tiny_net()
    _, other = tiny_net()
    with torch.no_grad():
        for weight in other.part("trunk").parameters():
            weight.mul_(1.2)
    teacher = FeatureDistillation(PyramidTeacher.of(other))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    task = task_of(net, config, teacher=teacher, criterion=GroundingLoss(LossWeights(features=9)))
    train(task, settings(steps=2, validate_every=0, picture_every=0), tmp_path)
    assert "features" in (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    assert task.describe()["teacher"]["form"] == "cosine"


def test_nothing_held_out() -> None:
    config, net = tiny_net()
    task = task_of(net, config, held_out=())
    assert task.validate(net) == {}
    assert task.pictures(net) == {}
    with pytest.raises(DataError, match="hold out data with masks"):
        task_of(net, config, held_out=[replace(coloured(0), masks=None)])


# Data sets ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """One image each of SA-Co, COCO and LVIS."""
    height, width = SIZE
    size = {"height": height, "width": width}
    mask = packed(rectangle(4, 6, 14, 14))
    crowd = {"segmentation": packed(rectangle(0, 0, 9, 9)), "iscrowd": 1}
    for number, name in enumerate(("a.jpg", "b.jpg", "val2017/c.jpg")):
        write_image(tmp_path / "images" / name, number)
    pairs = [
        {"id": i, "file_name": "a.jpg", "text_input": text, **size}
        for i, text in enumerate(("dog", "red apple"))
    ]
    unit = [4 / width, 6 / height, 10 / width, 8 / height]
    found = {"id": 1, "image_id": 0, "bbox": unit, "segmentation": mask, "iscrowd": 0}
    thing = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [4, 6, 10, 8], "iscrowd": 0}
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    box = {"segmentation": mask, **thing}
    contents = {
        "saco": {"images": pairs, "annotations": [found], "categories": []},
        "coco": {
            "images": [{"id": 7, "file_name": "b.jpg", **size}],
            "annotations": [box, {**box, "id": 2, "bbox": [0, 0, 9, 9], **crowd}],
            "categories": categories,
        },
        "lvis": {
            "images": [
                {
                    "id": 7,
                    "coco_url": "http://images.cocodataset.org/val2017/c.jpg",
                    "neg_category_ids": [2],
                    "not_exhaustive_category_ids": [1],
                    **size,
                }
            ],
            "annotations": [box],
            "categories": [{**c, "synonyms": [c["name"]]} for c in categories],
        },
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_any_data_set_becomes_a_step(files: Path) -> None:
    images = files / "images"
    sources = [
        SaCo(files / "saco.json", images),
        Coco(files / "coco.json", images),
        Lvis(files / "lvis.json", images),
    ]
    config, net = tiny_net()
    # Of each: prompts, those that are true of something, those that are exhaustive.
    wanted = [(2, 1, 2), (2, 1, 1), (2, 1, 1)]
    for source, counts in zip(sources, wanted, strict=True):
        make = Batches(Shuffled(source), collator(config, **TEXTS), 1)
        batch = make(0, np.random.default_rng(0))
        targets = batch.targets
        got = len(batch.images), int(targets.present.sum()), int(targets.exhaustive.sum())
        assert got == counts, type(source).__name__
        row = targets.boxes[targets.valid]
        torch.testing.assert_close(row, torch.tensor([[9 / 40, 10 / 30, 10 / 40, 8 / 30]]))
        terms = GroundingLoss()(net, batch)
        terms["loss"].backward()
        assert float(terms["dice"]) > 0
    together = Joined(*sources)
    assert len(together) == 3
    training, held_out = hold_out(together, 1, 0)
    batch = Batches(Shuffled(training), collator(config), 2)(0, np.random.default_rng(0))
    assert batch.images.unique().tolist() == [0, 1]
    with torch.no_grad():
        assert 0 <= score(net, config, held_out)["IL_recall"] <= 100


def test_too_few_to_hold_out() -> None:
    with pytest.raises(DataError, match="have 4 images, and 4 are to be held out"):
        hold_out(Shapes(4), 4, 0)
    training, held_out = hold_out(Shapes(4), 1, 0)
    keys = [s.key(i) for s in (training, held_out) for i in range(len(s))]
    assert sorted(keys) == [f"shape {i}" for i in range(4)]
