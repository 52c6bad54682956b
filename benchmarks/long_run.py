"""Long runs with faults: memory stays flat, every fault is recorded, and the speed is the model's.

    python benchmarks/long_run.py                                  # 10,000 samples, 5,000 frames
    python benchmarks/long_run.py segment_concepts --count 1000
    python benchmarks/long_run.py track --count 500
    python benchmarks/long_run.py --count 1000 --model efficientsam3-stickers    # speed

``segment_concepts`` runs in FiftyOne on a database of its own. One of a hundred pictures cannot be
read, the database is restarted at a third and at two thirds of the samples, and a sample that is
not done yet is deleted at half. ``track`` runs over pictures of which one of a hundred cannot be
read. By default the model is tiny and untrained: what is measured is everything around it. The
time of the model alone is measured on a hundred pictures before and after the run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from tiny_inputs import make_inputs

import efficientsam3 as es3

COUNTS = {"segment_concepts": 10_000, "track": 5_000}
PICTURES = 50
"""Different pictures; samples are hard links to them."""
DAMAGED = 100
"""One of so many files cannot be read."""
MARKS = 10
"""Memory is read so many times."""


@dataclass
class Measured:
    """What a long run took.

    Attributes:
        count: Samples or frames.
        seconds: Of the run.
        own: Seconds that the model alone takes for as many.
        megabytes: Resident memory after each tenth.
        faults: Files that cannot be read.
        recorded: How many of them were recorded.
        notes: What else happened.
    """

    count: int
    seconds: float
    own: float
    megabytes: list[float] = field(default_factory=list)
    faults: int = 0
    recorded: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Megabytes by which memory grew after the second tenth, when all caches are full."""
        return self.megabytes[-1] - self.megabytes[min(1, len(self.megabytes) - 1)]


def resident() -> float:
    """Resident memory of this process, in MB."""
    return float(psutil.Process().memory_info().rss / 1e6)


def make_files(folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """Make pictures, of which some cannot be read; gives all, and those."""
    folder.mkdir()
    random = np.random.default_rng(0)
    originals = []
    for number in range(PICTURES):
        pixels = random.integers(0, 256, (12, 16, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        originals.append(folder.parent / f"original-{number}.jpg")
        Image.fromarray(pixels).save(originals[-1])
    damaged = folder.parent / "damaged.jpg"
    damaged.write_bytes(originals[0].read_bytes()[:200])
    files, broken = [], []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        is_broken = number % DAMAGED == DAMAGED // 2
        path.hardlink_to(damaged if is_broken else originals[number % PICTURES])
        files.append(path)
        if is_broken:
            broken.append(path)
    return files, broken


def seconds_alone(act: Any, files: list[Path], count: int) -> float:
    """Seconds that the model alone takes for ``count`` pictures, measured on a hundred."""
    some = [path for path in files if path.stat().st_size > 200][:100]
    for path in some[:5]:
        act(path)
    start = time.perf_counter()
    for path in some:
        act(path)
    return (time.perf_counter() - start) / len(some) * count


def run_segment_concepts(folder: Path, count: int, model_name: str | None) -> Measured:
    """Segment samples in FiftyOne, with faults."""
    from kill_points_fiftyone import SegmentConcepts

    make_inputs(folder / "inputs")
    command = SegmentConcepts(folder / "inputs")
    from fiftyone_esam3.labels import ERROR_FIELD
    from fiftyone_esam3.runs.segment import segment_concepts

    fo, database = command.fo, command.database
    files, broken = make_files(folder / "files", count)
    dataset = fo.Dataset("long-run", persistent=True)
    dataset.add_samples([fo.Sample(filepath=str(path)) for path in files])
    ids = dataset.values("id")
    model_folder = model_name or str(folder / "inputs" / "tiny")
    limits = {"threshold": 0.0, "max_instances": 3}
    concepts = ["person", "bus"]
    core = es3.load(model_folder, device="cpu")

    def segment(path: Path) -> Any:
        return core.segment(path, concepts, **limits)

    own = seconds_alone(segment, files, count)
    measured = Measured(count, 0, own, faults=len(broken))
    restarts, restarted, deleted = [count // 3, 2 * count // 3], 0, None

    def restart() -> None:
        database.stop()
        database.start()

    start, marks = time.perf_counter(), [count * i // MARKS for i in range(1, MARKS + 1)]
    for step in _steps(segment_concepts, dataset, concepts, model_folder, limits, measured):
        while marks and step.done >= marks[0]:
            measured.megabytes.append(resident())
            marks.pop(0)
        if restarts and step.done >= restarts[0]:
            restarts.pop(0)
            restarted += 1
            thread = threading.Thread(target=restart)
            thread.start()
            thread.join()
        if deleted is None and step.done >= count // 2:
            deleted = ids[-1 - count // 10]
            dataset.delete_samples([deleted])
    measured.seconds = time.perf_counter() - start
    measured.own = (own + seconds_alone(segment, files, count)) / 2
    dataset.reload()
    failed = dataset.match(fo.ViewField(ERROR_FIELD) != None)  # noqa: E711 - FiftyOne's comparison
    measured.recorded = len(set(failed.values("filepath")) & set(map(str, broken)))
    done = len(dataset.exists("esam3"))
    measured.notes += [
        f"the database was restarted {restarted} times",
        f"a sample was deleted; {done} of {len(dataset) - len(broken)} readable ones have labels",
    ]
    if done != len(dataset) - len(broken) or len(failed) != len(broken):
        measured.notes.append(f"WRONG: {len(failed)} samples have an error")
    return measured


def _steps(
    run: Any, dataset: Any, concepts: list[str], model: str, limits: Any, measured: Measured
) -> Iterator[Any]:
    """The steps of a run; where it stops with an error, those of the same run again."""
    for _ in range(5):
        try:
            yield from run(dataset, concepts, model=model, device="cpu", **limits)
            return
        except Exception as error:  # noqa: BLE001 - it is reported
            measured.notes.append(f"the run stopped, and was continued: {error}")


def run_track(folder: Path, count: int, model_name: str | None) -> Measured:
    """Track through pictures, with faults."""
    make_inputs(folder / "inputs")
    files, broken = make_files(folder / "files", count)
    model = es3.load(model_name or str(folder / "inputs" / "tiny"), device="cpu")
    options = {"concepts": ["person"], "threshold": 0.3, "tracker": "iou"}

    def segment(path: Path) -> Any:
        return model.segment(path, ["person"], threshold=0.3)

    own = seconds_alone(segment, files, count)
    measured = Measured(count, 0, own, faults=len(broken))
    from efficientsam3.io.frames import read_frames

    start, marks = time.perf_counter(), [count * i // MARKS for i in range(1, MARKS)]
    given = 0
    with read_frames(str(folder / "files")) as reader:
        for frame in es3.track(model, reader, **options):
            given += 1
            while marks and frame.index >= marks[0]:
                measured.megabytes.append(resident())
                marks.pop(0)
        measured.recorded = reader.unreadable
    measured.megabytes.append(resident())
    measured.seconds = time.perf_counter() - start
    measured.own = (own + seconds_alone(segment, files, count)) / 2
    measured.notes.append(f"{given} of {count - len(broken)} readable frames were given")
    return measured


RUNS = {"segment_concepts": run_segment_concepts, "track": run_track}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; gives 1 if a fault was not recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--count", type=int, help="samples or frames")
    parser.add_argument("--model", help="a name of list_models(); the tiny model if omitted")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong = 0
    for name in given.runs or RUNS:
        count = given.count or COUNTS[name]
        with tempfile.TemporaryDirectory(prefix="long-run-") as path:
            (Path(path) / "inputs").mkdir()
            measured = RUNS[name](Path(path), count, given.model)
        overhead = 100 * (measured.seconds / measured.own - 1)
        print(
            f"{name}: {measured.count:,} in {measured.seconds:.0f} s, the model alone "
            f"{measured.own:.0f} s ({overhead:+.1f} %); memory {measured.megabytes[0]:.0f} MB, "
            f"{measured.growth:+.0f} MB after the second tenth; {measured.recorded} of "
            f"{measured.faults} unreadable files recorded",
            flush=True,
        )
        print(f"  MB after each tenth: {[round(value) for value in measured.megabytes]}")
        for note in measured.notes:
            print(f"  {note}", flush=True)
        wrong += measured.recorded != measured.faults
        wrong += any(note.startswith("WRONG") for note in measured.notes)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
