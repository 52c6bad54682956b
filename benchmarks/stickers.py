"""Compares the stages of training on scenes of stickers that no stage has trained on.

    python benchmarks/stickers.py --run out/stickers            # a folder of the recipe
    python benchmarks/stickers.py --model student=FOLDER --scenes 50
    python benchmarks/stickers.py --table docs/tables/stickers.md  # the table of what is measured
    python benchmarks/stickers.py --run out/stickers --names recipe --json out/benchmarks/304.json

It measures cgF1, pmF1, IL_MCC and COCO's AP of masks for each model and split, on --scenes scenes
with up to eight phrases each, half of which are absent. As a baseline for unseen concepts, the same
model reads every phrase as the mean of all seen names. Results are kept in the JSON file, so that a
run that was stopped continues.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import put_table, say
from torch import Tensor

import efficientsam3 as es3
from efficientsam3.checkpoints.save import count_parameters
from efficientsam3.config import ModelConfig
from efficientsam3.evaluate import (
    ConceptScore,
    GroundTruth,
    ObjectAnnotation,
    Pair,
    Prediction,
    Predictions,
    score_images,
    score_pair,
)
from efficientsam3.evaluate.model_identity import weights_digest
from efficientsam3.io.atomic import replacing
from efficientsam3.nn.detector import Detector
from efficientsam3.predictor import ImageModel
from efficientsam3.train.recipe import Run
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.queries import Query, choose_queries
from efficientsam3_stickers.recipes import common, stickers
from efficientsam3_stickers.scenes import Scene

SPLIT_TITLES = {
    "seen": "seen things and styles",
    "unseen-style": "in an unseen style",
    "unseen-concepts": "unseen things",
}
"""Splits, and their titles in the table."""
BASELINE = "unseen-concepts"
RECIPE, ALL = "recipe", "all"
"""Names of the 304 concepts of the recipe "stickers", or of all 1,300."""
PHRASES = 8
FIRST_SEED = 1000
"""Seed of the first scene; the recipe validates on those before it."""
MIN_SCORE, THRESHOLD = 0.05, 0.5
"""Least score of instances for average precision, and for all other metrics."""
KINDS = {
    "names": ("name", "synonym", "near", "random"),
    "categories": ("category", "not-category"),
    "attributes": ("attribute", "not-attribute"),
}
"""Kinds of phrases whose metrics the JSON file has separately."""
METRICS = ("cgF1", "pmF1", "IL_MCC", "AP", "AP50", "cgF1@50", "IL_recall", "IL_FPR")
START, END = "<!-- table:stickers -->", "<!-- /table:stickers -->"

Record = dict[str, Any]
Load = Callable[[], ImageModel]


# Models -------------------------------------------------------------------------------------------


def stages(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """The models of the finished stages of a run, by their titles in the table."""
    file = folder / "recipe.json"
    recorded = json.loads(file.read_text()).get("options", {}) if file.is_file() else {}
    known = {f: v for f, v in recorded.items() if f in stickers.Options.__dataclass_fields__}
    o = stickers.Options(**known)
    done = {f.parent.name for f in folder.glob("*/weights.safetensors")}
    last = folder / "calibrate" / "model"
    run = Run(stickers.RECIPE, folder, "benchmark", o, frozenset(done))
    small, large = common.student_config(o.resolution), common.teacher_config(o.resolution)

    def whole(config: ModelConfig, stage: str) -> Detector:
        return common.load_weights(common.new_model(config, o.seed), run.weights(stage))

    def distilled(prompted: bool) -> Detector:
        return stickers.distilled_student(run, small, prompted=prompted)

    made: list[tuple[str, ModelConfig, Callable[[], Detector], set[str]]] = [
        ("teacher", large, lambda: whole(large, "teacher"), {"teacher"}),
        ("student, stage 1", small, lambda: distilled(False), {"teacher", "image", "text"}),
        (
            "student, prompt in the loop",
            small,
            lambda: distilled(True),
            {"teacher", "text", "prompts"},
        ),
        ("student, stage 3", small, lambda: whole(small, "student"), {"student"}),
        ("student, longer", small, lambda: whole(small, "longer"), {"longer"}),
        ("student without a teacher", small, lambda: whole(small, "alone"), {"alone"}),
    ]

    def load(name: str, config: ModelConfig, make: Callable[[], Detector]) -> ImageModel:
        net = make().eval().requires_grad_(False)
        return ImageModel(name, config, lambda: net, **options)

    models = {
        name: functools.partial(load, name, config, make)
        for name, config, make, needed in made
        if needed <= done
    }
    if last.is_dir():
        models["student, finer, calibrated"] = functools.partial(es3.load, str(last), **options)
    return models


class MeanText:
    """A text encoder that reads every phrase as the mean of some names, so that all are equal.

    The features of each token are averaged over the names that are long enough to have it.
    """

    def __init__(self, model: ImageModel, names: Sequence[str]) -> None:
        self._read = model._read_text
        features, valid = self._read(list(names))
        weight = valid[..., None].to(features.dtype)
        self.features = (features * weight).sum(0) / weight.sum(0).clamp(min=1)
        self.valid = valid.float().mean(0) >= 0.5

    def __call__(self, names: list[str]) -> tuple[Tensor, Tensor]:
        count = len(names)
        return self.features.expand(count, -1, -1), self.valid.expand(count, -1)


# Scenes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneQueries:
    """A scene with the queries that are measured."""

    scene: Scene
    queries: list[Query]

    @property
    def phrases(self) -> list[str]:
        return [query.phrase for query in self.queries]

    def pair(self, number: int) -> Pair:
        query = self.queries[number]
        height, width = self.scene.image.shape[:2]
        return Pair(
            key=(f"{self.scene.seed}/{number}", 1),
            file=f"scene {self.scene.seed}",
            size=(height, width),
            phrase=query.phrase,
            category=query.phrase,
            annotators=(
                tuple(
                    ObjectAnnotation.from_mask(self.scene.objects[i].mask) for i in query.objects
                ),
            ),
        )


def held_out(split: str, count: int, size: int, names: str = ALL) -> Iterator[SceneQueries]:
    """Scenes of all concepts or those of the first recipe, the same for every model."""
    generator = common.recipe_generator(size, split, every=names == ALL)
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        scene = generator.scene(seed)
        yield SceneQueries(scene, choose_queries(scene.queries, PHRASES, seed))


def seen_names(names: str) -> list[str]:
    return common.recipe_concepts(StickerArt.open(), "train", every=names == ALL)


# Measuring ----------------------------------------------------------------------------------------


def evaluate(
    model: ImageModel, asked: Iterator[SceneQueries], say: Callable[[int], None]
) -> Record:
    """Metrics of a model on some scenes. Each image is encoded once, with all its phrases."""
    pairs: list[Pair] = []
    kinds: dict[Any, str] = {}
    found: dict[Any, list[Prediction]] = {}
    for number, one in enumerate(asked):
        answers = predict(model, one)
        for row, query in enumerate(one.queries):
            pair = one.pair(row)
            pairs.append(pair)
            kinds[pair.key] = query.kind
            found[pair.key] = answers[row]
        say(number + 1)
    truth = GroundTruth("scenes", "saco", (), tuple(pairs))
    report = score_images(truth, Predictions(found), threshold=THRESHOLD)
    out: Record = {name: report.metrics[name] for name in METRICS}
    out["counts"] = report.counts
    out["kinds"] = {}
    for name, group in KINDS.items():
        score = ConceptScore(THRESHOLD)
        for pair in pairs:
            if kinds[pair.key] in group:
                score_pair(score, pair, found[pair.key])
        figures = score.compute()
        out["kinds"][name] = {k: figures[k] for k in ("cgF1", "pmF1", "IL_MCC")} | score.counts()
    return out


def predict(model: ImageModel, one: SceneQueries) -> list[list[Prediction]]:
    """The predictions of a model for each phrase of a scene."""
    if not one.queries:
        return []
    found = model.segment(model.encode(one.scene.image), one.phrases, threshold=MIN_SCORE)
    out: dict[str, list[Prediction]] = {phrase: [] for phrase in one.phrases}
    for label, (x0, y0, x1, y1), score, mask in zip(
        found.labels, found.boxes.tolist(), found.scores.tolist(), found.rles, strict=True
    ):
        out[label].append(Prediction((x0, y0, x1, y1), mask, score))
    return [out[phrase] for phrase in one.phrases]


def measure_time(model: ImageModel, repeat: int = 20) -> Record:
    """Median milliseconds of an image with one phrase, and of each further phrase."""
    asked = list(held_out("seen", 4, model.config.resolution))
    first, more = [], []
    for number in range(repeat + 3):
        one = asked[number % len(asked)]
        phrases = [f"{phrase} {number}" for phrase in one.phrases]  # new phrases are not cached
        start = time.perf_counter()
        image = model.encode(one.scene.image)
        model.segment(image, phrases[0])
        middle = time.perf_counter()
        model.segment(image, phrases[1:])
        end = time.perf_counter()
        first.append(middle - start)
        more.append((end - middle) / max(1, len(phrases) - 1))
    return {
        "image and phrase": 1e3 * statistics.median(first[3:]),
        "further phrase": 1e3 * statistics.median(more[3:]),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def measure(models: Mapping[str, Load], options: argparse.Namespace) -> None:
    """Measure what the JSON file lacks."""
    content = read(options.json)
    for name, load in models.items():
        model = load()
        identity = {
            "weights": weights_digest(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "scenes": options.scenes,
            "phrases": PHRASES,
            "size": options.size,
            "names": options.names,
            "art": StickerArt.open().fingerprint,
        }
        kept = content.get(name, {})
        if kept.get("identity") != identity:
            kept = {"identity": identity, "splits": {}}
        exported = not isinstance(model, ImageModel)
        kept["parameters"] = None if exported else count_parameters(model.learned())
        if options.time and "milliseconds" not in kept:
            kept["milliseconds"] = measure_time(model)
        content[name] = kept
        write(options.json, content)
        wanted = [(split, False) for split in options.splits]
        wanted += [(BASELINE, True)] if BASELINE in options.splits and not exported else []
        for split, mean in wanted:
            key = f"{split}, mean text" if mean else split
            if key in kept["splits"]:
                say(f"{name}, {key}: measured before")
                continue
            started = time.perf_counter()
            if mean:
                model._read_text = MeanText(model, seen_names(options.names))  # type: ignore[method-assign]
            asked = held_out(split, options.scenes, options.size, options.names)
            result = evaluate(model, asked, functools.partial(progress, f"{name}, {key}", options))
            if mean:
                del model._read_text  # the method of the class is used again
            result["seconds"] = time.perf_counter() - started
            kept["splits"][key] = result
            write(options.json, content)
            say(
                f"{name}, {key}: cgF1 {result['cgF1']:.1f} = {result['pmF1']:.1f} x "
                f"{result['IL_MCC']:.2f}, AP {result['AP']:.1f}, {result['seconds']:.0f} s"
            )


def progress(what: str, options: argparse.Namespace, done: int) -> None:
    if done % 50 == 0 and done < options.scenes:
        say(f"{what}: {done} of {options.scenes}")


# The file and the table ---------------------------------------------------------------------------


def read(path: Path) -> Record:
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, content: Record) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def table(content: Record) -> str:
    """The table in Markdown, with a dash where nothing was measured."""
    titles = ["model", "M param.", "ms, image + phrase"]
    titles += [f"{title}: cgF1 (pmF1, IL_MCC), AP" for title in SPLIT_TITLES.values()]
    titles.append("the same with a mean text")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, kept in content.items():
        ms = kept.get("milliseconds")
        parameters = kept["parameters"]
        cells = [name, f"{parameters / 1e6:.1f}" if parameters else "-"]
        cells.append(f"{ms['image and phrase']:.0f} + {ms['further phrase']:.0f}" if ms else "-")
        cells += [
            _cell(kept["splits"].get(key)) for key in (*SPLIT_TITLES, f"{BASELINE}, mean text")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(figures: Record | None) -> str:
    if figures is None:
        return "-"
    return (
        f"**{figures['cgF1']:.1f}** ({figures['pmF1']:.1f}, {figures['IL_MCC']:.2f}), "
        f"{figures['AP']:.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, action="append", default=[], help="a folder of the recipe"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a saved or exported model",
    )
    parser.add_argument(
        "--scenes", type=int, default=1000, help="scenes of each split; default: 1000"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=list(SPLIT_TITLES), default=list(SPLIT_TITLES)
    )
    parser.add_argument("--size", type=int, default=common.RESOLUTION)
    parser.add_argument(
        "--names",
        choices=[RECIPE, ALL],
        default=ALL,
        help="concepts of the scenes: all, or the 304 of the recipe stickers",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", help="number format; the fastest on this machine if omitted")
    parser.add_argument("--no-time", dest="time", action="store_false", help="do not measure time")
    parser.add_argument("--json", type=Path, default=Path("out/benchmarks/stickers.json"))
    parser.add_argument("--table", type=Path, help="a Markdown file that gets the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    how = {"device": "cpu", "dtype": options.dtype}
    models: dict[str, Load] = {}
    for folder in options.run:
        found = stages(folder, how)
        if not found:
            sys.exit(f"--run {folder}: no stage with a model is finished there")
        models |= found
    for given in options.model:
        name, _, folder = given.partition("=")
        models[name] = functools.partial(es3.load, folder or name, **how)
    if options.scenes < 1:
        sys.exit(f"--scenes is 1 or more; got {options.scenes}")
    measure(models, options)
    content = read(options.json)
    if not content:
        sys.exit(
            f"nothing was measured: {options.json} is not there, and no --run or --model given"
        )
    print(table(content))
    if options.table:
        put_table(table(content), options.table, START, END)


if __name__ == "__main__":
    main()
