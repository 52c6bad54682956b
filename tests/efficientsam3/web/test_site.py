"""The site: its files, its server, and the command."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import efficientsam3.web.browser_runtime as runtime_module
from efficientsam3.errors import ArgumentError, CheckpointError
from efficientsam3.io.archives import ArchiveError
from efficientsam3.runtime.manifest import MANIFEST_FILE
from efficientsam3.web.browser_runtime import FILES, RUNTIME, VERSION, browser_runtime
from efficientsam3.web.server import POLICY, SiteServer
from efficientsam3.web.site import PAGE, site_files, write_site

from ..cli.conftest import run, run_refused
from ..io.test_archives import write_tar
from .conftest import served


@pytest.fixture
def files(fake_model: Path, fake_runtime: Path) -> dict[str, Path]:
    return site_files(fake_model, fake_runtime)


def get(server: SiteServer, path: str, method: str = "GET", **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.content = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_the_site_has_page_runtime_and_model(files: dict[str, Path]) -> None:
    assert {"index.html", "app.js", "worker.js", "style.css", "samples/animals.jpg"} <= set(files)
    assert {"runtime/ort.wasm.min.mjs", "model/manifest.json", "model/image.onnx"} <= set(files)
    assert "model/requirements.txt" not in files


def test_the_page_names_no_other_host_and_no_script_of_its_own() -> None:
    page = (PAGE / "index.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert f"{policy}; frame-ancestors 'none'" == POLICY
    for path in [*PAGE.glob("*.html"), *PAGE.glob("*.js"), *PAGE.glob("*.css")]:
        found = set(re.findall(r"https?://[^\s\"']+", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name  # the name of a name space
    assert not re.search(r"<script(?![^>]*src=)|style=\"|\son\w+=", page)


def test_the_server_isolates_the_page(files: dict[str, Path]) -> None:
    with served(files) as server:
        answer = get(server, "/")
        assert answer.status == 200
        assert answer.content == (PAGE / "index.html").read_bytes()
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert get(server, "/worker.js").headers["Content-Type"].startswith("text/javascript")
        assert get(server, "/runtime/ort.wasm.min.mjs").headers["Content-Security-Policy"] == POLICY
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}/"


def test_the_server_answers_with_its_files_alone(files: dict[str, Path]) -> None:
    with served(files) as server:
        for path in ("/../site.py", "/%2e%2e/site.py", "/model/requirements.txt", "/etc/passwd"):
            answer = get(server, path)
            assert (answer.status, answer.content) == (404, b"")
        assert get(server, "/", Host="evil.example:80").status == 403
        assert get(server, "/", Host=f"localhost:{server.server_address[1]}").status == 200
        assert get(server, "/", "POST").status == 501


def test_files_that_are_known_are_not_sent_again(files: dict[str, Path]) -> None:
    with served(files) as server:
        first = get(server, "/model/image.onnx")
        assert (first.status, first.content) == (200, b"graph")
        again = {"If-Modified-Since": first.headers["Last-Modified"]}
        assert get(server, "/model/image.onnx", **again).status == 304
        head = get(server, "/model/image.onnx", "HEAD")
        assert (head.status, head.headers["Content-Length"], head.content) == (200, "5", b"")


def test_a_port_that_is_taken_is_named(files: dict[str, Path]) -> None:
    with SiteServer(files) as server:
        port = server.server_address[1]
        with pytest.raises(ArgumentError, match=rf"port {port} cannot be opened.*leave it out"):
            SiteServer(files, port)


def test_a_site_is_written_and_replaced(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "site"
    size = write_site(files, folder)
    written = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in written.items()} == {
        name: path.read_bytes() for name, path in files.items()
    }
    assert size == sum(path.stat().st_size for path in written.values())
    (folder / "old.txt").write_text("old")
    write_site(files, folder)
    assert not (folder / "old.txt").exists()


def test_a_folder_with_something_else_is_kept(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ArgumentError, match="is not such a site"):
        write_site(files, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_models_of_other_runtimes_are_refused(fake_model: Path, fake_runtime: Path) -> None:
    manifest = json.loads((fake_model / MANIFEST_FILE).read_text())
    (fake_model / MANIFEST_FILE).write_text(json.dumps({**manifest, "backend": "openvino"}))
    with pytest.raises(ArgumentError, match="browsers run ONNX: efficientsam3 export --to onnx"):
        site_files(fake_model, fake_runtime)
    (fake_model / "image.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"image\.onnx is missing"):
        site_files(fake_model, fake_runtime)


# The runtime -----------------------------------------------------------------------------------


def test_the_runtime_is_pinned() -> None:
    assert VERSION in RUNTIME.command and VERSION in RUNTIME.file
    assert len(RUNTIME.sha256) == 64 and RUNTIME.license == "MIT"


def test_the_runtime_s_files_are_taken_from_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {f"package/dist/{name}": name.encode() for name in (*FILES, "ort.all.mjs")}
    archive = write_tar(tmp_path / RUNTIME.file, content)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(runtime_module, "RUNTIME", replace(RUNTIME, sha256=digest))
    folder = browser_runtime(tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {n: n.encode() for n in FILES}
    archive.unlink()
    assert browser_runtime(tmp_path) == folder  # nothing is fetched again


def test_an_altered_runtime_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUNTIME.file).write_bytes(b"something else")
    with pytest.raises(ArchiveError, match="incomplete or altered"):
        browser_runtime(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [RUNTIME.file]


# The command -----------------------------------------------------------------------------------


@pytest.fixture
def no_download(fake_runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "browser_runtime", lambda: fake_runtime)


def test_the_command_writes_a_site(fake_model: Path, tmp_path: Path, no_download: None) -> None:
    result = run("web", "--model", fake_model, "--out", tmp_path / "site")
    assert "page, runtime and model" in result.stderr
    assert (tmp_path / "site" / "model" / "image.onnx").read_bytes() == b"graph"


def test_the_command_serves_and_opens_the_page(
    fake_model: Path, no_download: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def serve(self: SiteServer) -> None:
        assert self.server_address[0] == "127.0.0.1"
        while not opened:  # by a thread
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(SiteServer, "serve_forever", serve)
    monkeypatch.setattr("webbrowser.open", opened.append)
    result = run("web", "--model", fake_model)
    (address,) = opened
    assert f"{address} shows the page" in result.stderr
    run("web", "--model", fake_model, "--no-open")
    assert len(opened) == 1


def test_options_that_do_not_go_with_the_command_are_refused(
    fake_model: Path, no_download: None
) -> None:
    assert "the browser chooses" in run_refused("web", "--model", fake_model, "--device", "cpu")
    message = run_refused("web", "--model", fake_model, "--dtype", "float16")
    assert "exported already" in message
