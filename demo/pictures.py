"""Make the images of the documentation from the demo and the examples.

    make demo && python demo/pictures.py

The example with YOLO is left out, because its weights are downloaded from Ultralytics' site.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "demo" / "scenes" / "images"
MASKS = {"scene_0000008": "vehicle", "scene_0000005": "knife fork plate", "scene_0000007": "spider"}
"""Scenes and phrases of the first image. They are good results, chosen by eye."""
ANSWERS = ("scene_0000001", "scene_0000007")
"""Scenes with hits and misses. The demo writes all twelve to out/demo/answers."""
CURATED = ("animal", "plant", "food", "vehicle")
WIDTH = 960


def main() -> None:
    """Write all images to docs/images."""
    answers = [ROOT / "out" / "demo" / "answers" / f"{name}.jpg" for name in ANSWERS]
    if not all(path.is_file() for path in answers):
        sys.exit("the demo's images are missing: run make demo first")
    save([Image.open(path) for path in answers], 1, "answers")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        save([segment(name, phrase, out) for name, phrase in MASKS.items()], 3, "masks")
        run_example("supervision_image", "--out", str(out / "image.jpg"))
        run_example("supervision_video", "--out", str(out / "video.mp4"))
        run_example("text_to_yolo_dataset", "--out", str(out / "dataset"))
        run_example("fiftyone_curation", str(SCENES), ", ".join(CURATED), cwd=out)
        curated = sorted((out / "out" / "fiftyone_curation" / "pictures").glob("*.jpg"))[:4]
        save([Image.open(out / "image.jpg"), *read_frames(out / "video.mp4", 2)], 3, "supervision")
        save([Image.open(out / "dataset" / "sheet.jpg")], 1, "dataset")
        save([Image.open(path) for path in curated], 4, "fiftyone")


def segment(name: str, phrase: str, out: Path) -> Image.Image:
    """Return the overlay that ``efficientsam3 segment`` draws for one scene and one phrase."""
    command = [sys.executable, "-m", "efficientsam3", "segment", str(SCENES / f"{name}.jpg")]
    command += ["--model", "efficientsam3-stickers", "--concept", phrase, "--nms", "0.5"]
    subprocess.run([*command, "--out", str(out / name)], check=True)
    (overlay,) = (out / name / "overlays").iterdir()
    return Image.open(overlay)


def run_example(name: str, *arguments: str, cwd: Path = ROOT) -> None:
    """Run a script of the folder examples."""
    script = ROOT / "examples" / f"{name}.py"
    subprocess.run([sys.executable, str(script), *arguments], check=True, cwd=cwd)


def read_frames(video: Path, count: int) -> list[Image.Image]:
    """Return frames from the second half of a video, with the last one."""
    import supervision as sv

    frames = list(sv.get_video_frames_generator(str(video)))
    chosen = np.linspace(len(frames) // 2, len(frames) - 1, count).astype(int)
    return [Image.fromarray(frames[i][..., ::-1]) for i in chosen]


def save(images: Sequence[Image.Image], columns: int, name: str) -> None:
    """Put images side by side, together as wide as a page, and write docs/images/<name>.jpg."""
    width = WIDTH // columns
    cells = [i.convert("RGB").resize((width, round(i.height * width / i.width))) for i in images]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(heights)), "white")
    for y, row in zip(np.cumsum([0, *heights]).tolist(), rows, strict=False):
        for x, cell in enumerate(row):
            sheet.paste(cell, (x * width, y))
    path = ROOT / "docs" / "images" / f"{name}.jpg"
    sheet.save(path, quality=85)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
