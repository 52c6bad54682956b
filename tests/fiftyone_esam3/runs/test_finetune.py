"""Fine-tuning from the labels of a view, and the zoo model with the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from fiftyone_esam3 import load_model
from fiftyone_esam3.runs.finetune import finetune
from fiftyone_esam3.runs.steps import RunError

SHAPES = {"red_thing": (255, 0, 0), "blue thing": (0, 0, 255)}


@pytest.fixture
def labeled(tmp_path: Path, new_dataset: Callable[..., Any]) -> Any:
    """Five pictures in two folders with rectangles; the last one is not labeled."""
    samples = []
    for number in range(5):
        pixels = np.full((40, 64, 3), 90, np.uint8)
        detections = []
        for place, (label, color) in enumerate(SHAPES.items()):
            x, y = 4 + 30 * place, 5 + 2 * number
            pixels[y : y + 10, x : x + 20] = color
            mask = np.ones((10, 20), bool)
            mask[0, :5] = False
            box = [x / 64, y / 40, 20 / 64, 10 / 40]
            if (number + place) % 3:
                detections.append(fo.Detection(label=label, bounding_box=box, mask=mask))
        path = tmp_path / f"folder{number % 2}" / "same.png"
        path = path.with_name(f"{number}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        labels = None if number == 4 else fo.Detections(detections=detections)
        samples.append(fo.Sample(filepath=str(path), truth=labels))
    return new_dataset(samples)


OPTIONS: dict[str, Any] = {
    "held_out": 1,
    "workers": 0,
    "prompts": 2,
    "rank": 2,
    "steps": 1,
    "overrides": {"loop.accelerator": "cpu", "loop.precision": "32-true"},
}


@pytest.mark.slow
def test_from_a_view_to_a_zoo_model(labeled: Any, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = finetune(labeled, "truth", out, model=str(tiny_folder), **OPTIONS)
    content = json.loads((out / "coco.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["blue thing", "red_thing"]
    assert len(content["images"]) == 4
    row = content["annotations"][0]
    mask = coco.decode(row["segmentation"])
    assert mask.shape == (40, 64) and mask.sum() == 195
    assert set(result.after) >= {"cgF1", "pmF1", "IL_MCC"}
    # The same call again neither writes the labels nor trains.
    before = (out / "coco.json").stat().st_mtime_ns
    again = finetune(labeled, "truth", out, model=str(tiny_folder), **OPTIONS)
    assert again.after == result.after and (out / "coco.json").stat().st_mtime_ns == before

    fixed = {"classes": ["red thing"], "device": "cpu", "dtype": "float32", "threshold": 0.0}
    model = load_model(str(tiny_folder), adapter=result.adapter, **fixed)
    plain = load_model(str(tiny_folder), **fixed)
    assert model.core.name == "tiny+run" and plain.core.name == "tiny"
    assert model.config.settings()["adapter"] == str(result.adapter)
    assert "adapter" not in plain.config.settings()
    labeled.apply_model(model, label_field="found", num_workers=0, skip_failures=False)
    assert labeled.first().found is not None


def test_what_cannot_be_learned_is_refused(labeled: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no field 'labels'; there are truth"):
        finetune(labeled, "labels", tmp_path / "run", model="tiny")
    sample = labeled.first()
    sample.truth.detections.append(fo.Detection(label="dog", bounding_box=[0, 0, 0.5, 0.5]))
    sample.save()
    with pytest.raises(RunError, match=r"1 of 6 labels in 'truth' have no mask, in .*0\.png"):
        finetune(labeled, "truth", tmp_path / "run", model="tiny")
    Path(sample.filepath).write_bytes(b"no picture")
    with pytest.raises(RunError, match="1 images cannot be read"):
        finetune(labeled, "truth", tmp_path / "run", model="tiny")
