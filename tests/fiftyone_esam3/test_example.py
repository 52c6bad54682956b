"""The script examples/fiftyone_curation.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import fiftyone as fo
import pytest
from PIL import Image

from .conftest import make_picture

SCRIPT = Path(__file__).parents[2] / "examples" / "fiftyone_curation.py"


@pytest.mark.slow
def test_curation(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(SCRIPT.read_text().splitlines()) < 40
    before = set(fo.list_datasets())
    for i in range(3):
        make_picture(i).save(tmp_path / f"{i}.png")
    spec = importlib.util.spec_from_file_location("curation", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "OUT", str(tmp_path / "out"))
    script.main(str(tmp_path), "person, bus", str(tiny_folder), "0")
    output = capsys.readouterr().out
    assert "segment_concepts: 3 samples in" in output and "like 1 examples" in output
    drawn = sorted((tmp_path / "out" / "pictures").iterdir())
    assert [p.stem for p in drawn] == ["0", "1", "2"]
    with Image.open(drawn[0]) as picture_drawn:
        assert picture_drawn.size == (64, 48)
    coco = json.loads((tmp_path / "out" / "coco" / "labels.json").read_text())
    assert {c["name"] for c in coco["categories"]} == {"person", "bus"}
    for name in set(fo.list_datasets()) - before:
        fo.delete_dataset(name)
