"""The App in a real browser: operator browser, form, run and masks; the panel; clicks.

Screenshots are in out/app, for people to look at.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fiftyone as fo
import pytest

from efficientsam3.export.clicks import DECODER, ENCODER
from efficientsam3.variants import EMBEDDED
from fiftyone_esam3.annotate import prepare_annotation
from fiftyone_esam3.click_tool import VARIABLE, use_click_tool
from fiftyone_esam3.panel import Workbench
from fiftyone_esam3.runs import finish

from .conftest import picture

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import (  # noqa: E402
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SHOTS = Path(__file__).parents[2] / "out" / "app"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--window-size=1500,1000"),
)


def until(ready: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """Waits for something to be true, and gives it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ready():
                return found
        except (
            ElementNotInteractableException,
            ValueError,
            IndexError,
            StaleElementReferenceException,
        ):
            pass  # it is being drawn anew
        time.sleep(0.3)
    raise AssertionError(f"after {seconds:.0f} s: {what}")


class Page:
    """A browser with the App in it."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        service = webdriver.chrome.service.Service(DRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def button(self, text: str) -> Any:
        """The last button with this text that can be pressed."""

        def find() -> Any:
            named = [b for b in self.all("button") if b.text == text]
            return named[-1] if named and named[-1].is_enabled() else None

        return until(find, f"no button {text!r}")

    def press(self, text: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.button(text))

    def slide(self, key: str) -> None:
        """Moves the last slider from 0 to 1."""
        sliders = [s for s in self.all("input[type=range]") if s.get_attribute("max") == "1"]
        sliders[-1].send_keys(key)

    def dismiss(self) -> None:
        """Takes FiftyOne's advertisement away, which lies over the right side."""
        self.driver.execute_script(
            "for (const b of document.querySelectorAll('button'))"
            " if (b.textContent.trim() === 'Dismiss') b.click()"
        )

    def picture(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def app(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The App, whose model in the package is the tiny one, and a page that shows it."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(tiny, folder / "assets" / EMBEDDED)
    dataset = fo.Dataset()
    for i in range(3):
        picture(i, 240, 320).save(folder / f"{i}.png")
        box = fo.Detection(label="cat", bounding_box=[0.1, 0.1, 0.4, 0.5])
        labels = fo.Detections(detections=[box])
        dataset.add_sample(fo.Sample(filepath=str(folder / f"{i}.png"), boxes=labels))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clicks = folder / "clicks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "")
        use_click_tool(str(tiny), clicks)
        patch.setenv("EFFICIENTSAM3_ASSETS", str(folder / "assets"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SE_OFFLINE", "true")
        session = fo.launch_app(dataset, remote=True, address="127.0.0.1", port=port)
        address = f"http://127.0.0.1:{port}/datasets/{dataset.name}"
        page = Page(folder / "browser")
        page.driver.get(address)
        until(lambda: len(page.all("[data-cy=looker]")) == 3, "the grid has not three samples")
        yield SimpleNamespace(
            page=page, dataset=dataset, session=session, address=address, clicks=clicks
        )
        page.driver.quit()
        session.close()
        fo.close_app()
    dataset.delete()


def test_an_operator_from_its_form_to_masks(app: SimpleNamespace) -> None:
    page, dataset = app.page, app.dataset
    page.driver.find_element(By.TAG_NAME, "body").send_keys("`")
    search = until(lambda: page.all("input[placeholder^='Search operations']"), "no browser")[0]
    search.send_keys("EfficientSAM3")
    until(lambda: page.text.count("EfficientSAM3:") >= 7, "not all operators are listed")
    page.picture("1-operators")
    search.clear()
    search.send_keys("segment concepts")
    until(lambda: "EfficientSAM3: segment concepts" in page.text, "the operator is not found")
    time.sleep(0.5)
    search.send_keys(Keys.ENTER)
    words = until(lambda: page.all("input[role=combobox]"), "no form")[0]
    until(lambda: "Required property" in page.text, "nothing is missing in an empty form")
    assert not [b for b in page.all("button") if b.text == "Execute"][-1].is_enabled()
    words.send_keys("ca")
    until(lambda: page.all("[role=option]"), "the dataset's class is not offered")
    page.picture("2-form")
    words.send_keys("t", Keys.ENTER)
    words.send_keys("bus", Keys.ENTER)
    page.slide(Keys.HOME)
    page.button("Execute")
    page.press("Execute")

    def labelled() -> bool:
        dataset.reload()
        return dataset.has_field("esam3") and len(dataset.exists("esam3")) == 3

    until(labelled, "no labels in the database")
    until(lambda: "3 samples in" in page.text, "no summary")
    page.picture("3-summary")
    assert set(dataset.distinct("esam3.detections.label")) == {"cat", "bus"}
    page.press("Done")
    until(lambda: "esam3" in page.text, "the field is not in the sidebar")
    page.dismiss()
    time.sleep(2)  # the masks are drawn
    page.picture("4-masks")


def test_the_panel_s_preview_slider_click_and_accept(app: SimpleNamespace) -> None:
    page, dataset = app.page, app.dataset
    grid = fo.Panel(type="Samples", pinned=True)
    bench = fo.Panel(type=Workbench.NAME)
    app.session.spaces = fo.Space(
        children=[
            fo.Space(children=[grid], active_child=grid.component_id),
            fo.Space(children=[bench], active_child=bench.component_id),
        ],
        orientation="horizontal",
    )
    until(lambda: page.all(".js-plotly-plot"), "the panel shows no picture")

    def type_word() -> bool:
        (words, *_) = [e for e in page.all("input[role=combobox]") if e.is_displayed()]
        if words.get_attribute("value") != "truck":
            words.send_keys("truck", Keys.ENTER)
        return bool(words.get_attribute("value") == "truck")

    page.dismiss()
    until(type_word, "nothing can be typed")
    time.sleep(1)
    page.press("Preview")

    def count(name: str) -> int | None:
        rows = [line.split() for line in page.text.split("\n") if line.startswith(f"{name} ")]
        return int(rows[0][1]) if rows and len(rows[0]) == 3 else None

    until(lambda: count("truck") is not None, "no counts")
    page.slide(Keys.HOME)
    until(lambda: (count("truck") or 0) > 0, "the slider lets nothing in")
    many = count("truck")
    page.picture("5-preview")
    page.slide(Keys.END)
    until(lambda: count("truck") == 0, "the slider leaves something")
    plot = page.all(".js-plotly-plot")[0]
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", plot)
    time.sleep(0.5)
    area = plot.find_element(By.CSS_SELECTOR, ".nsewdrag")
    hand = webdriver.ActionChains(page.driver)
    hand.move_to_element_with_offset(area, -100, -100).click().perform()
    until(lambda: count("truck") == 1, "a click makes no object")
    page.picture("6-click")
    page.press("Accept")

    def accepted() -> bool:
        dataset.reload()
        return "truck" in dataset.distinct("esam3.detections.label")

    until(accepted, "nothing was accepted")
    page.press("Undo")
    until(lambda: not accepted(), "Undo leaves it in the database")
    assert many
    page.picture("7-undone")


def test_the_click_tool_s_files_come_from_the_app_s_server(app: SimpleNamespace) -> None:
    host = app.address.split("/datasets")[0]
    for name in (ENCODER, DECODER):
        with urllib.request.urlopen(f"{host}/runtime-assets/models/sam2/{name}") as answer:
            url = json.load(answer)["url"]
        with urllib.request.urlopen(host + url) as file:
            assert file.read() == (app.clicks / name).read_bytes()


def test_a_click_in_annotate_makes_a_mask(app: SimpleNamespace) -> None:
    """FiftyOne's own tool in the browser, with our files."""
    page, dataset = app.page, app.dataset
    finish(prepare_annotation(dataset, ["boxes"]))
    sample = dataset.first()
    assert [d.mask for d in sample.boxes.detections] == [None]
    page.driver.get(f"{app.address}?id={sample.id}")
    for part in ("annotate", "segmentation-mode", "ai"):
        (element, *_) = until(lambda part=part: page.all(f"[data-cy={part}]"), f"no {part!r}")
        page.dismiss()
        time.sleep(1)
        element.click()
    time.sleep(2)
    canvas = page.all("[data-cy=lighter-sample-renderer-canvas]")[0]
    hand = webdriver.ActionChains(page.driver)
    hand.move_to_element_with_offset(canvas, 20, 20).click().perform()

    def masks() -> list[Any]:
        sample.reload()
        return [d.mask for d in sample.boxes.detections if d.mask is not None]

    (mask,) = until(masks, "a click makes no mask", 120)
    page.picture("8-click-tool")
    assert mask.any()


def test_the_server_has_nothing_but_local_addresses(app: SimpleNamespace) -> None:
    """What the page has asked for, beside fonts, came from this machine."""
    script = "return performance.getEntriesByType('resource').map(e => e.name)"
    names = app.page.driver.execute_script(script)
    ours = [n for n in names if "efficientsam3" in n.lower()]
    host = app.address.split("/datasets")[0]
    assert all(n.startswith((host, "data:", "blob:")) for n in ours)
    assert urllib.request.urlopen(host).status == 200
    assert os.environ["SE_OFFLINE"] == "true"
