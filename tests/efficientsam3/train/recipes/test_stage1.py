"""Stage 1's recipes from data to merged models, with a tiny teacher and few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.read import read_state
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.errors import DataError
from efficientsam3.train.features import ShardFeatures
from efficientsam3.train.recipe import run_recipe
from efficientsam3.train.recipes import stage1_image, stage1_text

from ..conftest import Shapes, tiny_net


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    config, net = tiny_net()
    save_folder(tmp_path / "teacher", "tiny", config, net)
    return tmp_path / "teacher"


@pytest.fixture
def sa1b(tmp_path: Path) -> Path:
    folder = tmp_path / "sa1b" / "sa_000000"
    folder.mkdir(parents=True)
    source = Shapes(6)
    for i in range(len(source)):
        sample = source[i]
        height, width = sample.size
        Image.fromarray(sample.image).save(folder / f"sa_{i}.jpg")
        annotations = []
        for n in range(len(sample)):
            rle = coco.encode(np.asfortranarray(sample.mask(n), np.uint8))
            x0, y0, x1, y1 = sample.boxes[n].tolist()
            annotations.append(
                {
                    "id": n,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                    "point_coords": [[(x0 + x1) / 2, (y0 + y1) / 2]],
                }
            )
        image = {"file_name": f"sa_{i}.jpg", "height": height, "width": width}
        content = {"image": image, "annotations": annotations}
        (folder / f"sa_{i}.json").write_text(json.dumps(content))
    return tmp_path / "sa1b"


QUICK = {"loop.accelerator": "cpu", "loop.precision": "32-true"}


@pytest.mark.slow
def test_images_from_data_to_a_merged_model(
    teacher_folder: Path, sa1b: Path, tmp_path: Path
) -> None:
    overrides = {
        "data": str(sa1b),
        "teacher": str(teacher_folder),
        "student": "efficientvit-b0",
        "init": "nothing",
        "held_out": "2",
        "batch": "2",
        "prompt_batch": "2",
        "workers": "0",
        "image.validate_every": "1",
        "image.picture_every": "1",
        "prompts.accumulate": "1",
        **QUICK,
    }
    record = run_recipe(stage1_image.RECIPE, tmp_path / "run", steps=1, overrides=overrides)
    assert [s["done"] for s in record["stages"].values()] == [True] * 4
    assert len(ShardFeatures(tmp_path / "run" / "teacher_maps")) == 4
    assert set(record["stages"]["image"]["metrics"]) == {"mse", "cosine"}
    assert "iou" in record["stages"]["prompts"]["metrics"]
    assert list((tmp_path / "run" / "image" / "pictures").glob("features_*.png"))
    name, config, net = load_folder(tmp_path / "run" / "merge" / "model")
    assert (name, config.vision) == ("tiny-efficientvit-b0", "efficientvit-b0")
    trained = read_state(tmp_path / "run" / "prompts" / "weights.safetensors")
    weight = net.state_dict()["trunk.head.3.weight"]
    assert torch.equal(weight, trained["trunk.head.3.weight"])
    pixels = torch.zeros(1, 3, config.resolution, config.resolution)
    assert net.read_image(pixels).tokens.shape == (1, 64, 16)


@pytest.mark.slow
def test_text_from_data_to_a_merged_model(teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(f"a picture of {i} dogs" for i in range(20)))
    (tmp_path / "phrases.json").write_text(json.dumps([f"dog {i}" for i in range(20)]))
    overrides = {
        "captions": str(tmp_path / "captions.txt"),
        "phrases": f"{tmp_path / 'phrases.json'},{tmp_path / 'captions.txt'}",
        "teacher": str(teacher_folder),
        "student": "sam3-tiny",
        "held_out": "4",
        "batch": "4",
        "workers": "0",
        **QUICK,
    }
    from efficientsam3.config import TEXTS, TextConfig

    with pytest.MonkeyPatch.context() as patch:
        small = TextConfig("mobileclip-mixer", 16, 1, 2)
        patch.setitem(TEXTS, "sam3-tiny", small)
        folder = tmp_path / "run"
        record = run_recipe(stage1_text.RECIPE, folder, steps=1, overrides=overrides)
        assert [s["done"] for s in record["stages"].values()] == [True] * 3
        assert set(record["stages"]["phrases"]["metrics"]) == {"mse", "cosine", "pooled_cosine"}
        _, config, net = load_folder(folder / "merge" / "model")
    assert config.text == "sam3-tiny"
    trained = read_state(folder / "phrases" / "weights.safetensors")
    weight = net.state_dict()["text.projector.weight"]
    assert torch.equal(weight, trained["text.projector.weight"])


def test_missing_options_are_named(teacher_folder: Path, sa1b: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--set data=FOLDER"):
        run_recipe(stage1_image.RECIPE, tmp_path / "a")
    overrides = {"data": str(sa1b), "teacher": str(teacher_folder)}
    with pytest.raises(DataError, match=r"have 6 images, and 64 are to be held out"):
        run_recipe(stage1_image.RECIPE, tmp_path / "b", overrides=overrides)
    with pytest.raises(DataError, match="--set teacher=FILE"):
        run_recipe(stage1_text.RECIPE, tmp_path / "c")
    with pytest.raises(DataError, match="--set captions=FILE"):
        run_recipe(stage1_text.RECIPE, tmp_path / "d", overrides={"teacher": str(teacher_folder)})
