"""Sources are cut into partitions that depend on the source alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from efficientsam3.distributed.sources import Columns, make_plan
from efficientsam3.errors import ArgumentError, DataError

from .conftest import encoded, write_pictures, write_tar

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def plan_of(source: Path | str, **options: object):  # type: ignore[no-untyped-def]
    return make_plan([str(source)], out="nowhere", **options)  # type: ignore[arg-type]


def test_a_folder_is_cut_into_equal_parts(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 7)
    plan = plan_of(photos, rows=3)
    assert len(plan) == 3 and plan.images == 7
    rows = [row for i in range(3) for row in plan[i].rows]
    assert [key for key, _, _ in rows] == [str(photos / f"{n:04d}.png") for n in range(7)]
    assert plan_of(photos, rows=3).identity == plan.identity
    os.utime(photos / "0003.png", (1, 1))
    assert plan_of(photos, rows=3).identity != plan.identity


def test_results_within_the_source_are_no_images(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 2)
    write_pictures(photos / "out/annotations", 3)
    assert make_plan([str(photos)], out=str(photos / "out")).images == 2


def test_parquet_with_bytes_is_cut_within_files(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 2)):
        table = arrow.table({"image": [encoded(n) for n in range(count)]})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    plan = plan_of(tmp_path, rows=3)
    assert plan.images == 7
    cuts = [(Path(p.file).name, p.start, p.stop) for p in map(plan.__getitem__, range(len(plan)))]
    assert cuts == [("a.parquet", 0, 3), ("a.parquet", 3, 5), ("b.parquet", 0, 2)]


def test_parquet_with_paths_is_read_for_the_plan(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    table = arrow.table(
        {
            "file": ["0000.png", None, f"{tmp_path}/0001.png", "s3://bucket/x.png"],
            "id": [10, 11, 12, 13],
            "what": [["cat"], ["dog"], None, ["a", "b"]],
        }
    )
    parquet.write_table(table, tmp_path / "list.parquet")
    pattern = tmp_path / "*.parquet"
    plan = plan_of(pattern, rows=3, columns=Columns("file", "id", "what"))
    assert [row for i in range(2) for row in plan[i].rows] == [
        ("10", f"{tmp_path}/0000.png", ["cat"]),
        ("11", None, ["dog"]),
        ("12", f"{tmp_path}/0001.png", None),
        ("13", "s3://bucket/x.png", ["a", "b"]),
    ]
    without_keys = plan_of(pattern, columns=Columns("file"))[0]
    assert without_keys.rows[1] == (f"{tmp_path}/list.parquet#row=1", None, None)


def test_each_tar_is_a_partition(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_tar(tmp_path / f"{name}.tar", {"x": {"png": encoded(1)}})
    plan = plan_of(tmp_path)
    assert [Path(plan[i].file).name for i in range(len(plan))] == ["a.tar", "b.tar"]
    assert plan.images is None


def test_sources_that_are_wrong_say_why(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 2)
    write_tar(tmp_path / "photos/x.tar", {"x": {"png": encoded(1)}})
    with pytest.raises(DataError, match="1 tar file and 2 images: name one kind"):
        plan_of(photos)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("a")
    with pytest.raises(DataError, match=r"no images, .*1 .txt"):
        plan_of(tmp_path / "text")
    with pytest.raises(ArgumentError, match="images have no columns"):
        plan_of(f"{photos}/*.png", columns=Columns(concepts="what"))
    with pytest.raises(ArgumentError, match="at least 1 row; got 0"):
        plan_of(photos, rows=0)
    parquet.write_table(arrow.table({"other": [1.5]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'image'; it has other"):
        plan_of(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="of type double; images are bytes or paths"):
        plan_of(tmp_path / "a.parquet", columns=Columns("other"))
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as Parquet"):
        plan_of(tmp_path / "b.parquet")
    parquet.write_table(
        arrow.table({"image": arrow.array([], arrow.binary())}), tmp_path / "c.parquet"
    )
    with pytest.raises(DataError, match="has no rows"):
        plan_of(tmp_path / "c.parquet")
