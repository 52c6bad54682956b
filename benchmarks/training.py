"""Measures how fast the recipe of sticker scenes trains, and where the time of a step goes.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/training.py
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive torchrun --nproc-per-node 2 benchmarks/training.py

It prints milliseconds a scene of each part, forward and backward, in time of the processor, which
other processes disturb less than time of the clock; and whole steps of all processes in both. Parts
are measured one on top of the other: the time of a part is what it adds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from report import say
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.train.losses.common import LossTerms
from efficientsam3.train.optim import make_optimizer, parameter_groups
from efficientsam3.train.settings import LoopSettings
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.recipes.object_models import new_detector, objects_config
from efficientsam3_stickers.recipes.objects import training_names
from efficientsam3_stickers.scenes import SceneGenerator
from efficientsam3_stickers.training import object_loss, object_matching
from efficientsam3_stickers.training.object_batches import ObjectBatch, ObjectBatches
from efficientsam3_stickers.training.phrase_table import PhraseTable
from efficientsam3_stickers.training.phrase_truth import list_phrases, phrase_truth


@dataclass(frozen=True)
class Rig:
    """A model, its loss and a batch."""

    net: LateDetector
    loss: object_loss.ObjectLoss
    batch: ObjectBatch
    bfloat16: bool = False

    def trunk(self) -> Tensor:
        maps = self.net.part("trunk")(self.batch.pixels)
        return torch.stack([m.mean() for m in maps]).sum()

    def tokens(self) -> Tensor:
        image = self.net.encode_image(self.batch.pixels)
        pairs = [k.mean() + v.mean() for k, v in image.geometry]
        return image.tokens.mean() + torch.stack(pairs).sum()

    def objects(self) -> Tensor:
        return self._heads("")

    def masks(self) -> Tensor:
        return self._heads("masks")

    def names(self) -> Tensor:
        return self._heads("names")

    def prompts(self) -> Tensor:
        return self._heads("prompts")

    def whole(self) -> Tensor:
        with self.autocast():
            return self.loss(self.net, self.batch)["loss"]

    def autocast(self) -> torch.autocast:
        """What Fabric does for precision "bf16-mixed"."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def _heads(self, part: str) -> Tensor:
        """The loss of one head on top of the objects."""
        net, batch, loss, terms = self.net, self.batch, self.loss, LossTerms()
        image = net.encode_image(batch.pixels)
        objects = net.find_objects(image, loss._noised(batch))
        found = objects.queries.shape[1] - batch.boxes.shape[1]
        known = object_matching.every_object(batch, found)
        boxes, logits = objects.boxes[:, :found].detach(), objects.logits[:, :found].detach()
        matched = object_matching.match(logits, boxes, batch)
        terms.add("", objects.queries.mean() + objects.boxes.mean(), 1.0)
        if part == "masks":
            pairs = object_matching.one_of_each(matched, known)
            loss._mask_terms(terms, net, image, objects, batch, pairs)
        if part == "names":
            both = (torch.cat(p) for p in zip(matched, known, strict=True))
            pairs = object_matching.Assignment(*both)
            loss._name_terms(terms, net, image, objects, batch, pairs, len(matched.images))
        if part == "prompts":
            loss._prompt_terms(terms, net, image, objects, batch, matched, found)
        return terms.total()["loss"]


def make_rig(resolution: int, batch: int, bfloat16: bool) -> tuple[Rig, float]:
    """A rig, and milliseconds of the processor for a new scene in a batch."""
    stickers = StickerArt.open()
    names = training_names(stickers)
    concepts = [stickers.concepts[name] for name in names]
    phrases = list_phrases(concepts)
    config = objects_config(resolution)
    truth = phrase_truth(concepts, phrases)
    table = PhraseTable(phrases, len(names), truth, config.context)
    generator = SceneGenerator(
        stickers, SPLITS["train"], resolution, names, backgrounds=16, restyled=0.3
    )
    batches = ObjectBatches(config, [generator], batch, names)
    batches(0, np.random.default_rng(0))  # reads the stickers
    started, count = time.process_time(), 4
    made = [batches(n, np.random.default_rng(n)) for n in range(1, 1 + count)]
    data = 1e3 * (time.process_time() - started) / count / batch
    net = new_detector(config, 0)
    net.part("text").requires_grad_(False)
    rig = Rig(net.train(), object_loss.ObjectLoss(table), made[0], bfloat16)
    table.pooled(net)
    table.read(net, rig.batch.phrases)
    return rig, data


def least(work: Callable[[], object], repeat: int) -> float:
    """Least seconds of the processor."""
    work()
    times = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def count_operations(rig: Rig) -> float:
    """GFLOP a scene, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        rig.whole().backward()  # type: ignore[no-untyped-call]
    rig.net.zero_grad()
    return counter.get_total_flops() / 1e9 / len(rig.batch.pixels)


def measure_parts(rig: Rig, repeat: int) -> dict[str, float]:
    """Milliseconds a scene of each part, forward and backward."""

    def both_ways(part: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            rig.net.zero_grad()
            with rig.autocast():
                loss = part()
            loss.backward()  # type: ignore[no-untyped-call]

        return work

    parts = (rig.trunk, rig.tokens, rig.objects, rig.masks, rig.names, rig.prompts)
    scale = 1e3 / len(rig.batch.pixels)
    total = {part.__name__: scale * least(both_ways(part), repeat) for part in parts}
    out = {"image encoder": total["trunk"], "tokens": total["tokens"] - total["trunk"]}
    out["objects"] = total["objects"] - total["tokens"]
    for name in ("masks", "names", "prompts"):
        out[name] = total[name] - total["objects"]
    return out


class Whole(nn.Module):
    """The loss as a forward pass, which the distributed wrapper needs."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.net, self.rig = rig.net, (rig,)

    def forward(self) -> Tensor:
        return self.rig[0].whole()


def measure_steps(rig: Rig, repeat: int, world: int) -> tuple[float, float]:
    """Median seconds of whole steps: of the clock, and of this processor."""
    module: nn.Module = Whole(rig)
    if world > 1:
        parallel = nn.parallel.DistributedDataParallel
        module = parallel(module, find_unused_parameters=True)
    settings = LoopSettings(steps=1, optimizer="muon", weight_decay=0.05)
    optimizer = make_optimizer(parameter_groups(rig.net, settings), settings)
    clock, processor = [], []
    for _ in range(repeat + 2):
        begun, used = time.perf_counter(), time.process_time()
        module().backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
    return statistics.median(clock[2:]), statistics.median(processor[2:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16, help="scenes of a step and process")
    parser.add_argument("--bfloat16", action="store_true", help='precision "bf16-mixed"')
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each kind")
    options = parser.parse_args(arguments)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    rig, data = make_rig(options.resolution, options.batch, options.bfloat16)
    clock, processor = measure_steps(rig, options.repeat, world)
    if rank == 0:
        scenes = options.batch * world
        say(
            f"{options.resolution} px, {world} processes of {options.batch} scenes, "
            f"{torch.get_num_threads()} threads each"
            f"{', in bfloat16 where autocast takes it' if options.bfloat16 else ''}"
        )
        print(f"{count_operations(rig):.2f} GFLOP a scene, forward and backward")
        print(f"whole step: {clock:.2f} s = {scenes / clock:.1f} scenes/s by the clock")
        print(
            f"whole step: {processor:.2f} s of each processor = {scenes / processor:.1f} scenes/s "
            "in time of the processor"
        )
        print(f"data: {data:.1f} ms for a scene")
    if world > 1:
        torch.distributed.destroy_process_group()
    if rank:
        return
    parts = measure_parts(rig, options.repeat)
    total = sum(parts.values())
    for name, milliseconds in parts.items():
        print(f"{name}: {milliseconds:.1f} ms a scene, {100 * milliseconds / total:.0f} %")


if __name__ == "__main__":
    main()
