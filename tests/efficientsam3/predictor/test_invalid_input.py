"""Invalid prompts, images and options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from efficientsam3.devices import find_device

from .conftest import BOXES

Pixels = npt.NDArray[np.uint8]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({}, ["nothing to find", "concepts=", "boxes", "points"]),
        ({"concepts": ""}, ["''", "'person'"]),
        ({"concepts": "  \n"}, [repr("  \n"), "'person'"]),
        ({"concepts": []}, ["empty", "['person']"]),
        ({"concepts": ["bus", ""]}, ["''", "'person'"]),
        ({"concepts": [None]}, ["None", "phrase"]),
        ({"concepts": [3]}, ["3", "phrase"]),
        ({"concepts": 3}, ["3", "phrase"]),
        ({"concepts": ["bus"], "threshold": 1.5}, ["1.5", "between 0 and 1"]),
        ({"concepts": ["bus"], "threshold": float("nan")}, ["nan", "between 0 and 1"]),
        ({"concepts": ["bus"], "max_instances": -1}, ["-1", "0 or more"]),
        ({"concepts": ["bus"], "nms": 1.5}, ["1.5", "between 0 and 1"]),
        ({"concepts": ["bus"], "nms": -0.1}, ["-0.1", "between 0 and 1"]),
        ({"concepts": ["bus"], "mask_input": np.zeros((1, 32, 32))}, ["mask_input", "points"]),
        # boxes
        ({"concepts": ["bus", "dog"], "boxes": BOXES}, ["2", "bus, dog", "once for each"]),
        ({"concepts": "bus", "boxes": []}, ["(K, 4)", "(0,)"]),
        ({"concepts": "bus", "boxes": np.zeros((0, 4))}, ["no exemplar", "at least one"]),
        ({"concepts": "bus", "boxes": [5, 5, 30, 30]}, ["(K, 4)", "(4,)"]),
        ({"concepts": "bus", "boxes": [[5, 5, 30]]}, ["(K, 4)", "(1, 3)"]),
        ({"concepts": "bus", "boxes": [[5, 5, 30, 30], [1, 2]]}, ["boxes are numbers"]),
        ({"concepts": "bus", "boxes": [["a", 5, 30, 30]]}, ["boxes are numbers", "'a'"]),
        ({"concepts": "bus", "boxes": [[5, 5, float("nan"), 30]]}, ["boxes", "NaN"]),
        ({"concepts": "bus", "boxes": [[5, 5, float("inf"), 30]]}, ["boxes", "infinite"]),
        ({"concepts": "bus", "boxes": [[30, 5, 5, 30]]}, ["[30.0, 5.0, 5.0, 30.0]", "x0 < x1"]),
        ({"concepts": "bus", "boxes": [[5, 30, 30, 5]]}, ["inverted", "y0 < y1"]),
        ({"concepts": "bus", "boxes": [[5, 5, 5, 30]]}, ["empty or inverted"]),
        ({"concepts": "bus", "boxes": [[64, 5, 90, 30]]}, ["[64.0, 5.0", "64 x 48"]),
        ({"concepts": "bus", "boxes": [[5, -30, 30, 0]]}, ["outside the image", "64 x 48"]),
        ({"concepts": "bus", "boxes": BOXES, "box_labels": [1]}, ["(1,)", "(2,)"]),
        ({"concepts": "bus", "boxes": BOXES, "box_labels": [1, 2]}, ["[1, 2]", "1", "0"]),
        ({"concepts": "bus", "boxes": BOXES, "box_labels": [1, -1]}, ["[1, -1]"]),
        ({"concepts": "bus", "box_labels": [1]}, ["box_labels", "boxes"]),
        # points
        ({"points": []}, ["(K, 2)", "(0,)"]),
        ({"points": np.zeros((0, 2))}, ["no point", "[[x, y]]"]),
        ({"points": [5, 5]}, ["(K, 2)", "(2,)"]),
        ({"points": [[5, 5, 5]]}, ["(K, 2)", "(1, 3)"]),
        ({"points": [[5, float("nan")]]}, ["points", "NaN"]),
        ({"points": [[65, 5]]}, ["[65.0, 5.0]", "outside the image of 64 x 48"]),
        ({"points": [[5, -1]]}, ["[5.0, -1.0]", "outside"]),
        ({"points": [[5, 5]], "point_labels": [1, 0]}, ["(1, 2)", "(1, 1)"]),
        ({"points": [[5, 5]], "point_labels": [2]}, ["[[2]]", "1", "0"]),
        ({"points": [[5, 5]], "mask_input": np.zeros((1, 31, 32))}, ["(1, 31, 32)", "low_res"]),
        ({"points": [[5, 5]], "mask_input": np.zeros((2, 1, 32, 32))}, ["[1, 2]"]),
        (
            {"points": [[5, 5]], "mask_input": np.full((1, 1, 32, 32), np.nan)},
            ["masks", "NaN"],
        ),
        ({"concepts": "bus", "points": np.zeros((0, 2))}, ["no point", "[[x, y]]"]),
        ({"concepts": "bus", "points": [[65, 5]]}, ["[65.0, 5.0]", "outside"]),
        ({"concepts": "bus", "points": [[5, 5]], "point_labels": [1, 1]}, ["(2,)", "(1,)"]),
        ({"concepts": "bus", "point_labels": [1]}, ["point_labels", "points"]),
    ],
    ids=lambda x: str(x)[:50] if isinstance(x, dict) else "",
)
def test_prompts_that_mean_nothing(
    tiny: es3.ImageModel, photo: Pixels, prompt: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment(photo, **prompt)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({}, ["nothing to segment", "boxes, points or masks"]),
        ({"boxes": [5, 5, 30, 30]}, ["(4,)"]),
        ({"boxes": [[30, 5, 5, 30]]}, ["inverted"]),
        ({"points": [[5, 5]]}, ["(N, K, 2)", "(1, 2)"]),
        ({"points": np.zeros((1, 0, 2))}, ["no point"]),
        ({"points": [[[5, 5]], [[65, 5]]]}, ["[65.0, 5.0]", "outside"]),
        ({"points": [[[5, 5]]], "point_labels": [[3]]}, ["[[3]]", "-1 is padding"]),
        ({"points": [[[5, 5]]], "point_labels": [1]}, ["(1,)", "(1, 1)"]),
        ({"boxes": BOXES, "points": [[[5, 5]]]}, ["[1, 2]", "one object each"]),
        ({"boxes": BOXES, "masks": np.zeros((1, 1, 32, 32))}, ["[1, 2]"]),
        ({"boxes": BOXES, "point_labels": [[1], [1]]}, ["point_labels", "points"]),
    ],
    ids=lambda x: str(x)[:50] if isinstance(x, dict) else "",
)
def test_objects_that_are_not_pointed_at(
    tiny: es3.ImageModel, photo: Pixels, prompt: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment_objects(photo, **prompt)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "concepts", "words"),
    [
        (torch.zeros(3, 112, 112), ["bus"], ["(B, 3, 112, 112)", "(3, 112, 112)"]),
        (torch.zeros(1, 3, 100, 112), ["bus"], ["(1, 3, 100, 112)", "preprocess()"]),
        (torch.full((1, 3, 112, 112), float("nan")), ["bus"], ["NaN", "preprocess(image)"]),
        (torch.full((1, 3, 112, 112), float("inf")), ["bus"], ["infinite"]),
        (torch.zeros(1, 3, 112, 112), ["bus", "dog"], ["1 images", "1 concepts"]),
        (torch.zeros(1, 3, 112, 112), "bus", ["1 concepts"]),
        (torch.zeros(1, 3, 112, 112), [""], ["''"]),
    ],
    ids=["one image", "size", "nan", "inf", "two concepts", "string", "empty"],
)
def test_raw_questions_that_mean_nothing(
    tiny: es3.ImageModel, pixels: torch.Tensor, concepts: Any, words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.ground(pixels, concepts)
    for word in words:
        assert word in str(caught.value)


def test_raw_exemplars_of_the_wrong_shape(tiny: es3.ImageModel) -> None:
    pixels = torch.zeros(1, 3, 112, 112)
    for name, value in (
        ("boxes", torch.zeros(1, 4)),
        ("boxes", torch.zeros(2, 1, 4)),
        ("points", torch.zeros(1, 1, 3)),
    ):
        with pytest.raises(es3.PromptError) as caught:
            tiny.ground(pixels, ["bus"], **{name: value})
        assert str(tuple(value.shape)) in str(caught.value)


def test_images_that_are_none(tiny: es3.ImageModel) -> None:
    for ask in (tiny.encode, tiny.preprocess, tiny.embed, tiny.embed_patches):
        with pytest.raises(es3.ImageError, match="a path, a PIL image"):
            ask(None)


def test_a_model_may_say_each_thing_once_by_itself() -> None:
    """``ModelConfig.nms``, for models that need it; who asks for another overlap gets that."""
    config = tiny_config()
    free = es3.ImageModel.from_config(config, device="cpu", dtype="float32")
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    every = free.segment(image, "dog", threshold=0)
    once = free.segment(image, "dog", threshold=0, nms=0.5)
    assert len(once) < len(every) == config.queries
    strict = es3.ImageModel(
        "strict", replace(config, nms=0.5), free.learned, device="cpu", dtype="float32"
    )
    np.testing.assert_array_equal(strict.segment(image, "dog", threshold=0).scores, once.scores)
    assert len(strict.segment(image, "dog", threshold=0, nms=1.0)) == len(every)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"threshold": "0.5"}, "threshold is between 0 and 1; got '0.5'"),
        ({"max_instances": 2.5}, "max_instances is a whole number, 0 or more; got 2.5"),
        ({"nms": [0.5, 0.6, 2]}, "nms is an IoU between 0 and 1; got"),
    ],
)
def test_limits_of_another_type_are_named(
    tiny: es3.ImageModel, photo: npt.NDArray[np.uint8], limits: dict[str, Any], message: str
) -> None:
    with pytest.raises(es3.PromptError, match=message):
        tiny.segment(photo, ["bus"], **limits)


@pytest.mark.parametrize("name", [None, "", 7])
def test_a_name_that_is_none_is_an_argument_error(name: Any) -> None:
    with pytest.raises(es3.ArgumentError, match="a model is a name of list_models"):
        es3.load(name)


@pytest.mark.parametrize("device", ["xyz", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_here_is_an_argument_error(device: str) -> None:
    with pytest.raises(es3.ArgumentError, match=f"device='{device}' cannot be used"):
        find_device(device)
