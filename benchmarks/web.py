"""Times a model on the page in Chromium and by ONNX Runtime in Python, in turns.

    python benchmarks/web.py --turns 9 --table docs/tables/web.md

Both run the same exported files with one thread each. Chromium and chromedriver must be installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from report import put_table, say

import efficientsam3 as es3
from efficientsam3.export import export_model
from efficientsam3.web.browser_runtime import browser_runtime
from efficientsam3.web.server import SiteServer
from efficientsam3.web.site import site_files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import open_browser  # noqa: E402

SCENE = ROOT / "demo" / "scenes" / "images" / "scene_0000002.jpg"
PHRASES, CLICK = ("animal", "vehicle"), (206, 188)
"""What is asked, first while the graphs are read, then while it is timed; and a point."""
STEPS = {
    "open": "the model opens",
    "picture": "picture",
    "phrase": "a phrase, with its masks",
    "click": "click",
}
"""What is timed, and its title in the table."""
START, END = "<!-- table:web -->", "<!-- /table:web -->"

TURN = """
const [address, phrases, point, give] = arguments;
(async () => {
  const load = (name) => import(new URL(name, document.baseURI));
  const { Engine } = await load("engine.js");
  const { readPhrases } = await load("concepts.js");
  const blob = await (await fetch(address)).blob();
  const base = new URL("model/", document.baseURI).href;
  const engine = new Engine(() => {});
  const timed = async (job) => {
    const started = performance.now();
    await job();
    return (performance.now() - started) / 1000;
  };
  const open = await timed(() => engine.open({ base, provider: "wasm", threads: 1 }));
  const act = async (phrase) => ({
    picture: await timed(() => engine.encode(blob)),
    phrase: await timed(() => engine.call(
      "segment", { phrases: readPhrases(phrase), threshold: 0.05 })),
    click: await timed(() => engine.call(
      "click", { clicks: [{ x: point[0], y: point[1], label: 1 }] })),
  });
  await act(phrases[0]); // reads the graphs
  const seconds = { open, ...await act(phrases[1]) };
  engine.worker.terminate();
  return seconds;
})().then((seconds) => give(seconds), (error) => give(String(error)));
"""


@contextmanager
def open_page(files: dict[str, Path], folder: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """Show the page, and give a function that does one turn on it.

    Args:
        files: The files of the site.
        folder: A folder for the data of the browser.
    """
    with SiteServer({**files, "scene.jpg": SCENE}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        driver = open_browser(folder, (1280, 800))
        driver.set_script_timeout(300)
        try:
            driver.get(server.address)
            say(f"Chromium {driver.capabilities['browserVersion']}")

            def turn() -> dict[str, float]:
                found: Any = driver.execute_async_script(TURN, "scene.jpg", PHRASES, CLICK)
                if isinstance(found, str):
                    raise RuntimeError(found)
                return dict(found)

            yield turn
        finally:
            driver.quit()
            server.shutdown()
            thread.join()


def turn_in_python(folder: Path) -> dict[str, float]:
    """The seconds of the same steps in Python.

    Args:
        folder: The exported model.
    """
    seconds = {}

    def timed(step: str, job: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = job()
        seconds[step] = time.perf_counter() - started
        return value

    def act(phrase: str) -> None:
        encoded = timed("picture", lambda: model.encode(SCENE))
        timed("phrase", lambda: model.segment(encoded, phrase, threshold=0.05))
        timed("click", lambda: model.segment(encoded, points=[CLICK], point_labels=[1]))

    model = timed("open", lambda: es3.load(folder, device="cpu"))
    for phrase in PHRASES:
        act(phrase)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--table", type=Path, help="a Markdown file with markers for the table")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="web-") as temporary:
        folder = Path(temporary) / "model"
        model = es3.load(options.model, device="cpu", dtype="float32")
        export_model(model, folder, to="onnx")
        with open_page(site_files(folder, browser_runtime()), Path(temporary) / "browser") as turn:
            for _ in range(options.turns):
                for name, seconds in (
                    ("Chromium, WebAssembly", turn()),
                    ("ONNX Runtime in Python", turn_in_python(folder)),
                ):
                    for step in STEPS:
                        rows[name][step].append(seconds[step])
    lines = [f"| | {' | '.join(STEPS.values())} |", "|---" * (len(STEPS) + 1) + "|"]
    for name, steps in rows.items():
        times = (f"{min(s):.2f} s ({statistics.median(s):.2f} s)" for s in steps.values())
        lines.append(f"| {name} | {' | '.join(times)} |")
    print("\n".join(lines))
    if options.table:
        put_table("\n".join(lines), options.table, START, END)


if __name__ == "__main__":
    main()
