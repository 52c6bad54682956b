"""Kinds of annotations: every format that ``data`` and ``evaluate`` read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from efficientsam3.data.annotated_images import AnnotatedImages
from efficientsam3.data.coco import CocoAnnotations
from efficientsam3.data.name_lists import read_names
from efficientsam3.data.object_videos import read_object_videos
from efficientsam3.data.phrases import read_phrases
from efficientsam3.data.sa1b import SA1B
from efficientsam3.data.saco import SaCoAnnotations
from efficientsam3.data.sav import SAV
from efficientsam3.data.types import ImageRecord
from efficientsam3.data.veval import read_clip_annotations
from efficientsam3.evaluate.clip_predictions import read_clip_predictions
from efficientsam3.evaluate.clips import evaluate_clips
from efficientsam3.evaluate.ground_truth import group_splits, read_ground_truth
from efficientsam3.evaluate.predictions import read_predictions, write_coco_results
from efficientsam3.evaluate.score import score_images
from efficientsam3.io import rle
from efficientsam3.io.jsonl import RunFile

from .mutate import json_bytes, mutate_bytes, mutate_json, mutated
from .runner import Case, Kind
from .samples import COCO, HEIGHT, LVIS, SACO, SIZE, VEVAL, WIDTH, picture, run_lengths


def check_record(record: ImageRecord) -> None:
    """What holds of every record that a reader gives."""
    assert min(record.size) > 0 and isinstance(record.file, str)
    for found in record.objects:
        assert np.isfinite(found.box).all() and np.isfinite(found.area)
        if found.mask is not None:
            assert rle.decode(found.mask).shape == record.size
    for query in record.queries:
        assert query.phrase.strip() and all(0 <= i < len(record.objects) for i in query.objects)


class Json(Kind):
    """A JSON file of annotations."""

    sound: Any

    def make(self, random: Random) -> bytes:
        sound = json.dumps(self.sound).encode()
        return mutated(random, lambda r: json_bytes(r, self.sound), sound)

    def write(self, value: bytes, case: Case) -> Path:
        path = case.write("truth.json", value)
        for name in ("a.png", "b.png", "val2017/a.png"):
            case.write(name, picture())
        case.seal()
        return path

    def score(self, path: Path) -> None:
        """Score predictions that equal the truth, as the command does."""
        (files,) = group_splits([path]).values()
        truth = read_ground_truth(files, negatives=2)
        rows = []
        for pair in truth.pairs:
            for target in pair.targets:
                image, category = pair.key
                row = {"image_id": image, "category_id": category, "score": 0.9}
                if target.mask is None:
                    x0, y0, x1, y1 = target.box
                    rows.append({**row, "bbox": [x0, y0, x1 - x0, y1 - y0]})
                else:
                    counts = target.mask["counts"]
                    text = counts.decode() if isinstance(counts, bytes) else counts
                    rows.append({**row, "segmentation": {**target.mask, "counts": text}})
        predictions = path.parent.parent / "predictions.json"
        predictions.write_text(json.dumps(rows))
        report = score_images(truth, read_predictions(predictions, truth), iou="mask")
        for name in ("cgF1", "pmF1", "precision", "recall"):
            figure = report.metrics.get(name)
            assert figure is None or np.isnan(figure) or 0 <= figure <= 100 + 1e-6, (name, figure)


class Coco(Json):
    name = "coco"
    about = "COCO's instance annotations"
    sound = COCO

    def check(self, value: bytes, case: Case) -> None:
        path = self.write(value, case)
        reader = CocoAnnotations(path, negatives=1, synonyms=True)
        for index in range(len(reader)):
            check_record(reader[index])
        data = AnnotatedImages(case.inputs, reader)
        for index in range(len(data)):
            assert data[index].image.shape == (HEIGHT, WIDTH, 3)
        self.score(path)


class Lvis(Coco):
    name = "lvis"
    about = "LVIS's instance annotations"
    sound = LVIS


class SaCo(Json):
    name = "saco"
    about = "SA-Co's pairs of images and phrases, of one and two annotators"
    sound = SACO

    def check(self, value: bytes, case: Case) -> None:
        second = case.write("second.json", json.dumps(SACO).encode())
        path = self.write(value, case)
        reader = SaCoAnnotations(path)
        for index in range(len(reader)):
            check_record(reader[index])
        data = AnnotatedImages(case.inputs, reader)
        for index in range(len(data)):
            assert data[index].image.shape == (HEIGHT, WIDTH, 3)
        self.score(path)
        both = SaCoAnnotations([path, second])
        for index in range(len(both)):
            check_record(both[index])


class Veval(Json):
    name = "veval"
    about = "SA-Co/VEval's clips, and predictions for them"
    sound = VEVAL
    predictions: ClassVar[Any] = [
        {
            "video_id": 1,
            "category_id": 1,
            "score": 0.9,
            "segmentations": [run_lengths(1), run_lengths(2)],
            "bboxes": [[1, 1, 8, 6], [2, 2, 8, 6]],
            "areas": [48, 48],
        }
    ]

    def make(self, random: Random) -> tuple[bytes, bytes]:  # type: ignore[override]
        truth, predictions = json.dumps(VEVAL).encode(), json.dumps(self.predictions).encode()
        if random.randrange(2):
            return json_bytes(random, VEVAL), predictions
        return truth, mutated(random, lambda r: json_bytes(r, self.predictions), predictions)

    def check(self, value: tuple[bytes, bytes], case: Case) -> None:  # type: ignore[override]
        path, predictions = case.write("truth.json", value[0]), case.write("p.json", value[1])
        case.seal()
        truth = read_clip_annotations(path)
        read_clip_predictions(predictions, truth)
        for iou in ("mask", "box"):
            report = evaluate_clips(truth, predictions, iou=iou, jf=True)
            assert 0 <= report.metrics.get("pHOTA", 0) <= 100


class Sa1b(Kind):
    name = "sa1b"
    about = "SA-1B's annotations beside an image"
    sound: ClassVar[Any] = {
        "image": {"image_id": 1, "file_name": "sa_1.jpg", **SIZE},
        "annotations": [
            {
                "id": 1,
                "segmentation": run_lengths(i),
                "bbox": [1, 1, 8, 6],
                "area": 48,
                "point_coords": [[3.5, 4.5]],
                "predicted_iou": 0.9,
                "stability_score": 0.9,
                "crop_box": [0, 0, WIDTH, HEIGHT],
            }
            for i in (1, 2)
        ],
    }

    def make(self, random: Random) -> tuple[bytes, bytes, str]:
        label = mutated(
            random, lambda r: json_bytes(r, self.sound), json.dumps(self.sound).encode()
        )
        image = picture("JPEG")
        if random.randrange(8) == 0:
            image = mutate_bytes(random, image)
        names = random.choice(("sa_1\n", "sa_1.jpg # x\n", "", "\x00", "sa_2", "sa_1\n\u2028sa_1"))
        return label, image, names

    def check(self, value: tuple[bytes, bytes, str], case: Case) -> None:
        label, image, names = value
        case.write("data/sa_1.json", label)
        case.write("data/sa_1.jpg", image)
        subset = case.write("names.txt", names.encode())
        case.seal()
        for largest in (None, 1):
            sample = SA1B(case.inputs / "data", largest=largest)[0]
            assert sample.image.shape == (HEIGHT, WIDTH, 3) and np.isfinite(sample.boxes).all()
            for mask in sample.masks:
                assert rle.decode(mask).shape == (HEIGHT, WIDTH)
        assert read_names(subset)
        SA1B(case.inputs / "data", subset=subset)


class Sav(Kind):
    name = "sav"
    about = "SA-V's annotations beside frames"
    sound: ClassVar[Any] = {
        "video_id": "sav_000001",
        "video_height": HEIGHT,
        "video_width": WIDTH,
        "masklet": [[run_lengths(i), None if i else run_lengths(2)] for i in range(3)],
    }

    def make(self, random: Random) -> bytes:
        return mutated(random, lambda r: json_bytes(r, self.sound), json.dumps(self.sound).encode())

    def check(self, value: bytes, case: Case) -> None:
        case.write("sav_000001_manual.json", value)
        for number in range(3):
            case.write(f"sav_000001/{number:05d}.jpg", picture("JPEG"))
        case.seal()
        clip = SAV(case.inputs).cut(0, 2, np.random.default_rng(0))
        assert 1 <= len(clip.images) <= 2 and len(clip.images) == len(clip.masks)
        for row in clip.masks:
            for mask in row:
                assert rle.decode(mask).ndim == 2


class Davis(Kind):
    name = "davis"
    about = "PNG maps of objects, as DAVIS and SA-V have them"

    def make(self, random: Random) -> tuple[bytes, bool, str]:
        numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
        numbers[2:5, 2:9], numbers[6:9, 4:12] = 1, 2
        image = Image.fromarray(numbers)
        if random.randrange(2):
            image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        if random.randrange(4) == 0:
            image = image.convert("L").convert(random.choice(("P", "1", "I", "I;16", "RGB", "F")))
        file = io.BytesIO()
        try:
            image.save(file, "PNG")
        except (OSError, ValueError):
            image.save(file, "TIFF")
        data = mutated(random, lambda r: mutate_bytes(r, file.getvalue()), file.getvalue())
        return data, random.random() < 0.5, random.choice(("v\n", "w\n", "", "\xff", "v\nv\n"))

    def check(self, value: tuple[bytes, bool, str], case: Case) -> None:
        data, by_object, names = value
        place = "labels/v/7/00000.png" if by_object else "labels/v/00000.png"
        case.write(place, data)
        case.write("frames/v/00000.jpg", picture("JPEG"))
        listed = case.write("val.txt", names.encode("latin-1"))
        case.seal()
        for video in read_object_videos(case.inputs / "labels", case.inputs / "frames"):
            for frame in video.frames:
                for mask in video.masks(frame).values():
                    assert mask.ndim == 2 and mask.dtype == bool
        read_object_videos(case.inputs / "labels", videos=listed)


class Predictions(Kind):
    name = "predictions"
    about = "prediction files: COCO's result lists, and run files of evaluate"
    rows: ClassVar[Any] = [
        {
            "image_id": 1,
            "category_id": 1,
            "score": 0.9,
            "bbox": [1, 1, 8, 6],
            "segmentation": run_lengths(1),
        },
        {"image_id": 1, "category_id": 7, "score": 0.2, "bbox": [2, 2, 7, 6]},
    ]

    def prepare(self, folder: Path) -> None:
        path = folder / "sound.jsonl"
        with RunFile(path, "predictions", {"model": "x", "prompt": "text"}) as run:
            run.add("a.png", self.rows, identity={"path": "a.png"})
            run.add("b.png", [], identity=None)
        self.lines = path.read_bytes()
        (folder / "truth.json").write_text(json.dumps(COCO))
        self.truth = read_ground_truth(folder / "truth.json")

    def make(self, random: Random) -> tuple[str, bytes]:
        if random.randrange(2):
            sound = json.dumps(self.rows).encode()
            return "p.json", mutated(random, lambda r: json_bytes(r, self.rows), sound)
        return "p.jsonl", mutated(random, lambda r: damaged_lines(r, self.lines), self.lines)

    def check(self, value: tuple[str, bytes], case: Case) -> None:
        path = case.write(*value)
        case.seal()
        predictions = read_predictions(path, self.truth)
        score_images(self.truth, predictions, iou="box")
        report = score_images(self.truth, predictions, iou="mask")
        assert report.counts["images"] >= 0
        if path.suffix == ".jsonl":
            write_coco_results(case.folder / "results.json", path)


def damaged_lines(random: Random, data: bytes) -> bytes:
    """A run file with a line changed, lost, repeated or cut, or of another version."""
    lines = data.splitlines(keepends=True)
    place = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            return data[: random.randrange(len(data) + 1)]
        case 1:
            return mutate_bytes(random, data)
        case 2:
            lines[0] = lines[0].replace(b"run-1", random.choice((b"run-0", b"run-2", b"run-")))
        case 3:
            lines.insert(place, random.choice(lines))
        case _:
            lines[place] = (
                json.dumps(mutate_json(random, json.loads(lines[place]))).encode() + b"\n"
            )
    return b"".join(lines)


class Phrases(Kind):
    name = "phrases"
    about = "lists of phrases: text, JSON and parquet"
    sounds: tuple[Any, ...] = (
        COCO,
        SACO,
        LVIS,
        ["cat", {"text": "dog"}],
        {"text_annotations": [{"text_input": "cat"}]},
    )

    def prepare(self, folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        column = pyarrow.array(["a cat", None, " ", "a dog"])
        parquet.write_table(
            pyarrow.table({"re_caption": column, "n": [1, 2, 3, 4]}), folder / "p.parquet"
        )
        self.parquet = (folder / "p.parquet").read_bytes()

    def make(self, random: Random) -> tuple[str, bytes]:
        match random.randrange(4):
            case 0:
                return "p.parquet", mutated(
                    random, lambda r: mutate_bytes(r, self.parquet), self.parquet
                )
            case 1:
                text = "cat\n\na dog\n\u2028x\n".encode()
                return "p.txt", mutated(random, lambda r: mutate_bytes(r, text), text)
            case _:
                return "p.json", json_bytes(random, random.choice(self.sounds))

    def check(self, value: tuple[str, bytes], case: Case) -> None:
        path = case.write(*value)
        case.seal()
        phrases = list(read_phrases(path))
        assert phrases and all(isinstance(p, str) and p.strip() for p in phrases)


KINDS: tuple[Callable[[], Kind], ...] = (
    Coco,
    Lvis,
    SaCo,
    Veval,
    Sa1b,
    Sav,
    Davis,
    Predictions,
    Phrases,
)
