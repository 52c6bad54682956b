"""The page in a browser, with the packaged model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import efficientsam3 as es3
from efficientsam3.export import export_model
from efficientsam3.runtime.manifest import MANIFEST_FILE
from efficientsam3.web.browser_runtime import browser_runtime
from efficientsam3.web.server import SiteServer
from efficientsam3.web.site import site_files

from ...browser import open_browser, until

SCENE = Path(__file__).parents[3] / "demo" / "scenes" / "images" / "scene_0000002.jpg"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as ONNX files."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("web") / "stickers"
    model = es3.load("efficientsam3-stickers", device="cpu", dtype="float32")
    export_model(model, folder, to="onnx")
    return folder


@contextmanager
def served(files: Mapping[str, Path]) -> Iterator[SiteServer]:
    """A server of some files, in a thread."""
    with SiteServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads
        driver.set_script_timeout(200)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script gives, which may await; modules of the page are imported with load."""
        failed, value = self.driver.execute_async_script(
            "const [give, ...values] = [arguments[arguments.length - 1], ...arguments];"
            "const load = (name) => import(new URL(name, document.baseURI));"
            "const $ = (id) => document.getElementById(id);"
            f"(async (args) => {{ {script} }})(values)"
            ".then((value) => give([false, value ?? null]), (e) => give([true, String(e)]));",
            *arguments,
        )
        assert not failed, value
        return value

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, name: str) -> str:
        return str(self.run("return $(args[0]).textContent", name))

    def until(self, condition: str, what: str, *arguments: Any) -> None:
        until(lambda: self.run(f"return Boolean({condition})", *arguments), what, 200)

    def rest(self) -> None:
        """Wait until nothing is going on."""
        self.until("!(await load('state.js')).state.jobs", "the page does not come to rest")

    def choose(self, picture: Path) -> None:
        """Choose a picture, and wait until it is encoded."""
        before = "(await load('state.js')).state.picture"
        self.run(f"const before = {before}; if (before) before.name = ''")
        self.find("#choose").send_keys(str(picture))
        self.until(f"{before}?.name", "the picture is not shown")
        self.rest()

    def search(self, phrases: str) -> None:
        self.run("$('phrases').value = args[0]; $('find').requestSubmit()", phrases)
        self.rest()

    def threshold(self, value: float) -> None:
        self.run(
            "$('threshold').value = args[0]; $('threshold').dispatchEvent(new Event('input'))",
            value,
        )

    def saved(self, button: str, name: str) -> Path:
        """The file that a button saves."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.find(f"#{button}").click()
        until(lambda: path.exists() and path.stat().st_size, f"{name} is not saved", 200)
        return path


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    downloads = tmp_path_factory.mktemp("downloads")
    browser = open_browser(tmp_path_factory.mktemp("browser"), (1280, 800), downloads)
    yield Page(browser, downloads)
    browser.quit()


@pytest.fixture(scope="session")
def site(exported: Path) -> Iterator[SiteServer]:
    with served(site_files(exported, browser_runtime())) as server:
        yield server


@pytest.fixture
def fresh(driver: Page, site: SiteServer) -> Page:
    """The page, anew, when its model is open."""
    driver.driver.get(site.address)
    driver.until("(await load('state.js')).state.model", "the model does not open")
    driver.rest()
    return driver


@pytest.fixture
def page(request: pytest.FixtureRequest, driver: Page, site: SiteServer) -> Page:
    """The page with a picture of which nothing is asked; it is loaded once for several tests."""
    if driver.driver.current_url != site.address:
        request.getfixturevalue("fresh")
    driver.threshold(0.5)
    driver.choose(SCENE)
    return driver


@pytest.fixture
def modules(driver: Page, site: SiteServer) -> Page:
    """A file of the site, from which its modules can be imported; no model is opened."""
    address = f"{site.address}style.css"
    if driver.driver.current_url != address:
        driver.driver.get(address)
    return driver


@pytest.fixture
def fake_model(tmp_path: Path) -> Path:
    """A folder that looks like an exported one, with a graph of a few bytes."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "image.onnx").write_bytes(b"graph")
    (folder / "requirements.txt").write_bytes(b"numpy")
    manifest = {
        **dict.fromkeys(("name", "precision", "speed", "version"), "x"),
        **{name: {} for name in ("standard", "graphs", "tokenizer", "missing", "config")},
        **{name: {} for name in ("preprocessing", "postprocessing")},
        "backend": "onnx",
        "format": 2,
        "abilities": [],
        "files": {"image.onnx": 5, "requirements.txt": 5},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def fake_runtime(tmp_path: Path) -> Path:
    folder = tmp_path / "runtime"
    folder.mkdir()
    (folder / "ort.wasm.min.mjs").write_text("export {};")
    return folder
