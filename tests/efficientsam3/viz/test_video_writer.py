"""Videos and sheets that are drawn as frames come."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from efficientsam3.errors import VideoError
from efficientsam3.io.frames import read_frames
from efficientsam3.viz import video_writer
from efficientsam3.viz.video_writer import OverlayVideo, find_encoder

from ..video.films import number, picture


def still(index: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    return Image.fromarray(picture(index, size))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_pictures_become_a_video(tmp_path: Path, name: str) -> None:
    with OverlayVideo(tmp_path / "new" / name, 10) as video:
        for i in range(30):
            video.show(still(i), i, i / 10)
        assert video.partial.exists() and not video.path.exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    with read_frames(video.path) as reader:
        assert reader.info.frames == 30 and reader.info.size == (48, 64)
        frames = list(reader)
    assert [number(f.image) for f in frames] == list(range(30))
    assert [f.time for f in frames] == pytest.approx([i / 10 for i in range(30)], abs=1e-3)
    with av.open(str(video.path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_times_that_are_not_even_or_not_known(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.5, 2.0]  # some cameras give a time twice
    with OverlayVideo(tmp_path / "a.mp4", 10) as video:
        for i, time in enumerate(times):
            video.show(still(i), i, time)
    shown = [f.time for f in read_frames(video.path)]
    assert shown == pytest.approx(times, abs=1e-3) and shown[3] > shown[2]
    with OverlayVideo(tmp_path / "b.mp4", 4) as video:
        for i in (0, 1, 4):
            video.show(still(i), i, None)
    assert [f.time for f in read_frames(video.path)] == pytest.approx([0, 0.25, 1.0], abs=1e-3)


def test_odd_and_changing_sizes(tmp_path: Path) -> None:
    with OverlayVideo(tmp_path / "a.mp4") as video:
        video.show(still(5, (47, 63)), 0, None)
        video.show(still(5, (94, 63)), 1, None)  # a phone that is turned
    first, second = read_frames(video.path)
    assert first.image.shape == second.image.shape == (48, 64, 3)
    bright = np.flatnonzero((second.image.mean(2) > 40).any(0))
    assert 28 <= len(bright) <= 36 and 14 <= bright[0] <= 18, "in the middle, whole"


def test_without_frames_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old one")
    with OverlayVideo(path):
        pass
    assert path.read_bytes() == b"the old one"
    with OverlayVideo(path) as video:
        video.show(still(3), 0, 0.0)
    assert [number(f.image) for f in read_frames(path)] == [3]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"\.m4v, \.mkv, \.mov, \.mp4; got .*a\.gif"):
        OverlayVideo(tmp_path / "a.gif")


def test_without_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_encoder() == "libx264"
    monkeypatch.setattr(video_writer, "ENCODERS", ("no-such-encoder", "mpeg4"))
    with OverlayVideo(tmp_path / "a.mp4", 10) as video:
        for i in range(3):
            video.show(still(i), i, i / 10)
    assert [number(f.image) for f in read_frames(video.path)] == [0, 1, 2]
    monkeypatch.setattr(video_writer, "ENCODERS", ("no-such-encoder",))
    with pytest.raises(VideoError, match="none of the encoders no-such-encoder"):
        find_encoder()
