"""Downloads, against a stand-in of the hub on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

import efficientsam3 as es3
from efficientsam3.checkpoints.hub import download
from efficientsam3.variants import VARIANTS, find_variant

NAME = "efficientsam3-tinyvit-11m"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Hub:
    """A hub with one repository.

    Attributes:
        content: of every file. says: the content that its headers speak of.
        is_large: whether headers have the sha256 of large files, or git's hash.
        refuse: status and error code of every answer, as the hub sends them.
        cuts: bytes of the body after which the next answers break off.
        asked: (method, path, Range header) of each request.
    """

    def __init__(self) -> None:
        self.content = self.says = CONTENT
        self.is_large = True
        self.refuse: tuple[int, str] | None = None
        self.cuts: list[int] = []
        self.asked: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                span = self.headers.get("Range")
                hub.asked.append((self.command, self.path, span))
                if hub.refuse is not None:
                    status, code = hub.refuse
                    self.send_response(status)
                    self.send_header("X-Error-Code", code)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
                part = hub.content[start:]
                digest = hub.hash_of(hub.says)
                self.send_response(206 if span else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Linked-Etag", f'"{digest}"')
                self.send_header("X-Linked-Size", str(len(hub.says)))
                self.send_header("Content-Length", str(len(part)))
                if span:
                    total = len(hub.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.end_headers()
                if not body:
                    return
                if hub.cuts:
                    self.wfile.write(part[: hub.cuts.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(part)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def hash_of(self, content: bytes) -> str:
        if self.is_large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no token, and no waiting between tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path) -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()
    if hasattr(huggingface_hub, "close_session"):
        huggingface_hub.close_session()


def files(cache: Path) -> list[str]:
    """Blobs and snapshots, whole or not."""
    found = [p for p in cache.rglob("*") if {"blobs", "snapshots"} & set(p.parts)]
    return sorted(p.name for p in found if p.is_file() or p.is_symlink())


def test_a_download_is_cached_and_used_again_without_network(hub: Hub, cache: Path) -> None:
    source = find_variant(NAME).weights
    path = download(NAME, endpoint=hub.endpoint)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert path.name == Path(source.path).name
    resolve = f"/{source.repo}/resolve/"
    assert [(method, url) for method, url, _ in hub.asked] == [
        ("HEAD", f"{resolve}{source.revision}/{source.path}"),
        ("GET", f"{resolve}{source.revision}/{source.path}"),
    ]
    hub.close()
    assert download(NAME, endpoint=hub.endpoint) == path
    assert len(hub.asked) == 2


def test_an_alias_is_the_same_file(hub: Hub) -> None:
    path = download(NAME, endpoint=hub.endpoint)
    assert download("TV-M", endpoint=hub.endpoint) == path
    assert len(hub.asked) == 2


def test_a_cut_connection_resumes_where_it_stopped(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.cuts = [300_000, 200_000]
    path = download(NAME, endpoint=hub.endpoint)
    assert path.read_bytes() == CONTENT
    ranges = [span for method, _, span in hub.asked if method == "GET"]
    assert ranges[0] is None
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in ranges[1:] if span]
    assert len(starts) == 2
    assert 0 < starts[0] <= 300_000 < starts[1] <= 500_000


def test_a_connection_that_never_holds_says_what_to_do(hub: Hub, cache: Path) -> None:
    hub.cuts = [0] * 50
    with pytest.raises(es3.WeightsNotFoundError) as caught:
        download(NAME, endpoint=hub.endpoint)
    assert "checkpoint=" in str(caught.value)
    assert files(cache) == []
    hub.cuts = []
    assert download(NAME, endpoint=hub.endpoint).read_bytes() == CONTENT


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("is_large", [True, False], ids=["sha256", "git"])
def test_wrong_bytes_are_refused_and_do_not_stay(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, links: bool, is_large: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: links)
    hub.is_large = is_large
    hub.content = CONTENT[:-1] + b"!"
    with pytest.raises(es3.CheckpointError) as caught:
        download(NAME, endpoint=hub.endpoint)
    for content in (hub.content, CONTENT):
        assert hub.hash_of(content) in str(caught.value)
    assert "download it again" in str(caught.value)
    assert files(cache) == []
    hub.content = CONTENT
    path = download(NAME, endpoint=hub.endpoint)
    assert path.read_bytes() == CONTENT
    assert path.is_symlink() == links


def test_a_file_in_a_store_that_the_cache_links_to_is_compared_by_the_hash_of_the_hub(
    hub: Hub, cache: Path, tmp_path: Path
) -> None:
    first = download(NAME, endpoint=hub.endpoint)
    blob, stored = first.resolve(), tmp_path / "store" / ("0" * 64)
    stored.parent.mkdir()
    blob.rename(stored)
    blob.symlink_to(stored)
    first.unlink()  # the next download finds the blob, and links to it
    assert download(NAME, endpoint=hub.endpoint).read_bytes() == CONTENT
    first.unlink()
    stored.write_bytes(b"other")
    with pytest.raises(es3.CheckpointError, match="but the hub says"):
        download(NAME, endpoint=hub.endpoint)
    assert files(cache) == []


def test_without_links_a_file_that_cannot_be_compared_does_not_stay(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)

    def refuse(url: str) -> None:
        raise OSError("the connection was reset")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(es3.WeightsNotFoundError, match="the connection was reset"):
        download(NAME, endpoint=hub.endpoint)
    assert files(cache) == []


def test_a_file_that_is_not_the_pinned_one_is_refused_though_the_hub_states_it(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = find_variant(NAME)
    for pinned, is_right in ((hashlib.sha256(b"other").hexdigest(), False), (None, True)):
        pinned = pinned or hashlib.sha256(CONTENT).hexdigest()
        weights = dataclasses.replace(variant.weights, sha256=pinned)
        monkeypatch.setitem(VARIANTS, NAME, dataclasses.replace(variant, weights=weights))
        if is_right:
            assert download(NAME, endpoint=hub.endpoint).read_bytes() == CONTENT
            continue
        with pytest.raises(es3.CheckpointError, match=f"this version expects {pinned}"):
            download(NAME, endpoint=hub.endpoint)
        assert files(cache) == []


def test_a_file_of_the_wrong_size_is_refused(hub: Hub, cache: Path) -> None:
    hub.content = CONTENT[:-1000]
    with pytest.raises((es3.CheckpointError, es3.WeightsNotFoundError)):
        download(NAME, endpoint=hub.endpoint)
    assert files(cache) == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_get_access(hub: Hub, status: int) -> None:
    hub.refuse = (status, "GatedRepo")
    with pytest.raises(es3.WeightsNotFoundError) as caught:
        download("sam3", endpoint=hub.endpoint)
    for word in ("facebook/sam3", "gated", "access", "hf auth login", "checkpoint="):
        assert word in str(caught.value)


def by_hand(message: str, endpoint: str) -> None:
    """The message says which file to get, and how to pass it."""
    source = find_variant(NAME).weights
    assert f"{endpoint}/{source.repo}/resolve/{source.revision}/{source.path}" in message
    assert f"checkpoint='<path of {Path(source.path).name}>'" in message


@pytest.mark.parametrize(
    ("status", "code"), [(404, "EntryNotFound"), (404, "RepoNotFound"), (401, ""), (500, "")]
)
def test_a_hub_that_refuses(hub: Hub, status: int, code: str) -> None:
    hub.refuse = (status, code)
    with pytest.raises(es3.WeightsNotFoundError) as caught:
        download(NAME, endpoint=hub.endpoint)
    by_hand(str(caught.value), hub.endpoint)


def test_without_network_it_says_which_file_to_put_where(hub: Hub) -> None:
    hub.close()
    with pytest.raises(es3.WeightsNotFoundError) as caught:
        download(NAME, endpoint=hub.endpoint)
    assert NAME in str(caught.value)
    by_hand(str(caught.value), hub.endpoint)


def test_offline_by_choice_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(es3.WeightsNotFoundError) as caught:
        download(NAME, endpoint=hub.endpoint)
    by_hand(str(caught.value), hub.endpoint)
    assert hub.asked == []


def test_a_downloaded_file_that_is_no_checkpoint(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    with pytest.raises(es3.CheckpointError, match="not the start of a PyTorch file"):
        es3.load(NAME)
    assert hub.asked


def test_an_unknown_name_is_not_looked_for(hub: Hub) -> None:
    with pytest.raises(ValueError, match="unknown model 'efficientsam3-tinyvit-12m'"):
        download("efficientsam3-tinyvit-12m", endpoint=hub.endpoint)
    assert hub.asked == []
