"""Every public function answers a wrong value with a typed error of one short sentence or two."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import efficientsam3 as es3
from efficientsam3 import MemorySettings, TrackSettings
from efficientsam3.errors import EfficientSam3Error, shorten
from efficientsam3.masks.nms import non_max_suppression
from efficientsam3.video.settings import CutSettings, IoUSettings

Pixels = npt.NDArray[np.uint8]
Door = Callable[[Any], Any]


def name_value(value: object) -> str:
    """A name that is the same in all processes: pytest-xdist compares the names of tests."""
    return "object" if type(value) is object else repr(value)


WRONG = ["0.5", "x" * 5000, b"x", [], {}, (1, 2), object(), 2.5, -1, float("nan")]


def as_item(value: object) -> object:
    """An empty list of images is right: the value as an image of a list."""
    return [value] if value == [] else value


def image_doors(model: es3.ImageModel, photo: Pixels) -> dict[str, Door]:
    def segment(**options: Any) -> Any:
        return model.segment(photo, **options)

    pixels = model.preprocess(photo)
    return {
        "boxes": lambda v: segment(boxes=v),
        "box_labels": lambda v: segment(boxes=[[1, 1, 9, 9]], box_labels=v),
        "points": lambda v: segment(points=v),
        "point_labels": lambda v: segment(points=[[9, 9]], point_labels=v),
        "masks": lambda v: segment(masks=v),
        "a mask": lambda v: segment(masks=[v]),
        "mask_labels": lambda v: segment(masks=np.ones((48, 64), bool), mask_labels=v),
        "exemplars": lambda v: segment(exemplars=v),
        "exemplar boxes": lambda v: model.exemplar(photo, boxes=v),
        "exemplar image": lambda v: model.exemplar(as_item(v), boxes=[[1, 1, 9, 9]]),
        "presence": lambda v: segment(concepts="dog", presence=v),
        "threshold": lambda v: segment(concepts="dog", threshold=v),
        "max_instances": lambda v: segment(concepts="dog", max_instances=v),
        "nms": lambda v: segment(concepts="dog", nms=v),
        "class_agnostic": lambda v: segment(concepts="dog", class_agnostic=v),
        "overlap_metric": lambda v: segment(concepts="dog", overlap_metric=v),
        "tile": lambda v: segment(concepts="dog", tile=v),
        "mask_input": lambda v: segment(points=[[9, 9]], mask_input=v),
        "object boxes": lambda v: model.segment_objects(photo, boxes=v),
        "object points": lambda v: model.segment_objects(photo, points=v),
        "object labels": lambda v: model.segment_objects(photo, points=[[[9, 9]]], point_labels=v),
        "object masks": lambda v: model.segment_objects(photo, masks=v),
        "image": lambda v: model.segment(as_item(v), "dog"),
        "encode": lambda v: model.encode(as_item(v)),
        "embed": model.embed,
        "pixels": lambda v: model.ground(v, ["dog"]),
        "ground concepts": lambda v: model.ground(pixels, v),
        "ground boxes": lambda v: model.ground(pixels, ["dog"], boxes=v),
        "ground points": lambda v: model.ground(pixels, ["dog"], points=v),
        "require": model.require,
        "save dtype": lambda v: model.save("unused", v),
        "suppression": lambda v: non_max_suppression(segment(concepts="dog"), v),
    }


def refused(door: Door, value: Any, name: str) -> None:
    with pytest.raises(EfficientSam3Error) as caught:
        door(value)
    assert len(str(caught.value)) < 700, name
    assert str(caught.value).strip(), name


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
def test_image_model(tiny: es3.ImageModel, photo: Pixels, value: Any) -> None:
    for name, door in image_doors(tiny, photo).items():
        if not (name == "max_instances" and value is None):
            refused(door, value, name)


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, 3, 2.5, [], {}, object(), "", b"x"], ids=name_value)
def test_load(value: Any, tiny: es3.ImageModel) -> None:
    refused(es3.load, value, "name")
    refused(tiny.save, value, "folder")
    packaged = "efficientsam3-stickers"
    if value is not None:
        for option in ("checkpoint", "text", "context", "base", "device", "dtype", "speed"):
            refused(lambda v, o=option: es3.load(packaged, **{o: v}), value, option)


@pytest.mark.parametrize("value", [True, np.True_], ids=repr)
def test_true_is_no_number(tiny: es3.ImageModel, photo: Pixels, value: Any) -> None:
    doors = image_doors(tiny, photo)
    for name in ("threshold", "max_instances", "nms", "suppression", "tile"):
        refused(doors[name], value, name)
    found = tiny.segment(photo, "dog")
    refused(found.above, value, "above")
    refused(lambda v: tiny.segment([photo], "dog", batch_size=v), value, "batch_size")
    for name in ("points_per_side", "threshold", "nms", "max_instances"):
        refused(lambda v, n=name: tiny.segment_everything(photo, **{n: v}), value, name)
    for name in ("threshold", "detect_every", "stride"):
        refused(
            lambda v, n=name: next(es3.track(tiny, [photo], "dog", **{n: v})),
            value,
            name,
        )


@pytest.mark.parametrize("kind", [TrackSettings, CutSettings, IoUSettings, MemorySettings])
def test_true_is_no_setting(kind: Any) -> None:
    for field in dataclasses.fields(kind):
        if field.type not in ("bool", "bool | None"):
            refused(lambda v, n=field.name: kind(**{n: v}), True, field.name)


def test_a_device_that_does_not_exist() -> None:
    with pytest.raises(es3.ArgumentError, match="device='xyz' cannot be used on this machine"):
        es3.load("efficientsam3-stickers", device="xyz")


@pytest.mark.parametrize("kind", [TrackSettings, CutSettings, IoUSettings, MemorySettings])
def test_settings(kind: Any) -> None:
    for field in dataclasses.fields(kind):
        for value in ("0.5", b"x", [], {}, (1, 2), object()):
            refused(lambda v, n=field.name: kind(**{n: v}), value, field.name)


@pytest.mark.parametrize("value", ["0.5", b"x", {}, (1, 2), object(), -1], ids=name_value)
def test_track(tiny: es3.ImageModel, photo: Pixels, value: Any) -> None:
    def track(**options: Any) -> Any:
        return next(es3.track(tiny, **{"source": [photo], "concepts": "dog", **options}))

    for name in ("boxes", "tracker", "settings", "detect_every", "threshold", "start", "stride"):
        refused(lambda v, n=name: track(**{n: v}), value, name)
    settings = TrackSettings(hotstart_delay=0)
    tracker = es3.ConceptTracker(tiny, "dog", tracker="memory", settings=settings)
    tracker.step(photo)
    for name in ("points", "box", "mask"):
        refused(lambda v, n=name: tracker.add_object(**{n: v}), value, name)
    refused(lambda v: tracker.add_object(points=[[9, 9]], track_id=v), value, "track_id")
    refused(tracker.add_exemplars, value, "exemplars")
    refused(tracker.remove_concept, value, "remove_concept")
    if value != -1:
        refused(tracker.remove_object, value, "remove_object")


@pytest.mark.parametrize("format", ["GIF", "PNG", "JPEG", "WEBP", "TIFF"])
def test_truncated_pil_images(tiny: es3.ImageModel, photo: Pixels, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    picture, buffer = Image.fromarray(noise), io.BytesIO()
    more = {"save_all": True, "append_images": [picture.rotate(90)]} if format == "GIF" else {}
    picture.save(buffer, format, **more)
    tried = 0
    for share in (0.3, 0.6, 0.9):
        try:
            cut = Image.open(io.BytesIO(buffer.getvalue()[: int(len(buffer.getvalue()) * share)]))
        except OSError:
            continue
        tried += 1
        for door in (
            lambda v: tiny.segment(v, "dog"),
            lambda v: list(es3.track(tiny, v, "dog")),
        ):
            try:
                door(cut)
            except EfficientSam3Error as error:
                assert len(str(error)) < 500
    assert tried or format in ("WEBP", "TIFF")


def test_long_values_are_shortened() -> None:
    assert len(shorten("x" * 5000)) <= 80
    assert shorten("x" * 5000, 20).startswith("'xxx")

    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    assert "Broken" in shorten(Broken())


def test_saving_to_a_path(tiny: es3.ImageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    assert torch.is_tensor(next(es3.load(tmp_path / "model", device="cpu").net.parameters()))


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"boxes": [[0.3, 10.1, 0.1, 20.7]]}, "box [0.3, 10.1, 0.1, 20.7] is empty"),
        ({"boxes": [[100.1, 10.1, 110.3, 20.7]]}, "box [100.1, 10.1, 110.3, 20.7] lies outside"),
        ({"boxes": [[1.1, float("nan"), 3.3, 4.7]]}, "values: [[1.1, nan, 3.3, 4.7]]"),
        ({"points": [[100.1, 0.3]]}, "point [100.1, 0.3] lies outside"),
        (
            {"points": [[9.0, 9.0]], "point_labels": np.array([0.1], np.float32)},
            "got [[0.1]]",
        ),
    ],
)
def test_messages_have_the_numbers_that_were_passed(
    tiny: es3.ImageModel, photo: Pixels, wrong: dict[str, Any], shown: str
) -> None:
    """A number in 32 bits is not shown with the digits of the nearest one in 64 bits."""
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment(photo, **wrong)
    assert shown in str(caught.value)
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment(photo, boxes=np.full((1000, 4), np.nan))
    assert len(str(caught.value)) < 200
