"""Images a second one by one and in batches, turn by turn in one process.

    python benchmarks/batches.py efficientsam3-stickers --batches 4 16 --images 32
    python benchmarks/batches.py efficientsam3-tinyvit-11m --untrained --images 8

The same pictures of several sizes are asked for the same concepts each time. The medians of all
rounds are compared, so that a machine that is busy for a while slows all alike; and, on a CPU, the
medians of processor time, which other processes change less.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from report import say

import efficientsam3 as es3
from efficientsam3.checkpoints.assemble import config_of
from efficientsam3.variants import find_variant

SIZES = ((480, 640), (640, 480), (600, 800), (400, 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--untrained", action="store_true", help="time does not need weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--concepts", nargs="+", default=["animal", "vehicle"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()

    how = {"device": options.device, "dtype": options.dtype}
    if options.untrained:
        config = config_of(find_variant(options.model))
        model = es3.ImageModel.from_config(config, options.model, **how)
    else:
        model = es3.load(options.model, **how)
    rng = np.random.default_rng(0)
    shapes = [SIZES[i % len(SIZES)] for i in range(options.images)]
    images = [rng.integers(0, 255, (*size, 3), np.uint8) for size in shapes]
    sizes = [1, *options.batches]
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(options.rounds + 1):  # the first one warms up
        for size in sizes:
            start = time.perf_counter(), time.process_time()
            model.segment(images, options.concepts, batch_size=size)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times[size].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {n: np.median(t[1:], axis=0) for n, t in times.items()}
    for size, (wall, cpu) in medians.items():
        say(
            f"batch_size={size}: {options.images / wall:.2f} images/s, {medians[1][0] / wall:.2f} "
            f"times one by one; processor time {1000 * cpu / options.images:.0f} ms an image, "
            f"{medians[1][1] / cpu:.2f} times less"
        )


if __name__ == "__main__":
    main()
