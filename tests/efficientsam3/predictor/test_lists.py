"""Lists of images of several sizes: encoded and asked together, with the answers of one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3.config import tiny_late_config
from tests.conftest import tiny_model
from tests.efficientsam3.predictor.colors import ColorModel
from tests.efficientsam3.predictor.conftest import CONCEPTS, same

Array = npt.NDArray[Any]
SIZES = [(48, 64), (64, 48), (30, 100), (112, 112), (48, 64)]


@pytest.fixture(scope="module")
def pictures() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3), np.uint8) for size in SIZES]


@pytest.fixture(scope="module", params=["fusion", "late fusion"])
def model(request: Any, tiny: es3.ImageModel) -> es3.ImageModel:
    return tiny if request.param == "fusion" else tiny_model(config=tiny_late_config())


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_list_gives_the_answers_of_each(
    model: es3.ImageModel, pictures: list[Array], batch_size: int | None
) -> None:
    found = model.segment(pictures, CONCEPTS, threshold=0.0, batch_size=batch_size)
    assert isinstance(found, list) and len(found) == len(pictures)
    assert sum(map(len, found))
    for one, picture in zip(found, pictures, strict=True):
        same(one, model.segment(picture, CONCEPTS, threshold=0.0), 1e-4)


def test_encoded_images_of_a_list_are_those_of_each(
    model: es3.ImageModel, pictures: list[Array]
) -> None:
    encoded = model.encode(pictures, batch_size=3)
    assert [image.size for image in encoded] == SIZES
    for one, picture in zip(encoded, pictures, strict=True):
        np.testing.assert_allclose(model.embed(one), model.embed(picture), atol=1e-4)
        if "interactive" in model.abilities:
            clicks = {"points": [[[20, 20]]]}
            same(
                model.segment_objects(one, **clicks), model.segment_objects(picture, **clicks), 1e-3
            )


def test_images_go_through_the_encoder_together(
    tiny: es3.ImageModel, pictures: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counts = tiny.net.read_image, list[int]()

    def listen(pixels: Any) -> Any:
        counts.append(len(pixels))
        return read(pixels)

    monkeypatch.setattr(tiny.net, "read_image", listen)
    tiny.segment(pictures, "dog", batch_size=2)
    assert counts == [2, 2, 1]


def test_images_of_all_kinds_and_classes(
    tiny: es3.ImageModel, pictures: list[Array], tmp_path: Path
) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(pictures[0]).save(path)
    mixed = [path, tiny.encode(pictures[0]), Image.fromarray(pictures[0])]
    options: dict[str, Any] = {"threshold": 0.1, "max_instances": 3, "class_agnostic": True}
    classes = {"animal": ["dog", "zebra"], "bus": None}
    alone = tiny.segment(pictures[0], classes, **options)
    for one in tiny.segment(mixed, classes, **options):
        same(one, alone, 1e-4)
    assert tiny.segment([], "dog") == [] and tiny.encode([]) == []


def test_lists_are_read_in_tiles_too() -> None:
    model, picture = ColorModel(), np.full((100, 150, 3), (255, 0, 0), np.uint8)
    (one, two) = model.segment([picture, picture[:50]], "red", tile=(64, 16))
    assert (len(one), one.size, len(two), two.size) == (1, (100, 150), 1, (50, 150))


def test_one_bad_image_is_named(tiny: es3.ImageModel, pictures: list[Array]) -> None:
    with pytest.raises(es3.ImageError, match="no image at nothing"):
        tiny.segment([pictures[0], "nothing.png"], "dog")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "2"])
def test_wrong_batch_sizes(tiny: es3.ImageModel, pictures: list[Array], batch_size: Any) -> None:
    for ask in (tiny.encode, lambda images, **o: tiny.segment(images, "dog", **o)):
        with pytest.raises(es3.PromptError, match="batch_size is a whole number from 1"):
            ask(pictures, batch_size=batch_size)


def test_exemplars_are_in_one_image(tiny: es3.ImageModel, pictures: list[Array]) -> None:
    with pytest.raises(es3.PromptError, match="in one image, and there are 5"):
        tiny.segment(pictures, "dog", boxes=[[1, 1, 20, 20]])
