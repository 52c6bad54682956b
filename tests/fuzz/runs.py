"""Kinds of files of earlier work: run files of segment, track and evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

import efficientsam3 as es3
from efficientsam3.io.jsonl import RunFile, read_records
from efficientsam3.segment_files import SegmentRun, find_images
from efficientsam3.types import BitPatch
from efficientsam3.video.track_file import TrackFile, read_tracked, to_record
from efficientsam3.video.track_writers import write_coco, write_mot, write_veval
from efficientsam3.video.types import TrackedFrame

from .annotations import damaged_lines
from .mutate import mutated
from .runner import Case, Kind
from .samples import HEIGHT, WIDTH, a_mask, picture


def instances(seed: int) -> es3.Instances:
    """Two objects."""
    masks = [a_mask(seed), a_mask(seed + 2)]
    return es3.Instances(
        boxes=np.array([[1, 1, 9, 7], [2, 3, 8, 9]], np.float32),
        scores=np.array([0.9, 0.6], np.float32),
        presence=np.array([0.9, 0.8], np.float32),
        labels=["cat", "dog"],
        size=(HEIGHT, WIDTH),
        patches=[BitPatch.cut(mask) for mask in masks],
        concepts=("cat", "dog"),
        track_ids=np.array([0, 1], np.int64),
    )


class Tracks(Kind):
    name = "track-file"
    about = "run files of track: read, continued, and written in other formats"
    asked: ClassVar[dict[str, Any]] = {"source": {"path": "v"}, "concepts": ["cat", "dog"]}
    video: ClassVar[dict[str, Any]] = {
        "name": "v",
        "rate": 10.0,
        "frames": 3,
        "concepts": ["cat", "dog"],
    }

    def prepare(self, folder: Path) -> None:
        with TrackFile(folder / "t.jsonl", self.asked, self.video) as file:
            for index in range(3):
                file.add_frame(TrackedFrame(index, index / 10, instances(index)))
            file.finish(None)
        self.data = (folder / "t.jsonl").read_bytes()

    def make(self, random: Random) -> bytes:
        return mutated(random, lambda r: damaged_lines(r, self.data), self.data)

    def check(self, value: bytes, case: Case) -> None:
        path = case.write("t.jsonl", value)
        case.seal()
        for frame in read_tracked(path):
            to_record(frame)
        write_mot(path, case.folder / "mot.txt")
        write_coco(path, case.folder / "coco.json")
        write_veval(path, case.folder / "veval.json")
        json.loads((case.folder / "coco.json").read_text())
        # A copy is continued; the file itself stays as it is.
        copy = case.folder / "copy.jsonl"
        copy.write_bytes(value)
        with TrackFile(copy, self.asked, self.video) as file:
            last = file.last
            file.add_frame(TrackedFrame(0 if last is None else last + 1, None, instances(5)))
        assert [f.index for f in read_tracked(copy)][-1] == (0 if last is None else last + 1)


class Runs(Kind):
    name = "run-file"
    about = "run files of segment: continued by the same command"
    slow = True

    def prepare(self, folder: Path) -> None:
        self.pixels = picture()
        self.images = folder / "photos"
        self.images.mkdir()
        for name in ("a.png", "b.png", "c.png"):
            (self.images / name).write_bytes(self.pixels)
        with self.open(folder / "out") as run:
            for _ in run.segment(self, run.pending(self.found(folder / "out"))):  # type: ignore[arg-type]
                pass
        self.data = (folder / "out/run.jsonl").read_bytes()

    def segment(self, image: object, **arguments: object) -> es3.Instances:
        """What stands for a model."""
        return instances(1)

    def open(self, folder: Path) -> SegmentRun:
        arguments = {"concepts": ["cat", "dog"], "threshold": 0.5}
        return SegmentRun(folder, arguments, {"model": "x"}, masks=False, overlays=False)

    def found(self, folder: Path) -> list[es3.segment_files.ImageFile]:  # type: ignore[name-defined]
        return find_images([self.images], folder)

    def make(self, random: Random) -> bytes:
        return mutated(random, lambda r: damaged_lines(r, self.data), self.data)

    def check(self, value: bytes, case: Case) -> None:
        original = case.write("run.jsonl", value)
        case.seal()
        list(read_records(original, "instances"))
        out = case.folder / "out"
        out.mkdir()
        (out / "run.jsonl").write_bytes(value)
        with self.open(out) as run:
            tasks = run.pending(self.found(out))
            for _, outcome in run.segment(self, tasks):  # type: ignore[arg-type]
                assert isinstance(outcome, es3.Instances)
            summary = run.write_coco()
        assert summary.images >= 3
        content = json.loads((out / "instances.json").read_text())
        names = [Path(image["file_name"]).name for image in content["images"]]
        assert len(set(names)) == len(names) and {"a.png", "b.png", "c.png"} <= set(names)
        with self.open(out) as again:
            assert not again.pending(self.found(out)), "the run is not done after it was done"
        with RunFile(out / "run.jsonl", "instances", {}) as other:
            assert not other.resumed


KINDS = (Tracks, Runs)
