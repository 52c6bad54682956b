"""The main job on real photographs: a FiftyOne dataset with an instance mask per thing named.

    make demo                                       # or: .venv/bin/python demo/demo.py
    make demo PHOTOS=~/pictures CONCEPTS="dog, yellow car"

What it does is what a user does: `load_zoo_model`, `apply_model`, look at the dataset.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODEL = "efficientsam3-tinyvit-11m"
DATASET = "efficientsam3-demo"
FIELD = "esam3"
CONCEPTS = ("person", "bus", "cat")
# Photographs that lie in installed packages. The packages are located, not imported.
PHOTOGRAPHS = (
    ("ultralytics", "assets/bus.jpg"),
    ("ultralytics", "assets/zidane.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
)
# Untrained scores say nothing, so no threshold can tell things from noise: the best few are kept.
THRESHOLD = 0.0
MAX_INSTANCES = 3

UNTRAINED = """\
The weights are UNTRAINED: random numbers in the layout of the released file. The masks are noise.
What this shows is the whole path, from a checkpoint file to labels in FiftyOne, and its speed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of your own photographs")
    parser.add_argument("--concepts", default=", ".join(CONCEPTS), help="with commas between")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    options = parser.parse_args(arguments)
    concepts = [concept.strip() for concept in options.concepts.split(",") if concept.strip()]

    photographs = copy_photographs(options.photos, options.out / "photographs")
    say(f"{len(photographs)} photographs, looking for: {', '.join(concepts)}")
    checkpoint = untrained_weights(options.out / "weights")

    dataset = segment(photographs, concepts, checkpoint)
    report(dataset, concepts)
    draw(dataset, options.out / "overlays")
    print(f"\n{UNTRAINED}")
    print(
        f"\n  pictures     {options.out / 'overlays'}"
        f"\n  the dataset  .venv/bin/fiftyone app launch {DATASET}"
        f"\n  in Python    import fiftyone as fo; fo.load_dataset({DATASET!r})"
    )


def copy_photographs(folder: Path | None, target: Path) -> list[Path]:
    """Copies, since the dataset outlives the environment that the originals lie in."""
    if folder is None:
        sources = list(packaged_photographs())
    elif folder.is_dir():
        kinds = {".jpg", ".jpeg", ".png", ".webp"}
        sources = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds)
    else:
        sys.exit(f"--photos {folder}: there is no such folder")
    if not sources:
        sys.exit(f"no photographs (jpg, png, webp) in {folder or 'the installed packages'}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return [Path(shutil.copy(source, target)) for source in sources]


def packaged_photographs() -> list[Path]:
    found = []
    for package, name in PHOTOGRAPHS:
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0], name)
            if path.exists():
                found.append(path)
    return found


def untrained_weights(folder: Path) -> Path:
    """A checkpoint file as upstream writes it, with repeatable random numbers."""
    from efficientsam3.weights import write_untrained

    path = folder / f"{MODEL}-untrained.pt"
    if not path.exists():
        say(f"writing untrained weights to {path}")
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name until complete, so that an interrupted run leaves no half a file.
        half = path.with_suffix(".part")
        write_untrained(MODEL, half)
        half.replace(path)
    return path


def segment(photographs: Sequence[Path], concepts: Sequence[str], checkpoint: Path) -> Any:
    """The three steps of a user of FiftyOne; returns the stored dataset."""
    # A demo should not report to anyone; FiftyOne reads this when it is imported.
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    if "FIFTYONE_DATABASE_URI" not in os.environ:
        # The embedded MongoDB is what FiftyOne ships: its age is no news to a reader of the demo.
        os.environ.setdefault("FIFTYONE_DATABASE_VALIDATION", "false")
    say("starting FiftyOne and its database")
    import fiftyone as fo
    import fiftyone.zoo as foz

    dataset = fo.Dataset(DATASET, persistent=True, overwrite=True)
    dataset.add_samples([fo.Sample(filepath=str(path.resolve())) for path in photographs])

    say(f"loading {MODEL}")
    model = foz.load_zoo_model(
        MODEL,
        classes=list(concepts),
        checkpoint=str(checkpoint.resolve()),
        threshold=THRESHOLD,
        max_instances=MAX_INSTANCES,
    )
    say("segmenting")
    start = time.perf_counter()
    dataset.apply_model(model, label_field=FIELD, batch_size=1, num_workers=0, skip_failures=False)
    seconds = time.perf_counter() - start
    say(
        f"{len(photographs)} photographs and {len(concepts)} concepts in {seconds:.0f} s, "
        f"{seconds / len(photographs):.1f} s each"
    )
    return dataset


def report(dataset: Any, concepts: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"instances in the dataset {DATASET!r}, field {FIELD!r}")
    table.add_column("photograph")
    for concept in concepts:
        table.add_column(concept, justify="right")
    for sample in dataset:
        labels = [detection.label for detection in sample[FIELD].detections]
        counts = [str(labels.count(concept)) for concept in concepts]
        table.add_row(Path(sample.filepath).name, *counts)
    Console().print(table)


def draw(dataset: Any, folder: Path) -> None:
    say("drawing what was stored")
    shutil.rmtree(folder, ignore_errors=True)
    dataset.draw_labels(
        str(folder),
        label_fields=[FIELD],
        per_object_label_colors=True,
        show_object_names=False,
        show_object_confidences=True,
        show_object_attrs=False,
    )


def say(sentence: str) -> None:
    print(f"==> {sentence}", flush=True)


if __name__ == "__main__":
    main()
