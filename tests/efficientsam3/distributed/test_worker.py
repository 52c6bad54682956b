"""What a worker writes is what `segment` finds, for every kind of source; bad rows say why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

import efficientsam3 as es3
from efficientsam3.distributed.settings import Work
from efficientsam3.distributed.shards import (
    decode_masks,
    read_counts,
    read_shard,
    schema,
)
from efficientsam3.distributed.sources import DEFAULT_COLUMNS, Columns, make_plan
from efficientsam3.distributed.worker import Places, TargetError, Worker
from efficientsam3.segment_files import SegmentRun, find_images

from .conftest import ASK, CONCEPTS, encoded, picture, write_pictures, write_tar

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def worker(model_folder: Path) -> Worker:
    return Worker(Work(str(model_folder), {"dtype": "float32", "device": "cpu"}, ASK))


def do(
    worker: Worker,
    source: Path | str,
    out: Path,
    columns: Columns = DEFAULT_COLUMNS,
    rows: int = 256,
) -> list[dict[str, Any]]:
    """All rows of all partitions."""
    plan = make_plan([str(source)], out=str(out), rows=rows, columns=columns)
    records = []
    for number in range(len(plan)):
        places = Places(f"{out}/{number}.parquet", None, "run", {})
        counts = worker.annotate(plan[number], places)
        assert vars(read_counts(places.shard)) == vars(counts)
        made = read_shard(places.shard)
        assert counts.images == len(made)
        assert counts.failed == sum(row["error"] is not None for row in made)
        records += made
    return records


@pytest.mark.slow
def test_rows_have_the_numbers_of_segment(
    worker: Worker, model_folder: Path, tmp_path: Path
) -> None:
    photos = write_pictures(tmp_path / "photos", 6)
    records = do(worker, photos, tmp_path / "out", rows=4)
    model = es3.load(model_folder, dtype="float32", device="cpu")
    with SegmentRun(tmp_path / "one", ASK, {"model": "tiny"}, masks=False) as run:
        list(run.segment(model, run.pending(find_images([photos], tmp_path / "one"))))
        run.write_coco()
    content = json.loads((tmp_path / "one/instances.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert [Path(r["key"]).name for r in records] == [i["file_name"] for i in content["images"]]
    assert sum(len(r["instances"]) for r in records) == len(content["annotations"]) > 10
    for record, image in zip(records, content["images"], strict=True):
        expected = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert (record["width"], record["height"]) == (image["width"], image["height"])
        presence = {p["label"]: p["presence"] for p in record["presence"]}
        assert presence == pytest.approx(image["presence"], abs=2e-5)
        for found, other in zip(record["instances"], expected, strict=True):
            assert found["label"] == names[other["category_id"]]
            assert found["score"] == pytest.approx(other["score"], abs=2e-5)
            assert found["mask"] == other["segmentation"]
            x, y, w, h = other["bbox"]
            assert found["box"] == [x, y, x + w, y + h]
            assert found["area"] == other["area"]


def test_every_kind_of_source_has_the_same_answers(worker: Worker, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 5)
    expected = do(worker, photos, tmp_path / "out/files")
    raw = [encoded(n) for n in range(5)]
    parquet.write_table(arrow.table({"image": raw}), tmp_path / "raw.parquet", row_group_size=2)
    nested = [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(raw)]
    parquet.write_table(arrow.table({"image": nested}), tmp_path / "nested.parquet")
    paths = [f"photos/{n:04d}.png" for n in range(5)]
    parquet.write_table(arrow.table({"image": paths}), tmp_path / "paths.parquet")
    write_tar(tmp_path / "x.tar", {f"s/{n}": {"png": one} for n, one in enumerate(raw)})
    sources = {
        "uri": f"file://{photos}",
        "raw": tmp_path / "raw.parquet",
        "nested": tmp_path / "nested.parquet",
        "paths": tmp_path / "paths.parquet",
        "tar": tmp_path / "x.tar",
    }
    keys = {}
    for name, source in sources.items():
        found = do(worker, source, tmp_path / "out" / name, rows=3)
        keys[name] = found[3]["key"]
        for one, other in zip(found, expected, strict=True):
            assert one["error"] is None
            assert _marks(one) == _marks(other), name
    assert keys == {
        "uri": f"file://{photos}/0003.png",
        "raw": f"{tmp_path}/raw.parquet#row=3",
        "nested": f"{tmp_path}/nested.parquet#row=3",
        "paths": f"{photos}/0003.png",
        "tar": f"{tmp_path}/x.tar/s/3",
    }


def _marks(record: dict[str, Any]) -> list[Any]:
    return [(i["label"], i["box"], i["mask"]) for i in record["instances"]]


def test_bad_rows_say_why_and_stop_nothing(worker: Worker, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 3)
    (photos / "0001.png").write_bytes(encoded(1)[:80])
    paths = ["photos/0000.png", "photos/lost.png", None, "photos/0001.png", "file:///lost.png"]
    parquet.write_table(arrow.table({"image": paths}), tmp_path / "paths.parquet")
    good, *bad = do(worker, tmp_path / "paths.parquet", tmp_path / "out")
    assert good["error"] is None and good["instances"]
    reasons = [
        "there is no image at .*lost.png",
        "its value is missing",
        "0001.png cannot be",
        "there is no image at file:///lost.png",
    ]
    for row, reason in zip(bad, reasons, strict=True):
        with pytest.raises(ValueError, match=reason):
            raise ValueError(row["error"])
        assert row["instances"] == [] and row["width"] is None
    counts = read_counts(f"{tmp_path}/out/0.parquet")
    assert (counts.images, counts.failed, len(counts.reasons)) == (5, 4, 4)


def test_concepts_of_each_row(model_folder: Path, tmp_path: Path) -> None:
    work = Work(str(model_folder), {"dtype": "float32", "device": "cpu"}, {"threshold": 0.2})
    worker = Worker(work)
    raw = [encoded(n) for n in range(5)]
    what = [["person"], ["thing=car,truck"], None, [""], ["person", "bus"]]
    table = arrow.table({"image": raw, "what": what, "id": list("abcde")})
    parquet.write_table(table, tmp_path / "a.parquet")
    columns = Columns(key="id", concepts="what")
    rows = do(worker, tmp_path / "a.parquet", tmp_path / "out", columns)
    assert [row["key"] for row in rows] == list("abcde")
    presence = [[p["label"] for p in row["presence"]] for row in rows]
    assert presence == [["person"], ["thing"], [], [], ["person", "bus"]]
    assert {i["phrase"] for i in rows[1]["instances"]} <= {"car", "truck"}
    assert "no concepts: its value is missing" in rows[2]["error"]
    assert "a concept is a phrase" in rows[3]["error"]

    samples: dict[str, Any] = {
        "a": {"png": raw[0], "json": {"what": ["person"], "other": 1}},
        "b": {"png": raw[1], "txt": "bus\nperson\n", "json": {"what": "bus"}},
        "c": {"png": raw[2], "json": "not JSON"},
        "d": {"json": {}},
        "e": {"png": raw[4], "jpg": raw[3]},
    }
    write_tar(tmp_path / "a.tar", samples)
    rows = do(worker, tmp_path / "a.tar", tmp_path / "out2", Columns(concepts="what"))
    assert [[p["label"] for p in r["presence"]] for r in rows[:2]] == [["person"], ["bus"]]
    assert "text beside the image cannot be read" in rows[2]["error"]
    assert "this one has 0" in rows[3]["error"] and "this one has 2" in rows[4]["error"]
    rows = do(worker, tmp_path / "a.tar", tmp_path / "out3", Columns(concepts="txt"))
    assert [p["label"] for p in rows[1]["presence"]] == ["bus", "person"]
    assert "its value is missing" in rows[0]["error"]


def test_a_cut_tar_keeps_what_came_before(worker: Worker, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {str(n): {"png": encoded(n)} for n in range(4)})
    size = 512 + (len(encoded(0)) + 511) // 512 * 512
    path.write_bytes(path.read_bytes()[: size + 700])
    rows = do(worker, path, tmp_path / "out")
    assert [row["error"] is None for row in rows] == [True, False]
    assert "is damaged here, and what follows is not read" in rows[1]["error"]


def test_the_schema_is_fixed(worker: Worker, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 1)
    do(worker, photos, tmp_path / "out")
    file = parquet.ParquetFile(tmp_path / "out/0.parquet")
    assert file.schema_arrow.remove_metadata().equals(schema())
    assert file.schema_arrow.metadata[b"efficientsam3.format"] == b"efficientsam3-annotations-2"
    assert parquet.read_table(tmp_path / "out").num_rows == 1, "a folder of shards is a dataset"
    (record,) = read_shard(f"{tmp_path}/out/0.parquet")
    height, width = picture(0).size[::-1]
    for mask, one in zip(decode_masks(record), record["instances"], strict=True):
        assert mask.shape == (height, width) and mask.sum() == one["area"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_of_a_shard(worker: Worker, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 3)
    (photos / "0001.png").write_bytes(b"")
    plan = make_plan([str(photos)], out="nowhere", rows=2)
    asked = {"model": "tiny", "concepts": CONCEPTS}
    contents = []
    for n in range(2):
        places = Places(f"{tmp_path}/{n}.parquet", f"{tmp_path}/{n}.json", "run", asked)
        worker.annotate(plan[n], places)
        contents.append(json.loads((tmp_path / f"{n}.json").read_text()))
    first, second = contents
    assert [c["name"] for c in first["categories"]] == CONCEPTS
    assert [Path(i["file_name"]).name for i in first["images"]] == ["0000.png"]
    for kind in ("images", "annotations"):
        assert not {o["id"] for o in first[kind]} & {o["id"] for o in second[kind]}
    for one in first["annotations"]:
        assert coco.decode(one["segmentation"]).sum() == one["area"]
        assert np.allclose(coco.toBbox(one["segmentation"]), one["bbox"])


def test_results_that_cannot_be_written_end_the_run(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", place)

    monkeypatch.setattr("efficientsam3.distributed.worker.write_file", full)
    photos = write_pictures(tmp_path / "photos", 1)
    with pytest.raises(TargetError, match=r"No space left .*Make room and run the same command"):
        do(worker, photos, tmp_path / "out")


def test_a_step_of_a_pipeline_has_the_same_answers(
    worker: Worker, model_folder: Path, tmp_path: Path
) -> None:
    from efficientsam3.distributed import Annotator

    photos = write_pictures(tmp_path / "photos", 4)
    expected = do(worker, photos, tmp_path / "out")
    load = {"dtype": "float32", "device": "cpu"}
    options = {k: v for k, v in ASK.items() if k != "concepts"}
    step = Annotator(str(model_folder), CONCEPTS, keep=["id"], load=load, **options)
    paths = [str(photos / f"{n:04d}.png") for n in range(4)]
    kinds: dict[str, Any] = {
        "arrays": np.stack([np.asarray(picture(n)) for n in range(4)]),
        "bytes": np.array([encoded(n) for n in range(4)], object),
        "paths": np.array(paths, object),
    }
    for name, images in kinds.items():
        rows = step({"image": images, "id": np.arange(4)}).to_pylist()
        assert [row["id"] for row in rows] == [0, 1, 2, 3]
        assert [_marks(row) for row in rows] == [_marks(row) for row in expected], name
    bad = np.array([None, str(tmp_path / "lost.png")], object)
    rows = step({"image": bad, "id": np.arange(2)}).to_pylist()
    assert "its value is missing" in rows[0]["error"]
    assert "there is no image at" in rows[1]["error"]
