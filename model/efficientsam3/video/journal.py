"""What is found in a video, frame by frame, in a file that a later run goes on with.

A line of JSON each frame, after a first line that says of what video and with which model. All
other forms are written from it. A run that was killed leaves at most its last line unfinished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import rle
from ..lines import FORMAT, LineFile, Record, whole
from ..types import BitPatch, Instances, Patch
from .concepts import TrackedFrame
from .errors import VideoError


class ResumeError(VideoError):
    """A file of tracks that belongs to another run."""


class Journal(LineFile):
    """The file that a run writes.

    Args:
        path: ends in .jsonl.
        identity: of source, model and settings, as plain values: what must be the same for a run
            to go on. video: what forms need to know: name, rate, frames, concepts.
        restart: begin anew, whatever is there.

    Attributes:
        last: index of the last frame that is done, None where none is.
        count: frames that are done. ids: one more than the largest identity.

    Raises:
        ResumeError: the file is of another run, or no file of tracks.
    """

    what, wrong, other = "tracks", VideoError, ResumeError

    def __init__(
        self, path: str | Path, identity: Record, video: Record, *, restart: bool = False
    ) -> None:
        self.last: int | None = None
        self.count = self.ids = 0
        self._ended: Record | None = None
        super().__init__(path, identity, {"video": video}, restart=restart)

    def _known(self, record: Record) -> None:
        if "end" in record:
            self._ended = record
        else:
            self._note(record)

    def _note(self, record: Record) -> None:
        self.last, self.count = record["frame"], self.count + 1
        self.ids = max([self.ids, *(o["id"] + 1 for o in record["objects"])])

    def is_whole(self, stop: int | None) -> bool:
        """Whether all frames before ``stop`` are done."""
        if self._ended is None:
            return False
        until = self._ended["stop"]
        return until is None or (stop is not None and stop <= until)

    def add(self, tracked: TrackedFrame) -> None:
        """Write one frame, which comes after the last; a stop after this loses nothing of it."""
        if self.last is not None and tracked.index <= self.last:
            raise VideoError(f"frame {tracked.index} comes after frame {self.last}")
        record = to_record(tracked)
        self._write(record)
        self._note(record)

    def finish(self, stop: int | None) -> None:
        """Note that the source has ended, or has been followed up to ``stop``."""
        self._ended = {"end": True, "stop": stop}
        self._write(self._ended)


def read_head(path: Path) -> Record:
    """The first line of a file of tracks: {"format", "identity", "video"}."""
    with path.open("rb") as file:
        head = whole(file.readline())
    if head is None or head.get("format") != FORMAT:
        raise ResumeError(f"{path} is no file of tracks that this version reads")
    return head


def read_records(path: Path) -> Iterator[Record]:
    """The frames of a file of tracks, one in memory: {"frame", "time", "size", "objects"}."""
    read_head(path)
    with path.open("rb") as file:
        file.readline()
        for line in file:
            record = whole(line)
            if record is None:
                return  # what a kill left
            if "end" not in record:
                yield record


def last_records(path: Path, count: int) -> list[Record]:
    """The last frames of a file of tracks."""
    return list(deque(read_records(path), maxlen=count))


# A frame as a record --------------------------------------------------------------------------


def to_record(tracked: TrackedFrame) -> Record:
    """A frame as plain values: boxes xyxy in pixels, masks as COCO's run lengths."""
    found = tracked.instances
    objects = []
    for i, box in enumerate(found.boxes.tolist()):
        entry: Record = {
            "id": -1 if found.track_ids is None else int(found.track_ids[i]),
            "concept": found.labels[i],
            "score": round(float(found.scores[i]), 5),
            "box": [round(v, 2) for v in box],
            "area": round((box[2] - box[0]) * (box[3] - box[1]), 1),
        }
        if found.patches is not None:
            pixels, cut = found.crop(i)
            entry["mask"] = rle.encode_cut(pixels, cut, found.size)
            entry["area"] = int(pixels.sum())
        objects.append(entry)
    return {
        "frame": tracked.index,
        "time": None if tracked.time is None else round(tracked.time, 6),
        "size": list(found.size),
        "objects": objects,
    }


def from_record(record: Record, concepts: tuple[str, ...]) -> TrackedFrame:
    """A frame again; presence is not kept."""
    from ..rle import decode

    objects, size = record["objects"], (record["size"][0], record["size"][1])
    patches: list[Patch] | None = None
    if all("mask" in o for o in objects):
        patches = [BitPatch.cut(decode(o["mask"])) for o in objects]
    scores = np.array([o["score"] for o in objects], np.float32)
    instances = Instances(
        boxes=np.array([o["box"] for o in objects], np.float32).reshape(-1, 4),
        scores=scores,
        presence=np.ones_like(scores),
        labels=[o["concept"] for o in objects],
        size=size,
        patches=patches,
        concepts=concepts,
        track_ids=np.array([o["id"] for o in objects], np.int64),
    )
    return TrackedFrame(record["frame"], record["time"], instances)
