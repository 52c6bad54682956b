"""Memory, time and arithmetic of tracking.

    python benchmarks/video.py memory                     # stubbed encoder, 100 to 5,000 frames
    python benchmarks/video.py memory --encoder real --marks 50 100
    python benchmarks/video.py objects --model efficientsam3-tinyvit-11m --counts 1 2 4
    python benchmarks/video.py objects --multiplex --model small --counts 1 4 16 17 32 64
    python benchmarks/video.py attention                  # a Perceiver beside the full memory

Weights are untrained: neither time nor memory depends on them. So that objects stay in sight all
the same, masks are put in place of what untrained weights see; all that is computed, is computed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from video_film import SIZE, SQUARES, masks, squares, write_film

import efficientsam3 as es3
from efficientsam3.config import MULTIPLEX_PARTS, MemoryConfig, ModelConfig, tiny_config
from efficientsam3.types import BitPatch, Instances
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.multiplex_tracker import make_tracker
from efficientsam3.video.types import TrackerFeatures, TrackerOutput

STICKERS, TINY, SMALL = "stickers", "tiny", "small"
"""``SMALL`` has the released trackers' widths on a grid of 24 cells a side, a third of theirs."""
PARTS = ("interactive", "interactive_neck", "memory")
TIGHT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""glibc keeps much of what is freed; so told, it gives it back, and what is resident is in use."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Watcher(es3.ImageModel):
    """A model that sees the squares, or the first ``count``. ``real``: it encodes each frame, or
    only the first."""

    real = False
    count: int | None = None
    t = -1
    _first: es3.EncodedImage | None = None

    def encode(self, image: Any) -> es3.EncodedImage:
        if isinstance(image, es3.EncodedImage):
            return image
        self.t += 1
        if self._first is None or self.real:
            self._first = super().encode(image)
        return self._first

    def segment(self, image: Any, concepts: Any = None, **options: Any) -> Instances:
        patches = [BitPatch.cut(mask.numpy()) for mask in masks(self.t, self.count)]
        scores = np.full(len(patches), 0.9, np.float32)
        return Instances(
            boxes=np.array(squares(self.t, self.count), np.float32),
            scores=scores,
            presence=scores,
            labels=["square"] * len(patches),
            size=SIZE,
            patches=list(patches),
            concepts=("square",),
        )


class Steered(MemoryTracker):
    """Looks for objects as always, and then is told where they are."""

    def __init__(self, model: Watcher, *arguments: Any) -> None:
        super().__init__(model, *arguments)
        self.watcher, self.which = model, dict[int, int]()

    def add_masks(
        self,
        frame: int,
        features: TrackerFeatures,
        ids: Sequence[int],
        given: torch.Tensor,
        shared: str | None = None,
    ) -> TrackerOutput:
        there = F.interpolate(masks(self.watcher.t)[None].float(), given.shape[-2:])[0] > 0
        for id, mask in zip(ids, given, strict=True):
            self.which[id] = int((there & mask).flatten(1).sum(1).argmax())
        return super().add_masks(frame, features, ids, given, shared)

    def propagate(self, *arguments: Any, **options: Any) -> TrackerOutput:
        found = super().propagate(*arguments, **options)
        if not found.ids:
            return found
        there = masks(self.watcher.t)[[self.which[id] for id in found.ids]]
        small = F.interpolate(there[None].float(), found.logits.shape[-2:])[0]
        presence = torch.full_like(found.presence, 8.0)
        return found._replace(
            logits=16 * small - 8, presence=presence, quality=torch.ones_like(found.quality)
        )


def show(table: Table) -> None:
    """A pipe has no edge to wrap at."""
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def config_of(
    name: str, memory: MemoryConfig | None = None, tracking: Sequence[str] = PARTS
) -> ModelConfig:
    """``tiny``, ``small``, ``stickers`` or a model of the table, with a video memory."""
    memory = memory or MemoryConfig()
    if name == TINY:
        config = tiny_config()
    elif name == SMALL:
        config = tiny_config(width=256, heads=8, hidden=2048, resolution=336, grid=24)
    elif name == STICKERS:
        from efficientsam3_stickers.recipes.common import student_config

        config = student_config()
    else:
        from efficientsam3.checkpoints import assemble
        from efficientsam3.variants import find_variant

        config = assemble.config_of(find_variant(name))
    others = (part for part in config.parts if part not in {*PARTS, *MULTIPLEX_PARTS})
    parts = (*others, *tracking)
    return dataclasses.replace(config, parts=parts, memory=memory)


# Memory against length --------------------------------------------------------------------------


class Heap(ctypes.Structure):
    """glibc's mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> float:
    """MiB that are allocated and not freed; resident memory also has the gaps between. 0: not
    known on this system."""
    try:
        read = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0.0
    read.restype = Heap
    heap = read()
    return float(heap.uordblks + heap.hblkhd) / 2**20


def follow_film(film: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and time when so many frames are done: decoded, followed, drawn, written."""
    from efficientsam3.benchmark import peak_memory
    from efficientsam3.io.frames import read_frames
    from efficientsam3.video import track_writers as forms
    from efficientsam3.video.concept_tracker import ConceptTracker
    from efficientsam3.video.run import Renderers, run
    from efficientsam3.video.track_file import TrackFile
    from efficientsam3.viz.contact_sheet import ContactSheet
    from efficientsam3.viz.video_writer import OverlayVideo

    watcher = Watcher.from_config(config_of(arguments.model), device="cpu", dtype="float32")
    watcher.real, watcher.count = arguments.encoder == "real", arguments.squares
    engine = Steered(watcher)
    rows: list[dict[str, float]] = []
    clock = CLOCKS[arguments.clock]
    start, done, most = clock(), 0, 0

    def progress(tracked: Any, again: bool) -> None:
        nonlocal done, most
        done, most = done + 1, max(most, len(tracked.instances))
        if done in arguments.marks:
            gc.collect()
            rows.append(
                {
                    "frames": done,
                    "peak MiB": peak_memory(),
                    "in use MiB": in_use(),
                    "memories kB": engine.nbytes / 1e3,
                    "ms a frame": (clock() - start) / done * 1e3,
                }
            )
            print(rows[-1], file=sys.stderr)

    def follow(frames: Any) -> Iterator[Any]:
        tracker = ConceptTracker(watcher, "square", tracker=engine, keep_images=True)
        for frame in frames:
            yield from tracker.step(frame)
        yield from tracker.flush()

    folder = film.parent
    video = {"name": film.name, "rate": 25.0, "frames": None, "concepts": ["square"]}
    with read_frames(film) as frames, TrackFile(folder / "a.jsonl", {}, video) as file:
        renderers = Renderers()
        if arguments.pictures:
            sheet = ContactSheet(folder / "a.png")
            renderers = Renderers(OverlayVideo(folder / "a.mp4", 25), sheet)
        run(frames, file, follow, renderers, progress=progress)
        renderers.close()
        tracks = file.next_id
    forms.write_coco(folder / "a.jsonl", folder / "coco.json")
    forms.write_mot(folder / "a.jsonl", folder / "a.txt")
    return {"rows": rows, "tracks": tracks, "objects": most, "after": peak_memory()}


def child(command: Sequence[str], *, tight: bool = True) -> dict[str, Any]:
    """What a script measures in a process of its own. tight: memory that is freed is given back."""
    environment = {**os.environ, **(TIGHT if tight else {})}
    whole = [sys.executable, *command]
    done = subprocess.run(whole, check=True, stdout=subprocess.PIPE, env=environment)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def memory(arguments: argparse.Namespace) -> None:
    if arguments.film is not None:  # the process that is measured
        print(json.dumps(follow_film(arguments.film, arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder, "film.mp4")
        write_film(film, max(arguments.marks))
        command = [__file__, "--clock", arguments.clock]
        command += ["--threads", str(arguments.threads or torch.get_num_threads())]
        command += ["memory", "--film", str(film)]
        command += ["--encoder", arguments.encoder, "--model", arguments.model]
        command += ["--squares", str(arguments.squares)]
        command += ["--marks", *map(str, arguments.marks)]
        command += [] if arguments.pictures else ["--no-pictures"]
        told = child(command, tight=arguments.allocator == "tight")
    table = Table(
        title=f"{arguments.model}, {arguments.encoder} encoder, {told['objects']} objects"
    )
    for title in ("frames", "peak MiB", "", "in use MiB", "", "memories kB", "ms a frame"):
        table.add_column(title, justify="right")
    first = told["rows"][0]
    for row in told["rows"]:
        cells = []
        for key in ("peak MiB", "in use MiB"):
            cells += [f"{row[key]:.1f}", f"{row[key] / max(first[key], 1e-9) - 1:+.2%}"]
        cells += [f"{row['memories kB']:.1f}", f"{row['ms a frame']:.1f}"]
        table.add_row(f"{row['frames']:,}", *cells)
    after = told["after"]
    table.add_row("COCO, MOT", f"{after:.1f}", f"{after / first['peak MiB'] - 1:+.2%}")
    show(table)
    print(f"{told['tracks']} tracks in the whole clip")


# Time against objects ---------------------------------------------------------------------------


def full_tracker(
    model: es3.ImageModel, count: int, frames: int = 8
) -> tuple[MemoryTracker, TrackerFeatures]:
    """A tracker with ``count`` objects whose memories are full, and the next frame."""
    tracker = make_tracker(model)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    features = tracker.read(image)
    given = masks(0)[torch.arange(count) % len(SQUARES)]
    tracked = tracker.add_masks(0, features, list(range(count)), given, "square")
    sure = torch.full_like(tracked.presence, 8.0)
    for t in range(1, frames):
        tracker.remember(t, features, tracked._replace(presence=sure))
    features.attention_input = None
    return tracker, features


def median(run: Callable[[], Any], arguments: argparse.Namespace) -> float:
    """Milliseconds."""
    clock = CLOCKS[arguments.clock]
    times = []
    for _ in range(arguments.repeat):
        start = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((clock() - start) * 1e3)
    return float(np.median(times))


def objects(arguments: argparse.Namespace) -> None:
    ways = {"SAM3": PARTS} | ({"SAM3.1": MULTIPLEX_PARTS} if arguments.multiplex else {})
    for way, parts in ways.items():
        count_objects(way, config_of(arguments.model, tracking=parts), arguments)


def count_objects(way: str, config: ModelConfig, arguments: argparse.Namespace) -> None:
    """Print what a frame costs against the number of objects."""
    model = es3.ImageModel.from_config(config, device=arguments.device, dtype=arguments.dtype)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    table = Table(title=f"{arguments.model}, {way}: a frame of the memory tracker, memories full")
    for title in ("objects", "read ms", "find ms", "remember ms", "ms an object", "of one"):
        table.add_column(title, justify="right")
    alone = 0.0
    for count in arguments.counts:
        tracker, features = full_tracker(model, count, frames=17)

        def find(
            tracker: MemoryTracker = tracker, features: TrackerFeatures = features
        ) -> TrackerOutput:
            features.attention_input = None  # what depends on the frame alone counts too
            return tracker.propagate(17, features)

        found = find()  # warm
        read = median(lambda t=tracker: t.read(image), arguments)  # type: ignore[misc]
        finding = median(find, arguments)
        remembering = median(
            lambda t=tracker, f=features, x=found: t.remember(17, f, x),  # type: ignore[misc]
            arguments,
        )
        each = (finding + remembering) / count
        alone = alone or each
        cells = (f"{v:.1f}" for v in (read, finding, remembering, each))
        table.add_row(str(count), *cells, f"{each / alone:.0%}")
    show(table)


# A Perceiver beside the full memory -------------------------------------------------------------


def cost_of_attention(config: ModelConfig, arguments: argparse.Namespace) -> dict[str, float]:
    """GFLOP and milliseconds of memory attention, and of making a frame's memory.

    The memories are full: seven frames, sixteen pointers.
    """
    from efficientsam3.benchmark import _counting

    model = es3.ImageModel.from_config(config, device="cpu", dtype="float32")
    tracker, features = full_tracker(model, 1, frames=17)
    reads = [tracker._banks[id].read(17) for id in tracker.ids]
    tracked = tracker.propagate(17, features)

    def attend() -> Any:
        features.attention_input = None
        return tracker.attend(features, reads)

    def make() -> Any:
        return tracker._encode(features, tracked.logits, tracked.presence > 0, given=False)

    out: dict[str, float] = {"tokens a frame": len(reads[0].tokens[0])}
    out["frames"] = len(reads[0].tokens)
    for name, part in (("attention", attend), ("memory", make)):
        with torch.inference_mode():
            part()
            with _counting() as counter:
                part()
            out[f"{name} GFLOP"] = counter.get_total_flops() / 1e9
            out[f"{name} ms"] = median(part, arguments)
    return out


def attention(arguments: argparse.Namespace) -> None:
    kinds = {
        "full memory, 4 layers": MemoryConfig(),
        f"full memory, {arguments.depth} layers": MemoryConfig(arguments.depth),
        f"Perceiver, {arguments.depth} layers": MemoryConfig(
            arguments.depth, arguments.latents, arguments.cells
        ),
    }
    table = Table(title=f"{arguments.model}: memory attention of one object on one frame")
    table.add_column("")
    titles = ("tokens a frame", "GFLOP", "ms", "time", "memory GFLOP", "memory ms")
    for title in titles:
        table.add_column(title, justify="right")
    whole = 0.0
    for name, kind in kinds.items():
        cost = cost_of_attention(config_of(arguments.model, kind), arguments)
        whole = whole or cost["attention ms"]
        table.add_row(
            name,
            f"{cost['tokens a frame']:.0f}",
            f"{cost['attention GFLOP']:.2f}",
            f"{cost['attention ms']:.1f}",
            f"{cost['attention ms'] / whole:.0%}",
            f"{cost['memory GFLOP']:.2f}",
            f"{cost['memory ms']:.1f}",
        )
    show(table)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: what this process computes, with --threads 1, where others compute too",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("memory", help="peak memory against the length of the clip")
    one.add_argument("--marks", type=int, nargs="+", default=[100, 1000, 5000], help="frames")
    one.add_argument("--encoder", choices=["stub", "real"], default="stub")
    one.add_argument("--model", help="default: tiny, with the real encoder stickers")
    one.add_argument("--squares", type=int, default=len(SQUARES), help="objects to follow")
    one.add_argument("--allocator", choices=["tight", "plain"], default="tight")
    one.add_argument("--no-pictures", dest="pictures", action="store_false", help="draw nothing")
    one.add_argument("--film", type=Path, help=argparse.SUPPRESS)
    two = kinds.add_parser("objects", help="milliseconds against the number of objects")
    two.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    two.add_argument("--multiplex", action="store_true", help="SAM3.1's tracker beside SAM3's")
    two.add_argument("--device", default="cpu")
    two.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    three = kinds.add_parser("attention", help="a Perceiver beside the full memory")
    three.add_argument("--latents", type=int, default=None, help="tokens without a place")
    three.add_argument("--cells", type=int, default=None, help="of tokens with one, a side")
    three.add_argument("--depth", type=int, default=2, help="layers of memory attention")
    for kind in (two, three):
        kind.add_argument(
            "--model", default=STICKERS, help="tiny, small, stickers, or of the table"
        )
        kind.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args(given)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.kind == "memory":
        arguments.model = arguments.model or (TINY if arguments.encoder == "stub" else STICKERS)
        memory(arguments)
    elif arguments.kind == "objects":
        objects(arguments)
    else:
        grid = config_of(arguments.model).grid
        # EdgeTAM's 256 and 16 x 16 for a grid of 64, in proportion, on a grid that divides ours.
        fits = [n for n in range(1, grid + 1) if grid % n == 0 and n <= max(2, grid / 4)]
        arguments.cells = fits[-1] if arguments.cells is None else arguments.cells
        if arguments.latents is None:
            arguments.latents = arguments.cells**2
        attention(arguments)


if __name__ == "__main__":
    main()
