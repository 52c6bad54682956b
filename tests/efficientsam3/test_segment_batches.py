"""Runs whose images go through the model in batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3.errors import PromptError
from efficientsam3.segment_files import SegmentRun, find_images


class Together:
    """Counts the images that go through a model together."""

    def __init__(self, model: es3.ImageModel) -> None:
        self.model, self.counts = model, list[int]()

    def encode(self, images: Any, **options: Any) -> Any:
        self.counts.append(len(images))
        return self.model.encode(images, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def in_batches(
    folder: Path, out: Path, model: Any, size: int, arguments: Any, stop: int | None = None
) -> list[Any]:
    with SegmentRun(out, arguments, {"model": "tiny"}, overlays=False) as results:
        tasks = results.pending(find_images([folder], out))
        return list(itertools.islice(results.segment(model, tasks, size), stop))


@pytest.mark.parametrize(
    "arguments",
    [
        {"concepts": ["person", "bus"], "threshold": 0.3},
        {"boxes": [[2, 2, 30, 30]], "threshold": 0.0},
        {"points": [[20, 20]]},
        {"everything": True, "points_per_side": 2, "threshold": 0.0, "stability_threshold": 0.0},
    ],
)
def test_batches_give_what_one_by_one_gives(
    tiny: es3.ImageModel, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    for number, size in enumerate([(48, 64), (64, 40), (48, 64), (50, 50), (64, 64)]):
        path = tmp_path / f"in/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    in_batches(tmp_path / "in", tmp_path / "one", tiny, 1, arguments)
    model = Together(tiny)
    in_batches(tmp_path / "in", tmp_path / "two", model, 2, arguments, stop=3)
    in_batches(tmp_path / "in", tmp_path / "two", model, 2, arguments)
    assert model.counts == [2, 2, 2], "the second of a batch was left when the first run stopped"
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "run.jsonl").read_text().splitlines()[1:]]
        for n in ("one", "two")
    )
    assert [record["input"] for record in two] == [record["input"] for record in one]
    assert ["failed" in record for record in two] == [False] * 5 + [True]
    for alone, together in zip(one[:-1], two[:-1], strict=True):
        found = [record["result"]["annotations"] for record in (alone, together)]
        assert found[0]
        for x, y in zip(*found, strict=True):
            assert (x["concept"], x["number"]) == (y["concept"], y["number"])
            assert x["score"] == pytest.approx(y["score"], abs=2e-5)
            assert x["bbox"] == pytest.approx(y["bbox"], abs=1)


def test_an_image_that_fails_among_others_costs_itself(
    tiny: es3.ImageModel, tmp_path: Path
) -> None:
    for name, size in (("a", (40, 40)), ("b", (8, 8)), ("c", (40, 40))):
        path = tmp_path / f"in/{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (90, 120, 150)).save(path)
    outcomes = in_batches(tmp_path / "in", tmp_path / "out", tiny, 3, {"points": [[20, 20]]})
    assert [isinstance(found, PromptError) for _, found in outcomes] == [False, True, False]
