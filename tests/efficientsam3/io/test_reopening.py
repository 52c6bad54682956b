"""Sources that go away are waited for and read again; the best stream of a file is read."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from efficientsam3.errors import VideoError
from efficientsam3.io import reopening, video_decode
from efficientsam3.io.frame_types import PendingFrame, VideoInfo, Warn
from efficientsam3.io.frames import FrameReader, read_frames
from efficientsam3.io.reopening import ReopenedFrames

from ..video.films import number, write_film
from .rtsp_server import RtspServer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reopening, "RETRY", 0.02)


class Plug:
    """A source that gives 3 frames each time it is plugged in; ``absent`` tries fail between."""

    def __init__(self, times: int, absent: int = 2) -> None:
        self.left, self.absent, self.failures, self.opened = times, absent, 0, 0

    def __call__(self, warn: Warn) -> tuple[VideoInfo, Iterator[PendingFrame]]:
        if self.opened and self.failures < self.absent:
            self.failures += 1
            raise VideoError("no answer")
        if self.opened >= self.left:
            raise VideoError("no answer")
        self.failures, self.opened = 0, self.opened + 1
        value = self.opened
        return VideoInfo("camera 0", live=True, waits=False), (
            PendingFrame(i, i / 10, lambda: np.full((4, 4, 3), value, np.uint8)) for i in range(3)
        )


def test_a_source_that_comes_back() -> None:
    said: list[tuple[str, int]] = []
    plug = Plug(3)
    frames = list(ReopenedFrames(plug, lambda s, n: said.append((s, n)), limit=0.5))
    assert [f.index for f in frames] == list(range(9))
    assert [int(f.make()[0, 0, 0]) for f in frames] == [1] * 3 + [2] * 3 + [3] * 3
    times = [f.time for f in frames]
    assert times == sorted(times) and times[3] >= 0.2  # type: ignore[operator, type-var]
    back, again, gone = said
    assert back[0].startswith("camera 0 went away after 3 frames and is read again after")
    assert "after 6 frames" in again[0]
    assert gone[0] == "camera 0 went away after 9 frames and did not come back within 0.5 seconds"


def test_without_waiting_it_ends() -> None:
    plug = Plug(2, absent=0)
    said: list[Any] = []
    assert len(list(ReopenedFrames(plug, lambda *a: said.append(a), limit=0))) == 3 and not said


def test_a_source_that_opens_without_a_frame_is_opened_at_intervals() -> None:
    opened = 0

    def open_source(warn: Warn) -> tuple[VideoInfo, Iterator[PendingFrame]]:
        nonlocal opened
        opened += 1
        return VideoInfo("camera 0", live=True, waits=False), iter(())

    assert not list(ReopenedFrames(open_source, lambda *a: None, limit=0.2))
    assert 2 <= opened <= 2 + 0.2 / reopening.RETRY


def test_waiting_ends_when_the_reader_is_closed() -> None:
    frames = ReopenedFrames(Plug(1), lambda *a: None, limit=600)
    assert [next(frames).index for _ in range(3)] == [0, 1, 2]
    ended = threading.Event()

    def wait() -> None:
        assert next(frames, None) is None
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    frames.stop()
    assert ended.wait(10)
    thread.join()


def test_a_source_that_is_not_there_at_first() -> None:
    with pytest.raises(VideoError, match="camera 97"):
        read_frames(97)
    with pytest.raises(VideoError, match="reconnect is a number of seconds"):
        read_frames([], reconnect=-1)


def test_a_camera_that_is_unplugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file replaces the device, which fails twice between two sessions."""
    film = write_film(tmp_path / "a.mkv", 4)
    real, calls = av.open, itertools.count()

    def device(name: str, format: str, timeout: float) -> Any:
        call = next(calls)
        if call in (1, 2) or call > 3:
            raise OSError("no such device")
        return real(str(film))

    monkeypatch.setattr(av, "open", device)
    reader = read_frames(0, latest_only=False, reconnect=0.5)
    frames = list(reader)
    assert [f.index for f in frames] == list(range(8))
    assert [number(f.image) for f in frames] == [0, 1, 2, 3] * 2
    assert not reader.unreadable
    assert "is read again" in reader.warnings[0] and "did not come back" in reader.warnings[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("kind", ["udp", "http", "tcp"])
def test_a_stream_that_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(video_decode, "TIMEOUT", 5.0)
    film = write_film(tmp_path / "a.mp4", 300, rate=25, coding={"g": "5"})
    transport = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, transport) as free:
        free.bind(("127.0.0.1", 0))
        address = f"{kind}://127.0.0.1:{free.getsockname()[1]}"
    listen = {"udp": [], "http": ["-listen", "1"], "tcp": ["-listen", "1"]}[kind]
    servers: list[subprocess.Popen[bytes]] = []

    def serve() -> None:
        command = ["ffmpeg", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(film)]
        command += ["-c", "copy", "-f", "mpegts", *listen, address]
        servers.append(subprocess.Popen(command))

    def connect() -> FrameReader:
        """The server may not listen yet."""
        for _ in range(100):
            with suppress(VideoError):
                return read_frames(address, reconnect=120, latest_only=False)
            time.sleep(0.2)
        raise AssertionError("no server")

    serve()
    try:
        reader = connect()
        indices = [next(reader).index for _ in range(10)]
        servers[0].kill()
        servers[0].wait()
        # A broadcast that pauses for less than the timeout has not gone away.
        starter = threading.Timer(8.0 if kind == "udp" else 3.0, serve)
        starter.start()
        while not reader.warnings:
            indices.append(next(reader).index)
        indices += [next(reader).index for _ in range(10)]
        starter.join()
        reader.close()
        assert indices == list(range(len(indices)))
        assert any("is read again after" in warning for warning in reader.warnings)
    finally:
        for process in servers:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_an_rtsp_server_that_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_decode, "TIMEOUT", 5.0)
    film = write_film(tmp_path / "a.mpg", 100, rate=25, codec="mpeg2video", coding={"g": "5"})
    server = RtspServer(film)
    try:
        reader = read_frames(server.address, reconnect=120, latest_only=False)
        assert reader.info.live and not reader.info.waits and reader.info.size == (48, 64)
        indices = [next(reader).index for _ in range(10)]
        port = server.server_address[1]
        server.kill()
        server = RtspServer(film, port)
        while len(reader.warnings) < 2:
            indices.append(next(reader).index)
        indices += [next(reader).index for _ in range(10)]
        reader.close()
        assert indices == list(range(len(indices)))
        assert "nothing came for 5 seconds" in reader.warnings[0]
        assert "is read again after" in reader.warnings[1]
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_film_from_a_server_ends(tmp_path: Path) -> None:
    """Unless one asks for it, it is not read again."""
    film = write_film(tmp_path / "a.mp4", 5)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/{film.name}"
        assert len(list(read_frames(address))) == 5
        server.shutdown()
        thread.join()


# The best stream ------------------------------------------------------------------------------


def write_two_streams(path: Path, cover_first: bool) -> Path:
    """A cover of one frame, and a film of 24 larger frames, which is the default stream."""
    with av.open(str(path), "w") as container:
        sizes = [(32, 32), (48, 64)] if cover_first else [(48, 64), (32, 32)]
        streams: list[Any] = []
        for size in sizes:
            stream: Any = container.add_stream("libx264", rate=10)
            (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
            stream.options = {"crf": "10", "preset": "ultrafast", "g": "6"}
            if size == (48, 64):
                stream.disposition = av.stream.Disposition.default
            else:
                stream.disposition = av.stream.Disposition(0)
            streams.append(stream)
        for stream, size in zip(streams, sizes, strict=True):
            for i in range(24 if size == (48, 64) else 1):
                image = np.full((*size, 3), 40 + 6 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("cover_first", [True, False])
def test_the_stream_that_players_show(tmp_path: Path, cover_first: bool) -> None:
    film = write_two_streams(tmp_path / "a.mkv", cover_first)
    reader = read_frames(film)
    assert reader.info.size == (48, 64)
    assert [number(frame.image) for frame in reader] == list(range(24))
    later = read_frames(film, start=15)
    assert [number(frame.image) for frame in later] == list(range(15, 24))
    assert not reader.warnings and not later.warnings
