"""The App in a browser: an operator from its form to masks, the panel, and the click tool.

Screenshots are written to out/app, for people.
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

import efficientsam3 as es3
from efficientsam3.export.clicks import DECODER, ENCODER
from efficientsam3.variants import EMBEDDED
from fiftyone_esam3.click_tool import VARIABLE, use_click_tool
from fiftyone_esam3.panel import segment_panel
from fiftyone_esam3.plugin import PLUGIN
from fiftyone_esam3.runs.annotation import prepare_annotation
from fiftyone_esam3.runs.steps import finish

from .conftest import make_picture

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from ..browser import needs_browser, open_browser, until  # noqa: E402

PANEL = "[data-cy=esam3-panel]"
SHOTS = Path(__file__).parents[2] / "out" / "app"

pytestmark = needs_browser


class Page:
    """A browser that shows the App."""

    def __init__(self, folder: Path) -> None:
        self.driver = open_browser(folder, (1500, 1000))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def text_of(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def button(self, text: str) -> Any:
        """The last button with this text that can be pressed."""

        def find() -> Any:
            named = [b for b in self.all("button") if b.text == text]
            return named[-1] if named and named[-1].is_enabled() else None

        return until(find, f"no button {text!r}")

    def press(self, text: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.button(text))

    def slide(self, key: str, within: str = "") -> None:
        """Moves the slider of the threshold, the first with steps of a hundredth.

        The App's sidebar has such sliders too, of the labels' numbers: ``within`` selects a part
        of the page.
        """
        (first, *_) = self.all(f"{within} input[type=range][max='1'][step='0.01']")
        first.send_keys(key)

    def dismiss(self) -> None:
        """Close FiftyOne's advertisement, which covers the right side."""
        self.driver.execute_script(
            "for (const b of document.querySelectorAll('button'))"
            " if (b.textContent.trim() === 'Dismiss') b.click()"
        )

    def screenshot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def app(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The App with the tiny model as the packaged model, and a page that shows it."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(tiny_folder, folder / "assets" / EMBEDDED)
    dataset = fo.Dataset()
    for i in range(3):
        # In the first picture the untrained model's masks have no pixel, and are not shown.
        make_picture(i + 1, 240, 320).save(folder / f"{i}.png")
        box = fo.Detection(label="wild cat", bounding_box=[0.1, 0.1, 0.4, 0.5])
        labels = fo.Detections(detections=[box])
        dataset.add_sample(fo.Sample(filepath=str(folder / f"{i}.png"), boxes=labels))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clicks = folder / "clicks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "")
        use_click_tool(str(tiny_folder), clicks)
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
    page.screenshot("1-operators")
    search.clear()
    search.send_keys("segment concepts")
    until(lambda: "EfficientSAM3: segment concepts" in page.text, "the operator is not found")
    time.sleep(0.5)
    search.send_keys(Keys.ENTER)
    words = until(lambda: page.all("input[role=combobox]"), "no form")[0]
    until(lambda: "Required property" in page.text, "nothing is missing in an empty form")
    assert not [b for b in page.all("button") if b.text == "Execute"][-1].is_enabled()
    words.send_keys("cat", Keys.ENTER)  # "wild cat", which the dataset has, contains it
    words.send_keys("bus")  # without Enter
    classes = page.all("input[role=combobox]")[1]
    classes.send_keys("wi")
    until(lambda: page.text_of("[role=option]") == ["wild cat"], "the class is not offered")
    page.screenshot("2-form")
    classes.send_keys(Keys.CONTROL, "a")
    classes.send_keys(Keys.DELETE)
    assert page.text_of(".MuiAutocomplete-tag") == ["cat", "bus"]
    page.slide(Keys.HOME)
    page.button("Execute")
    page.press("Execute")

    def labeled() -> bool:
        dataset.reload()
        return dataset.has_field("esam3") and len(dataset.exists("esam3")) == 3

    until(labeled, "no labels in the database")
    until(lambda: "3 samples in" in page.text, "no summary")
    page.screenshot("3-summary")
    assert set(dataset.distinct("esam3.detections.label")) == {"cat", "bus"}
    page.press("Done")
    until(lambda: "esam3" in page.text, "the field is not in the sidebar")
    page.dismiss()
    time.sleep(2)  # the masks are drawn
    page.screenshot("4-masks")


def test_the_panel_s_script_comes_from_the_app_s_server(app: SimpleNamespace) -> None:
    host = app.address.split("/datasets")[0]
    with urllib.request.urlopen(f"{host}/plugins") as answer:
        (plugin,) = (p for p in json.load(answer)["plugins"] if p["name"] == PLUGIN)
    address = f"{host}{plugin['js_bundle_server_path']}?h={plugin['js_bundle_hash']}"
    with urllib.request.urlopen(address) as file:
        assert file.read() == Path(segment_panel.__file__).with_name("panel.js").read_bytes()


IDLE = f"{PANEL}[data-busy=false]"


def open_panel(app: SimpleNamespace) -> None:
    """Show the panel beside the grid, and wait for its picture."""
    grid = fo.Panel(type="Samples", pinned=True)
    panel = fo.Panel(type=segment_panel.SegmentPanel.NAME)
    app.session.spaces = fo.Space(
        children=[
            fo.Space(children=[grid], active_child=grid.component_id),
            fo.Space(children=[panel], active_child=panel.component_id),
        ],
        orientation="horizontal",
    )
    until(lambda: app.page.all(f"{IDLE} canvas"), "the panel shows no picture")
    app.page.dismiss()


def test_the_panel_finds_filters_segments_accepts_and_undoes(app: SimpleNamespace) -> None:
    page, dataset = app.page, app.dataset
    open_panel(app)

    def count(name: str) -> int | None:
        found = page.all(f"{IDLE} [data-class='{name}']")
        return int(found[0].get_attribute("data-count")) if found else None

    page.press("Settings")
    field = page.all(f"{PANEL} input[role=combobox]")[1]
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("objects")
    (words,) = page.all(f"{PANEL} input[aria-label=Concepts]")
    words.send_keys("cat", Keys.ENTER)  # "wild cat", which the dataset has, contains it
    until(lambda: count("cat") is not None, "no counts")
    assert page.text_of(f"{PANEL} .MuiAutocomplete-tag") == ["cat"]

    def requests() -> list[str]:
        """Runs of operators, and images; the App asks for other things at times of its own."""
        script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        parts = ("/operators/execute", "/media")
        return [
            name for name in page.driver.execute_script(script) if any(p in name for p in parts)
        ]

    page.driver.execute_script("performance.setResourceTimingBufferSize(10000)")
    before = until(lambda: settled(requests), "the page does not come to rest")
    page.slide(Keys.HOME, PANEL)
    until(lambda: count("cat"), "the slider shows no instance")
    page.screenshot("5-found")
    page.slide(Keys.END, PANEL)
    until(lambda: count("cat") == 0, "the slider hides not all instances")
    assert requests() == before  # the slider needs no request, and the grid is not loaded anew
    (picture,) = page.all("[data-cy=esam3-picture]")
    mouse = webdriver.ActionChains(page.driver)
    mouse.move_to_element_with_offset(picture, -50, -50).click().perform()
    until(lambda: count("cat") == 1, "a click makes no object")
    page.screenshot("6-click")
    page.press("Accept")

    def labels() -> int:
        dataset.reload()
        return int(dataset.count("objects.detections")) if dataset.has_field("objects") else 0

    until(lambda: labels() == 1, "nothing was accepted")
    until(lambda: "objects" in page.text.split(), "the new field is not in the sidebar")
    page.press("Undo")
    until(lambda: count("cat") == 1, "Undo does not bring the object back")
    assert labels() == 0
    page.screenshot("7-undone")


WATCH = """
const [event, name] = arguments, panel = document.querySelector('[data-cy=esam3-panel]');
const count = () => panel.querySelector(`[data-class='${name}']`)?.dataset.count;
const before = count();
window.watched = {};
document.addEventListener(event, () => {window.watched.start ??= performance.now()}, true);
window.watcher?.disconnect();
window.watcher = new MutationObserver(() => {
  if (count() !== before) window.watched.end ??= performance.now();
});
window.watcher.observe(panel, {subtree: true, childList: true, attributes: true});
"""
"""Notes when an event comes, and when the number of instances of a concept has changed."""


@pytest.mark.long
def test_how_soon_the_panel_answers(
    app: SimpleNamespace,
    tiny_folder: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """The slider within 0.2 s; a click within 0.3 s and the cost of the heads."""
    page = app.page
    open_panel(app)
    (words,) = page.all(f"{PANEL} input[aria-label=Concepts]")
    words.send_keys("cat", Keys.ENTER)
    until(lambda: page.all(f"{IDLE} [data-class=cat]"), "no counts")

    def watched(event: str, act: Callable[[], None]) -> float:
        page.driver.execute_script(WATCH, event, "cat")
        act()
        script = "return window.watched.end - window.watched.start"
        return float(until(lambda: page.driver.execute_script(script), "no answer")) / 1000

    slider = [
        watched("keydown", lambda k=key: page.slide(k, PANEL)) for key in (Keys.HOME, Keys.END)
    ]
    model = es3.load(tiny_folder, device="cpu")
    encoded = model.encode(app.dataset.first().filepath)
    started = time.perf_counter()
    model.segment(encoded, points=[[99, 99]])
    heads = time.perf_counter() - started
    (picture,) = page.all("[data-cy=esam3-picture]")

    def click() -> None:
        mouse = webdriver.ActionChains(page.driver)
        mouse.move_to_element_with_offset(picture, -50, -50).click().perform()

    clicked = watched("pointerdown", click)
    for name, value in (("slider", slider), ("click", clicked), ("heads", heads)):
        record_testsuite_property(name, value)
    assert 0 < max(slider) < 0.2
    assert 0 < clicked < heads + 0.3


def settled(value: Callable[[], list[str]]) -> list[str] | None:
    """A list that has been the same for a second, or None."""
    before = value()
    time.sleep(1)
    return before if value() == before else None


def test_the_click_tool_s_files_come_from_the_app_s_server(app: SimpleNamespace) -> None:
    host = app.address.split("/datasets")[0]
    for name in (ENCODER, DECODER):
        with urllib.request.urlopen(f"{host}/runtime-assets/models/sam2/{name}") as answer:
            url = json.load(answer)["url"]
        with urllib.request.urlopen(host + url) as file:
            assert file.read() == (app.clicks / name).read_bytes()


def test_a_click_in_annotate_makes_a_mask(app: SimpleNamespace) -> None:
    """FiftyOne's own tool in the browser uses our files."""
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
    mouse = webdriver.ActionChains(page.driver)
    mouse.move_to_element_with_offset(canvas, 20, 20).click().perform()

    def masks() -> list[Any]:
        sample.reload()
        return [d.mask for d in sample.boxes.detections if d.mask is not None]

    (mask,) = until(masks, "a click makes no mask", 120)
    page.screenshot("8-click-tool")
    assert mask.any()


def test_the_page_loads_our_files_from_this_machine(app: SimpleNamespace) -> None:
    """No request of the page for our files goes to another host."""
    script = "return performance.getEntriesByType('resource').map(e => e.name)"
    names = app.page.driver.execute_script(script)
    ours = [n for n in names if "efficientsam3" in n.lower()]
    host = app.address.split("/datasets")[0]
    assert all(n.startswith((host, "data:", "blob:")) for n in ours)
    assert urllib.request.urlopen(host).status == 200
    assert os.environ["SE_OFFLINE"] == "true"


def test_a_run_is_cancelled_in_its_dialog(app: SimpleNamespace) -> None:
    page, dataset = app.page, app.dataset
    first = dataset.first().filepath
    dataset.add_samples([fo.Sample(filepath=first) for _ in range(300)])
    page.driver.get(app.address)
    until(lambda: len(page.all("[data-cy=looker]")) > 3, "the grid has not the new samples")
    page.driver.find_element(By.TAG_NAME, "body").send_keys("`")
    search = until(lambda: page.all("input[placeholder^='Search operations']"), "no browser")[0]
    search.send_keys("segment concepts")
    until(lambda: "EfficientSAM3: segment concepts" in page.text, "the operator is not found")
    time.sleep(0.5)
    search.send_keys(Keys.ENTER)
    until(lambda: "Required property" in page.text, "the form is not ready")

    def enter_word() -> bool:
        # The panel that an earlier test opened has such fields, too, behind the form.
        page.all("[role=dialog] input[role=combobox]")[0].send_keys("zebra", Keys.ENTER)
        return True

    until(enter_word, "no field for words")
    until(lambda: "Required property" not in page.text, "the word is not taken")
    page.press("Execute")
    until(lambda: [b for b in page.all("button") if b.text.startswith("Cancel: ")], "no button")
    page.screenshot("5-cancel")
    page.press("Cancel: keep what is done")
    until(lambda: "are left, and the same request continues" in page.text, "it goes on")
    page.screenshot("6-cancelled")
    dataset.reload()
    assert len(dataset.match_labels(filter=fo.ViewField("label") == "zebra")) < 300
