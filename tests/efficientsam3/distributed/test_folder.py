"""The folder of results: what is done is what has a shard; other arguments are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.distributed.folder import RunFolder, shard_places
from efficientsam3.distributed.shards import encode_shard, failed_record
from efficientsam3.distributed.stores import write_file
from efficientsam3.errors import DataError, RunFileError

pytest.importorskip("pyarrow")

ASKED: dict[str, Any] = {"model": "tiny", "concepts": ["person"], "threshold": 0.5}
MODEL = {"weights": "1234", "dtype": "float32"}


@pytest.fixture(params=["", "file://"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}/out"


def open_run(target: str, asked: dict[str, Any] = ASKED, **options: Any) -> RunFolder:
    return RunFolder(target, asked, 4, **options)


def finish(run: RunFolder, *numbers: int) -> None:
    run.begin(MODEL)
    for number in numbers:
        records = [failed_record(f"{number}.png", None, "lost")]
        write_file(run.places(number).shard, encode_shard(records, run.run)[0])


def test_the_same_arguments_continue(target: str) -> None:
    run = open_run(target)
    assert run.done() == set()
    finish(run, 0, 2)
    again = open_run(target)
    assert again.done() == {0, 2}
    assert {n: held.reasons for n, held in again.counts([0, 2])} == {
        0: [("0.png", "lost")],
        2: [("2.png", "lost")],
    }
    again.begin(MODEL)
    names = [Path(place).name for place in shard_places(target)]
    assert names == [f"part-000000-{run.run}.parquet", f"part-000002-{run.run}.parquet"]


def test_other_arguments_are_refused_and_nothing_is_touched(target: str, tmp_path: Path) -> None:
    finish(open_run(target), 1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RunFileError, match=r"threshold was 0.5 and is 0.3. Name another folder"):
        open_run(target, {**ASKED, "threshold": 0.3})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_worker_with_other_weights_is_refused(target: str) -> None:
    finish(open_run(target), 1)
    with pytest.raises(RunFileError, match="weights was 1234 and is 9; dtype was float32 and is"):
        open_run(target).begin({"weights": "9", "dtype": "bfloat16"})


def test_restart_deletes_what_is_there(target: str) -> None:
    old = open_run(target)
    finish(old, 0, 1)
    new = open_run(target, {**ASKED, "threshold": 0.3}, restart=True)
    assert new.done() == set()
    finish(new, 0)
    # A worker of the earlier run was still writing.
    finish_late = encode_shard([failed_record("late", None, "late")], old.run)[0]
    write_file(old.places(3).shard, finish_late)
    assert new.done() == {0}
    new.remove_strangers()
    assert len(shard_places(target)) == 1


@pytest.mark.parametrize("content", ["text", "[]", '{"asked": 1}'])
def test_files_of_others_are_left(target: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text(content)
    for restart in (False, True):
        with pytest.raises(RunFileError, match="left as it is: name another folder"):
            open_run(target, restart=restart)
    assert (tmp_path / "out/run.json").read_text() == content


def test_shards_without_a_run_file_are_not_continued(target: str, tmp_path: Path) -> None:
    finish(open_run(target), 0)
    (tmp_path / "out/run.json").unlink()
    with pytest.raises(RunFileError, match=r"has annotations and no run\.json"):
        open_run(target)


def test_a_damaged_shard_says_how_to_go_on(target: str, tmp_path: Path) -> None:
    run = open_run(target)
    finish(run, 0)
    (shard,) = (tmp_path / "out/annotations").iterdir()
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DataError, match="Delete it, and the same command makes it again"):
        list(run.counts([0]))


def test_coco_files_that_are_missing_are_made_of_shards(target: str, tmp_path: Path) -> None:
    finish(open_run(target), 0, 1)
    run = open_run(target, coco=True)
    run.complete_coco()
    contents = [json.loads(p.read_text()) for p in sorted((tmp_path / "out/coco").iterdir())]
    assert [c["categories"][0]["name"] for c in contents] == ["person", "person"]
