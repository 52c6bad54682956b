"""The grounding task: batches, learning, the training loop, and all data sets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from efficientsam3.build import build
from efficientsam3.config import ModelConfig, tiny_config
from efficientsam3.data.annotated_images import AnnotatedImages
from efficientsam3.data.coco import CocoAnnotations
from efficientsam3.data.saco import SaCoAnnotations
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.subsets import Joined, hold_out
from efficientsam3.errors import DataError
from efficientsam3.nn.detector import Detector
from efficientsam3.train.batches import Batches, Generated
from efficientsam3.train.loop import LoopSettings, train
from efficientsam3.train.losses.detection import LossWeights
from efficientsam3.train.losses.feature_distillation import FeatureDistillation
from efficientsam3.train.losses.grounding import GroundingBatch, GroundingLoss
from efficientsam3.train.tasks.grounding import GroundingTask
from efficientsam3.train.tasks.grounding_batches import GroundingCollator, PromptSettings
from efficientsam3.train.teachers import PyramidTeacher
from efficientsam3.train.validation import score
from efficientsam3_stickers.training.dense_loss import DenseLoss
from efficientsam3_stickers.training.init import init_from_scratch

from ...data.conftest import SIZE, packed, rectangle, write_image
from ..conftest import Shapes, colored_sample, replace, tiny_net

TEXTS = {"box_only": 0.0, "text_and_box": 0.0}


def collator(config: ModelConfig, **changes: Any) -> GroundingCollator:
    return GroundingCollator(config, PromptSettings(**{"prompts": 3, **changes}))


def of_two(number: int) -> TrainingSample:
    return colored_sample(number % 2)


PAIR = Generated(of_two, 2)


def task_of(net: Detector, config: ModelConfig, **changes: Any) -> GroundingTask:
    given = {
        "batch": 2,
        "workers": 0,
        "held_out": [colored_sample(0), colored_sample(1)],
        **changes,
    }
    return GroundingTask(net, collator(config, **TEXTS), PAIR, **given)


def equal(a: GroundingBatch, b: GroundingBatch) -> bool:
    same = torch.equal(a.pixels, b.pixels) and torch.equal(a.tokens, b.tokens)
    if a.exemplars is not None and b.exemplars is not None:
        same &= torch.equal(a.exemplars.boxes, b.exemplars.boxes)
    return same and torch.equal(a.targets.boxes, b.targets.boxes)


# Batches ------------------------------------------------------------------------------------


def test_batches_depend_on_nothing_but_seed_and_number() -> None:
    config, net = tiny_net()
    prompts = collator(config, prompts=2, box_only=0.4)
    task = GroundingTask(net, prompts, PAIR, batch=2, seed=3, workers=0)
    stream = task.batches(0, 0, 1)
    first = [next(stream) for _ in range(3)]
    assert equal(next(task.batches(2, 0, 1)), first[2])
    # Two processes have alternate batches.
    ranks = [next(task_of(net, config, seed=3).batches(0, rank, 2)) for rank in range(2)]
    own = task_of(net, config, seed=3).batches(0, 0, 1)
    assert all(equal(a, next(own)) for a in ranks)
    assert not equal(ranks[0], next(task_of(net, config, seed=4).batches(0, 0, 1)))


def test_images_without_phrases_are_replaced() -> None:
    config, net = tiny_net()

    def draw(number: int) -> TrainingSample:
        return colored_sample(number) if number > 9 else replace(colored_sample(number), queries=())

    given = {"batch": 8, "workers": 0}
    task = GroundingTask(net, collator(config, **TEXTS), Generated(draw, 20), **given)
    one, same = (task.training(0, np.random.default_rng(0)) for _ in range(2))
    assert one.images.unique().tolist() == list(range(8))  # each has prompts
    assert equal(one, same)


def test_batches_can_be_made_in_worker_processes() -> None:
    config, net = tiny_net()
    make = task_of(net, config).training
    sent = pickle.loads(pickle.dumps(make))
    assert equal(sent(1, np.random.default_rng(0)), make(1, np.random.default_rng(0)))


# Learning ----------------------------------------------------------------------------------


def fresh() -> tuple[ModelConfig, Detector]:
    config = tiny_config(parts=("geometry", "masks"))
    return config, init_from_scratch(build(config))


def overfit(steps: int) -> tuple[list[float], dict[str, float]]:
    torch.manual_seed(0)
    config, net = fresh()
    weights = LossWeights(denoising=1.0, padded_queries=12)
    criterion = GroundingLoss(weights, one_to_many_on_aux=True, extra=(DenseLoss(),))
    task = task_of(net, config, criterion=criterion)
    optimizer = torch.optim.AdamW(net.parameters(), 8e-3, weight_decay=0)
    # If the rate did not fall to zero, the last step would decide which detections are kept.
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, max(steps, 20), pct_start=0.1)
    task.train_mode()
    losses = []
    for _, batch in zip(range(steps), task.batches(0, 0, 1), strict=False):
        loss = task.loss(net, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(float(loss.detach()))
    net.eval()
    with torch.no_grad():
        return losses, task.validate(net)


def test_the_loss_falls() -> None:
    losses, _ = overfit(8)
    assert np.mean(losses[-2:]) < 0.85 * np.mean(losses[:2])


@pytest.mark.slow
def test_two_images_are_learned() -> None:
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


def run(folder: Path, steps: int, **changes: Any) -> GroundingTask:
    config, net = fresh()
    given = {"criterion": GroundingLoss(LossWeights(denoising=1.0)), **changes}
    task = task_of(net, config, seed=5, **given)
    train(task, settings(steps=steps), folder, accept_changes=True)
    return task


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run(tmp_path / "whole", 4)
    torch.manual_seed(0)
    run(tmp_path / "cut", 2)
    torch.manual_seed(1)
    run(tmp_path / "cut", 4)
    one, other = (load_file(tmp_path / f / "weights.safetensors") for f in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert not {k for k, v in one.items() if not torch.equal(v, other[k])}
    assert len((tmp_path / "cut" / "validation.csv").read_text().splitlines()) == 3
    assert sorted(p.name for p in (tmp_path / "cut" / "pictures").iterdir())
    report = json.loads((tmp_path / "cut" / "report.json").read_text())
    assert {"cgF1", "pmF1", "IL_MCC"} <= set(report["metrics"])


def test_only_the_chosen_parts_change(tmp_path: Path) -> None:
    config, net = tiny_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    task = task_of(net, config)
    train(task, settings(steps=2, parts=("trunk", "neck"), validate_every=0), tmp_path)
    moved = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"trunk", "neck"}


def test_training_with_feature_distillation(tmp_path: Path) -> None:
    config, net = tiny_net()
    _, other = tiny_net()
    with torch.no_grad():
        for weight in other.part("trunk").parameters():
            weight.mul_(1.2)
    teacher = FeatureDistillation(PyramidTeacher.of(other), weight=9)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    task = task_of(net, config, criterion=GroundingLoss(extra=(teacher,)))
    train(task, settings(steps=2, validate_every=0, picture_every=0), tmp_path)
    assert "features" in (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    assert task.describe()["extra"][0]["distance"] == "cosine"


def test_without_held_out_samples_there_are_no_figures() -> None:
    config, net = tiny_net()
    task = task_of(net, config, held_out=())
    assert task.validate(net) == {}
    assert task.pictures(net) == {}
    with pytest.raises(DataError, match="hold out data with masks"):
        task_of(net, config, held_out=[replace(colored_sample(0), masks=None)])


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


def test_every_data_set_can_be_trained_on(files: Path) -> None:
    images = files / "images"
    sources = [
        AnnotatedImages(images, SaCoAnnotations(files / "saco.json")),
        AnnotatedImages(images, CocoAnnotations(files / "coco.json")),
        AnnotatedImages(images, CocoAnnotations(files / "lvis.json", synonyms=True)),
    ]
    config, net = tiny_net()
    # Of each data set: prompts, positive prompts, exhaustive prompts.
    wanted = [(2, 1, 2), (2, 1, 1), (2, 1, 1)]
    for source, counts in zip(sources, wanted, strict=True):
        make = Batches(source, collator(config, **TEXTS), 1)
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
    batch = Batches(training, collator(config), 2)(0, np.random.default_rng(0))
    assert batch.images.unique().tolist() == [0, 1]
    with torch.no_grad():
        assert 0 <= score(net, config, held_out)["IL_recall"] <= 100


def test_holding_out_everything_is_an_error() -> None:
    with pytest.raises(DataError, match="have 4 images, and 4 are to be held out"):
        hold_out(Shapes(4), 4, 0)
    training, held_out = hold_out(Shapes(4), 1, 0)
    keys = [s.key(i) for s in (training, held_out) for i in range(len(s))]
    assert sorted(keys) == [f"shape {i}" for i in range(4)]
