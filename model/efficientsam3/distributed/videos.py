"""A video as rows: each frame with its objects and their identities."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from ..errors import EfficientSam3Error
from ..video.settings import TrackSettings
from ..video.track import track
from .shards import Record, failed_record, to_record
from .stores import is_uri, open_file


def track_video(
    model: Any, place: str, arguments: Mapping[str, Any], tracking: Mapping[str, Any]
) -> Iterator[Record]:
    """Track concepts through a video.

    Args:
        model: The model.
        place: Path or URI of the video. One in a store is copied to a temporary file.
        arguments: "concepts", and what ``track_settings`` takes.
        tracking: Further arguments of ``efficientsam3.track``.

    Yields:
        The row of each frame; after a frame that cannot be read, or of a video that cannot be
        opened, a row with the error, and nothing more.
    """
    asked = {"concepts": arguments["concepts"], "settings": track_settings(arguments, model)}
    path = place
    try:
        with local_file(place) as path:
            for frame in track(model, path, **asked, **tracking):
                key = f"{place}#frame={frame.index}"
                yield to_record(key, place, frame.instances, frame.index, frame.time)
    except (EfficientSam3Error, OSError, MemoryError) as error:
        reason = str(error).replace(path, place) or type(error).__name__
        yield failed_record(place, place, reason)


def track_settings(arguments: Mapping[str, Any], model: Any = None) -> TrackSettings:
    """Settings of tracking, from the arguments that images and videos share.

    Args:
        arguments: "threshold", "nms", "class_agnostic" and "overlap_metric", as
            ``ImageModel.segment`` takes them.
        model: The model, whose release gives the other settings; None: SAM3's.

    Raises:
        TrackError: A value is out of its range.
    """
    changes = {"detection_threshold": arguments["threshold"]}
    for name, default in (("nms", None), ("class_agnostic", False), ("overlap_metric", "iou")):
        if arguments.get(name, default) != default:
            changes[name] = arguments[name]
    return TrackSettings.of(model, **changes)


@contextmanager
def local_file(place: str) -> Iterator[str]:
    """Give a file on this machine with the content of a place.

    Args:
        place: A path, which is given as it is, or a URI.

    Raises:
        OSError: The place cannot be read, or the copy cannot be written.
    """
    if not is_uri(place):
        yield place
        return
    suffix = PurePosixPath(place.partition("?")[0]).suffix
    handle, path = tempfile.mkstemp(suffix=suffix, prefix="esam3-")
    try:
        with os.fdopen(handle, "wb") as file, open_file(place) as source:
            shutil.copyfileobj(source, file, 2**20)
        yield path
    finally:
        os.unlink(path)
