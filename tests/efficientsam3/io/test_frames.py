"""Frames of video files."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientsam3.errors import EfficientSam3Error, MissingAbilityError, VideoError
from efficientsam3.io import video_decode
from efficientsam3.io.frames import read_frames

from ..video.films import FAST, number, numbers, picture, write_film


def test_a_film(tmp_path: Path) -> None:
    reader = read_frames(write_film(tmp_path / "a.mp4"))
    assert reader.info.name == "a.mp4" and not reader.info.live
    assert (reader.info.frames, reader.info.rate, reader.info.size) == (10, 10.0, (48, 64))
    assert reader.expected == 10
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(10))
    assert [number(frame.image) for frame in frames] == list(range(10))
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(10)])
    for frame in frames:
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert np.abs(frame.image.astype(int) - picture(frame.index)).mean() < 4
    assert not reader.warnings and not reader.unreadable
    assert list(reader) == []


def test_picked_frames_keep_their_numbers_and_times(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", 20)
    reader = read_frames(film, start=3, stop=14, stride=4)
    assert reader.expected == 3
    frames = list(reader)
    assert [frame.index for frame in frames] == [3, 7, 11]
    assert [number(frame.image) for frame in frames] == [3, 7, 11]
    assert [frame.time for frame in frames] == pytest.approx([0.3, 0.7, 1.1])
    assert not reader.warnings, "what was not asked for is not missing"
    assert read_frames(film, start=15, stop=100).expected == 5
    assert list(read_frames(film, start=50)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "coding"),
    [
        ("a.mp4", "libx264", {"preset": "medium", "g": "8", "bf": "3"}),
        (
            "a.mp4",
            "libx264",
            {"preset": "medium", "g": "8", "bf": "3", "x264-params": "open-gop=1"},
        ),
        ("a.mkv", "libx264", {"preset": "medium", "g": "8", "bf": "2"}),
        ("a.ts", "libx264", {"preset": "medium", "g": "8", "bf": "2"}),
        ("a.avi", "mpeg4", {"g": "6"}),
        ("a.webm", "libvpx", {"g": "8"}),
    ],
)
def test_a_later_start_gives_the_same_frames(
    tmp_path: Path, name: str, codec: str, coding: dict[str, str]
) -> None:
    """A file is decoded from the key frame before the start."""
    even = name == "a.avi"
    ticks = [i if even else i + i // 7 for i in range(40)]
    film = write_film(tmp_path / name, 40, codec=codec, coding=coding, ticks=ticks)
    complete = list(read_frames(film))
    assert len(complete) == 40
    for start in (1, 7, 8, 9, 15, 23, 31, 38, 39, 40):
        reader = read_frames(film, start=start)
        part = list(reader)
        assert [f.index for f in part] == list(range(start, 40))
        assert [f.time for f in part] == pytest.approx([f.time for f in complete[start:]])
        for one, other in zip(part, complete[start:], strict=True):
            np.testing.assert_array_equal(one.image, other.image)
        assert not reader.warnings


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_frames_before_the_key_frame_are_not_decoded(tmp_path: Path, name: str) -> None:
    film = write_film(tmp_path / name, 40, coding={"g": "8"})
    info, frames = video_decode.open_video(str(film), lambda sentence, lost: None, start=30)
    assert next(frames).index == 24
    assert info.frames is None or abs(info.frames - 40) <= 1


def test_uneven_frame_times_are_kept(tmp_path: Path) -> None:
    """Phones and screen recorders have variable frame rates."""
    film = write_film(tmp_path / "a.mp4", 5, ticks=[0, 1, 5, 6, 20])
    assert [f.time for f in read_frames(film)] == pytest.approx([0, 0.1, 0.5, 0.6, 2.0])
    even = read_frames(film, rate=5)
    assert even.info.rate == 5
    assert [f.time for f in even] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mkv", 3, ticks=[70, 71, 72])
    assert [f.time for f in read_frames(film)] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_and_mirroring_are_applied(tmp_path: Path, turn: int, mirror: bool) -> None:
    film = write_film(tmp_path / "a.mp4", 2, turn=turn, mirror=mirror)
    reader = read_frames(film)
    image = next(reader).image
    upright = np.rot90(picture(0), turn // 90)
    if mirror:
        upright = upright[:, ::-1]
    assert image.shape == upright.shape and reader.info.size == upright.shape[:2]
    assert np.abs(image.astype(int) - upright).mean() < 4
    if shutil.which("ffmpeg"):  # it applies the rotation itself
        command = ["ffmpeg", "-v", "error", "-i", str(film), "-frames:v", "1"]
        subprocess.run([*command, str(tmp_path / "a.png")], check=True)
        with Image.open(tmp_path / "a.png") as shown:
            assert np.abs(np.asarray(shown.convert("RGB"), int) - image).max() <= 2


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (17, 240), (240, 3)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    reader = read_frames(write_film(tmp_path / "a.mkv", 3, size=size, codec="ffv1"))
    assert reader.info.size == size
    assert [frame.image.shape for frame in reader] == [(*size, 3)] * 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_one_frame(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name == "a.avi" else "libx264"
    assert numbers(read_frames(write_film(tmp_path / name, 1, codec=codec))) == [0]


def test_repeated_avi_frames_are_not_missing(tmp_path: Path) -> None:
    ticks = [0, 1, 4, 5, 9, 10, 11, 20]
    film = write_film(tmp_path / "a.avi", 8, codec="mpeg4", ticks=ticks, coding={"g": "1"})
    reader = read_frames(film)
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.time for frame in frames] == pytest.approx([t / 10 for t in ticks])
    assert reader.warnings == []


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_file_is_decoded_as_far_as_possible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str, share: float
) -> None:
    options = FAST if name == "a.mp4" else {}
    film = write_film(tmp_path / name, 40, codec=codec, noise=40, options=options)
    complete = film.read_bytes()
    film.write_bytes(complete[: int(share * len(complete))])
    reader = read_frames(film)
    with caplog.at_level(logging.WARNING):
        frames = list(reader)
    assert 1 <= len(frames) < 40 and (codec == "mpeg4" or len(frames) > 40 * share - 5)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    (warning,) = reader.warnings
    assert "cut short or damaged" in warning and f"The {len(frames)} frames that decode" in warning
    assert reader.unreadable and warning in caplog.text


def test_damage_in_the_middle_loses_few_frames(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", 40, noise=40)
    content = bytearray(film.read_bytes())
    half = len(content) // 2
    content[half : half + 8000] = b"U" * 8000
    film.write_bytes(content)
    reader = read_frames(film)
    assert 30 <= len(list(reader)) < 40
    assert "Invalid data found" in reader.warnings[0]


def test_an_empty_source_is_no_error(tmp_path: Path) -> None:
    """A file with a video track without frames."""
    film = write_film(tmp_path / "a.avi", 1, codec="mpeg4")
    content = film.read_bytes()
    at = content.index(b"movi") + 4
    film.write_bytes(content[:at])
    reader = read_frames(film)
    try:
        frames = list(reader)
    except VideoError as error:  # the container states a frame
        assert "0 of 1 frames decode" in str(error)
    else:
        assert frames == []
    assert list(read_frames([])) == [] and read_frames([]).expected == 0
    assert list(read_frames(np.zeros((0, 4, 4, 3), np.uint8))) == []
    assert list(read_frames(iter(()))) == []


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    film = write_film(tmp_path / "a.mp4", 20, noise=40)
    (tmp_path / "unfinished.mp4").write_bytes(film.read_bytes()[:3000])
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    (tmp_path / "folder").mkdir()
    for name, words in {
        "notes.txt": "cannot be read as a video",
        "empty.mp4": "cannot be read as a video",
        "unfinished.mp4": "lacks its index",
        "sound.wav": "no pictures in it: only audio",
        "nothing.mp4": "there is no video or folder of images at",
        "folder": "no images in the folder",
        "folder/*.jpg": "no image matches",
    }.items():
        with pytest.raises(VideoError, match=words):
            read_frames(tmp_path / name)
    assert issubclass(VideoError, EfficientSam3Error)


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = write_film(tmp_path / "a.mp4", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingAbilityError, match=r"pip install 'efficientsam3\[video\]'"):
        read_frames(film)
    assert len(list(read_frames([picture(0)]))) == 1


def test_files_are_closed(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4")
    with read_frames(film) as reader:
        next(reader)
        frames: Any = reader._frames
    assert frames.gi_frame is None, "the generator that holds the file has ended"
    assert list(reader) == []


@pytest.mark.parametrize("source", [None, 1.5, b"a.mp4", {"a": 1}, object(), True])
def test_values_without_frames(source: Any) -> None:
    with pytest.raises(VideoError, match="frames come from a file"):
        read_frames(source)


@pytest.mark.parametrize(
    "options",
    [{"start": -1}, {"stride": 0}, {"start": 5, "stop": 4}, {"rate": 0}, {"rate": float("nan")}],
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(VideoError, match="got"):
        read_frames([], **options)
