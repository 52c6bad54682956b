"""Precision, speed and name of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3

from ...conftest import tiny_model
from .conftest import BOXES, CONCEPTS, same

Pixels = npt.NDArray[np.uint8]


def test_the_fast_mode_is_deterministic_and_its_own(tiny: es3.ImageModel, photo: Pixels) -> None:
    fast = tiny_model(speed="fast")
    a, b = (fast.segment(photo, CONCEPTS, threshold=0.0) for _ in range(2))
    same(a, b)
    exact = tiny.segment(photo, CONCEPTS, threshold=0.0)
    assert not np.array_equal(np.sort(a.scores), np.sort(exact.scores))
    assert "fast" in repr(fast)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "torch.float32"])
def test_every_precision_answers(photo: Pixels, dtype: Any) -> None:
    model = tiny_model(dtype=dtype)
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))
    out = model.segment(photo, CONCEPTS, threshold=0.0)
    assert np.isfinite(out.scores).all()
    assert len(out) == 72
    assert len(model.segment_objects(photo, boxes=BOXES)) == 2
    assert np.isfinite(model.embed(photo)).all()


def test_unknown_precision_speed_and_name() -> None:
    for options, words in (
        ({"dtype": "float8"}, ("float8", "bfloat16")),
        ({"dtype": "int64"}, ("int64", "bfloat16")),
        ({"speed": "warp"}, ("warp", "exact", "fast")),
    ):
        with pytest.raises(ValueError) as caught:
            tiny_model(**options)
        for word in words:
            assert word in str(caught.value)
    with pytest.raises(ValueError, match="'efficientsam3-tinyvit-12m'; did you mean"):
        es3.load("efficientsam3-tinyvit-12m")


def test_a_model_is_told_apart_by_its_repr() -> None:
    assert repr(tiny_model()) == "ImageModel('tiny', float32 on cpu, speed='exact')"
