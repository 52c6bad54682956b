"""The page in Chromium: its answers are Python's, and what it shows, saves and refuses."""

from __future__ import annotations

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3.bpe import TruncatedTextWarning, clean, clip_tokenizer
from efficientsam3.concepts import read_concepts
from efficientsam3.io import rle
from efficientsam3.masks.overlap import suppress
from efficientsam3.outputs import object_instances
from efficientsam3.runtime.manifest import MANIFEST_FILE
from efficientsam3.runtime.pixels import normalize
from efficientsam3.types import LogitPatch
from efficientsam3.variants import EMBEDDED, find_variant
from efficientsam3.viz.overlay import instance_colors
from efficientsam3.web.browser_runtime import browser_runtime
from efficientsam3.web.site import site_files

from ...browser import needs_browser
from ..cli.conftest import run
from ..test_bpe import LETTERS, PHRASES
from .conftest import SCENE, Page, served

pytestmark = [*needs_browser, pytest.mark.xdist_group("web")]

ASKED = "animal, vehicle,  food ,Animal"
NAMES = ["animal", "vehicle", "food"]

ARRAYS = """
const read = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const write = (array) => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
};
"""


def pack(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


# Numbers ---------------------------------------------------------------------------------------


def test_tokens_are_python_s(modules: Page) -> None:
    rng = random.Random(0)
    made = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 40))) for _ in range(300)]
    # Text that was decoded with a wrong character set is repaired in Python alone.
    phrases = [text for text in [*PHRASES, *made] if "Ã" not in text]
    found = modules.run(
        """
        const { clean } = await load("concepts.js");
        const { Tokenizer } = await load("tokenizer.js");
        const [file, manifest] = await Promise.all(["tokenizer.json", "manifest.json"].map(
          async (name) => (await fetch(`model/${name}`)).json()));
        const tokenizer = new Tokenizer(file, manifest.tokenizer);
        return args[0].map((phrase) => {
          const { ids, cut } = tokenizer.read([clean(phrase)]);
          return { text: clean(phrase), ids: Array.from(ids, Number), cut: cut[0] };
        });
        """,
        phrases,
    )
    tokenizer = clip_tokenizer()
    whole = tokenizer(phrases, 77)
    context = find_variant(EMBEDDED).context
    with pytest.warns(TruncatedTextWarning):
        ids = tokenizer(phrases, context)
    for row, (phrase, answer) in enumerate(zip(phrases, found, strict=True)):
        assert answer["text"] == clean(phrase)
        assert answer["ids"] == ids[row].tolist(), phrase
        length = int(whole[row].argmax()) + 1  # the end has the largest number
        assert answer["cut"] == (length > context), phrase


def test_phrases_are_split_and_refused_as_in_python(modules: Page) -> None:
    typed = "dog,, Dog , caf\u0065\u0301\u200f  au lait,\tyellow   bus"
    script = "return (await load('concepts.js')).readPhrases(args[0]).map(({ name }) => name)"
    assert modules.run(script, typed) == read_concepts([p for p in typed.split(",") if p])
    for wrong in ("", " , ", "...", "a\u0000b"):
        with pytest.raises(AssertionError, match=r"Type what to find|is words|control character"):
            modules.run(script, wrong)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(48, 64, 112), (300, 200, 112), (112, 112, 112), (1, 300, 56)]
)
def test_pixels_are_python_s(modules: Page, height: int, width: int, side: int) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    found = modules.run(
        f"""{ARRAYS}
        const {{ normalize }} = await load("pixels.js");
        const [text, height, width, side] = args;
        return write(normalize({{ data: read(text, Uint8Array), width, height }}, side, 0.45, 0.3));
        """,
        *(pack(rgba), height, width, side),
    )
    ours = np.frombuffer(base64.b64decode(found), np.float32).reshape(1, 3, side, side)
    np.testing.assert_array_equal(ours, normalize(rgba[..., :3], side, 0.45, 0.3))


def test_masks_are_python_s(modules: Page) -> None:
    """Cut, enlarged, compressed, suppressed and filled; among them empty and full ones."""
    rng, side, size = np.random.default_rng(0), 24, (50, 71)
    coarse = rng.normal(0, 3, (12, 5, 5)).astype(np.float32)
    masks = np.stack([np.array(Image.fromarray(m).resize((side, side))) for m in coarse])
    masks = np.concatenate(
        [masks, masks[:2] + 0.1, np.full((1, side, side), -1), np.ones((1, side, side))]
    )
    masks = masks.astype(np.float32)
    found = modules.run(
        f"""{ARRAYS}
        const {{ cropMask, cutPatch, encodeRle, fillHoles, suppress }} = await load("masks.js");
        const [text, count, side, [height, width]] = args, all = read(text, Float32Array);
        const area = side * side;
        const rows = Array.from({{ length: count }}, (_, i) => i * area);
        const masks = rows.map((start) => all.slice(start, start + area));
        const kept = suppress(masks, 0.5);
        const rles = masks.map((mask) => encodeRle(
          cropMask(cutPatch(mask, side, side), height, width), height, width));
        return {{ kept, rles, filled: masks.map((mask) => {{
          fillHoles(mask, side, side);
          return write(cutPatch(mask, side, side).logits);
        }}) }};
        """,
        *(pack(masks), len(masks), side, size),
    )
    assert found["kept"] == suppress(masks > 0, 0.5).tolist()
    assert len(found["kept"]) < len(masks)
    for ours, logits in zip(found["rles"], masks, strict=True):
        assert ours == rle.encode_cut(*LogitPatch.cut(logits).crop(size), size)
    for filled, patch in zip(
        found["filled"], object_instances(masks, masks[:, 0, 0], 1, size).patches or [], strict=True
    ):
        ours = np.frombuffer(base64.b64decode(filled), np.float32)
        np.testing.assert_array_equal(ours, patch.logits.ravel())  # type: ignore[union-attr]


# Answers ---------------------------------------------------------------------------------------


def test_saved_coco_is_that_of_the_command(page: Page, exported: Path, tmp_path: Path) -> None:
    page.search(ASKED)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / SCENE.name).write_bytes(SCENE.read_bytes())
    command = ["segment", tmp_path / "one", "--model", exported, "--out", tmp_path / "out"]
    for threshold in (0.35, 0.15):
        page.threshold(threshold)
        ours = json.loads(page.saved("save-coco", "scene_0000002.json").read_text())
        run(*command, *(f"--concept={name}" for name in NAMES), "--threshold", threshold)
        theirs = json.loads((tmp_path / "out" / "instances.json").read_text())
        for asked in (ours, theirs):
            settings = asked["info"].pop("settings")
            assert settings["concepts"] == NAMES
            assert settings["threshold"] == threshold
            assert set(asked.pop("info")) == {"description", "folder"}
        assert len(theirs["annotations"]) > 5
        check_equal(ours, theirs)


def check_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The same COCO content, but for what other arithmetic changes."""
    assert list(ours) == list(theirs)
    found = zip(ours.pop("annotations"), theirs.pop("annotations"), strict=True)
    shares = [one["images"][0].pop("presence") for one in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)
    assert ours == theirs
    for a, b in found:
        assert list(a) == list(b)
        for name in ("id", "image_id", "category_id", "iscrowd", "number"):
            assert a[name] == b[name], name
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
        assert a["presence"] == pytest.approx(b["presence"], abs=1e-4)
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1)
        masks = [rle.decode(one["segmentation"]) for one in (a, b)]
        assert (masks[0] != masks[1]).sum() <= 2
        assert a["area"] == masks[0].sum()


def test_boxes_are_python_s(page: Page, exported: Path) -> None:
    page.search(ASKED)
    found = page.run(
        "return (await load('state.js')).state.found.instances.map("
        "({ label, score, box }) => [label, score, ...box])"
    )
    theirs = es3.load(exported).segment(SCENE, NAMES, threshold=0.05)
    assert [row[0] for row in found] == theirs.labels
    np.testing.assert_allclose([row[1] for row in found], theirs.scores, atol=1e-4)
    np.testing.assert_allclose([row[2:] for row in found], theirs.boxes, atol=1e-2)
    colors = page.run(
        "const { instanceColors } = await load('colors.js');"
        "return instanceColors(args[0], args[1])",
        *(theirs.labels, NAMES),
    )
    np.testing.assert_allclose(colors, instance_colors(theirs), atol=1)


def test_clicks_are_python_s(page: Page, exported: Path) -> None:
    model = es3.load(exported)
    clicks = [(206, 188, 1), (120, 120, 1), (225, 186, 0)]
    for count in range(1, 4):
        click_at(page, *clicks[count - 1])
        (object_,) = page.run("return (await load('state.js')).state.objects")
        points = [[c["x"], c["y"]] for c in object_["clicks"]]
        labels = [c["label"] for c in object_["clicks"]]
        np.testing.assert_allclose(points, [c[:2] for c in clicks[:count]], atol=1)
        assert labels == [c[2] for c in clicks[:count]]
        theirs = model.segment(SCENE, points=points, point_labels=labels)
        assert object_["instance"]["score"] == pytest.approx(float(theirs.scores[0]), abs=1e-3)
        saved = json.loads(page.saved("save-coco", "scene_0000002.json").read_text())
        (annotation,) = saved["annotations"]
        ours = rle.decode(annotation["segmentation"])
        assert theirs.masks.any()
        assert (ours != theirs.masks[0]).sum() <= 3
    assert saved["categories"] == [{"id": 1, "name": "object", "supercategory": ""}]
    page.find("#undo").click()
    page.rest()
    (object_,) = page.run("return (await load('state.js')).state.objects")
    assert len(object_["clicks"]) == 2


def click_at(page: Page, x: float, y: float, label: int) -> None:
    """Click on a pixel of the picture, with Shift where it is not on the object."""
    page.run(
        """
        const { state } = await load("state.js");
        const [x, y, label] = args, canvas = $("picture"), area = canvas.getBoundingClientRect();
        const { left, top, width, height, ratio } = state.place, { bitmap } = state.picture;
        canvas.dispatchEvent(new MouseEvent("click", {
          clientX: area.left + (left + (x / bitmap.width) * width) / ratio,
          clientY: area.top + (top + (y / bitmap.height) * height) / ratio, shiftKey: !label,
        }));
        """,
        *(x, y, label),
    )
    page.rest()


# The page --------------------------------------------------------------------------------------


def test_the_slider_needs_no_inference(page: Page) -> None:
    page.search("animal, vehicle, tool")  # no tool is certain
    page.run(
        "const { engine } = await load('actions.js');"
        "engine.call = () => { throw new Error('the model is asked'); };"
    )
    try:
        counts = []
        for threshold in (0.05, 0.5, 0.95):
            page.threshold(threshold)
            counts.append(page.run("return $('list').children.length"))
    finally:
        page.run("delete (await load('actions.js')).engine.call")
    assert counts[0] > counts[1] > counts[2]
    found = dict(re.findall(r"([a-z]+): (\d+)", page.text("summary")))
    assert list(found) == ["animal", "vehicle", "tool"]  # also those of which none is left
    assert sum(map(int, found.values())) == counts[2] and "0" in found.values()
    assert page.run("return $('error').hidden")


def test_results_are_described_and_pointed_at(page: Page) -> None:
    page.search("vehicle")
    item = page.find("#list .item")
    assert item.get_attribute("aria-label").startswith("1 vehicle, score 0.")
    assert page.text("summary") == "vehicle: 1"
    item.click()
    assert page.find("#list .item").get_attribute("aria-pressed") == "true"


def test_the_keyboard_makes_a_mask(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.run("$('picture').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ENTER)
    page.rest()
    page.until("$('list').children.length === 1", "no mask")
    (object_,) = page.run("return (await load('state.js')).state.objects")
    (click,) = object_["clicks"]
    assert click == {"x": 168 + 8.4, "y": 168 + 8.4, "label": 1}


def test_the_picture_is_saved(page: Page) -> None:
    page.search("vehicle")
    with Image.open(page.saved("save-png", "scene_0000002-masks.png")) as saved:
        assert saved.size == (640, 640)  # enlarged, so that names can be read
        plain = Image.open(SCENE).convert("RGB").resize(saved.size)
        changed = np.abs(np.array(saved.convert("RGB"), int) - np.array(plain, int)).max(2) > 60
    assert 0.01 < changed.mean() < 0.3


def test_a_sample_is_asked_for_at_once(page: Page) -> None:
    page.find("[data-sample*=animals]").click()
    page.until("$('list').children.length > 3", "nothing is found in the sample")
    assert page.text("summary").startswith("animal: ")


def test_errors_name_the_way_out(fresh: Page, tmp_path: Path) -> None:
    page = fresh

    def error() -> str:
        page.until("!$('error').hidden", "no error is shown")
        return page.text("error")

    page.run("$('find').requestSubmit()")
    assert error() == "Type what to find, such as: person, yellow bus"
    page.search("dog")
    assert error() == "Choose a picture first, or a sample."
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    page.find("#choose").send_keys(str(tmp_path / "broken.jpg"))
    page.until("$('error').textContent.includes('broken.jpg cannot be read')", "no error")
    assert "save it as one of these" in error()
    page.choose(SCENE)
    assert page.run("return $('error').hidden")
    click_at(page, 100, 100, 0)
    assert error().startswith("Click on the object first")


def test_memory_that_ends_is_explained(modules: Page) -> None:
    text = modules.run(
        "const { explain } = await load('messages.js');"
        "return explain({ kind: 'memory' }, 'photo.jpg')"
    )
    assert "not enough memory for photo.jpg" in text
    assert "smaller" in text


def test_nothing_comes_from_elsewhere_and_threads_are_allowed(fresh: Page, site: Any) -> None:
    fresh.find("[data-sample*=animals]").click()
    fresh.until("$('list').children.length", "nothing is found")
    assert fresh.run("return crossOriginIsolated")
    names = fresh.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(names) > 8
    assert all(name.startswith((site.address, "blob:" + site.address)) for name in names)
    refused = fresh.run(
        "try { await fetch('https://example.com/'); return 'loaded'; } catch { return 'refused'; }"
    )
    assert refused == "refused"


def test_a_model_without_clicks_says_so(exported: Path, driver: Page, tmp_path: Path) -> None:
    manifest = json.loads((exported / MANIFEST_FILE).read_text())
    manifest["abilities"].remove("interactive")
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    files = site_files(exported, browser_runtime()) | {
        f"model/{MANIFEST_FILE}": tmp_path / MANIFEST_FILE
    }
    with served(files) as server:
        driver.driver.get(server.address)
        driver.until("$('clicks').disabled", "clicks are offered")
        assert driver.find("#no-clicks").is_displayed()
        assert driver.find("#no-clicks").text.startswith("This model has no part for clicks")
        driver.choose(SCENE)
        click_at(driver, 100, 100, 1)
        assert "no part for clicks" in driver.text("error")


def test_a_folder_is_opened_as_model(page: Page, exported: Path, fake_model: Path) -> None:
    page.find("#folder").send_keys(str(fake_model))
    page.until("!$('error').hidden", "a folder without a vocabulary is opened")
    page.find("#folder").send_keys(str(exported))
    page.until("(await load('state.js')).state.model", "the model does not open")
    page.rest()
    page.search("vehicle")
    assert page.text("summary") == "vehicle: 1"
