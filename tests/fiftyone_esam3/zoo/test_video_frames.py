"""The image model on the frames of a video."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.utils.torch as fout
import numpy as np
import pytest

from fiftyone_esam3.image_items import ImageGetItemForVideo
from fiftyone_esam3.labels import ERROR_FIELD

from ..conftest import make_picture

Load = Callable[..., Any]

pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)


@pytest.fixture
def videos(tmp_path: Path) -> Iterator[Any]:
    """One video of three frames, with prompts on its frames."""
    for i in range(3):
        make_picture(i).save(tmp_path / f"{i}.png")
    path = tmp_path / "clip.mp4"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-framerate", "5", "-i", tmp_path / "%d.png", path], check=True
    )
    dataset = fo.Dataset()
    sample = fo.Sample(filepath=str(path))
    for i, word in enumerate(["cat", "dog", "bus"], start=1):
        box = fo.Detection(label=word, bounding_box=[0.1 * i, 0.1, 0.4, 0.5])
        sample.frames[i] = fo.Frame(words=word, boxes=fo.Detections(detections=[box]))
    dataset.add_sample(sample)
    yield dataset
    dataset.delete()


def frame_labels(dataset: Any, field: str = "esam3") -> list[set[str] | None]:
    frames = dataset.first().frames
    return [{d.label for d in frames[i][field].detections} for i in (1, 2, 3)]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_concepts_on_every_frame(videos: Any, load: Load, batch_size: int | None) -> None:
    videos.apply_model(
        load(classes=["bus"]), label_field="frames.esam3", batch_size=batch_size, num_workers=None
    )
    assert frame_labels(videos) == [{"bus"}] * 3


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("mode", ["concept", "visual"])
def test_prompts_come_from_a_field_of_each_frame(
    videos: Any, load: Load, mode: str, batch_size: int | None
) -> None:
    model = load(operation_mode=mode)
    videos.apply_model(
        model, label_field="esam3", prompt_field="frames.boxes", batch_size=batch_size
    )
    if mode == "visual":
        assert frame_labels(videos) == [{"cat"}, {"dog"}, {"bus"}]
    presence = [videos.first().frames[i].esam3 for i in (1, 2, 3)]
    if mode == "concept":
        assert [list(p.concept_presence) for p in presence] == [["cat"], ["dog"], ["bus"]]


def test_concepts_come_from_a_field_of_each_frame(videos: Any, load: Load) -> None:
    videos.apply_model(
        load(), label_field="esam3", text_prompt_field="frames.words", skip_failures=False
    )
    assert frame_labels(videos) == [{"cat"}, {"dog"}, {"bus"}]


@pytest.mark.slow
def test_a_bad_prompt_affects_its_frame_only(videos: Any, load: Load) -> None:
    sample = videos.first()
    sample.frames[2].boxes.detections[0].bounding_box = [0.5, 0.5, 0, 0.5]
    sample.save()
    model = load(operation_mode="visual")
    videos.apply_model(model, label_field="esam3", prompt_field="frames.boxes")
    assert frame_labels(videos) == [{"cat"}, set(), {"bus"}]
    assert "no area" in videos.first().frames[2][ERROR_FIELD]
    sample.frames[2].boxes.detections[0].bounding_box = [0.1, 0.1, 0.5, 0.5]
    sample.save()
    videos.apply_model(model, label_field="esam3", prompt_field="frames.boxes")
    assert videos.values(f"frames.{ERROR_FIELD}") == [[None, None, None]]


def test_a_field_of_the_sample_cannot_prompt_frames(videos: Any, load: Load) -> None:
    videos.set_values("scene", ["street"])
    videos.apply_model(load(), label_field="esam3", text_prompt_field="scene", batch_size=3)
    assert not videos.has_frame_field("esam3")
    assert "needs a frame field" in videos.first().frames[1][ERROR_FIELD]


def test_frames_can_come_through_the_get_item(videos: Any, load: Load) -> None:
    """FiftyOne feeds prompts in this way to models that are no ``SamplesMixin``."""
    model = load()
    model.config.get_item_cls += "ForVideo"
    get_item = model.build_get_item(field_mapping={"text_prompt_field": "words"})
    assert isinstance(get_item, ImageGetItemForVideo)
    mapping = get_item.field_mapping
    mapping.pop("image")
    frame = videos.first().frames[2]
    (values,) = fout.get_samples_dict_for_get_item([frame], mapping)
    values["image"] = np.array(make_picture(1))
    assert {d.label for d in model.predict(get_item(values)).detections} == {"dog"}


def test_frame_embeddings(videos: Any, load: Load) -> None:
    videos.compute_embeddings(load(), embeddings_field="frames.embedding", batch_size=2)
    first, second, _ = videos.values("frames.embedding")[0]
    assert first.shape == second.shape
    assert not np.allclose(first, second)
