"""The benchmark of the sticker models: metrics of known predictions, models, continued runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.config import ModelConfig, StudentConfig, TextConfig, tiny_config
from efficientsam3.types import BitPatch, Instances
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.recipes import common

from ..efficientsam3_stickers.conftest import bake_shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> StickerArt:
    return bake_shapes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def bench(
    script: Callable[[str], ModuleType], art: StickerArt, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The script as a module, with the stickers of the tests."""
    module = script("stickers")
    monkeypatch.setattr(StickerArt, "open", lambda folder=None: art)
    # The shapes have only one unseen concept.
    names = [name for name in art.concepts if name not in ("guitar", "violin", "star")]
    monkeypatch.setattr(common, "recipe_concepts", lambda art, split, every=False: names)
    monkeypatch.setitem(SPLITS, "unseen-concepts", SPLITS["seen"])
    return module


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tiny_config(parts=("geometry", "masks"))
        es3.ImageModel.from_config(config, "tiny", dtype="float32").save(tmp_path / "tiny")
    return tmp_path / "tiny"


class PerfectModel:
    """Predicts the true masks; with ``also_absent`` it also finds absent phrases."""

    def __init__(self, asked: list[Any], *, also_absent: bool = False) -> None:
        self.scenes = {one.scene.image.tobytes(): one for one in asked}
        self.also_absent = also_absent
        self.encoded = 0

    def encode(self, image: Any) -> Any:
        self.encoded += 1
        return self.scenes[image.tobytes()]

    def segment(self, one: Any, phrases: list[str], threshold: float) -> Instances:
        masks, labels = [], []
        for query in one.queries:
            assert query.phrase in phrases
            shown = [one.scene.objects[i].mask for i in query.objects]
            if self.also_absent and not shown:
                shown = [one.scene.objects[0].mask]
            masks += shown
            labels += [query.phrase] * len(shown)
        patches = [BitPatch.cut(mask) for mask in masks]
        size = one.scene.image.shape[:2]
        boxes = np.array([p.crop(size)[1] for p in patches], np.float32).reshape(-1, 4)
        ones = np.full(len(labels), 0.9, np.float32)
        return Instances(boxes, ones, ones, labels, size, patches)


def test_true_masks_score_100_and_each_image_is_encoded_once(bench: ModuleType) -> None:
    asked = list(bench.held_out("seen", 6, 96))
    model = PerfectModel(asked)
    out = bench.evaluate(model, iter(asked), lambda done: None)
    assert model.encoded == 6
    for name in ("cgF1", "pmF1", "AP", "AP50"):
        assert out[name] == pytest.approx(100, abs=0.01), name
    assert out["IL_MCC"] == pytest.approx(1, abs=1e-4)
    assert out["counts"]["positive_pairs"] and out["counts"]["negative_pairs"]
    kinds = out["kinds"]
    assert sum(k["pairs"] for k in kinds.values()) == out["counts"]["pairs"]


def test_absent_phrases_that_are_found_lower_the_metrics(bench: ModuleType) -> None:
    asked = list(bench.held_out("seen", 6, 96))
    out = bench.evaluate(PerfectModel(asked, also_absent=True), iter(asked), lambda done: None)
    assert out["pmF1"] == pytest.approx(100, abs=0.01)
    assert out["IL_MCC"] == pytest.approx(0, abs=0.01)
    assert out["IL_FPR"] == pytest.approx(100, abs=0.01)


def test_scenes_are_the_same_in_each_run(bench: ModuleType) -> None:
    first, second = (list(bench.held_out("unseen-style", 3, 96)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.scene.image, b.scene.image) and a.phrases == b.phrases
        assert len(a.phrases) <= 8
        assert {o.style for o in a.scene.objects} == {"openmoji"}


@pytest.mark.slow
def test_a_mean_text_is_the_same_for_all_phrases(bench: ModuleType, saved: Path) -> None:
    model = es3.load(saved, device="cpu", dtype="float32")
    names = ["dog", "cat", "red apple"]
    mean = bench.MeanText(model, names)
    features, valid = mean(["lemon", "horse"])
    own, mask = model._read_text(names)
    assert features.shape == (2, *own.shape[1:]) and valid.shape == (2, mask.shape[1])
    assert torch.equal(features[0], features[1])
    torch.testing.assert_close(features[0, 0], own[:, 0].mean(0))
    torch.testing.assert_close(features[0, 3], own[2, 3])  # only "red apple" has four tokens
    assert valid[0].tolist()[:5] == [True, True, True, False, False]


@pytest.mark.slow
def test_a_run_is_measured_continued_and_put_into_a_table(
    bench: ModuleType, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n{bench.START}\nold\n{bench.END}\nafter\n")
    file = tmp_path / "stickers.json"
    common = ["--size", "96", "--json", str(file), "--dtype", "float32", "--no-time"]
    arguments = ["--model", f"a student={saved}", "--scenes", "2", *common]
    bench.main([*arguments, "--splits", "seen"])
    content = json.loads(file.read_text())
    assert list(content["a student"]["splits"]) == ["seen"]
    count = sum(p.numel() for p in es3.load(saved).learned().parameters())
    assert content["a student"]["parameters"] == count
    capsys.readouterr()

    bench.main([*arguments, "--table", str(readme)])
    said = capsys.readouterr()
    assert "a student, seen: measured before" in said.err
    splits = json.loads(file.read_text())["a student"]["splits"]
    assert set(splits) == {*bench.SPLIT_TITLES, "unseen-concepts, mean text"}
    text = readme.read_text()
    assert text.startswith("# Before\n") and text.endswith("\nafter\n") and "old" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| a student"))
    assert row in said.out and row.count("|") == 8

    bench.main(["--model", f"a student={saved}", "--scenes", "1", *common, "--splits", "seen"])
    assert list(json.loads(file.read_text())["a student"]["splits"]) == ["seen"], "of 2 scenes"


@pytest.mark.slow
def test_other_weights_are_measured_again(bench: ModuleType, saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "stickers.json"
    arguments = ["--size", "96", "--json", str(file), "--scenes", "1", "--splits", "seen"]
    arguments += ["--no-time", "--model", f"x={saved}"]
    bench.main(arguments)
    before = json.loads(file.read_text())["x"]["identity"]["weights"]
    torch.manual_seed(1)
    es3.ImageModel.from_config(tiny_config(parts=("geometry", "masks"))).save(saved)
    bench.main(arguments)
    assert json.loads(file.read_text())["x"]["identity"]["weights"] != before


def small(vision: Any) -> Callable[[Any], ModelConfig]:
    return lambda options: tiny_config(
        vision=vision, text=TextConfig("clip", 16, 1, 2), parts=("geometry", "masks")
    )


@pytest.mark.slow
def test_finished_stages_of_a_run_are_models(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = StudentConfig("repvit-m0.9", {"embed_dim": [8, 12, 16], "depth": [1, 1, 1]})
    makers = {"teacher_config": small(tiny_config().vision), "student_config": small(student)}
    for name, make in makers.items():
        monkeypatch.setattr(common, name, make)

    def trained(stage: str, maker: str, seed: int, part: str = "") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = build(makers[maker](None)).state_dict()
        kept = {k: v.contiguous() for k, v in state.items() if k.startswith(part)}
        (tmp_path / stage).mkdir()
        save_file(kept, tmp_path / stage / "weights.safetensors")

    how = {"device": "cpu", "dtype": "float32"}
    assert bench.stages(tmp_path, how) == {}
    trained("teacher", "teacher_config", 1)
    trained("image", "student_config", 2, "trunk.")
    trained("text", "student_config", 3, "text.")
    assert set(bench.stages(tmp_path, how)) == {"teacher", "student, stage 1"}
    trained("prompts", "student_config", 4, "trunk.")
    trained("student", "student_config", 5)
    trained("longer", "student_config", 6)
    trained("alone", "student_config", 7)
    # The final model has another resolution, which its folder states.
    kept = es3.ImageModel.from_config(
        dataclasses.replace(makers["student_config"](None), resolution=168, grid=12)
    )
    kept.save(tmp_path / "calibrate" / "model")
    (tmp_path / "recipe.json").write_text(json.dumps({"options": {"seed": 3, "unknown": 1}}))
    loaded = {name: load() for name, load in bench.stages(tmp_path, how).items()}
    assert loaded["student, finer, calibrated"].config.resolution == 168
    models = {name: model.learned() for name, model in loaded.items()}
    assert list(models) == [
        "teacher",
        "student, stage 1",
        "student, prompt in the loop",
        "student, stage 3",
        "student, longer",
        "student without a teacher",
        "student, finer, calibrated",
    ]
    states = {name: net.state_dict() for name, net in models.items()}
    decoder, trunk = "decoder.norm.weight", "trunk.head.0.weight"
    query = "decoder.query_embed.weight"
    first, second = states["student, stage 1"], states["student, prompt in the loop"]
    assert torch.equal(first[query], states["teacher"][query])
    assert not torch.equal(first[trunk], second[trunk])
    assert torch.equal(first["text.embedding.weight"], second["text.embedding.weight"])
    assert not torch.equal(states["student, stage 3"][query], first[query])
    assert decoder in first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "no/such"], "no stage with a model is finished"),
        (["--scenes", "0", "--model", "x=y"], "--scenes is 1 or more"),
        ([], "nothing was measured"),
    ],
)
def test_errors_are_sentences(
    bench: ModuleType, tmp_path: Path, arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        bench.main([*arguments, "--json", str(tmp_path / "none.json")])


def test_a_file_without_markers_is_not_changed(bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("nothing")
    with pytest.raises(SystemExit, match="to put the table between"):
        bench.put_table("| a |", tmp_path / "x.md", bench.START, bench.END)
    assert (tmp_path / "x.md").read_text() == "nothing"
