"""Run files: continuing, starting again, changed inputs, and files that are left alone."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.errors import RunFileError
from efficientsam3.io.jsonl import RunFile, describe_changes, read_head, read_records

ASKED = {"model": "tiny", "threshold": 0.5, "concepts": ["cat", "dog"]}


def open_run(path: Path, asked: dict[str, Any] = ASKED, **options: Any) -> RunFile:
    return RunFile(path, "predictions", asked, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run file with two records."""
    path = tmp_path / "new" / "run.jsonl"
    with open_run(path) as run:
        run.add("a.jpg", [1, 2], identity={"bytes": 5})
        run.add("b.jpg", [3], identity={"bytes": 6}, width=40)
    return path


def records(path: Path) -> list[Any]:
    return list(read_records(path, "predictions"))


def test_the_first_line_says_what_was_asked(path: Path) -> None:
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"format": "efficientsam3-run-1", "kind": "predictions", "asked": ASKED}
    assert read_head(path, "predictions") == first


def test_a_run_continues(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = path.read_bytes()
    with open_run(path) as run:
        assert run.resumed
        assert path.read_bytes() == before
        assert run.pending({"a.jpg": {"bytes": 5}, "b.jpg": {"bytes": 6}, "c.jpg": None}) == [
            "c.jpg"
        ]
        assert run.inputs["b.jpg"] == {"input": "b.jpg", "identity": {"bytes": 6}, "width": 40}
        run.add("c.jpg", [])
        assert run.result("a.jpg") == [1, 2]
        assert run.result("c.jpg") == []
        run.add("d.jpg", [4])
    assert [r["input"] for r in records(path)] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert not caplog.records


def test_values_are_compared_as_json_gives_them_back(tmp_path: Path) -> None:
    asked = {"boxes": ((1, 2), (3, 4)), "names": {1: "one"}}
    with RunFile(tmp_path / "run.jsonl", "tracks", asked) as run:
        run.add("a", (1, 2), identity=(1, 2))
    with RunFile(tmp_path / "run.jsonl", "tracks", asked) as run:
        assert run.resumed and run.pending({"a": (1, 2)}) == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_the_unfinished_last_line_of_a_killed_run_is_cut_off(path: Path, cut: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert [r["input"] for r in records(path)] == ["a.jpg"]
    with open_run(path) as run:
        assert run.pending({"a.jpg": {"bytes": 5}, "b.jpg": {"bytes": 6}}) == ["b.jpg"]
        run.add("b.jpg", [3], identity={"bytes": 6}, width=40)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_a_run_may_be_stopped_at_any_byte(tmp_path: Path, path: Path) -> None:
    content = path.read_bytes()
    other = tmp_path / "other.jsonl"
    for length in range(len(content)):
        other.write_bytes(content[:length])
        with open_run(other) as run:
            for name in run.pending({"a.jpg": {"bytes": 5}, "b.jpg": {"bytes": 6}}):
                done = {"a.jpg": ([1, 2], 5, {}), "b.jpg": ([3], 6, {"width": 40})}
                result, size, fields = done[name]
                run.add(name, result, identity={"bytes": size}, **fields)
        assert other.read_bytes() == content, length


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    with open_run(tmp_path / "run.jsonl") as run:
        run.fail("a.jpg", "no such file")
        assert run.pending({"a.jpg": None}) == ["a.jpg"]
    with open_run(tmp_path / "run.jsonl") as run:
        assert run.inputs["a.jpg"]["failed"] == "no such file"
        assert run.pending({"a.jpg": None}) == ["a.jpg"]
        run.add("a.jpg", 1)
        assert run.pending({"a.jpg": None}) == []


def test_a_changed_input_is_done_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(path) as run:
        assert run.pending({"a.jpg": {"bytes": 9}, "b.jpg": {"bytes": 6}}) == ["a.jpg"]
        run.add("a.jpg", [7], identity={"bytes": 9})
        assert run.result("a.jpg") == [7]
    assert caplog.messages == [
        f"{path}: 1 of 2 inputs changed after the earlier run and are done again, the first of "
        "them a.jpg: bytes was 5 and is 9"
    ]
    with open_run(path) as run:
        assert run.pending({"a.jpg": {"bytes": 9}, "b.jpg": {"bytes": 6}}) == []
        assert run.result("a.jpg") == [7]


def test_another_question_starts_the_run_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = path.read_bytes()
    with open_run(path, ASKED | {"threshold": 0.3, "concepts": ["cat"], "nms": 0.5}) as run:
        assert not run.resumed and not run.inputs
        assert path.read_bytes() == before, "nothing changes before the first record"
        run.add("a.jpg", [9])
    backup = path.with_name("run.jsonl.previous")
    assert backup.read_bytes() == before
    assert caplog.messages == [
        f"{path}: threshold was 0.5 and is 0.3; concepts was cat, dog and is cat; nms was None and "
        f"is 0.5. The run starts again; the earlier records are kept in {backup}"
    ]
    assert [r["result"] for r in records(path)] == [[9]]


def test_a_run_without_a_record_is_replaced_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.jsonl"
    with open_run(path) as run:
        run.add("a.jpg", [])
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with open_run(path, ASKED | {"threshold": 0.3}) as run:
        run.add("a.jpg", [])
    assert read_head(path, "predictions")["asked"]["threshold"] == 0.3
    assert list(tmp_path.iterdir()) == [path] and not caplog.records


def test_restart(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(path, restart=True) as run:
        assert not run.resumed
        run.add("c.jpg", [])
    assert [r["input"] for r in records(path)] == ["c.jpg"] and not caplog.records


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes\n", "is not a file of predictions that a run wrote, and is left as it is"),
        ('{"images": []}\n', "is not a file of predictions"),
        ('{"format": "efficientsam3-run-1", "kind": "tracks", "asked": {}}\n', "holds tracks, not"),
        ('{"format": "efficientsam3-run-1", "ki\n', "line 1 is damaged"),
    ],
)
def test_what_is_not_ours_is_left_as_it_is(
    tmp_path: Path, content: str, message: str, restart: bool
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(RunFileError, match=message):
        open_run(path, restart=restart)
    with pytest.raises(RunFileError, match=message):
        read_head(path, "predictions")
    assert path.read_text() == content


def test_another_version_needs_a_restart(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"run-1", b"run-0", 1))
    with pytest.raises(RunFileError, match=r"written by another version.*--restart"):
        open_run(path)
    with open_run(path, restart=True) as run:
        run.add("c.jpg", [])
    assert len(records(path)) == 1


def test_a_damaged_line_before_the_last_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'{"input": "a.jpg"', b'{"inp', 1))
    for action in (lambda: open_run(path), lambda: records(path)):
        with pytest.raises(RunFileError, match="line 2 is damaged"):
            action()


def test_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"name ends in \.jsonl.*run\.json"):
        open_run(tmp_path / "run.json")
    with pytest.raises(RunFileError, match="there is no file"):
        read_head(tmp_path / "none.jsonl", "predictions")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(RunFileError, match="is empty"):
        records(tmp_path / "empty.jsonl")
    with open_run(tmp_path / "empty.jsonl") as run:
        run.add("a.jpg", [])
    assert len(records(tmp_path / "empty.jsonl")) == 1


def test_a_run_that_writes_nothing_makes_no_file(tmp_path: Path) -> None:
    open_run(tmp_path / "new" / "run.jsonl").close()
    assert not list(tmp_path.iterdir())


def test_subclasses_see_every_record(path: Path) -> None:
    class Counting(RunFile):
        def note(self, record: dict[str, Any]) -> None:
            self.seen = [*getattr(self, "seen", []), record.get("input", record)]

    with Counting(path, "predictions", ASKED) as run:
        run.write({"frame": 3})
        assert run.seen == ["a.jpg", "b.jpg", {"frame": 3}]


def test_changes_in_words() -> None:
    old = {"source": {"path": "/a", "files": 6}, "weights": "0" * 300, "text": None}
    new = {"source": {"path": "/a", "files": 7}, "weights": "0" * 200 + "1" + "0" * 99}
    assert describe_changes(old, old) == ""
    assert describe_changes(old, new) == "source.files was 6 and is 7; weights has changed"


def test_a_killed_process_leaves_complete_records(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    script = (
        "import sys; from efficientsam3.io.jsonl import RunFile\n"
        "run = RunFile(sys.argv[1], 'predictions', {})\n"
        "for i in range(10**9): run.add(str(i), list(range(200)))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    try:
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < 50_000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = [r["input"] for r in records(path)]
    with RunFile(path, "predictions", {}) as run:
        assert list(run.inputs) == before == [str(i) for i in range(len(before))]
        run.add("last", 1)
    assert [r["input"] for r in records(path)] == [*before, "last"]


def test_messages_reach_users_who_configured_no_logging(path: Path) -> None:
    script = (
        "import sys; from efficientsam3.io.jsonl import RunFile\n"
        "RunFile(sys.argv[1], 'predictions', {'threshold': 0.3}).close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "threshold was 0.5 and is 0.3" in done.stderr
    assert logging.getLogger("efficientsam3").level == logging.NOTSET
