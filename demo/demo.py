"""Label a FiftyOne dataset with a zoo model, and evaluate the labels.

    make demo                                       # or: .venv/bin/python demo/demo.py
    make demo PHOTOS=~/pictures CONCEPTS="dog, yellow car" MODEL=efficientsam3-tinyvit-11m

Without photographs of your own, the demo uses twelve scenes that no model has trained on, their
true masks, and the small model that is part of the package. It calls what a user calls:
`load_zoo_model`, `apply_model`, `evaluate_detections`. Then it tracks the objects of a clip.
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
"""The model for the scenes, which is in the package, and the one for photographs, which is not."""

SCENES = Path(__file__).with_name("scenes")
DATASET = "efficientsam3-demo"
FIELD, TRUTH, PHRASES, EVALUATION = "esam3", "ground_truth", "phrases", "eval"
CONCEPTS = "person, bus, cat"
THRESHOLD = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of your own photographs")
    parser.add_argument(
        "--concepts", default=CONCEPTS, help="what to look for, with commas between"
    )
    parser.add_argument("--model", help=f"default: {STICKERS}; for photographs {PHOTOGRAPHIC}")
    parser.add_argument("--checkpoint", type=Path, help="a local weight file for the model")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="default: 0.5")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    options = parser.parse_args(arguments)
    # The demo sends no usage data. FiftyOne reads this variable when it is imported.
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
    if "FIFTYONE_DATABASE_URI" not in os.environ:
        # FiftyOne warns about the age of the MongoDB that it ships itself.
        os.environ.setdefault("FIFTYONE_DATABASE_VALIDATION", "false")
    from efficientsam3 import EfficientSam3Error
    from efficientsam3.runtime.threads import share_processors

    share_processors()
    try:
        pictures = on_photographs(options) if options.photos else on_scenes(options)
    except EfficientSam3Error as error:
        sys.exit(f"demo: {error}")
    print(
        f"\n  pictures     {pictures}"
        f"\n  the dataset  .venv/bin/fiftyone app launch {DATASET}"
        f"\n  in Python    import fiftyone as fo; fo.load_dataset({DATASET!r})"
    )


# Scenes with true masks ----------------------------------------------------------------------


def on_scenes(options: argparse.Namespace) -> Path:
    """Label, evaluate and draw the scenes, and track the clip."""
    from efficientsam3.evaluate import read_ground_truth

    truth = read_ground_truth(SCENES / "gold.json")
    absent = sum(not pair.targets for pair in truth.pairs)
    log(f"{len(truth.images)} scenes with {len(truth.pairs)} phrases, {absent} of absent things")
    model = load(options, options.model or STICKERS, threshold=options.threshold)
    log("making the dataset")
    dataset = make_dataset(truth)
    label(dataset, model, text_prompt_field=PHRASES)
    measure(dataset, truth, options.threshold)
    pictures = draw_answers(dataset, truth, options.out / "answers")
    track_clip(model.core, options.threshold, options.out)
    return pictures


def make_dataset(truth: Any) -> Any:
    """Make a sample for each scene, with its phrases and the true masks of each phrase."""
    import fiftyone as fo

    from efficientsam3.io.rle import decode

    def detection(pair: Any, target: Any) -> Any:
        height, width = pair.size
        x0, y0, x1, y1 = (round(v) for v in target.box)
        box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        mask = decode(target.mask).astype(bool)[y0:y1, x0:x1]
        return fo.Detection(label=pair.phrase, bounding_box=box, mask=mask)

    samples = []
    for file, pairs in truth.images.items():
        there = [detection(pair, target) for pair in pairs for target in pair.targets]
        sample = fo.Sample(filepath=str((SCENES / "images" / file).resolve()))
        sample[PHRASES] = [pair.phrase for pair in pairs]
        sample[TRUTH] = fo.Detections(detections=there)
        samples.append(sample)
    dataset = fo.Dataset(DATASET, persistent=True, overwrite=True)
    dataset.add_samples(samples, progress=False)
    return dataset


def measure(dataset: Any, truth: Any, threshold: float) -> dict[str, float]:
    """Print FiftyOne's evaluation and SA-Co's metrics of the stored labels, and return both."""
    from rich.console import Console
    from rich.table import Table

    from efficientsam3.evaluate import Prediction, Predictions, score_images

    log("evaluating")
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
        pair.key: [Prediction.from_mask(mask, score) for mask, score in stored(sample, pair)]
        for sample, pairs in scenes(dataset, truth)
        for pair in pairs
    }
    report = score_images(truth, Predictions(found), threshold=threshold, ap=False)
    table = Table(title="evaluation of the labels, 0 to 100", show_header=False)
    rows = {
        "FiftyOne: mAP of masks, mean over phrases": 100 * results.mAP(),
        "FiftyOne: precision at IoU 0.5": 100 * micro["precision"],
        "FiftyOne: recall at IoU 0.5": 100 * micro["recall"],
        "SA-Co: cgF1, localization and classification": report.metrics["cgF1"],
        "SA-Co: pmF1, where the concept is present": report.metrics["pmF1"],
        "SA-Co: IL_MCC, is the concept present (-1 to 1)": report.metrics["IL_MCC"],
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}" if "IL_MCC" in name else f"{value:.1f}")
    Console().print(table)
    counts = report.counts
    log(
        f"{counts['instances']} instances of {counts['positive_pairs']} phrases; "
        f"{counts['IL_TN']} of {counts['negative_pairs']} absent concepts were correctly not found"
    )
    return rows


def draw_answers(dataset: Any, truth: Any, folder: Path) -> Path:
    """Draw a sheet for each scene: correct masks green, missed ones orange, wrong ones red."""
    import numpy as np
    from PIL import Image

    from efficientsam3.evaluate.comparison_sheet import PhraseResult, draw_comparison
    from efficientsam3.io.rle import decode

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for sample, pairs in scenes(dataset, truth):
        image = np.asarray(Image.open(sample.filepath).convert("RGB"))
        answers = [
            PhraseResult(
                pair.phrase,
                [mask for mask, _ in stored(sample, pair)],
                [decode(target.mask).astype(bool) for target in pair.targets],
            )
            for pair in pairs
        ]
        sheet = draw_comparison(image, answers)
        # Thin outlines need their full color.
        sheet.save(folder / f"{Path(sample.filepath).stem}.jpg", quality=92, subsampling=0)
    log("pictures: green is correct, orange is missed, red is wrong")
    return folder


def scenes(dataset: Any, truth: Any) -> list[tuple[Any, list[Any]]]:
    """Return each sample with the pairs of its scene and a phrase."""
    pairs = truth.images
    return [(sample, pairs[Path(sample.filepath).name]) for sample in dataset]


def stored(sample: Any, pair: Any) -> list[tuple[Any, float]]:
    """Return the full masks and scores that the dataset holds for a phrase."""
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


# A clip with true masks -----------------------------------------------------------------------


def track_clip(model: Any, threshold: float, folder: Path) -> dict[str, float]:
    """Track a clip's phrases; write a contact sheet, a video and tracks; return SA-Co's metrics."""
    import efficientsam3 as es3
    from efficientsam3.evaluate import evaluate_clips, read_clip_annotations
    from efficientsam3.video.track_file import TrackFile
    from efficientsam3.video.track_writers import write_veval
    from efficientsam3.viz import overlay as draw
    from efficientsam3.viz.contact_sheet import ContactSheet
    from efficientsam3.viz.video_writer import OverlayVideo

    truth = read_clip_annotations(SCENES / "veval.json")
    (clip,) = truth.clips.values()
    phrases = list(truth.phrases.values())
    shown = drawn_phrases(truth)
    log(f"tracking {len(phrases)} phrases through {clip.length} frames; drawn: {', '.join(shown)}")
    tracks, start = folder / "clip.tracks.jsonl", time.perf_counter()
    film = {"name": clip.name, "rate": None, "frames": clip.length, "concepts": phrases}
    with (
        TrackFile(tracks, {}, film, restart=True) as file,
        OverlayVideo(folder / "clip.mp4") as video,
        ContactSheet(folder / "clip.png") as sheet,
    ):
        source = SCENES / f"{clip.name}.mp4"
        for frame in es3.track(model, source, phrases, threshold=threshold, keep_images=True):
            file.add_frame(frame)
            found = frame.instances
            drawn = found[[i for i, label in enumerate(found.labels) if label in shown]]
            picture = draw.overlay(frame.image, drawn)
            video.show(picture, frame.index, frame.time)
            sheet.show(picture.copy, frame.index, frame.time)
    seconds = (time.perf_counter() - start) / clip.length
    write_veval(tracks, folder / "clip.veval.json", SCENES / "veval.json")
    report = evaluate_clips(SCENES / "veval.json", folder / "clip.veval.json", threshold=threshold)
    figures = {name: report.metrics[name] for name in ("cgF1", "pHOTA")}
    scores = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
    log(f"{file.next_id} tracks, {seconds:.2f} s a frame with drawing; {scores}")
    log(f"the clip: {folder / 'clip.png'}, and as a video {folder / 'clip.mp4'}")
    return figures


def drawn_phrases(truth: Any) -> list[str]:
    """Return the phrases that name objects of the clip, one for each set of objects."""
    first: dict[Any, str] = {}
    for clip in truth.queries.values():
        if clip.tracks:
            objects = tuple(sorted(str(track.masks) for track in clip.tracks))
            first.setdefault(objects, clip.phrase)
    return list(first.values())


# Photographs ----------------------------------------------------------------------------------


def on_photographs(options: argparse.Namespace) -> Path:
    """Label and draw photographs."""
    import fiftyone as fo

    concepts = [concept.strip() for concept in options.concepts.split(",") if concept.strip()]
    if not concepts:
        sys.exit("--concepts is empty; pass for example --concepts 'dog, yellow car'")
    if not options.photos.is_dir():
        sys.exit(f"--photos {options.photos}: there is no such folder")
    kinds = {".jpg", ".jpeg", ".png", ".webp"}
    files = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in kinds)
    if not files:
        sys.exit(f"no photographs (jpg, png, webp) in {options.photos}")
    log(f"{len(files)} photographs, looking for: {', '.join(concepts)}")
    name = options.model or PHOTOGRAPHIC
    model = load(options, name, classes=concepts, threshold=options.threshold)
    dataset = fo.Dataset(DATASET, persistent=True, overwrite=True)
    dataset.add_samples([fo.Sample(filepath=str(path.resolve())) for path in files], progress=False)
    label(dataset, model)
    report(dataset, concepts)
    return draw(dataset, options.out / "overlays")


def report(dataset: Any, concepts: Sequence[str]) -> None:
    """Print the number of instances of each concept in each photograph."""
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
    """Draw the labels of a dataset."""
    log("drawing the stored labels")
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
    """Load a model of FiftyOne's zoo. The model in the package needs no network."""
    if options.checkpoint:
        arguments["checkpoint"] = str(options.checkpoint.resolve())
    log("starting FiftyOne and its database")
    import fiftyone.zoo as foz

    log(f"loading {name}")
    return foz.load_zoo_model(name, **arguments)


def label(dataset: Any, model: Any, **prompts: str) -> None:
    """Label a dataset, and print the time."""
    log(f"labeling, into the field {FIELD!r}")
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
    log(f"{len(dataset)} images in {seconds:.1f} s, {seconds / len(dataset):.2f} s each")


def log(sentence: str) -> None:
    """Print a step of the demo."""
    print(f"==> {sentence}", flush=True)


if __name__ == "__main__":
    main()
