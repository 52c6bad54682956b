"""Adapters: what they change, and which they refuse."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import efficientsam3 as es3
from efficientsam3.checkpoints.adapter import ADAPTER_FILE, Adapter, digests_by_part
from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import tiny_config
from efficientsam3.errors import ArgumentError, CheckpointError, WeightsNotFoundError

from ...conftest import tiny_model

LOW_RANK = ("trunk.blocks.0.mlp.fc1.weight", "fusion.layers.0.self_attn.in_proj_weight")
WHOLE = ("scoring.prompt_proj.bias",)


def make_adapter(model: es3.ImageModel, **changes: Any) -> Adapter:
    """Random changes of rank 2."""
    state = model.learned().state_dict()
    low_rank = {}
    for name in LOW_RANK:
        rows, columns = state[name].flatten(1).shape
        low_rank[name] = (torch.randn(rows, 2) / 4, torch.randn(2, columns) / 4)
    whole = {name: state[name] + 1 for name in WHOLE}
    base = digests_by_part(state, [*LOW_RANK, *WHOLE])
    figures = {"before": {"cgF1": 1.5}, "after": {"cgF1": 2.5}}
    given = Adapter("boats", "tiny", model.config, low_rank, 0.5, whole, base, figures)
    return dataclasses.replace(given, **changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    make_adapter(es3.load(saved, device="cpu")).save(tmp_path / ADAPTER_FILE)
    return tmp_path / ADAPTER_FILE


@pytest.mark.slow
def test_weights_are_changed_as_the_file_says(saved: Path, adapter: Path) -> None:
    plain = es3.load(saved, device="cpu").learned().state_dict()
    changed = es3.load(saved, device="cpu", adapter=adapter).learned().state_dict()
    content = Adapter.load(adapter)
    for name, value in changed.items():
        if name in LOW_RANK:
            up, down = content.low_rank[name]
            torch.testing.assert_close(value, plain[name] + 0.5 * (up @ down).view_as(value))
        elif name in WHOLE:
            assert torch.equal(value, plain[name] + 1)
        else:
            assert torch.equal(value, plain[name])
    assert content.figures["after"] == {"cgF1": 2.5} and content.rank == 2


@pytest.mark.slow
def test_the_merged_model_answers_to_the_same_bits(
    saved: Path, adapter: Path, tmp_path: Path, photo: Any
) -> None:
    model = es3.load(saved, device="cpu", dtype="float32", adapter=tmp_path)  # a run's folder
    assert model.name == "tiny+boats"
    model.save(tmp_path / "merged")
    merged = es3.load(tmp_path / "merged", device="cpu", dtype="float32")
    plain = es3.load(saved, device="cpu", dtype="float32")
    pixels = model.preprocess(photo)
    ours, theirs, before = (m.ground(pixels, ["boat"]) for m in (model, merged, plain))
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.boxes, theirs.boxes)
    assert ours.masks is not None and theirs.masks is not None
    assert torch.equal(ours.masks, theirs.masks)
    assert not torch.equal(ours.logits, before.logits)


@pytest.mark.slow
def test_copies_and_keys_tell_adapters_apart(saved: Path, adapter: Path, photo: Any) -> None:
    model = es3.load(saved, device="cpu", dtype="float32", adapter=adapter)
    assert model.key != es3.load(saved, device="cpu", dtype="float32").key
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.key == model.key
        np.testing.assert_array_equal(twin.embed(photo), model.embed(photo))
    make_adapter(es3.load(saved, device="cpu"), scale=1.0).save(adapter)
    with pytest.raises(CheckpointError, match="has changed since the model was loaded"):
        model.learned()


@pytest.mark.slow
def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    tiny_model(config=tiny_config(hidden=48)).save(tmp_path / "wider")
    with pytest.raises(CheckpointError, match=r"another model.*hidden is 48 instead of 32.*tiny"):
        es3.load(tmp_path / "wider", adapter=adapter)


@pytest.mark.slow
def test_an_adapter_of_other_weights_is_refused(saved: Path, adapter: Path, tmp_path: Path) -> None:
    _, config, net = load_folder(saved)
    state = net.state_dict()
    state[LOW_RANK[0]] = state[LOW_RANK[0]] * 1.01
    net.load_state_dict(state, assign=True)
    save_folder(tmp_path / "other", "tiny", config, net)
    with pytest.raises(CheckpointError, match=r"other weights of tiny.*differ in image encoder"):
        es3.load(tmp_path / "other", adapter=adapter)


@pytest.mark.slow
def test_changes_that_do_not_fit_are_refused(saved: Path, tmp_path: Path) -> None:
    model = es3.load(saved, device="cpu")
    good = make_adapter(model)
    up, down = good.low_rank[LOW_RANK[0]]
    for low_rank, message in (
        ({"trunk.no.weight": (up, down)}, r"weights that .* does not have: trunk\.no\.weight"),
        ({LOW_RANK[0]: (up, down[:, :3])}, f"{LOW_RANK[0]} as .* but that of .* is"),
        ({WHOLE[0]: (up, down)}, f"{WHOLE[0]} as"),
    ):
        dataclasses.replace(good, low_rank=low_rank, whole={}).save(tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=message):
            es3.load(saved, adapter=tmp_path / "wrong.safetensors")


@pytest.mark.slow
def test_other_files_are_refused(saved: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no adapter at .*adapter\.safetensors"):
        es3.load(saved, adapter=saved)
    with pytest.raises(CheckpointError, match="Whole models are loaded by themselves"):
        es3.load(saved, adapter=saved / "model.safetensors")
    with pytest.raises(ArgumentError, match="adapter is the path"):
        es3.load(saved, adapter=3)  # type: ignore[arg-type]
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(adapter.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="damaged, cut short or no adapter"):
        es3.load(saved, adapter=cut)
    good = Adapter.load(adapter)
    broken = {WHOLE[0]: torch.full_like(good.whole[WHOLE[0]], float("nan"))}
    dataclasses.replace(good, whole=broken).save(cut)
    with pytest.raises(CheckpointError, match="holds NaN"):
        es3.load(saved, adapter=cut)
    save_file({"a:up": torch.zeros(2, 2)}, cut, {"format": "efficientsam3-adapter-1"})
    with pytest.raises(CheckpointError, match="is a damaged adapter"):
        es3.load(saved, adapter=cut)


@pytest.mark.slow
def test_an_export_has_the_changes_and_the_name(
    saved: Path, adapter: Path, tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = es3.load(saved, device="cpu", dtype="float32", adapter=adapter)
    exported = es3.load(saved, adapter=adapter, backend="openvino")
    assert exported.manifest.name == "tiny+boats"
    (folder,) = (tmp_path / "cache" / "efficientsam3" / "exports").iterdir()
    assert folder.name.startswith("tiny-boats-openvino")
    ours, theirs, plain = (
        m.segment(photo, "boat").concept_presence["boat"]
        for m in (exported, model, es3.load(saved, device="cpu", dtype="float32"))
    )
    assert ours == pytest.approx(theirs, abs=1e-3) and ours != pytest.approx(plain, abs=2e-3)
