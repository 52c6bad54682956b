"""Make the screenshots of the documentation: the page in the browser, and the App's panel.

    python demo/screenshots.py

They need what the tests need (``make setup``): Chromium, its driver and FiftyOne's database.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import open_browser, until  # noqa: E402

MODEL = "efficientsam3-stickers"
SCENES = ROOT / "demo" / "scenes"
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Write docs/images/web.webp and panel.webp."""
    os.environ |= {"SE_OFFLINE": "true", "FIFTYONE_DO_NOT_TRACK": "true"}
    with tempfile.TemporaryDirectory() as folder:
        save(show_web(Path(folder)), "web")
        save(show_panel(Path(folder)), "panel")


def save(png: bytes, name: str) -> None:
    """Write a screenshot for the documentation."""
    path = IMAGES / f"{name}.webp"
    Image.open(io.BytesIO(png)).convert("RGB").save(path, quality=85)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB")


def show_web(folder: Path) -> bytes:
    """The page with a sample, two phrases and their masks, as PNG."""
    import efficientsam3 as es3
    from efficientsam3.export import export_model
    from efficientsam3.web.browser_runtime import browser_runtime
    from efficientsam3.web.server import SiteServer
    from efficientsam3.web.site import site_files

    exported = folder / "onnx"
    export_model(es3.load(MODEL, device="cpu", dtype="float32"), exported, to="onnx")
    with SiteServer(site_files(exported, browser_runtime())) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        driver = open_browser(folder / "browser", (1280, 800))
        try:
            driver.get(server.address)
            until(lambda: rests(driver, "model"), "the model does not open")
            driver.find_element("css selector", "[data-sample='samples/fruit.jpg']").click()
            until(lambda: rests(driver, "found"), "nothing is found")
            return bytes(driver.get_screenshot_as_png())
        finally:
            driver.quit()
            server.shutdown()
            thread.join()


def rests(driver: Any, what: str) -> bool:
    """Whether the page has its model, or what was found, and nothing is going on."""
    return bool(
        driver.execute_async_script(
            "const [what, give] = arguments;"
            "import(new URL('state.js', document.baseURI))"
            ".then(({ state }) => give(Boolean(state[what]) && !state.jobs))",
            what,
        )
    )


def show_panel(folder: Path) -> bytes:
    """The panel with what was found in a sample, as PNG."""
    import fiftyone as fo
    from selenium.webdriver.common.keys import Keys

    from fiftyone_esam3.panel.segment_panel import SegmentPanel

    dataset = fo.Dataset()
    panel = "[data-cy=esam3-panel]"
    idle = f"{panel}[data-busy=false]"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver: Any = None
    try:
        dataset.add_sample(fo.Sample(filepath=str(SCENES / "images" / "scene_0000001.jpg")))
        session = fo.launch_app(dataset, remote=True, address="127.0.0.1", port=port)
        driver = open_browser(folder / "app", (1800, 1250))
        driver.get(f"http://127.0.0.1:{port}/datasets/{dataset.name}")
        until(lambda: driver.find_elements("css selector", "[data-cy=looker]"), "no sample")
        places = [fo.Panel(type="Samples", pinned=True), fo.Panel(type=SegmentPanel.NAME)]
        session.spaces = fo.Space(
            children=[fo.Space(children=[p], active_child=p.component_id) for p in places],
            orientation="horizontal",
        )
        until(lambda: driver.find_elements("css selector", f"{idle} canvas"), "no panel")
        driver.execute_script(
            "for (const b of document.querySelectorAll('button'))"
            " if (b.textContent.trim() === 'Dismiss') b.click()"
        )
        words = driver.find_element("css selector", f"{panel} input[aria-label=Concepts]")
        words.send_keys("animal", Keys.ENTER)
        shown = f"{idle} [data-class=animal]"
        until(lambda: driver.find_elements("css selector", shown), "nothing is found")
        time.sleep(2)  # the page is drawn
        return bytes(driver.find_element("css selector", panel).screenshot_as_png)
    finally:
        if driver is not None:
            driver.quit()
        fo.close_app()
        dataset.delete()


if __name__ == "__main__":
    main()
