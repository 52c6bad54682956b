"""The command `efficientsam3 scenes`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from efficientsam3_stickers import cli
from efficientsam3_stickers.art import ArtNotFoundError, StickerArt
from efficientsam3_stickers.concepts import SPLITS

pytestmark = pytest.mark.usefixtures("generator")


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(cli.scenes, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_make_writes_scenes(stickers: StickerArt, tmp_path: Path) -> None:
    output = run("make", "-o", tmp_path, "-n", "3", "--size", "64", "--stickers", stickers.folder)
    assert "3 scenes" in " ".join(output.split())
    content = json.loads((tmp_path / "gold.json").read_text())
    assert content["info"]["split"] == "seen"
    assert len({r["file_name"] for r in content["images"]}) == 3


def test_make_writes_clips(stickers: StickerArt, tmp_path: Path) -> None:
    options = [
        "--clips",
        "--frames",
        "4",
        "--split",
        "unseen-style",
        "--stickers",
        str(stickers.folder),
    ]
    run("make", "-o", tmp_path, "-n", "2", "--size", "64", *options)
    content = json.loads((tmp_path / "veval.json").read_text())
    assert content["info"]["split"] == "unseen-style"
    assert [v["length"] for v in content["videos"]] == [4, 4]


@pytest.mark.parametrize("clips", [[], ["--clips"]])
def test_show_writes_a_contact_sheet(
    stickers: StickerArt, tmp_path: Path, clips: list[str]
) -> None:
    out = tmp_path / "sheet.png"
    run("show", "-o", out, "--size", "48", "--stickers", stickers.folder, *clips)
    with Image.open(out) as image:
        assert min(image.size) > 150
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_an_unknown_image_format_is_an_error(stickers: StickerArt, tmp_path: Path) -> None:
    args = [
        "show",
        "-o",
        str(tmp_path / "sheet.doc"),
        "--size",
        "48",
        "--stickers",
        str(stickers.folder),
    ]
    result = CliRunner().invoke(cli.scenes, args)
    assert result.exit_code == 2
    assert "name it .png or .jpg" in result.output.replace("\n", " ").replace("│", "")


def test_without_stickers_the_error_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtNotFoundError, match="efficientsam3 scenes fetch"):
        run("make", "-o", tmp_path, "--stickers", tmp_path / "nothing")


def test_splits_of_the_option_are_those_of_the_table() -> None:
    assert [name.value for name in cli.SplitName] == list(SPLITS)


def test_the_command_line_needs_no_torch() -> None:
    code = "import sys; import efficientsam3_stickers.cli; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
