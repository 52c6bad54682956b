"""Measure the time and the memory of segment_concepts on many samples.

    python benchmarks/fiftyone_load.py --samples 10000

The model is a stub and the images are small. So this measures what FiftyOne, its database and our
code cost for each sample, and whether memory grows with the number of samples.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def resident() -> float:
    """The memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=10, help="lines of the table")
    options = parser.parse_args()
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.samples, options.lines)


def run(folder: Path, count: int, lines: int) -> None:
    import fiftyone as fo
    import torch

    import efficientsam3 as es3
    from efficientsam3.config import tiny_config
    from fiftyone_esam3.runs.segment import segment_concepts
    from fiftyone_esam3.runs.steps import Step, finish

    torch.set_num_threads(1)
    model = es3.ImageModel.from_config(tiny_config(), device="cpu", dtype="float32")
    model.save(folder / "tiny")
    rng = np.random.default_rng(0)
    for i in range(50):
        pixels = rng.integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    stub(es3)
    dataset = fo.Dataset()
    dataset.add_samples(
        (fo.Sample(filepath=str(folder / f"{i % 50}.jpg")) for i in range(count)),
        progress=False,
    )
    print(f"{count} samples; before: {resident():.0f} MiB")
    started, worked = time.perf_counter(), time.process_time()
    memory: list[float] = []
    chunk = max(1, count // lines)

    def report(step: Step) -> None:
        if step.done // chunk > len(memory) - 1:
            memory.append(resident())
            seconds = time.perf_counter() - started
            rate = step.done / seconds if step.done else 0
            print(
                f"{step.done:7d} done  {seconds:7.1f} s  {rate:6.1f} a second  {memory[-1]:.0f} MiB"
            )

    steps = segment_concepts(dataset, ["thing"], model=str(folder / "tiny"), threshold=0.5)
    summary = finish(steps, report)
    grown = memory[-1] - memory[len(memory) // 4] if len(memory) > 3 else 0.0
    print({k: summary[k] for k in ("samples", "done", "failed", "seconds", "instances")})
    worked = 1000 * (time.process_time() - worked) / summary["done"]
    print(f"{summary['done'] / summary['seconds']:.1f} samples a second, ", end="")
    print(f"{worked:.1f} ms of processor time for each (without the database's); ", end="")
    print(f"memory grew by {grown:.0f} MiB over the last three quarters")
    before = time.perf_counter()
    steps = segment_concepts(dataset, ["thing"], model=str(folder / "tiny"), threshold=0.5)
    done = finish(steps)["before"]
    print(f"second run: {done} were done before, {time.perf_counter() - before:.1f} s")
    dataset.delete()


def stub(es3: object) -> None:
    """Replace the network by a function that gives three instances."""
    from efficientsam3.predictor import ImageModel
    from efficientsam3.types import BitPatch, Instances

    mask = np.zeros((48, 64), bool)
    mask[10:30, 12:40] = True

    def segment(self: ImageModel, image: object, concepts: list[str], **_: object) -> Instances:
        boxes = np.tile(np.array([[12, 10, 40, 30]], np.float32), (3, 1))
        return Instances(
            boxes=boxes,
            scores=np.full(3, 0.9, np.float32),
            presence=np.full(3, 0.9, np.float32),
            labels=[concepts[0]] * 3,
            size=(48, 64),
            patches=[BitPatch.cut(mask)] * 3,
            concepts=(concepts[0],),
            concept_presence={concepts[0]: 0.9},
        )

    ImageModel.segment = segment  # type: ignore[method-assign, assignment]
    ImageModel.encode = lambda self, image: image  # type: ignore[method-assign, assignment, return-value]


if __name__ == "__main__":
    main()
