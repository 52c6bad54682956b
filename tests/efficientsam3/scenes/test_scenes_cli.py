"""`efficientsam3 scenes`: what it writes and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from efficientsam3.scenes import cli
from efficientsam3.scenes.art import Art, ArtNotFoundError, fetch
from efficientsam3.scenes.concepts import SPLITS

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_make_writes_scenes(art: Art, tmp_path: Path) -> None:
    said = run("make", "-o", tmp_path, "-n", "3", "--size", "64", "--art", art.folder)
    assert "3 scenes" in said.replace("\n", " ")
    content = json.loads((tmp_path / "gold.json").read_text())
    assert content["info"]["split"] == "seen"
    assert len({r["file_name"] for r in content["images"]}) == 3


def test_make_writes_clips(art: Art, tmp_path: Path) -> None:
    options = ["--clips", "--frames", "4", "--split", "unseen-style", "--art", str(art.folder)]
    run("make", "-o", tmp_path, "-n", "2", "--size", "64", *options)
    content = json.loads((tmp_path / "veval.json").read_text())
    assert content["info"]["split"] == "unseen-style"
    assert [v["length"] for v in content["videos"]] == [4, 4]


@pytest.mark.parametrize("clips", [[], ["--clips"]])
def test_show_draws_a_sheet(art: Art, tmp_path: Path, clips: list[str]) -> None:
    out = tmp_path / "sheet.png"
    run("show", "-o", out, "--size", "48", "--art", art.folder, *clips)
    with Image.open(out) as image:
        assert min(image.size) > 150
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_a_picture_of_no_known_kind_is_said(art: Art, tmp_path: Path) -> None:
    args = ["show", "-o", str(tmp_path / "sheet.doc"), "--size", "48", "--art", str(art.folder)]
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 2
    assert "name it .png or .jpg" in result.output.replace("\n", " ").replace("│", "")


def test_no_art_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ArtNotFoundError, match="efficientsam3 scenes fetch"):
        run("make", "-o", tmp_path, "--art", tmp_path / "nothing")


def test_the_splits_are_those_of_the_table() -> None:
    assert [name.value for name in cli.SplitName] == list(SPLITS)


def test_the_command_line_needs_no_torch() -> None:
    code = "import sys; import efficientsam3.scenes.cli; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


@pytest.mark.slow
def test_the_real_art_is_fetched_verified_and_baked(tmp_path: Path) -> None:
    for module in ("resvg_py", "fontTools"):
        pytest.importorskip(module)
    art = fetch(tmp_path)
    assert len(art.concepts) > 1200
    assert fetch(tmp_path).fingerprint == art.fingerprint
    for name in ("red apple", "dog", "black cat", "farmer"):
        assert set(art.concepts[name].styles) == {"noto", "fluent", "twemoji", "openmoji"}
    assert art.colour("red apple", "fluent") == "red"
    seen = art.names("seen")
    assert 0.8 < len(seen) / len(art.concepts) < 0.9
