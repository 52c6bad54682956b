"""The run file of tracking: what is in each frame of a video, one line of JSON a frame.

The first line says of what video and with which model; a later run continues the file, and all
other formats are written from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.json_records import is_number
from ..errors import RunFileError, VideoError
from ..io import rle
from ..io.jsonl import DAMAGED_LINE, Record, RunFile, read_head, read_records
from ..masks.extent import extent
from ..types import BitPatch, Instances, Patch
from .types import TrackedFrame

KIND = "tracks"

MAX_FRAMES = 10_000_000
"""More frames and objects than any video has."""


class TrackFile(RunFile):
    """The run file that tracking writes; see ``RunFile`` for how a later run continues it.

    Args:
        path: A file whose name ends in .jsonl.
        asked: All that decides the tracks, as plain values.
        video: What other formats need to know: "name", "rate", "frames" and "concepts", and
            "file_names" of the frames where the source is a folder of images.
        restart: Start again, whatever an earlier run has finished.

    Attributes:
        last: Index of the last frame that is done; None where none is.
        count: Number of frames that are done.
        left_out: Number of objects in them that are left out, because their mask has no pixel.
        next_id: One more than the largest identity.
        left_out: Number of frames whose picture could not be read, of a finished run.

    Raises:
        RunFileError: The file exists and is not a run file of tracks. It is left as it is.
    """

    def __init__(
        self,
        path: str | Path,
        asked: Mapping[str, Any],
        video: Record,
        *,
        restart: bool = False,
    ) -> None:
        self.last: int | None = None
        self.count = self.left_out = self.next_id = 0
        self._finished: Record | None = None
        super().__init__(path, KIND, asked, head={"video": video}, restart=restart)

    def begin(self) -> None:
        """Create the file, so that it exists when the run is stopped before its first frame."""
        self._open().flush()

    def note(self, record: Record) -> None:
        """Take note of a record of this run or an earlier one.

        Args:
            record: The record of a frame, or of the end.
        """
        check_record(self.path, record)
        if "end" in record:
            self._finished, self.left_out = record, record.get("left_out", 0)
            return
        self.last, self.count = record["frame"], self.count + 1
        self.left_out += record.get("left_out", 0)
        self.next_id = max([self.next_id, *(o["id"] + 1 for o in record["objects"])])

    def is_complete(self, stop: int | None) -> bool:
        """Whether all frames before ``stop`` are done; None: all frames of the video.

        Args:
            stop: Index of a frame.
        """
        if self._finished is None:
            return False
        end = self._finished["stop"]
        return end is None or (stop is not None and stop <= end)

    def add_frame(self, tracked: TrackedFrame) -> None:
        """Write one frame. A stop of the program after this call loses nothing of it.

        Args:
            tracked: The frame.

        Raises:
            VideoError: The frame does not come after the last one.
        """
        if self.last is not None and tracked.index <= self.last:
            raise VideoError(f"frame {tracked.index} comes after frame {self.last}")
        self.write(to_record(tracked))

    def finish(self, stop: int | None, left_out: int = 0) -> None:
        """Note that all frames before ``stop`` are done; None: all frames of the video.

        Args:
            stop: Index of a frame.
            left_out: Number of frames whose picture could not be read.
        """
        self.write({"end": True, "stop": stop, "left_out": left_out})


def read_video(path: str | Path) -> Record:
    """What a file says of its video: "name", "rate", "frames", "concepts" and "file_names".

    Args:
        path: The run file.
    """
    video: Any = read_head(path, KIND).get("video")
    if not _is_video(video):
        raise RunFileError(f"{path}, line 1 is damaged: it does not say what the video is")
    return dict(video)


def read_frame_records(path: str | Path) -> Iterator[Record]:
    """The frames of a file, one in memory at a time: "frame", "time", "size" and "objects".

    Args:
        path: The run file.
    """
    for record in read_records(path, KIND):
        check_record(Path(path), record)
        if "end" not in record:
            yield record


def last_records(path: str | Path, count: int) -> list[Record]:
    """The last frames of a file.

    Args:
        path: The run file.
        count: Largest number of frames.
    """
    return list(deque(read_frame_records(path), maxlen=count))


def read_tracked(path: str | Path) -> Iterator[TrackedFrame]:
    """The frames of a file as they were tracked, one in memory at a time.

    Args:
        path: The run file.
    """
    concepts = tuple(read_video(path)["concepts"])
    return (from_record(record, concepts) for record in read_frame_records(path))


# Checks ---------------------------------------------------------------------------------------


def check_record(path: Path, record: Record) -> None:
    """Check that a record is that of a frame or of the end of a run.

    Args:
        path: The run file, for the message.
        record: The record.

    Raises:
        RunFileError: It is neither.
    """
    if "end" in record:
        stop, left_out = record.get("stop"), record.get("left_out", 0)
        if isinstance(stop, (int, type(None))) and isinstance(left_out, int):
            return
    elif _is_frame(record):
        return
    raise RunFileError(
        f"{path} has a damaged record, {record!s:.60}...: it is neither that of a frame nor of "
        f"the end. {DAMAGED_LINE}"
    )


def _is_video(video: Any) -> bool:
    if not isinstance(video, dict) or not {"name", "rate", "frames", "concepts"} <= video.keys():
        return False
    names = [*video["concepts"]] if isinstance(video["concepts"], list) else [None]
    files = video.get("file_names")
    return (
        isinstance(files, (list, type(None)))
        and all(isinstance(text, str) for text in (video["name"], *names, *(files or ())))
        and (video["rate"] is None or is_number(video["rate"]))
        and (
            video["frames"] is None
            or (isinstance(video["frames"], int) and 0 <= video["frames"] < MAX_FRAMES)
        )
    )


def _is_frame(record: Record) -> bool:
    size, objects, time = record.get("size"), record.get("objects"), record.get("time")
    return (
        isinstance(record.get("frame"), int)
        and "time" in record
        and 0 <= record["frame"] < MAX_FRAMES
        and (time is None or is_number(time))
        and isinstance(record.get("left_out", 0), int)
        and isinstance(size, list)
        and len(size) == 2
        and all(isinstance(n, int) and n > 0 for n in size)
        and isinstance(objects, list)
        and all(_is_object(found, size) for found in objects)
    )


def _is_object(found: Any, size: list[int]) -> bool:
    if not isinstance(found, dict):
        return False
    box: Any = found.get("box")
    mask: Any = found.get("mask")
    return (
        isinstance(found.get("id"), int)
        and -1 <= found["id"] < MAX_FRAMES
        and isinstance(found.get("concept"), str)
        and all(is_number(found.get(key)) for key in ("score", "area"))
        and isinstance(box, list)
        and len(box) == 4
        and all(map(is_number, box))
        and ("mask" not in found or (isinstance(mask, dict) and mask.get("size") == size))
        and ("mask" not in found or isinstance(mask.get("counts"), str))
    )


# A frame as a record --------------------------------------------------------------------------


def to_record(tracked: TrackedFrame) -> Record:
    """A frame as plain values: boxes as xyxy in pixels, masks as COCO run lengths.

    The box of a mask is its extent. Objects whose mask has no pixel are left out; "left_out"
    counts them.

    Args:
        tracked: The frame.
    """
    found = tracked.instances
    objects, left_out = [], 0
    for i in range(len(found)):
        shape = extent(found, i)
        if shape is None:
            left_out += 1
            continue
        entry: Record = {
            "id": -1 if found.track_ids is None else int(found.track_ids[i]),
            "concept": found.labels[i],
            "score": round(float(found.scores[i]), 5),
            "box": list(shape.box),
            "area": shape.area,
        }
        if found.phrases[i] != found.labels[i]:
            entry["phrase"] = found.phrases[i]
        if shape.pixels is not None:
            x0, y0, x1, y1 = map(int, shape.box)
            entry["mask"] = rle.encode_cut(shape.pixels, (x0, y0, x1, y1), found.size)
        objects.append(entry)
    return {
        "frame": tracked.index,
        "time": None if tracked.time is None else round(tracked.time, 6),
        "size": list(found.size),
        "objects": objects,
        **({"left_out": left_out} if left_out else {}),
        **({"cut": True, "lost": list(tracked.lost)} if tracked.cut else {}),
    }


def from_record(record: Record, concepts: tuple[str, ...]) -> TrackedFrame:
    """A frame of its record; presence is not kept, and is 1.

    Args:
        record: What ``to_record`` gave.
        concepts: All concepts that were tracked.
    """
    objects, size = record["objects"], (record["size"][0], record["size"][1])
    patches: list[Patch] | None = None
    if all("mask" in o for o in objects):
        patches = [BitPatch.cut(rle.decode(o["mask"])) for o in objects]
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
        phrases=[o.get("phrase", o["concept"]) for o in objects],
    )
    cut, lost = record.get("cut", False), tuple(record.get("lost", ()))
    return TrackedFrame(record["frame"], record["time"], instances, cut=cut, lost=lost)
