"""Frames of folders, images and iterables."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.errors import VideoError
from efficientsam3.io.frame_types import Frame
from efficientsam3.io.frames import read_frames

from ..video.films import number, numbers, picture, write_film


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 2, 1, 33):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "readme.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_bytes(b"")
    reader = read_frames(tmp_path, rate=4)
    assert reader.info.frames == reader.expected == 4
    frames = list(reader)
    assert [number(frame.image) for frame in frames] == [1, 2, 10, 33]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.time for frame in frames] == [0, 0.25, 0.5, 0.75]
    assert numbers(read_frames(str(tmp_path / "frame*.png"), start=1, stride=2)) == [2, 33]
    assert numbers(read_frames(tmp_path / "frame33.png")) == [33]
    assert [frame.time for frame in read_frames(tmp_path)] == [None] * 4


def test_an_unreadable_image_is_left_out(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"damaged")
    reader = read_frames(tmp_path)
    assert [frame.index for frame in reader] == [0, 1, 3]
    assert (
        reader.unreadable == 1 and "frame 2" in reader.warnings[0] and "2.png" in reader.warnings[0]
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "0.png").write_bytes(b"damaged")
    with pytest.raises(VideoError, match=r"nothing of none can be read.*0\.png"):
        list(read_frames(tmp_path / "none"))


def test_the_number_of_warnings_is_bounded() -> None:
    """A stream can have errors for hours."""
    items: list[Any] = [picture(0)]
    items += ["nothing.png"] * 100
    reader = read_frames(iter(items))
    assert len(list(reader)) == 1
    assert reader.unreadable == 100 and len(reader.warnings) == 20


def test_all_kinds_of_images(tmp_path: Path) -> None:
    Image.fromarray(picture(4)).save(tmp_path / "4.png")
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright
    Image.fromarray(picture(6)).save(tmp_path / "6.jpg", exif=exif, quality=95)
    items = [
        picture(0),
        picture(1)[..., :1].repeat(3, 2).astype(float) / 255,
        Image.fromarray(picture(2)),
        torch.from_numpy(picture(3)).permute(2, 0, 1),
        tmp_path / "4.png",
        str(tmp_path / "4.png"),
        tmp_path / "6.jpg",
        np.zeros((5, 7), bool),
    ]
    reader = read_frames(items)
    assert reader.expected == 8
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(8))
    assert {frame.image.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert [number(frames[i].image) for i in (0, 2, 3, 4, 5, 6)] == [0, 2, 3, 4, 4, 6]
    assert frames[6].image.shape == (64, 48, 3)
    assert frames[7].image.shape == (5, 7, 3)


def test_arrays_and_tensors() -> None:
    stack = np.stack([picture(i) for i in range(5)])
    assert numbers(read_frames(stack, start=2)) == [2, 3, 4]
    assert numbers(read_frames(torch.from_numpy(stack).permute(0, 3, 1, 2))) == [0, 1, 2, 3, 4]
    assert numbers(read_frames(stack[3])) == [3]
    with pytest.raises(VideoError, match=r"\(T, H, W, C\)"):
        read_frames(np.zeros((1, 1, 1, 1, 3), np.uint8))


def test_an_animated_gif(tmp_path: Path) -> None:
    stills = [Image.fromarray(picture(10 * i)) for i in range(4)]
    path = tmp_path / "a.gif"
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=100)
    assert len(list(read_frames(path))) == 4
    with Image.open(path) as image:
        assert numbers(read_frames(image)) == [0, 10, 20, 30]


def test_frames_keep_their_index_and_time() -> None:
    frames = [Frame(7 + i, i / 3, picture(i)) for i in range(4)]
    got = list(read_frames(iter(frames), start=8, stride=2))
    assert [(f.index, f.time) for f in got] == [(8, 1 / 3), (10, 1.0)]
    outer = read_frames(read_frames([picture(5), picture(6)]))
    assert outer.expected == 2 and numbers(outer) == [5, 6]


def test_a_reused_buffer_is_copied() -> None:
    buffer = np.zeros((4, 4, 3), np.uint8)

    def grab() -> Iterator[np.ndarray]:
        for i in range(3):
            buffer[:] = i
            yield buffer

    assert [frame.image.max() for frame in list(read_frames(grab()))] == [0, 1, 2]


def test_one_frame_is_in_memory(tmp_path: Path) -> None:
    """A generator is asked for the next frame after the last one was released."""
    asked = 0

    def grab() -> Iterator[np.ndarray]:
        nonlocal asked
        for i in range(50):
            asked += 1
            yield picture(i)

    reader = read_frames(grab())
    assert asked == 0 and reader.expected is None
    alive: list[weakref.ref[Any]] = []
    for frame in reader:
        assert asked == frame.index + 1
        alive.append(weakref.ref(frame.image))
        del frame
    assert sum(ref() is not None for ref in alive) <= 1
    film = read_frames(write_film(tmp_path / "a.mp4", 30))
    alive = [weakref.ref(frame.image) for frame in film]
    assert sum(ref() is not None for ref in alive) <= 1


@pytest.mark.slow
def test_frames_make_no_reference_cycles(tmp_path: Path) -> None:
    """Reference cycles stay in memory until Python's garbage collector runs."""
    film = read_frames(write_film(tmp_path / "a.mp4", 30, turn=90))
    next(film)
    gc.collect()
    gc.disable()
    try:
        for _ in film:
            pass
        assert gc.collect() < 20
    finally:
        gc.enable()
