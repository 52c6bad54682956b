"""What a video memory buys, on clips of stickers that no model has seen.

    python benchmarks/tracking.py --full FOLDER --perceiver FOLDER        # of stickers-video
    python benchmarks/tracking.py --full model/efficientsam3/assets/efficientsam3-stickers \\
        --perceiver benchmarks/weights/stickers-perceiver.safetensors     # as in the README
    python benchmarks/tracking.py --full FOLDER --detections spoilt       # true masks, spoilt
    python benchmarks/tracking.py --detections true                       # without a model
    python benchmarks/tracking.py --table README.md                       # from what is measured

Every tracker gets the same detections of up to four phrases a clip, half of them of absent things:
those of the model ("own"), the true masks ("true"), or true masks as a middling detector would have
them ("spoilt": 15 % missed, edges two pixels in or out, a false one on every tenth frame). Masks
are followed by the full memory, by the Perceiver memory, by overlap (``IoUTracker``), and, one for
each phrase, by box trackers of the package ``trackers``, set to take every detection.

pHOTA, DetA, AssA, video cgF1 and J&F (objects matched as in DAVIS' unsupervised task) are SA-Co's
and DAVIS'; a switch is a true object whose track is another than where it was last seen, of which
IoU is 0.5 and more. Memories are asked for J&F of given objects too, by their masks or by a click
on each in the first frame. What is done is kept in --out: run it again to go on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import put_table, say
from scipy import ndimage
from tracking_figures import KINDS, Record, figures, table

import efficientsam3 as es3
from efficientsam3.evaluate.metrics.jf import JFScore
from efficientsam3.evaluate.model_identity import weights_digest
from efficientsam3.io import rle
from efficientsam3.io.atomic import replacing
from efficientsam3.io.frame_types import Frame
from efficientsam3.outputs import EncodedImage
from efficientsam3.predictor import ImageModel
from efficientsam3.train.merge import merge_files
from efficientsam3.train.prompts import sample_error_clicks
from efficientsam3.types import Array, BitPatch, Instances
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.settings import TrackSettings
from efficientsam3.video.types import TrackedFrame
from efficientsam3_stickers.clips import Clip, make_clip
from efficientsam3_stickers.queries import Query, choose_queries
from efficientsam3_stickers.recipes import common
from efficientsam3_stickers.scenes import SceneGenerator

FIRST = 1000
"""Seed of the first clip: the recipe watches its training on those before."""
PHRASES = 4
MEMORIES = {"full": "full memory", "perceiver": "Perceiver memory"}
START, END = "<!-- table:tracking -->", "<!-- /table:tracking -->"


# Trackers ---------------------------------------------------------------------------------------


class Replay(ConceptTracker):
    """Takes detections, and the encoded frame they come from, instead of making them."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.given: tuple[Instances, EncodedImage]

    def _detect(self, frame: Frame) -> tuple[Instances, EncodedImage]:
        return self.given

    def take(
        self, frame: Frame, found: Instances, encoded: EncodedImage | None
    ) -> list[TrackedFrame]:
        """The next frame; those that are decided."""
        if encoded is None:
            return self.step(frame, found)
        self.given = found, encoded
        return self.step(frame)


class Boxes:
    """A box tracker of another package for each phrase, so that none takes another's detections."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.trackers: dict[str, Any] = defaultdict(make)
        self.ids: dict[tuple[str, int], int] = {}

    def take(self, frame: Frame, found: Instances, _: Any) -> list[TrackedFrame]:
        import supervision as sv

        ids = np.full(len(found), -1, np.int64)
        for label in {*self.trackers, *found.labels}:
            rows = np.array([i for i, name in enumerate(found.labels) if name == label], int)
            detections = sv.Detections(
                xyxy=found.boxes[rows].reshape(-1, 4),
                confidence=found.scores[rows],
                class_id=np.zeros(len(rows), int),
                data={"row": rows},
            )
            told = self.trackers[label].update(detections)
            given = () if told.tracker_id is None else told.tracker_id
            for row, id in zip(told.data.get("row", ()), given, strict=True):
                if id >= 0:
                    ids[row] = self.ids.setdefault((label, int(id)), len(self.ids))
        shown = dataclasses.replace(found, track_ids=ids)
        return [TrackedFrame(frame.index, frame.time, shown[ids >= 0])]

    def flush(self) -> list[TrackedFrame]:
        """Nothing waits."""
        return []


def trackers(models: Mapping[str, ImageModel]) -> dict[str, Callable[[Sequence[str]], Any]]:
    """What makes each tracker for the phrases of a clip, by what the table calls it."""
    from trackers import ByteTrackTracker, OCSORTTracker, SORTTracker

    once = {"minimum_consecutive_frames": 1}
    low = {"track_activation_threshold": 0.5, **once}
    high = {"high_conf_det_threshold": 0.5, **once}
    found: dict[str, Callable[[Sequence[str]], Any]] = {
        MEMORIES[kind]: functools.partial(Replay, model, tracker="memory")
        for kind, model in models.items()
    }
    found["mask IoU"] = lambda phrases: Replay(None, phrases, tracker="iou")
    found["ByteTrack"] = lambda _: Boxes(lambda: ByteTrackTracker(**{**low, **high}))
    found["SORT"] = lambda _: Boxes(lambda: SORTTracker(**low))
    found["OC-SORT"] = lambda _: Boxes(lambda: OCSORTTracker(**high))
    return found


# Clips and detections -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Film:
    """A clip, what is asked of it, and all its frames."""

    clip: Clip
    queries: list[Query]
    images: list[Array]
    masks: list[Array]

    @classmethod
    def draw(cls, world: SceneGenerator, seed: int, frames: int) -> Film:
        clip = make_clip(world, seed, frames)
        shown = list(clip)
        asked = choose_queries(clip.queries, PHRASES, seed)
        return cls(clip, asked, [f.image for f in shown], [f.masks for f in shown])

    @property
    def phrases(self) -> list[str]:
        return [query.phrase for query in self.queries]

    def truth(self) -> list[Record]:
        """Phrases with their objects, an entry a frame."""
        return [
            {
                "phrase": q.phrase,
                "tracks": [_lengths([m[i] for m in self.masks]) for i in q.objects],
            }
            for q in self.queries
        ]

    def true(self, t: int, spoil: np.random.Generator | None) -> Instances:
        """The true masks of a frame as detections."""
        masks, labels, scores = [], [], []
        for query in self.queries:
            there = [self.masks[t][i] for i in query.objects if self.masks[t][i].any()]
            if spoil is not None:
                there = _spoilt(spoil, there)
            masks += there
            labels += [query.phrase] * len(there)
            scores += [0.9 if spoil is None else float(spoil.uniform(0.55, 0.98)) for _ in there]
        size = self.images[t].shape[:2]
        patches = [BitPatch.cut(mask) for mask in masks]
        boxes = np.array([p.crop(size)[1] for p in patches], np.float32).reshape(-1, 4)
        sure = np.array(scores, np.float32)
        return Instances(boxes, sure, sure, labels, size, patches, concepts=tuple(self.phrases))


def _lengths(masks: Sequence[Array]) -> list[Record | None]:
    size = masks[0].shape
    whole = (0, 0, size[1], size[0])
    return [rle.encode_cut(mask, whole, size) if mask.any() else None for mask in masks]


def _spoilt(random: np.random.Generator, there: Sequence[Array]) -> list[Array]:
    """What a middling detector would find."""
    out = [_wobble(random, mask) for mask in there if random.random() > 0.15]
    if there and random.random() < 0.1:
        mask = np.zeros_like(there[0])
        y, x = random.integers(0, mask.shape[0] - 20, 2)
        mask[y : y + 20, x : x + 20] = True
        out.append(mask)
    return out


def _wobble(random: np.random.Generator, mask: Array) -> Array:
    by = int(random.integers(-2, 3))
    if by > 0:
        return ndimage.binary_dilation(mask, iterations=by)
    inner = ndimage.binary_erosion(mask, iterations=-by) if by else mask
    return inner if np.count_nonzero(inner) > 10 else mask


# Following ----------------------------------------------------------------------------------------


class Watch:
    """Milliseconds spent, by what on."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def time(self, name: str, work: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        out = work(*given)
        self.spent[name] += 1e3 * (time.perf_counter() - start)
        return out


def follow(one: Film, kind: str, models: Mapping[str, ImageModel]) -> Record:
    """All trackers through a clip, and given objects by the memories."""
    watch = Watch()
    made = trackers(models)
    running = {name: make(one.phrases) for name, make in made.items()}
    shown: dict[str, list[TrackedFrame]] = {name: [] for name in made}
    random = np.random.default_rng([one.clip.seed, 5]) if kind == "spoilt" else None
    for t, image in enumerate(one.images):
        frame = Frame(t, None, image)
        encoded = {}
        for key, model in models.items():
            encoded[MEMORIES[key]] = watch.time(f"encode {key}", model.encode, image)
        if kind == "own":
            found = watch.time("detect", detect, models["full"], encoded, one.phrases)
        else:
            found = one.true(t, random)
        for name, tracker in running.items():
            shown[name] += watch.time(name, tracker.take, frame, found, encoded.get(name))
    for name, tracker in running.items():
        shown[name] += watch.time(name, tracker.flush)
    line: Record = {
        "seed": one.clip.seed,
        "frames": len(one.images),
        "size": one.images[0].shape[:2],
    }
    line["truth"] = one.truth()
    line["found"] = {name: tracks_of(frames, len(one.images)) for name, frames in shown.items()}
    line["ms"] = {name: ms / len(one.images) for name, ms in watch.spent.items()}
    if kind == "own":
        line["given"] = {MEMORIES[k]: given(one, model) for k, model in models.items()}
    return line


def detect(model: ImageModel, encoded: Mapping[str, EncodedImage], phrases: list[str]) -> Instances:
    image = encoded[MEMORIES["full"]]
    options = TrackSettings.of(model).segment_options(True)
    return model.segment(image, phrases, **options)


def tracks_of(frames: Sequence[TrackedFrame], length: int) -> list[Record]:
    """Tracks as run lengths; a track's score is its first detection's."""
    tracks: dict[tuple[str, int], Record] = {}
    for frame in frames:
        found = frame.instances
        rows = zip(
            found.labels, found.track_ids.tolist(), found.scores.tolist(), found.rles, strict=True
        )
        for label, id, score, mask in rows:
            empty = {"phrase": label, "score": score, "masks": [None] * length}
            tracks.setdefault((label, id), empty)["masks"][frame.index] = mask
    return list(tracks.values())


def given(one: Film, model: ImageModel) -> Record:
    """J and F of the objects of the first frame, given once by their masks and once by a click."""
    first = one.masks[0]
    objects = [i for i, mask in enumerate(first) if mask.any()]
    out: Record = {}
    for way in ("mask", "click") if objects else ():
        tracker = InteractiveTracker(model, one.images)
        for i in objects:
            if way == "mask":
                tracker.add_mask(0, i, first[i])
                continue
            truth = torch.from_numpy(first[i])[None]
            dice = torch.Generator().manual_seed(one.clip.seed)
            xy, _ = sample_error_clicks(truth, torch.zeros_like(truth), dice)
            tracker.add_points(0, i, xy[0].numpy() * first.shape[1:][::-1])
        masks = {i: np.zeros((len(one.images), *first.shape[1:]), bool) for i in objects}
        for frame in tracker.propagate():
            found = frame.instances
            for i, mask in zip(found.track_ids.tolist(), found.masks, strict=True):
                masks[i][frame.index] = mask
        score = JFScore()
        for i in objects:
            score.update(masks[i][1:-1], [m[i] for m in one.masks[1:-1]])
        out[way] = {"j": score.j, "f": score.f}
    return out


# Memory -------------------------------------------------------------------------------------------


def peak(name: str, folders: Mapping[str, Path], frames: int) -> float:
    """MiB of a process of its own that follows a long clip, detections and all."""
    command = [sys.executable, __file__, "--child", name, "--frames", str(frames)]
    for kind, folder in folders.items():
        command += [f"--{kind}", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def child(name: str, models: Mapping[str, ImageModel], frames: int) -> float:
    """MiB of this process after a clip, detections and all."""
    using = {k: m for k, m in models.items() if MEMORIES[k] == name} or {"full": models["full"]}
    ((key, model),) = using.items()
    clip = make_clip(world(model.config.resolution), FIRST, frames)
    phrases = [q.phrase for q in choose_queries(clip.queries, PHRASES, FIRST)]
    tracker = trackers(using)[name](phrases)
    for t, frame in enumerate(clip):
        encoded = model.encode(frame.image)
        found = detect(model, {MEMORIES["full"]: encoded}, phrases)
        tracker.take(Frame(t, None, frame.image), found, encoded if name == MEMORIES[key] else None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The whole ----------------------------------------------------------------------------------------


def world(size: int) -> SceneGenerator:
    return common.recipe_generator(size, "seen")


def measure(options: argparse.Namespace, models: Mapping[str, ImageModel]) -> list[Record]:
    """A line of each clip; those of an earlier run with the same numbers are taken over."""
    identity = {
        "weights": {kind: weights_digest(model) for kind, model in models.items()},
        "memories": {kind: dataclasses.asdict(m.config.memory) for kind, m in models.items()},
        "frames": options.frames,
        "size": options.size,
        "phrases": PHRASES,
        "settings": {kind: dataclasses.asdict(TrackSettings.of(m)) for kind, m in models.items()},
    }
    path: Path = options.out / f"tracking-{options.detections}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = list(read(path, identity))
    if not lines:
        path.write_text(json.dumps(identity) + "\n")
    done = {line["seed"] for line in lines}
    missing = [s for s in range(FIRST, FIRST + options.clips) if s not in done]
    start = time.perf_counter()
    work = functools.partial(clip_of, options.detections, options.frames, options.size)
    with path.open("a") as file, shared(options, models) as each:
        for number, line in enumerate(each(work, missing), 1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.append(line)
            if number % 10 == 0:
                spent = time.perf_counter() - start
                say(f"{options.detections}: {number} of {len(missing)} clips, {spent:.0f} s")
    return [line for line in lines if line["seed"] < FIRST + options.clips]


_MODELS: dict[str, ImageModel] = {}
_WORLDS: dict[int, SceneGenerator] = {}


def clip_of(kind: str, frames: int, size: int, seed: int) -> Record:
    """The line of a clip."""
    if size not in _WORLDS:
        _WORLDS[size] = world(size)
    return follow(Film.draw(_WORLDS[size], seed, frames), kind, _MODELS)


@contextlib.contextmanager
def shared(options: argparse.Namespace, models: Mapping[str, ImageModel]) -> Iterator[Any]:
    """``map`` for clips: here, or in processes of one thread each, which is the faster way."""
    if options.workers < 2:
        _MODELS.update(models)
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, spawn, start_worker, (folders_of(options),)) as pool:
        yield pool.map


def start_worker(folders: Mapping[str, Path]) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _MODELS.update(load(folders))


def folders_of(options: argparse.Namespace) -> dict[str, Path]:
    return {k: getattr(options, k) for k in MEMORIES if getattr(options, k)}


def load(folders: Mapping[str, Path]) -> dict[str, ImageModel]:
    return {kind: es3.load(str(folder), device="cpu") for kind, folder in folders.items()}


def read(path: Path, identity: Record) -> Iterator[Record]:
    if not path.is_file():
        return
    head, *rest = path.read_text().splitlines()
    if json.loads(head) == json.loads(json.dumps(identity)):
        for line in rest:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # cut off by a kill
                return


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", type=Path, help="a model with a full memory")
    parser.add_argument(
        "--perceiver", type=Path, help="the same with a Perceiver, or its memory alone"
    )
    parser.add_argument("--detections", choices=list(KINDS), default="own")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=common.RESOLUTION)
    parser.add_argument("--peak", type=int, metavar="FRAMES", help="peak memory, over so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--table", type=Path, help="a Markdown file to put the table into")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    if options.full and options.perceiver and options.perceiver.is_file():
        whole = options.out / "perceiver"
        merge_files(options.full, [options.perceiver], whole)
        options.perceiver = whole
    folders = folders_of(options)
    models = load(folders)
    if options.child:
        print(child(options.child, models, options.frames))
        return
    if "perceiver" in models and "full" not in models:
        sys.exit("--perceiver goes with --full, whose detections all trackers get")
    file = options.out / "tracking.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    if models or options.detections != "own":
        lines = measure(options, models)
        spent = {
            k: float(np.mean([line["ms"].get(k, 0) for line in lines]))
            for k in ("encode full", "detect")
        }
        found = figures(lines)
        for name in found if options.peak and options.detections == "own" else ():
            found[name]["peak"] = peak(name, folders, options.peak)
        content[options.detections] = {"clips": len(lines), "shared ms": spent, "trackers": found}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    if not content:
        sys.exit(f"nothing was measured: {file} is not there")
    text = table(content)
    print(text)
    for kind, kept in content.items():
        shared = {k: round(v, 1) for k, v in kept["shared ms"].items()}
        print(f"{KINDS[kind]}: {kept['clips']} clips; milliseconds that all share: {shared}")
    if options.table:
        put_table(text, options.table, START, END)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
