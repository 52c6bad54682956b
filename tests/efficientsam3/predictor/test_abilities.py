"""Models that lack a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import efficientsam3 as es3
from efficientsam3.config import tiny_config

from ...conftest import tiny_model
from .conftest import BOXES

Pixels = npt.NDArray[np.uint8]


@pytest.mark.parametrize(
    ("parts", "abilities"),
    [
        (("geometry",), {"concepts", "exemplars"}),
        (("geometry", "masks"), {"concepts", "exemplars", "masks"}),
        (("interactive", "interactive_neck"), {"interactive"}),
        (("interactive", "interactive_neck", "memory"), {"interactive", "video"}),
        (("interactive",), set()),
        ((), set()),
    ],
    ids=lambda names: "+".join(sorted(names)) or "none",  # the order of a set is not fixed
)
def test_what_is_missing_is_named_when_it_is_asked_for(
    photo: Pixels, parts: tuple[str, ...], abilities: set[str]
) -> None:
    model = tiny_model(config=tiny_config(parts=parts))
    assert model.abilities == abilities
    pixels = model.preprocess(photo)
    asks: list[tuple[str, str, Callable[[], Any]]] = [
        ("concepts", "geometry encoder", lambda: model.segment(photo, "bus")),
        ("concepts", "geometry encoder", lambda: model.ground(pixels, ["bus"])),
        ("exemplars", "geometry encoder", lambda: model.segment(photo, boxes=BOXES)),
        ("interactive", "second neck", lambda: model.segment(photo, points=[[1, 1]])),
        ("interactive", "second neck", lambda: model.segment_objects(photo, boxes=BOXES)),
    ]
    for ability, part, ask in asks:
        if ability in abilities:
            ask()
            continue
        with pytest.raises(es3.MissingAbilityError) as caught:
            ask()
        message = str(caught.value)
        assert "base=" in message
        if not parts:
            assert part in message
    assert model.embed(photo).shape == (16,), "every model encodes images"


def test_without_a_mask_head_there_are_boxes(photo: Pixels) -> None:
    model = tiny_model(config=tiny_config(parts=("geometry",)))
    out = model.segment(photo, "bus", threshold=0.0)
    assert len(out) == 12
    assert model.ground(model.preprocess(photo), ["bus"]).masks is None
    with pytest.raises(es3.MissingAbilityError, match="no mask head"):
        _ = out.masks
    with pytest.raises(es3.MissingAbilityError, match="no mask head"):
        model.segment(photo, "bus", threshold=0.0, nms=0.5)
