"""Fine-tuning from annotations to an adapter, with a tiny model and few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import efficientsam3 as es3
from efficientsam3.checkpoints.adapter import ADAPTER_FILE, Adapter
from efficientsam3.config import tiny_late_config
from efficientsam3.errors import ArgumentError, CheckpointError, DataError, PromptWarning
from efficientsam3.loading import open_weights
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.finetune import FinetuneResult, finetune
from efficientsam3.train.logs import Progress
from efficientsam3.train.recipe import Stage

from ....conftest import tiny_model
from .coco_files import OPTIONS, QUICK, save_model, write_coco


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_coco(tmp_path_factory.mktemp("data"))


def run(model: Path, data: tuple[Path, Path], out: Path, **options: Any) -> FinetuneResult:
    overrides = {**QUICK, **options.pop("overrides", {})}
    given = {"steps": 3, **OPTIONS, **options}
    return finetune(model, *data, out, overrides=overrides, **given)


@pytest.fixture(scope="module")
def whole(
    model: Path, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> FinetuneResult:
    """A run that nothing interrupted."""
    return run(model, data, tmp_path_factory.mktemp("runs") / "colors")


def weights(model: Path, adapter: Path | None = None) -> dict[str, torch.Tensor]:
    return open_weights(model, adapter=adapter)[2]().state_dict()


@pytest.mark.slow
def test_the_adapter_changes_all_parts_that_answer_phrases(
    model: Path, whole: FinetuneResult
) -> None:
    before, after = weights(model), weights(model, whole.adapter)
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    parts = {"trunk", "neck", "text", "geometry", "fusion", "decoder", "scoring", "masks"}
    assert {k.split(".")[0] for k in moved} == parts
    adapter = Adapter.load(whole.adapter)
    assert moved <= set(adapter.names)
    assert not any("running" in k or "embedding" in k for k in adapter.names)
    assert adapter.rank == 2 and adapter.name == "colors"
    change = after["fusion.layers.0.linear1.weight"] - before["fusion.layers.0.linear1.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2


def test_figures_before_are_those_of_the_model_and_are_kept(
    model: Path, whole: FinetuneResult
) -> None:
    assert {"cgF1", "pmF1", "IL_MCC"} <= set(whole.before) & set(whole.after)
    assert Adapter.load(whole.adapter).figures == {"before": whole.before, "after": whole.after}
    rows = (whole.adapter.parent / "tune" / "validation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "3"]


@pytest.mark.slow
def test_the_run_stores_what_trains_alone(model: Path, whole: FinetuneResult) -> None:
    stored = load_file(whole.adapter.parent / "tune" / "weights.safetensors")
    total = sum(value.numel() for value in weights(model).values())
    assert sum(value.numel() for value in stored.values()) < total / 4


@pytest.mark.slow
def test_an_interrupted_run_gives_the_same_adapter(
    model: Path, data: tuple[Path, Path], whole: FinetuneResult, tmp_path: Path
) -> None:
    def stop(stage: Stage, progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    out = tmp_path / "colors"
    every = {"loop.save_every": "1"}
    with pytest.raises(KeyboardInterrupt):
        run(model, data, out, overrides=every, on_progress=stop)
    assert not (out / ADAPTER_FILE).exists()
    steps: list[int] = []
    run(model, data, out, overrides=every, on_progress=lambda _, p: steps.append(p.step))
    assert steps[0] >= 2  # it validated before the first step already
    ours, theirs = load_file(out / ADAPTER_FILE), load_file(whole.adapter)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    again = run(model, data, out, overrides=every, on_progress=lambda *_: pytest.fail("trained"))
    assert again.after == whole.after
    (out / ADAPTER_FILE).unlink()
    with pytest.raises(CheckpointError, match="was moved or deleted, and the run is done"):
        run(model, data, out, overrides=every)


@pytest.mark.slow
def test_parts_train_whole(model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    parts = ("scoring", "decoder.presence_token_head")
    result = run(model, data, tmp_path / "run", parts=parts, held_out=0)
    adapter = Adapter.load(result.adapter)
    assert not adapter.low_rank and all(name.startswith(parts) for name in adapter.whole)
    assert result.before == {} and result.after == {}
    before, after = weights(model), weights(model, result.adapter)
    assert {k for k, v in after.items() if not torch.equal(v, before[k])} <= set(adapter.whole)
    mixed = run(
        model, data, tmp_path / "mixed", parts=("scoring",), adapt=("trunk",), held_out=0, steps=1
    )
    changed = Adapter.load(mixed.adapter)
    assert {k.split(".")[0] for k in changed.low_rank} == {"trunk"}
    assert {k.split(".")[0] for k in changed.whole} == {"trunk", "scoring"}


@pytest.mark.slow
def test_saco_and_other_held_out_images(
    model: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    others = write_coco(tmp_path / "others", 2)
    result = run(
        model,
        data,
        tmp_path / "run",
        held_out=None,
        held_out_data=others[0],
        held_out_images=others[1],
        steps=1,
    )
    assert result.after["cgF1"] == result.after["cgF1"]  # not NaN


def test_boxes_without_masks_train_without_figures(model: Path, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data", 4, masks=False)
    with pytest.raises(DataError, match=r"no masks.*held_out=0 \(--held-out 0\)"):
        run(model, data, tmp_path / "run")
    result = run(model, data, tmp_path / "run", held_out=0, steps=1, restart=True)
    assert Adapter.load(result.adapter).names


def test_wrong_data_is_refused_before_the_model_is_loaded(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    nowhere = tmp_path / "no-model"
    with pytest.raises(DataError, match=r"6 of 6 images of .*coco\.json are not in .*: 0\.png"):
        run(nowhere, (data[0], tmp_path), tmp_path / "a")
    empty = json.loads(data[0].read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    with pytest.raises(DataError, match="nothing to learn from"):
        run(nowhere, (tmp_path / "empty.json", data[1]), tmp_path / "b")
    with pytest.raises(DataError, match="and 6 are to be held out"):
        run(nowhere, data, tmp_path / "c", held_out=6)


def test_phrases_that_are_never_absent_have_a_warning(model: Path, tmp_path: Path) -> None:
    file, images = write_coco(tmp_path / "data", 3)
    content = json.loads(file.read_text())
    content["categories"] = content["categories"][:1]
    for row in content["annotations"]:
        row["category_id"] = 0
    file.write_text(json.dumps(content))
    with pytest.warns(PromptWarning, match="in every image"):
        run(model, (file, images), tmp_path / "run", held_out=1, steps=1)


def test_wrong_options_are_named(model: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    for options, message in (
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"parts": ("backbone",)}, r"parts is \('backbone',\); it must be of trunk"),
        ({"adapt": ()}, "nothing trains"),
    ):
        with pytest.raises(SettingsError, match=message):
            run(model, data, tmp_path, **options)
    with pytest.raises(ArgumentError, match="unknown options ranks; known: "):
        run(model, data, tmp_path, ranks=3)
    with pytest.raises(SettingsError, match=r"parts names 'trunk\.nothing', but no parameter"):
        run(model, data, tmp_path, parts=("trunk.nothing",))


@pytest.mark.slow
def test_late_fusion_is_adapted_in_all_its_parts(data: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_model(config=tiny_late_config()).save(tmp_path / "late")
    losses: list[float] = []
    result = run(
        tmp_path / "late",
        data,
        tmp_path / "run",
        steps=30,
        lr=1e-2,
        augment=False,
        on_progress=lambda _, p: losses.append(p.loss) if p.loss is not None else None,
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    before, after = weights(tmp_path / "late"), weights(tmp_path / "late", result.adapter)
    moved = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {"trunk", "neck", "text", "geometry", "fusion", "decoder", "masks"}
    model = es3.load(tmp_path / "late", adapter=result.adapter, device="cpu", dtype="float32")
    assert len(model.segment(data[1] / "0.png", "red square", threshold=0.0))
    with pytest.raises(SettingsError, match="scoring"):
        run(tmp_path / "late", data, tmp_path / "other", parts=("scoring",))


def test_another_model_is_no_continuation(
    model: Path, data: tuple[Path, Path], whole: FinetuneResult, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"rank was 2.*--restart"):
        run(model, data, whole.adapter.parent, rank=3)
