"""The options by which commands are told what to find, and the files that they lead to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from efficientsam3.cli.common import UsageError
from efficientsam3.cli.concept_options import parse_concepts

from .conftest import run, run_refused


def test_phrases_and_classes() -> None:
    assert parse_concepts(None) is None
    assert parse_concepts(["person", "bus"]) == ["person", "bus"]
    assert parse_concepts(["Dog", "dog"]) == ["Dog"]
    assert parse_concepts(["vehicle=car, truck", "dog"]) == {
        "vehicle": ["car", "truck"],
        "dog": ["dog"],
    }
    assert parse_concepts(["v=car", "v=car,truck"]) == {"v": ["car", "truck"]}


@pytest.mark.parametrize(
    ("name", "content", "concepts"),
    [
        ("a.yaml", "vehicle: [car, truck]\ndog:\n", {"vehicle": ["car", "truck"], "dog": ["dog"]}),
        ("a.yml", "- person\n- bus\n", ["person", "bus"]),
        ("a.json", '{"vehicle": "car"}', {"vehicle": ["car"]}),
        ("a.json", '\ufeff["dog"]', ["dog"]),
        (
            "a.txt",
            "# classes\nvehicle=car,truck\n\ndog\n",
            {"vehicle": ["car", "truck"], "dog": ["dog"]},
        ),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, concepts: object) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert parse_concepts(None, tmp_path / name) == concepts


def test_a_file_and_an_option_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("vehicle: [car]\n")
    assert parse_concepts(["vehicle=bus", "dog"], file) == {
        "vehicle": ["car", "bus"],
        "dog": ["dog"],
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "a: [b\n", ["a.yaml", "not YAML"]),
        ("a.json", "{", ["a.json", "not JSON"]),
        ("a.json", '{"a": "b", "a": "c"}', ["'a'", "twice"]),
        ("a.yaml", "", ["a.yaml", "vehicle: [car, truck]"]),
        ("a.yaml", "yes: [car]", ["True", "quotes"]),
        ("a.yaml", "a: [1]", ["1", "quotes"]),
        ("a.yaml", "a: {b: c}", ["text"]),
        ("a.txt", "\n", ["no concept"]),
        ("a.csv", "dog", [".yaml, .json or .txt"]),
        ("b/a.yaml", None, ["no file", "a.yaml"]),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str | None, words: list[str]) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        parse_concepts(None, tmp_path / name)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        parse_concepts(None, tmp_path / "a.txt")


@pytest.mark.parametrize("value", ["vehicle=", "=car", "vehicle= , "])
def test_a_class_without_phrases(value: str) -> None:
    with pytest.raises(UsageError, match="vehicle=car,truck"):
        parse_concepts([value])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_segment_writes_classes_and_phrases(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    concepts = ("-c", "vehicle=car,bus", "-c", "dog")
    out = tmp_path / "out"
    options = ("--model", model, "--threshold", 0, "--no-overlay")
    asked = ("segment", tmp_path / "a.png", *concepts, "--nms", 1, "--out", out, *options)
    run(*asked)
    coco = json.loads((out / "instances.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["vehicle", "dog"]
    phrases = {(a["category_id"], a.get("phrase")) for a in coco["annotations"]}
    assert phrases == {(1, "car"), (1, "bus"), (2, None)}
    assert "1 image of 1 done before" in run(*asked).stderr
    run("segment", tmp_path / "a.png", *concepts, "--class-agnostic", "--out", out, *options)
    fewer = json.loads((out / "instances.json").read_text())
    assert 0 < len(fewer["annotations"]) < len(coco["annotations"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_phrase_that_looks_like_several_has_one_hint(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    said = run(
        *("segment", tmp_path / "a.png", "-c", "cat, dog", "--out", tmp_path / "out"),
        *("--model", model, "--no-overlay"),
    ).stderr
    assert said.count("'cat, dog' is asked as one phrase") == 1
    assert "Warning" not in said


@pytest.mark.parametrize("command", ["segment", "track"])
def test_wrong_phrases_are_one_sentence(command: str, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    line = run_refused(command, tmp_path, "-c", "a\x07b")
    assert "U+0007" in line
    assert "U+0007" not in run_refused(command, tmp_path, "-c", "")
