"""The main job: a FiftyOne dataset, labelled by a model of the zoo, and how good the labels are.

    make demo                                       # or: .venv/bin/python demo/demo.py
    make demo PHOTOS=~/pictures CONCEPTS="dog, yellow car" MODEL=efficientsam3-tinyvit-11m

Without photographs of your own: a dozen scenes that no model has trained on, with their truth, and
the small model that is part of the package. What it does is what a user does: `load_zoo_model`,
`apply_model`, `evaluate_detections`, look at the dataset. Then a clip, whose objects are followed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STICKERS, PHOTOGRAPHIC = "efficientsam3-stickers", "efficientsam3-tinyvit-11m"
"""The model for the scenes, which is in the package, and one for photographs, which is not."""

SCENES = Path(__file__).with_name("scenes")
DATASET = "efficientsam3-demo"
FIELD, TRUTH, PHRASES, EVALUATION = "esam3", "ground_truth", "phrases", "eval"
CONCEPTS = "person, bus, cat"
THRESHOLD = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of your own photographs")
    parser.add_argument("--concepts", default=CONCEPTS, help="in them, with commas between")
    parser.add_argument("--model", help=f"default: {STICKERS}; for photographs {PHOTOGRAPHIC}")
    parser.add_argument("--checkpoint", type=Path, help="a local weight file for the model")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="default: 0.5")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    options = parser.parse_args(arguments)
    # A demo should not report to anyone; FiftyOne reads this when it is imported.
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    if "FIFTYONE_DATABASE_URI" not in os.environ:
        # The embedded MongoDB is what FiftyOne ships: its age is no news to a reader of the demo.
        os.environ.setdefault("FIFTYONE_DATABASE_VALIDATION", "false")
    from efficientsam3 import EfficientSam3Error

    try:
        pictures = on_photographs(options) if options.photos else on_scenes(options)
    except EfficientSam3Error as error:
        sys.exit(f"demo: {error}")
    print(
        f"\n  pictures     {pictures}"
        f"\n  the dataset  .venv/bin/fiftyone app launch {DATASET}"
        f"\n  in Python    import fiftyone as fo; fo.load_dataset({DATASET!r})"
    )


# Scenes with their truth ----------------------------------------------------------------------


def on_scenes(options: argparse.Namespace) -> Path:
    from efficientsam3.evaluate import read_truth

    truth = read_truth(SCENES / "gold.json")
    absent = sum(not pair.targets for pair in truth.pairs)
    say(f"{len(truth.pictures)} scenes with {len(truth.pairs)} phrases, {absent} of absent things")
    model = load(options, options.model or STICKERS, threshold=options.threshold)
    say("making the dataset")
    dataset = make_dataset(truth)
    label(dataset, model, text_prompt_field=PHRASES)
    measure(dataset, truth, options.threshold)
    pictures = draw_answers(dataset, truth, options.out / "answers")
    follow(model.core, options.threshold, options.out)
    return pictures


def make_dataset(truth: Any) -> Any:
    """A sample a scene: its phrases, and a detection for every phrase that is true of an object."""
    import fiftyone as fo

    from efficientsam3.rle import decode

    def detection(pair: Any, target: Any) -> Any:
        height, width = pair.size
        x0, y0, x1, y1 = (round(v) for v in target.box)
        box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        mask = decode(target.mask).astype(bool)[y0:y1, x0:x1]
        return fo.Detection(label=pair.phrase, bounding_box=box, mask=mask)

    samples = []
    for file, pairs in truth.pictures.items():
        there = [detection(pair, target) for pair in pairs for target in pair.targets]
        sample = fo.Sample(filepath=str((SCENES / "images" / file).resolve()))
        sample[PHRASES] = [pair.phrase for pair in pairs]
        sample[TRUTH] = fo.Detections(detections=there)
        samples.append(sample)
    dataset = fo.Dataset(DATASET, persistent=True, overwrite=True)
    dataset.add_samples(samples, progress=False)
    return dataset


def measure(dataset: Any, truth: Any, threshold: float) -> dict[str, float]:
    """Print FiftyOne's own evaluation and SA-Co's figures of the stored labels; gives both."""
    from rich.console import Console
    from rich.table import Table

    from efficientsam3.evaluate import Prediction, Predictions, score_images

    say("evaluating")
    results = dataset.evaluate_detections(
        FIELD,
        gt_field=TRUTH,
        eval_key=EVALUATION,
        compute_mAP=True,
        use_masks=True,
        progress=False,
    )
    micro = results.metrics()
    found = {
        pair.key: [Prediction.of(mask, score) for mask, score in stored(sample, pair)]
        for sample, pairs in scenes(dataset, truth)
        for pair in pairs
    }
    report = score_images(truth, Predictions(found), threshold=threshold, precision=False)
    table = Table(title="how good the labels are, 0 to 100", show_header=False)
    rows = {
        "FiftyOne: mAP of masks, mean over phrases": 100 * results.mAP(),
        "FiftyOne: precision at IoU 0.5": 100 * micro["precision"],
        "FiftyOne: recall at IoU 0.5": 100 * micro["recall"],
        "SA-Co: cgF1, found and not found together": report.figures["cgF1"],
        "SA-Co: pmF1, where the thing is there": report.figures["pmF1"],
        "SA-Co: IL_MCC, is it there at all (-1 to 1)": report.figures["IL_MCC"],
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}" if "IL_MCC" in name else f"{value:.1f}")
    Console().print(table)
    counts = report.counts
    say(
        f"{counts['instances']} instances of {counts['positive_pairs']} phrases; of "
        f"{counts['negative_pairs']} absent things {counts['IL_TN']} were rightly not found"
    )
    return rows


def draw_answers(dataset: Any, truth: Any, folder: Path) -> Path:
    """A sheet of panels for each scene: green found, orange missed, red not there."""
    import numpy as np
    from PIL import Image

    from efficientsam3.evaluate.pictures import Answered, hits_and_misses
    from efficientsam3.rle import decode

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for sample, pairs in scenes(dataset, truth):
        image = np.asarray(Image.open(sample.filepath).convert("RGB"))
        answers = [
            Answered(
                pair.phrase,
                [mask for mask, _ in stored(sample, pair)],
                [decode(target.mask).astype(bool) for target in pair.targets],
            )
            for pair in pairs
        ]
        sheet = hits_and_misses(image, answers)
        # Thin outlines need their full colour.
        sheet.save(folder / f"{Path(sample.filepath).stem}.jpg", quality=92, subsampling=0)
    say("pictures: green was found, orange was missed, red is not there")
    return folder


def scenes(dataset: Any, truth: Any) -> list[tuple[Any, list[Any]]]:
    """Each sample with its pairs of scene and phrase."""
    pairs = truth.pictures
    return [(sample, pairs[Path(sample.filepath).name]) for sample in dataset]


def stored(sample: Any, pair: Any) -> list[tuple[Any, float]]:
    """The model's labels for a phrase, as the dataset has them: whole masks and scores."""
    import numpy as np

    height, width = pair.size
    out = []
    for detection in sample[FIELD].detections:
        if detection.label == pair.phrase:
            x, y, _, _ = detection.bounding_box
            top, left = round(y * height), round(x * width)
            mask = np.zeros(pair.size, bool)
            rows, columns = detection.mask.shape
            mask[top : top + rows, left : left + columns] = detection.mask
            out.append((mask, detection.confidence))
    return out


# A clip with its truth ------------------------------------------------------------------------


def follow(model: Any, threshold: float, folder: Path) -> dict[str, float]:
    """Follow a clip's phrases into a contact sheet, a video and tracks; gives SA-Co's figures."""
    import efficientsam3 as es3
    from efficientsam3 import draw
    from efficientsam3.evaluate import evaluate_clips, read_clips
    from efficientsam3.video.forms import write_veval
    from efficientsam3.video.journal import Journal
    from efficientsam3.video.overlay import OverlayVideo
    from efficientsam3.video.sheet import ContactSheet

    truth = read_clips(SCENES / "veval.json")
    (clip,) = truth.videos.values()
    phrases = list(truth.phrases.values())
    told = drawn(truth)
    say(f"following {len(phrases)} phrases through {clip.length} frames; drawn: {', '.join(told)}")
    tracks, start = folder / "clip.tracks.jsonl", time.perf_counter()
    film = {"name": clip.name, "rate": None, "frames": clip.length, "concepts": phrases}
    with (
        Journal(tracks, {}, film, restart=True) as journal,
        OverlayVideo(folder / "clip.mp4") as video,
        ContactSheet(folder / "clip.png") as sheet,
    ):
        source = SCENES / f"{clip.name}.mp4"
        for frame in es3.track(model, source, phrases, threshold=threshold, keep_images=True):
            journal.add(frame)
            found = frame.instances
            shown = found[[i for i, label in enumerate(found.labels) if label in told]]
            picture = draw.overlay(frame.image, shown)
            video.show(picture, frame.index, frame.time)
            sheet.show(picture.copy, frame.index, frame.time)
    seconds = (time.perf_counter() - start) / clip.length
    write_veval(tracks, folder / "clip.veval.json", SCENES / "veval.json")
    report = evaluate_clips(SCENES / "veval.json", folder / "clip.veval.json", threshold=threshold)
    figures = {name: report.figures[name] for name in ("cgF1", "pHOTA")}
    scores = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
    say(f"{journal.ids} tracks, {seconds:.2f} s a frame with drawing; {scores}")
    say(f"the clip: {folder / 'clip.png'}, and as a video {folder / 'clip.mp4'}")
    return figures


def drawn(truth: Any) -> list[str]:
    """Phrases of the clip that name something there, one for each set of objects."""
    first: dict[Any, str] = {}
    for clip in truth.clips.values():
        if clip.tracks:
            objects = tuple(sorted(str(track.masks) for track in clip.tracks))
            first.setdefault(objects, clip.phrase)
    return list(first.values())


# Photographs ----------------------------------------------------------------------------------


def on_photographs(options: argparse.Namespace) -> Path:
    import fiftyone as fo

    concepts = [concept.strip() for concept in options.concepts.split(",") if concept.strip()]
    if not concepts:
        sys.exit("--concepts names nothing: --concepts 'dog, yellow car'")
    if not options.photos.is_dir():
        sys.exit(f"--photos {options.photos}: there is no such folder")
    kinds = {".jpg", ".jpeg", ".png", ".webp"}
    files = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in kinds)
    if not files:
        sys.exit(f"no photographs (jpg, png, webp) in {options.photos}")
    say(f"{len(files)} photographs, looking for: {', '.join(concepts)}")
    name = options.model or PHOTOGRAPHIC
    model = load(options, name, classes=concepts, threshold=options.threshold)
    dataset = fo.Dataset(DATASET, persistent=True, overwrite=True)
    dataset.add_samples([fo.Sample(filepath=str(path.resolve())) for path in files], progress=False)
    label(dataset, model)
    report(dataset, concepts)
    return draw(dataset, options.out / "overlays")


def report(dataset: Any, concepts: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"instances in the dataset {DATASET!r}, field {FIELD!r}")
    table.add_column("photograph")
    for concept in concepts:
        table.add_column(concept, justify="right")
    for sample in dataset:
        found = sample[FIELD]
        labels = [detection.label for detection in found.detections] if found else []
        counts = [str(labels.count(concept)) for concept in concepts]
        table.add_row(Path(sample.filepath).name, *counts)
    Console().print(table)


def draw(dataset: Any, folder: Path) -> Path:
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
    return folder


# Both -----------------------------------------------------------------------------------------


def load(options: argparse.Namespace, name: str, **arguments: Any) -> Any:
    """A model of FiftyOne's zoo; the one in the package needs no network."""
    if options.checkpoint:
        arguments["checkpoint"] = str(options.checkpoint.resolve())
    say("starting FiftyOne and its database")
    import fiftyone.zoo as foz

    say(f"loading {name}")
    return foz.load_zoo_model(name, **arguments)


def label(dataset: Any, model: Any, **prompts: str) -> None:
    say(f"labelling, into the field {FIELD!r}")
    start = time.perf_counter()
    dataset.apply_model(
        model,
        label_field=FIELD,
        batch_size=1,
        num_workers=0,
        skip_failures=False,
        progress=False,
        **prompts,
    )
    seconds = time.perf_counter() - start
    say(f"{len(dataset)} images in {seconds:.1f} s, {seconds / len(dataset):.2f} s each")


def say(sentence: str) -> None:
    print(f"==> {sentence}", flush=True)


if __name__ == "__main__":
    main()
