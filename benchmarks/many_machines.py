"""Throughput and memory of `efficientsam3 annotate` against as many plain processes.

python benchmarks/many_machines.py --images 10000 --workers 2
python benchmarks/many_machines.py --images 200 --workers 2 --model efficientsam3-stickers
python benchmarks/many_machines.py --parts

Each image is annotated by the same code in both; the difference is what Ray costs. Memory is that
of the command and of all processes of the cluster, in each quarter of the run: it must not grow.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as arrow
from PIL import Image
from pyarrow import parquet
from report import say
from tiny_inputs import make_inputs

from efficientsam3.distributed import annotate, read_shard
from efficientsam3.distributed.folder import RunFolder, shard_places
from efficientsam3.distributed.rows import Row
from efficientsam3.distributed.settings import Work
from efficientsam3.distributed.shards import encode_shard
from efficientsam3.distributed.sources import make_plan
from efficientsam3.distributed.worker import Worker
from efficientsam3.io.pages import read_first_page

ASK: dict[str, Any] = {"concepts": ["person", "bus"], "threshold": 0.5}


class Memory(threading.Thread):
    """The resident memory of this process and its children, sampled once a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self._ended = threading.Event()

    def run(self) -> None:
        here = psutil.Process()
        while not self._ended.wait(1.0):
            total = 0
            for process in (here, *here.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.samples.append(total / 2**20)

    def quarters(self) -> list[float]:
        """The most memory in each quarter of the time, in MiB."""
        self._ended.set()
        self.join()
        parts = np.array_split(np.array(self.samples), 4)
        return [round(float(part.max(initial=0))) for part in parts]


def write_images(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06d}.jpg", quality=90)


def work_alone(work: Work, sources: list[str], out: str, rows: int, numbers: range) -> None:
    """One plain process: its share of the partitions, by the same code."""
    plan = make_plan(sources, out=out, rows=rows)
    run = RunFolder(out, {"benchmark": True}, len(plan))
    worker = Worker(work)
    worker.prepare()
    started = time.monotonic()
    for number in numbers:
        worker.annotate(plan[number], run.places(number))
    seconds = time.monotonic() - started
    (Path(out) / f"seconds-{numbers.start}").write_text(str(seconds))


def plain(work: Work, photos: Path, out: Path, rows: int, count: int, workers: int) -> float:
    """Images a second of plain processes, without their start."""
    partitions = -(-count // rows)
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    arguments = (work, [str(photos)], str(out), rows)
    processes = [
        context.Process(target=work_alone, args=(*arguments, range(n, partitions, workers)))
        for n in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit("a plain process failed")
    return count / max(float(path.read_text()) for path in out.glob("seconds-*"))


def measure_parts() -> None:
    """Processor time of what is not the model, for an image and for the command."""
    scenes = sorted((Path(__file__).parents[1] / "demo" / "scenes" / "images").glob("*.jpg"))
    started = time.process_time()
    for _ in range(5):
        for scene in scenes:
            read_first_page(scene)
    decode = (time.process_time() - started) / len(scenes) / 5
    worker = Worker(Work("efficientsam3-stickers", {"device": "cpu"}, {"concepts": ["animal"]}))
    rows = [Row(str(scene), str(scene), image=read_first_page(scene)) for scene in scenes]
    records = worker.annotate_rows(rows) * 20
    started = time.process_time()
    _, counts = encode_shard(records, "benchmark")
    encode = (time.process_time() - started) / len(records)
    shard = encode_shard(records[: len(scenes)], "benchmark")[0]
    with tempfile.TemporaryDirectory() as folder:
        count = 1_000_000
        names = [f"s3://bucket/photos/{n // 1000:06d}/{n:09d}.jpg" for n in range(count)]
        parquet.write_table(arrow.table({"image": names}), f"{folder}/list.parquet")
        del names
        before, started = psutil.Process().memory_info().rss, time.process_time()
        plan = make_plan([f"{folder}/list.parquet"], out="nowhere")
        seconds = time.process_time() - started
        held = (psutil.Process().memory_info().rss - before) / 2**20
    say(f"decoding {1000 * decode:.1f} ms an image, encoding {1000 * encode:.1f} ms")
    say(
        f"{len(shard) / len(scenes):,.0f} bytes and {counts.instances / len(records):.0f} instances"
    )
    say(f"{count:,} names in Parquet: {seconds:.1f} s, {held:.0f} MiB, {len(plan):,} partitions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--rows", type=int, default=256, help="images of a partition")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="turns, whose medians are compared")
    parser.add_argument("--model", help="a tiny untrained one by default")
    parser.add_argument("--parts", action="store_true", help="what is not the model")
    options = parser.parse_args()
    if options.parts:
        measure_parts()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inputs").mkdir()
        model = options.model
        if model is None:
            make_inputs(folder / "inputs")
            model = str(folder / "inputs" / "tiny")
        photos = folder / "photos"
        write_images(photos, options.images, options.side)
        say(f"{options.images} images, {options.workers} workers, {model}")

        load = {"device": "cpu", "dtype": "float32"}
        work = Work(model, load, ASK)
        rows, count, workers = options.rows, options.images, options.workers
        paces: list[tuple[float, float]] = []
        for turn in range(options.rounds):
            alone = plain(work, photos, folder / f"plain-{turn}", rows, count, workers)
            memory = Memory()
            memory.start()
            out = folder / f"out-{turn}"
            result = annotate(
                photos, out, model=model, load=load, rows=rows, workers=workers, **ASK
            )
            quarters = memory.quarters()
            paces.append((alone, result.images / result.seconds))
            say(f"plain processes, Ray: {alone:.1f}, {paces[-1][1]:.1f} images a second")
            say(f"memory in each quarter: {', '.join(f'{q:,.0f}' for q in quarters)} MiB")
        alone, pace = np.median(paces, axis=0)
        say(f"medians: Ray has {pace / alone:.0%} of the pace of plain processes")
        keys = [row["key"] for place in shard_places(result.target) for row in read_shard(place)]
        say(f"{len(keys)} rows of {len(set(keys))} images")


if __name__ == "__main__":
    main()
