"""Frames of addresses, cameras and broadcasts."""

from __future__ import annotations

import http.server
import itertools
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from efficientsam3.errors import VideoError
from efficientsam3.io import video_decode
from efficientsam3.io.frames import read_frames

from ..video.films import FAST, numbers, write_film


def wait_until(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


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
    """A file replaces the device."""
    film = write_film(tmp_path / "a.mkv", 6)
    av = video_decode.import_av()
    opened = []

    def device(name: str, format: str, timeout: float) -> Any:
        opened.append((name, format))
        return real(str(film))

    real = av.open
    monkeypatch.setattr(av, "open", device)
    monkeypatch.setattr(video_decode.sys, "platform", "linux")
    reader = read_frames(2, stop=4, latest_only=False)
    assert opened == [("/dev/video2", "v4l2")]
    assert not reader.info.waits and read_frames(reader).info.waits
    assert reader.info.live and reader.info.name == "camera 2" and reader.expected == 4
    assert numbers(reader) == [0, 1, 2, 3]
    monkeypatch.undo()
    with pytest.raises(VideoError, match="camera 97"):
        read_frames(97)


class Tap:
    """A source that does not wait: it gives frames when told to, whether they are read or not."""

    def __init__(self, count: int = 100) -> None:
        self.count, self.reached, self.closed = count, 0, threading.Event()
        self._go = threading.Semaphore(0)

    def __call__(self) -> Iterator[np.ndarray]:
        try:
            for number in range(self.count):
                self.reached = number  # the earlier ones have been read
                self._go.acquire()
                yield np.full((4, 4, 3), number, np.uint8)
        finally:
            self.closed.set()

    def give(self, count: int) -> None:
        """Give some more frames."""
        until = self.reached + count
        self._go.release(count)
        assert wait_until(lambda: self.reached >= until or self.closed.is_set())


@pytest.mark.slow
def test_latest_only_skips_frames() -> None:
    tap = Tap()
    reader = read_frames(tap(), latest_only=True)
    tap._go.release()
    seen = [next(reader)]
    assert wait_until(lambda: tap.reached == 1)
    for count in (4, 1, 14):
        tap.give(count)
        seen.append(next(reader))
    assert [f.index for f in seen] == [0, 4, 5, 19]
    assert [int(f.image[0, 0, 0]) for f in seen] == [0, 4, 5, 19], "numbers are those of the source"
    assert reader.skipped == 3 + 13
    reader.close()
    tap._go.release()
    assert tap.closed.wait(10), "the source is let go of"
    assert list(reader) == []


@pytest.mark.slow
def test_latest_only_with_a_stride() -> None:
    tap = Tap(12)
    reader = read_frames(tap(), latest_only=True, start=2, stride=3, stop=10)
    tap._go.release(3)
    assert next(reader).index == 2
    assert wait_until(lambda: tap.reached == 3)
    tap.give(5)
    assert next(reader).index == 5, "6 and 7 do not take its place"
    tap.give(3)
    assert list(reader) == [] and reader.skipped == 1, "10 ends it, before 8 was asked for"
    tap._go.release(20)
    assert tap.closed.wait(10)


def test_latest_only_raises_errors_of_the_source() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((4, 4, 3), np.uint8)
        raise OSError("the plug was pulled")

    reader = read_frames(frames(), latest_only=True)
    with pytest.raises(OSError, match="the plug was pulled"):
        list(reader)
    assert list(reader) == []
    unread = read_frames(frames(), latest_only=True)
    unread.close()
    assert list(unread) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sockets of that system wait otherwise")
def test_a_broadcast_is_read_at_its_pace() -> None:
    """MPEG over UDP, sent in real time to a much slower reader."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"
    ended = threading.Event()

    def send() -> None:
        av = video_decode.import_av()
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
        assert reader.skipped > 10
        assert frame.time is not None and first.time is not None
        # A reader that waits would be 5 frames on, which is 0.1 s.
        assert frame.time - first.time > spent - 0.6
    finally:
        ended.set()
        sender.join()


@pytest.mark.parametrize(
    ("rate", "expected"), [(10.0, [0.0, 0.1, 0.2, 0.5]), (None, [None, None, None, None])]
)
def test_times_of_a_broadcast_before_its_clock_is_known(
    rate: float | None, expected: list[float | None]
) -> None:
    """RTSP gives its first frames without a time; frames of a server are simulated."""
    images = [
        SimpleNamespace(time=time, rotation=0, side_data={}) for time in (None, None, 7.2, 7.5)
    ]

    def frames() -> Iterator[Any]:
        yield from images[1:]

    first: Any = images[0]
    got = video_decode._pending(first, frames(), None, rate)  # type: ignore[arg-type]
    assert [frame.time for frame in got] == pytest.approx(expected)
