"""Frames of files, folders, addresses and iterables: what decodes is given, and the rest told."""

from __future__ import annotations

import gc
import http.server
import itertools
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
import wave
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.errors import EfficientSam3Error, MissingAbilityError
from efficientsam3.video import decode
from efficientsam3.video.errors import VideoError
from efficientsam3.video.frames import Frame, FrameReader, read_frames

from .films import number, picture, write_film

FAST = {"movflags": "faststart"}  # the index comes first, as in what the web sends


def wait_until(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def numbers(reader: FrameReader) -> list[int]:
    return [number(frame.image) for frame in reader]


# Files ----------------------------------------------------------------------------------------


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
    assert not reader.trouble and not reader.lost
    assert list(reader) == []


def test_picked_frames_keep_their_numbers_and_times(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", 20)
    reader = read_frames(film, start=3, stop=14, stride=4)
    assert reader.expected == 3
    frames = list(reader)
    assert [frame.index for frame in frames] == [3, 7, 11]
    assert [number(frame.image) for frame in frames] == [3, 7, 11]
    assert [frame.time for frame in frames] == pytest.approx([0.3, 0.7, 1.1])
    assert not reader.trouble, "what was not asked for is not missing"
    assert read_frames(film, start=15, stop=100).expected == 5
    assert list(read_frames(film, start=50)) == []


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
def test_a_start_in_mid_film_gives_the_same_frames(
    tmp_path: Path, name: str, codec: str, coding: dict[str, str]
) -> None:
    """A file is decoded from the key frame before the start."""
    even = name == "a.avi"
    ticks = [i if even else i + i // 7 for i in range(40)]
    film = write_film(tmp_path / name, 40, codec=codec, coding=coding, ticks=ticks)
    whole = list(read_frames(film))
    assert len(whole) == 40
    for start in (1, 7, 8, 9, 15, 23, 31, 38, 39, 40):
        reader = read_frames(film, start=start)
        part = list(reader)
        assert [f.index for f in part] == list(range(start, 40))
        assert [f.time for f in part] == pytest.approx([f.time for f in whole[start:]])
        for one, other in zip(part, whole[start:], strict=True):
            np.testing.assert_array_equal(one.image, other.image)
        assert not reader.trouble


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_what_comes_before_a_start_is_not_decoded(tmp_path: Path, name: str) -> None:
    film = write_film(tmp_path / name, 40, coding={"g": "8"})
    info, frames = decode.open_video(str(film), lambda sentence, lost: None, start=30)
    assert next(frames).number == 24
    assert info.frames is None or abs(info.frames - 40) <= 1


def test_frames_that_are_not_even_keep_their_times(tmp_path: Path) -> None:
    """Phones and screen recorders make frames when there is something new."""
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
def test_a_phone_that_was_turned(tmp_path: Path, turn: int, mirror: bool) -> None:
    film = write_film(tmp_path / "a.mp4", 2, turn=turn, mirror=mirror)
    reader = read_frames(film)
    image = next(reader).image
    upright = np.rot90(picture(0), turn // 90)
    if mirror:
        upright = upright[:, ::-1]
    assert image.shape == upright.shape and reader.info.size == upright.shape[:2]
    assert np.abs(image.astype(int) - upright).mean() < 4
    if shutil.which("ffmpeg"):  # turns by itself
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


def test_an_avi_file_that_holds_some_frames_longer_is_whole(tmp_path: Path) -> None:
    ticks = [0, 1, 4, 5, 9, 10, 11, 20]
    film = write_film(tmp_path / "a.avi", 8, codec="mpeg4", ticks=ticks, coding={"g": "1"})
    reader = read_frames(film)
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.time for frame in frames] == pytest.approx([t / 10 for t in ticks])
    assert reader.trouble == []


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_what_decodes_of_a_cut_file_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str, share: float
) -> None:
    options = FAST if name == "a.mp4" else {}
    film = write_film(tmp_path / name, 40, codec=codec, noise=40, options=options)
    whole = film.read_bytes()
    film.write_bytes(whole[: int(share * len(whole))])
    reader = read_frames(film)
    with caplog.at_level(logging.WARNING):
        frames = list(reader)
    assert 1 <= len(frames) < 40 and (codec == "mpeg4" or len(frames) > 40 * share - 5)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    (said,) = reader.trouble
    assert "cut short or damaged" in said and f"The {len(frames)} frames that decode" in said
    assert reader.lost and said in caplog.text


def test_damage_in_the_middle_loses_little(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", 40, noise=40)
    content = bytearray(film.read_bytes())
    half = len(content) // 2
    content[half : half + 8000] = b"U" * 8000
    film.write_bytes(content)
    reader = read_frames(film)
    assert 30 <= len(list(reader)) < 40
    assert "Invalid data found" in reader.trouble[0]


def test_an_empty_clip_is_no_error(tmp_path: Path) -> None:
    """An index that tells of a track of pictures, and none in it."""
    film = write_film(tmp_path / "a.avi", 1, codec="mpeg4")
    content = film.read_bytes()
    at = content.index(b"movi") + 4
    film.write_bytes(content[:at])
    reader = read_frames(film)
    try:
        frames = list(reader)
    except VideoError as error:  # it promised one
        assert "0 of 1 frames decode" in str(error)
    else:
        assert frames == []
    assert list(read_frames([])) == [] and read_frames([]).expected == 0
    assert list(read_frames(np.zeros((0, 4, 4, 3), np.uint8))) == []
    assert list(read_frames(iter(()))) == []


def test_what_is_no_video(tmp_path: Path) -> None:
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


def test_a_file_is_closed_when_it_is_left(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4")
    with read_frames(film) as reader:
        next(reader)
        frames: Any = reader._frames
    assert frames.gi_frame is None, "the generator that holds the file has ended"
    assert list(reader) == []


# Addresses and cameras ------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address(site: str, tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", options=FAST)
    reader = read_frames(f"{site}/a.mp4")
    assert reader.info.live and reader.info.frames is None and reader.expected is None
    assert numbers(reader) == list(range(10))
    with pytest.raises(VideoError, match=r"nothing\.mp4 cannot be read"):
        read_frames(f"{site}/nothing.mp4")
    assert numbers(read_frames(f"file://{tmp_path}/a.mp4")) == list(range(10))


def test_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: a file stands for the device."""
    film = write_film(tmp_path / "a.mkv", 6)
    av = decode.need_av()
    opened = []

    def device(name: str, format: str, timeout: float) -> Any:
        opened.append((name, format))
        return real(str(film))

    real = av.open
    monkeypatch.setattr(av, "open", device)
    monkeypatch.setattr(decode.sys, "platform", "linux")
    reader = read_frames(2, stop=4, newest=False)
    assert opened == [("/dev/video2", "v4l2")]
    assert not reader.info.waits and read_frames(reader).info.waits
    assert reader.info.live and reader.info.name == "camera 2" and reader.expected == 4
    assert numbers(reader) == [0, 1, 2, 3]
    monkeypatch.undo()
    with pytest.raises(VideoError, match="camera 97"):
        read_frames(97)


class Tap:
    """A source that does not wait: it gives frames when told to, taken or not."""

    def __init__(self, count: int = 100) -> None:
        self.count, self.reached, self.closed = count, 0, threading.Event()
        self._go = threading.Semaphore(0)

    def __call__(self) -> Iterator[np.ndarray]:
        try:
            for number in range(self.count):
                self.reached = number  # those before have been taken over
                self._go.acquire()
                yield np.full((4, 4, 3), number, np.uint8)
        finally:
            self.closed.set()

    def give(self, count: int) -> None:
        """So many frames more."""
        until = self.reached + count
        self._go.release(count)
        assert wait_until(lambda: self.reached >= until or self.closed.is_set())


def test_the_newest_frame_of_a_source_that_does_not_wait() -> None:
    tap = Tap()
    reader = read_frames(tap(), newest=True)
    tap._go.release()
    seen = [next(reader)]
    assert wait_until(lambda: tap.reached == 1)
    for count in (4, 1, 14):
        tap.give(count)
        seen.append(next(reader))
    assert [f.index for f in seen] == [0, 4, 5, 19]
    assert [int(f.image[0, 0, 0]) for f in seen] == [0, 4, 5, 19], "numbers are those of the source"
    assert reader.passed == 3 + 13
    reader.close()
    tap._go.release()
    assert tap.closed.wait(10), "the source is let go of"
    assert list(reader) == []


def test_the_newest_frame_of_those_that_are_picked() -> None:
    tap = Tap(12)
    reader = read_frames(tap(), newest=True, start=2, stride=3, stop=10)
    tap._go.release(3)
    assert next(reader).index == 2
    assert wait_until(lambda: tap.reached == 3)
    tap.give(5)
    assert next(reader).index == 5, "6 and 7 do not take its place"
    tap.give(3)
    assert list(reader) == [] and reader.passed == 1, "10 ends it, before 8 was asked for"
    tap._go.release(20)
    assert tap.closed.wait(10)


def test_what_fails_in_a_source_that_does_not_wait_is_told() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((4, 4, 3), np.uint8)
        raise OSError("the plug was pulled")

    reader = read_frames(frames(), newest=True)
    with pytest.raises(OSError, match="the plug was pulled"):
        list(reader)
    assert list(reader) == []
    unread = read_frames(frames(), newest=True)
    unread.close()
    assert list(unread) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sockets of that system wait otherwise")
def test_a_broadcast_is_seen_as_it_is_now() -> None:
    """MPEG over UDP, sent in real time to one who is much slower."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"
    ended = threading.Event()

    def send() -> None:
        av = decode.need_av()
        with av.open(f"{address}?pkt_size=1316", "w", format="mpegts") as container:
            stream: Any = container.add_stream("libx264", rate=50)
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for number in itertools.count():
                if ended.wait(0.02):
                    return
                image = np.full((48, 64, 3), number % 200, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with read_frames(address) as reader:
            assert reader.info.live and not reader.info.waits
            first, began = next(reader), time.monotonic()
            for _ in range(5):
                time.sleep(0.2)
                frame = next(reader)
            spent = time.monotonic() - began
        assert reader.passed > 10
        assert frame.time is not None and first.time is not None
        # A reader that waits would be 5 frames on, which is 0.1 s.
        assert frame.time - first.time > spent - 0.6
    finally:
        ended.set()
        sender.join()


# Images and iterables -------------------------------------------------------------------------


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


def test_an_image_that_cannot_be_read_leaves_a_gap(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"damaged")
    reader = read_frames(tmp_path)
    assert [frame.index for frame in reader] == [0, 1, 3]
    assert reader.lost == 1 and "frame 2" in reader.trouble[0] and "2.png" in reader.trouble[0]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "0.png").write_bytes(b"damaged")
    with pytest.raises(VideoError, match=r"nothing of none can be read.*0\.png"):
        list(read_frames(tmp_path / "none"))


def test_remarks_do_not_pile_up() -> None:
    """A stream can be broken for hours."""
    items: list[Any] = [picture(0)]
    items += ["nothing.png"] * 100
    reader = read_frames(iter(items))
    assert len(list(reader)) == 1
    assert reader.lost == 100 and len(reader.trouble) == 20


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


def test_a_moving_gif(tmp_path: Path) -> None:
    stills = [Image.fromarray(picture(10 * i)) for i in range(4)]
    path = tmp_path / "a.gif"
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=100)
    assert len(list(read_frames(path))) == 4
    with Image.open(path) as image:
        assert numbers(read_frames(image)) == [0, 10, 20, 30]


def test_frames_keep_what_they_know() -> None:
    frames = [Frame(7 + i, i / 3, picture(i)) for i in range(4)]
    got = list(read_frames(iter(frames), start=8, stride=2))
    assert [(f.index, f.time) for f in got] == [(8, 1 / 3), (10, 1.0)]
    outer = read_frames(read_frames([picture(5), picture(6)]))
    assert outer.expected == 2 and numbers(outer) == [5, 6]


def test_a_buffer_that_is_used_again_is_copied() -> None:
    buffer = np.zeros((4, 4, 3), np.uint8)

    def grab() -> Iterator[np.ndarray]:
        for i in range(3):
            buffer[:] = i
            yield buffer

    assert [frame.image.max() for frame in list(read_frames(grab()))] == [0, 1, 2]


def test_one_frame_is_in_memory(tmp_path: Path) -> None:
    """A generator is asked for the next frame when the last one has been given away."""
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


def test_frames_leave_no_cycles(tmp_path: Path) -> None:
    """What is tied to itself stays until Python looks for it, which can be a thousand frames."""
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


@pytest.mark.parametrize("source", [None, 1.5, b"a.mp4", {"a": 1}, object(), True])
def test_what_has_no_frames(source: Any) -> None:
    with pytest.raises(VideoError, match="frames come from a file"):
        read_frames(source)


@pytest.mark.parametrize(
    "options",
    [{"start": -1}, {"stride": 0}, {"start": 5, "stop": 4}, {"rate": 0}, {"rate": float("nan")}],
)
def test_wrong_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(VideoError, match="got"):
        read_frames([], **options)


@pytest.mark.parametrize(
    ("rate", "expected"), [(10.0, [0.0, 0.1, 0.2, 0.5]), (None, [None, None, None, None])]
)
def test_a_broadcast_whose_clock_is_known_late(
    rate: float | None, expected: list[float | None]
) -> None:
    """RTSP gives its first frames without a time; no server of it runs here."""
    images = [
        SimpleNamespace(time=time, rotation=0, side_data={}) for time in (None, None, 7.2, 7.5)
    ]

    def frames() -> Iterator[Any]:
        yield from images[1:]

    first: Any = images[0]
    got = decode._waiting(first, frames(), None, rate)  # type: ignore[arg-type]
    assert [frame.time for frame in got] == pytest.approx(expected)
