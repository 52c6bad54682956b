"""The packaged model: put into the package, found, loaded, and reported when it is missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints import assemble, hub, save
from efficientsam3.cli import app as cli
from efficientsam3.config import ModelConfig, StudentConfig, TextConfig, tiny_config
from efficientsam3.variants import EMBEDDED, assets, find_variant
from efficientsam3_stickers import embed as module
from efficientsam3_stickers.art import ArtNotFoundError, StickerArt
from efficientsam3_stickers.embed import MAX_BYTES, EmbeddingError, embed
from efficientsam3_stickers.embed_check import validation_scores

from ..conftest import scale_weights

FILES = {"config.json", "model.safetensors"}


def small_student(**changes: Any) -> ModelConfig:
    """The configuration of a small student with all parts of the packaged model."""
    config = tiny_config(
        vision=StudentConfig("repvit-m0.9", {"embed_dim": [8, 12, 16], "depth": [1, 1, 1]}),
        text=TextConfig("mobileclip", 16, 1, 2),
        parts=("geometry", "masks", "interactive", "interactive_neck", "memory"),
        scales=(4, 2, 1),
        resolution=84,
        grid=6,
        context=find_variant(EMBEDDED).context,
    )
    return dataclasses.replace(config, **changes)


def trained(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """A saved model, as training writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config).eval().requires_grad_(False)
    scale_weights(net)
    save.save_folder(folder, "run-7", config, net)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), small_student())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder in an empty folder of assets, in place of the package's."""
    monkeypatch.setenv("EFFICIENTSAM3_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setattr(module, "example_image", lambda side: (noise(side), ("dog", "red apple")))
    monkeypatch.setattr(module, "validation_scores", lambda folder, scenes: {"seen": 1.0})
    return tmp_path / "assets" / EMBEDDED


def noise(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)


def numbers(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


# Half precision ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_are_stored_in_half_precision_and_loaded_in_full(
    saved: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = es3.load(saved, device="cpu", dtype="float32")
    model.save(tmp_path, dtype)
    stored = load_file(tmp_path / "model.safetensors")
    floats = {k: v for k, v in stored.items() if v.is_floating_point()}
    assert {v.dtype for v in floats.values() if v.ndim > 1} == {dtype}
    assert {v.dtype for v in floats.values() if v.ndim < 2} == {torch.float32}
    again = es3.load(tmp_path, device="cpu", dtype="float32")
    before, after = numbers(model.learned()), numbers(again.learned())
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert torch.equal(after[key], value.to(stored[key].dtype).to(value.dtype)), key
    assert any(not torch.equal(after[k], v) for k, v in before.items()), "nothing was rounded"
    full, half = ((f / "model.safetensors").stat().st_size for f in (saved, tmp_path))
    assert half < 0.6 * full


def test_values_beyond_half_precision_are_an_error(tmp_path: Path) -> None:
    config = small_student()
    net = build(config).eval().requires_grad_(False)
    net.get_parameter("decoder.query_embed.weight")[0, 0] = 1e5
    with pytest.raises(es3.CheckpointError, match=r"query_embed\.weight has values up to 1e\+05"):
        save.save_folder(tmp_path / "new", "x", config, net, torch.float16)
    assert not (tmp_path / "new").exists()
    save.save_folder(tmp_path / "new", "x", config, net, torch.bfloat16)


def test_a_half_precision_file_is_loaded_strictly(saved: Path, tmp_path: Path) -> None:
    es3.load(saved, dtype="float32").save(tmp_path, "float16")
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["queries"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(es3.CheckpointError, match="query_embed"):
        es3.load(tmp_path)


def test_the_configuration_counts_the_parameters(saved: Path) -> None:
    said = json.loads((saved / "config.json").read_text())["parameters"]
    assert said == sum(p.numel() for p in build(small_student(), "meta").parameters())


# Embedding -----------------------------------------------------------------------------------


def test_a_model_is_put_into_the_package(saved: Path, place: Path) -> None:
    done = embed(saved, EMBEDDED)
    assert done.folder == place
    assert {p.name for p in place.iterdir()} == FILES
    assert [p.name for p in place.parent.iterdir()] == [EMBEDDED], "something was left behind"
    assert done.size == sum(p.stat().st_size for p in place.iterdir())
    assert find_variant(EMBEDDED).params_millions == round(done.parameters / 1e6, 1)
    assert done.remarks == ()
    assert set(done.differences) == {
        *("score", "presence", "box, of the side", "mask pixels changed"),
    }
    assert all(0 <= value < 0.05 for value in done.differences.values())
    assert done.differences["score"] > 0, "nothing was rounded"


@pytest.mark.slow
def test_the_packaged_model_is_loaded_by_its_name(saved: Path, place: Path, photo: Any) -> None:
    embed(saved, "stickers")
    model = es3.load("stickers", device="cpu", dtype="float32")
    assert (model.name, model.config) == (EMBEDDED, small_student())
    assert model.abilities == find_variant(EMBEDDED).abilities
    assert len(model.segment(photo, ["dog", "cat"], threshold=0.0)) == 24
    assert EMBEDDED in es3.list_models()
    assert assemble.config_of(find_variant(EMBEDDED)) == small_student()
    assert hub.download(EMBEDDED) == place / "model.safetensors"
    first = torch.cat([p.flatten() for p in model.learned().parameters()])
    again = torch.cat([p.flatten() for p in model.learned().parameters()])
    assert torch.equal(first, again)
    for argument in ("checkpoint", "base", "text", "context"):
        with pytest.raises(ValueError, match=f"{argument}= goes with a name"):
            es3.load(EMBEDDED, **{argument: "x"})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_worse_model_is_refused(
    saved: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(saved, EMBEDDED)
    other = trained(tmp_path / "other", small_student(queries=7), seed=1)
    figures = {place: {"seen": 8.0, "unseen-style": 3.0}, other: {"seen": 9.0, "unseen-style": 1.9}}
    monkeypatch.setattr(module, "validation_scores", lambda folder, scenes: figures[folder])
    with pytest.raises(EmbeddingError, match=r"9\.0 seen \(now 8\.0\), 1\.9 unseen-style"):
        embed(other, EMBEDDED)
    assert es3.load(EMBEDDED).config.queries == small_student().queries
    figures[other]["unseen-style"] = 2.0
    assert embed(other, EMBEDDED).scores == (figures[other], figures[place])
    assert es3.load(EMBEDDED).config.queries == 7

    def fail(folder: Path, scenes: int) -> None:
        raise ArtNotFoundError("no stickers")

    monkeypatch.setattr(module, "validation_scores", fail)
    with pytest.raises(EmbeddingError, match="scenes fetch"):
        embed(saved, EMBEDDED)
    assert embed(saved, EMBEDDED, accept_worse=True).scores == ()
    assert es3.load(EMBEDDED).config.queries == small_student().queries


@pytest.mark.slow
def test_figures_of_the_comparison(saved: Path, stickers: StickerArt) -> None:
    first, again = (validation_scores(saved, 2, stickers) for _ in range(2))
    assert first == again
    assert set(first) == {"seen", "unseen-style"}
    assert all(0 <= value <= 100 for value in first.values())


@pytest.mark.slow
def test_another_model_replaces_the_packaged_one(saved: Path, place: Path, tmp_path: Path) -> None:
    embed(saved, EMBEDDED)
    loaded = es3.load(EMBEDDED, dtype="float32")
    embed(trained(tmp_path / "better", small_student(queries=7), seed=1), EMBEDDED)
    assert es3.load(EMBEDDED).config.queries == 7
    with pytest.raises(es3.CheckpointError, match="has changed since the model was loaded"):
        loaded.learned()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["no folder", "cut", "nan", "overflow", "too large", "no masks", "hub", "own"]
)
def test_a_model_that_cannot_be_embedded_changes_nothing(
    saved: Path, place: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(saved, EMBEDDED)
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    folder, options, name = tmp_path / "new", dict[str, Any](), EMBEDDED
    error: type[Exception] = EmbeddingError
    if kind == "no folder":
        error, said = es3.WeightsNotFoundError, r"has no config\.json"
    elif kind == "cut":
        shutil.copytree(saved, folder)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        error, said = es3.CheckpointError, "damaged or cut short"
    elif kind in ("nan", "overflow"):
        config = small_student()
        net = build(config).eval().requires_grad_(False)
        net.get_parameter("decoder.norm.weight").fill_(float("nan") if kind == "nan" else 3e38)
        save.save_folder(folder, "x", config, net)
        said = "not finite .*training failed"
        if kind == "nan":
            error, said = es3.CheckpointError, "holds NaN or infinite values"
    elif kind == "too large":
        folder, options, said = saved, {"max_bytes": 1000}, r"half precision.*at most 0 MB"
    elif kind == "no masks":
        trained(folder, small_student(parts=("geometry",)))
        said = r"lacks abilities .*: interactive, masks, video\."
    elif kind == "hub":
        folder, name, said = saved, "efficientsam3-tinyvit-11m", "downloaded from the hub"
    else:
        folder, said = place, "is the packaged model itself"
    with pytest.raises(error, match=said):
        embed(folder, name, **options)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    assert [p.name for p in place.parent.iterdir()] == [EMBEDDED]


def test_a_model_that_differs_from_its_row_is_reported(place: Path, tmp_path: Path) -> None:
    done = embed(trained(tmp_path / "vit", tiny_config(context=9)), EMBEDDED)
    remarks = " ".join(done.remarks)
    for words in (
        "vision='repvit'",
        "'vit'",
        "'mobileclip-mixer'",
        "and this model has 9",
        "manifests",
    ):
        assert words in remarks


# Missing -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lost", [*sorted(FILES), "both"])
def test_a_missing_file_is_an_error_with_a_way_out(saved: Path, place: Path, lost: str) -> None:
    embed(saved, EMBEDDED)
    for file in FILES if lost == "both" else {lost}:
        (place / file).unlink()
    calls = (
        lambda: es3.load(EMBEDDED),
        lambda: hub.download(EMBEDDED),
        lambda: assemble.config_of(find_variant(EMBEDDED)),
    )
    for call in calls:
        with pytest.raises(es3.WeightsNotFoundError) as caught:
            call()
        message = str(caught.value)
        for words in (str(place), "pip install --force-reinstall", "efficientsam3 embed"):
            assert words in message
        for file in FILES if lost == "both" else {lost}:
            assert f"no {file}" in message


def test_the_package_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EFFICIENTSAM3_ASSETS", raising=False)
    assert assets() == Path(es3.__file__).parent / "assets"


def test_the_packaged_model_fits_its_row() -> None:
    variant = find_variant(EMBEDDED)
    config = assemble.config_of(variant)
    assert module.table_mismatches(variant, config) == ()
    count = sum(p.numel() for p in build(config, "meta").parameters())
    assert variant.params_millions == round(count / 1e6, 1)
    model = es3.load(EMBEDDED, device="cpu", dtype="float32")
    assert model.name == EMBEDDED
    assert model.abilities == variant.abilities
    size = sum(p.stat().st_size for p in variant.weights.find().iterdir())  # type: ignore[union-attr]
    assert size <= MAX_BYTES


# The command line ----------------------------------------------------------------------------


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.slow
def test_embed_and_use_from_the_command_line(saved: Path, place: Path, tmp_path: Path) -> None:
    from PIL import Image

    rows = run("models").stdout.splitlines()
    (row,) = (r for r in rows if r.startswith(EMBEDDED))
    assert row.split()[5] == "cemiv" and row.endswith("not in this package")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.png")
    said = run("embed", saved, "--image", tmp_path / "photo.png", "-c", "dog")
    assert f"MB of {MAX_BYTES // 10**6} MB" in said.stdout and "rounding, presence" in said.stdout
    assert said.stdout.startswith("parameters ")
    assert str(place) in said.stderr.replace("\n", "")
    (row,) = (r for r in run("models").stdout.splitlines() if r.startswith(EMBEDDED))
    assert row.split()[4] == f"{find_variant(EMBEDDED).params_millions:.1f}"
    assert row.endswith("in the package")
    (entry,) = (e for e in json.loads(run("models", "--json").stdout) if e["name"] == EMBEDDED)
    assert entry["packaged"] and entry["cached"] and entry["folder"] == str(place)
    run(
        *("segment", tmp_path / "photo.png", "-m", EMBEDDED, "-c", "dog"),
        *("-o", tmp_path / "out", "--threshold", 0, "--max-instances", 2),
    )
    found = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(found["images"]) == 1


@pytest.mark.slow
def test_errors_of_the_command_line_are_sentences(saved: Path, place: Path, tmp_path: Path) -> None:
    Path(tmp_path / "photo.png").write_bytes(b"")
    for arguments, words in (
        (("embed", tmp_path / "no"), "has no config.json"),
        (("benchmark", "-m", EMBEDDED), "part of the package"),
        (
            ("convert", EMBEDDED, tmp_path / "x.pt", "--to", "upstream"),
            "is a folder of this package already",
        ),
    ):
        line = run(*arguments, code=2).stderr.replace("\n", " ")
        assert words in line, line
    embed(saved, EMBEDDED)
    line = run("segment", tmp_path, "-m", EMBEDDED, "-c", "dog", "--context", 16, code=2).stderr
    assert "complete saved model" in line.replace("\n", " ")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These tests never download."""
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    yield
