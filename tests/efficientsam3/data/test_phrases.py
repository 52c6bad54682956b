"""Phrases from lists, annotation files and tables of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.data.phrases import ParquetPhrases, read_phrases
from efficientsam3.errors import DataError


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("dog\n\n red apple \ndog\nGrünkohl\n", encoding="utf-8")
    assert read_phrases(path) == ["dog", "red apple", "Grünkohl"]


@pytest.mark.parametrize(
    "content",
    [
        ["dog", "cat"],
        [{"phrase": "dog"}, {"text": "cat"}],
        {"info": {}, "text_annotations": ["dog", {"text": "cat"}]},
        {"images": [{"text_input": "dog"}, {"text_input": "cat"}], "annotations": []},
        {"categories": [{"name": "dog"}, {"name": "cat"}]},
    ],
)
def test_json(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "phrases.json"
    path.write_text(json.dumps(content))
    assert read_phrases(path) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [({"x": 1}, "holds no phrases"), ([1], "has no phrase under"), ([], "has no phrases")],
)
def test_json_without_phrases(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "phrases.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_phrases(path)


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [["a dog", None, " a cat "], ["", "a tree"]]
    for i, captions in enumerate(rows):
        table = arrow.table({"url": ["x"] * len(captions), "re_caption": captions})
        parquet.write_table(table, tmp_path / f"{i}.parquet")
    phrases = read_phrases(tmp_path)
    assert isinstance(phrases, ParquetPhrases)
    assert list(phrases) == ["a dog", "a cat", "a tree"]
    assert (phrases[-1], phrases[1:]) == ("a tree", ["a cat", "a tree"])
    with pytest.raises(IndexError):
        phrases[3]

    with pytest.raises(DataError, match=r"no column 'caption'; it has url, re_caption"):
        read_phrases(tmp_path / "0.parquet", column="caption")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((tmp_path / "0.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.parquet .* is not parquet, or is cut short"):
        read_phrases(cut)
    parquet.write_table(arrow.table({"re_caption": [1, 2]}), cut)
    with pytest.raises(DataError, match="values of type int64, not text"):
        read_phrases(cut)
    parquet.write_table(arrow.table({"re_caption": ["", None]}), cut)
    with pytest.raises(DataError, match=r"no text in column|not of text"):
        read_phrases(cut)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_phrases(tmp_path / "none.txt")
    with pytest.raises(DataError, match="no file"):
        read_phrases(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"no \.parquet file"):
        read_phrases(tmp_path)
    with pytest.raises(DataError, match=r"\.txt, \.json and \.parquet"):
        read_phrases(tmp_path / "phrases.csv")
