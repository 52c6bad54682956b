"""Objects that are shown on frames by masks, polygons, boxes, points and files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3 import TrackSettings
from efficientsam3.errors import AnnotationError, MissingAbilityError, TrackError
from efficientsam3.io import rle
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.objects import ObjectPrompt, read_coco_objects, read_object_map
from efficientsam3.video.settings import IoUSettings

from .test_interactive import LEFT, RIGHT, block
from .test_memory_tracker import pictures

Picture = npt.NDArray[np.uint8]

CORNERS = [[4, 8], [24, 8], [24, 30], [4, 30]]


@pytest.fixture(scope="module")
def clip() -> list[Picture]:
    return pictures(6)


def follow(model: es3.ImageModel, clip: Any, *objects: ObjectPrompt, **options: Any) -> Any:
    return list(es3.track(model, clip, objects=list(objects), **options))


@pytest.mark.parametrize("delay", [0, 15])
def test_objects_begin_on_their_frames(
    tiny: es3.ImageModel, clip: list[Picture], delay: int
) -> None:
    found = follow(
        tiny,
        clip,
        ObjectPrompt(2, mask=block(RIGHT), label="car"),
        ObjectPrompt(0, mask=block(LEFT)),
        settings=TrackSettings(hotstart_delay=delay, hotstart_unmatched=8 if delay else 1),
    )
    assert [frame.index for frame in found] == list(range(6))
    first = found[0].instances
    assert (first.labels, first.track_ids.tolist()) == (["object"], [0])
    assert (first.masks[0] == block(LEFT)).mean() > 0.95
    shown = [frame.instances for frame in found]
    labels = [dict(zip(s.track_ids.tolist(), s.labels, strict=True)) for s in shown]
    assert all(1 not in here for here in labels[:2])
    assert labels[2][1] == "car"


def test_all_forms_show_the_same(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    mask = block(LEFT)
    expected = follow(tiny, clip, ObjectPrompt(1, mask=mask))
    for shape in (CORNERS, rle.encode(mask)[0], mask.astype(np.uint8)):
        found = follow(tiny, clip, ObjectPrompt(1, mask=shape))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.instances.masks, theirs.instances.masks)
    tracker = InteractiveTracker(tiny, clip)
    by_mask = tracker.add_mask(1, 0, mask)
    by_polygon = tracker.add_mask(1, 1, CORNERS)
    np.testing.assert_array_equal(by_polygon.masks[1], by_mask.masks[0])


def test_boxes_and_points_show_objects(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    box = follow(tiny, clip, ObjectPrompt(0, box=LEFT))
    points = follow(tiny, clip, ObjectPrompt(0, points=[[14, 18]], point_labels=[1]))
    assert len(box) == len(points) == len(clip)
    assert len(box[0].instances) + len(points[0].instances) > 0


def test_one_key_is_one_object(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    prompts = [ObjectPrompt(t, mask=block(LEFT), key="a") for t in (0, 3)]
    found = follow(tiny, clip, *prompts)
    assert {int(i) for frame in found for i in frame.instances.track_ids} == {0}
    assert (found[3].instances.masks[0] == block(LEFT)).mean() > 0.95
    apart = follow(tiny, clip, *(ObjectPrompt(t, mask=block(LEFT)) for t in (0, 3)))
    assert {int(i) for frame in apart for i in frame.instances.track_ids} == {0, 1}


def test_objects_go_with_concepts(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    found = follow(tiny, clip, ObjectPrompt(0, mask=block(LEFT)), concepts="dog", threshold=0.4)
    assert "object" in found[0].instances.labels
    assert "dog" in found[0].instances.concepts


def test_label_maps(tmp_path: Path) -> None:
    numbers = np.zeros((48, 64), np.uint8)
    numbers[block(LEFT)], numbers[block(RIGHT)] = 3, 7
    path = tmp_path / "map.png"
    picture = Image.fromarray(numbers)
    picture.putpalette([0, 0, 0, *range(200, 230)] * 4)
    picture.save(path)
    first, second = read_object_map(path, 4)
    assert (first.frame, first.key, second.key) == (4, 3, 7)
    np.testing.assert_array_equal(first.mask, block(LEFT))
    Image.fromarray(block(LEFT).astype(np.uint8) * 255).save(path)
    (white,) = read_object_map(path, 0)
    np.testing.assert_array_equal(white.mask, block(LEFT))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    with pytest.raises(AnnotationError, match="shows no object"):
        read_object_map(path, 0)


def coco_file(path: Path, names: list[str], **more: Any) -> Path:
    """One annotation of LEFT on each image."""
    text = {**rle.encode(block(LEFT))[0]}
    text["counts"] = text["counts"].decode()
    x0, y0, x1, y1 = LEFT
    images = [
        {"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(names)
    ]
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": text,
            **more,
        }
        for i in range(len(names))
    ]
    categories = [{"id": 1, "name": "pig"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def test_coco_files(tmp_path: Path, tiny: es3.ImageModel, clip: list[Picture]) -> None:
    path = coco_file(tmp_path / "a.json", ["photos/b.jpg"])
    (one,) = read_coco_objects(path, 2)
    assert (one.frame, one.label, one.key) == (2, "pig", None)
    found = follow(tiny, clip, one)
    assert found[2].instances.labels == ["pig"]
    assert (found[2].instances.masks[0] == block(LEFT)).mean() > 0.95
    names = ["a.jpg", "b.jpg", "c.jpg"]
    (named,) = read_coco_objects(path, file_names=names)
    assert named.frame == 1
    both = read_coco_objects(coco_file(path, names[1:], track_id=9), file_names=names)
    assert [(p.frame, p.key) for p in both] == [(1, 9), (2, 9)]
    (boxed,) = read_coco_objects(coco_file(path, ["b.jpg"], segmentation=None), 0)
    assert boxed.mask is None and tuple(boxed.box) == LEFT
    with pytest.raises(AnnotationError, match="has 2 images, and one frame is named"):
        read_coco_objects(coco_file(path, names[1:]), 0)
    with pytest.raises(AnnotationError, match=r"objects of b\.jpg, which is no frame"):
        read_coco_objects(path, file_names=["x.jpg"])
    with pytest.raises(AnnotationError, match="shows no object"):
        read_coco_objects(_without_annotations(path), 0)


def _without_annotations(path: Path) -> Path:
    content = json.loads(coco_file(path, ["b.jpg"]).read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": -1, "mask": 1}, "index of a frame"),
        ({"frame": 0}, "no object is shown on frame 0"),
        ({"frame": 0, "mask": CORNERS, "box": LEFT}, "a mask says all"),
        ({"frame": 0, "box": LEFT, "label": ""}, "a concept is a phrase"),
    ],
)
def test_wrong_prompts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(es3.PromptError, match=message):
        ObjectPrompt(**arguments)


def test_wrong_objects_are_refused_before_a_frame_is_tracked(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    def refuse(error: type[Exception], message: str, prompt: Any, **options: Any) -> None:
        with pytest.raises(error, match=message):
            es3.track(tiny, clip, objects=[prompt], **options)

    good = ObjectPrompt(3, mask=block(LEFT))
    refuse(TrackError, "shown on frame 9, which is not read", ObjectPrompt(9, box=LEFT))
    refuse(TrackError, "with a stride of 2", good, stride=2)
    refuse(TrackError, "frames are from 0 to 2", good, stop=3)
    refuse(es3.PromptError, "list of ObjectPrompt", block(LEFT))
    refuse(MissingAbilityError, "tracked by memory", good, tracker="iou")
    with pytest.raises(es3.PromptError, match="frame 1 is wrong: a mask has 9 x 9 pixels"):
        follow(tiny, clip, ObjectPrompt(1, mask=np.ones((9, 9), bool)))
    with pytest.raises(es3.PromptError, match=r"frame 1 is wrong: box .* lies outside"):
        follow(tiny, clip, ObjectPrompt(1, box=[90, 5, 99, 9]))
    with pytest.raises(es3.PromptError, match="no pixel"):
        InteractiveTracker(tiny, clip).add_mask(0, 0, np.zeros((48, 64), bool))


def test_a_stream_that_ends_early_is_warned_of(
    tiny: es3.ImageModel, clip: list[Picture], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = follow(tiny, iter(clip), ObjectPrompt(8, box=LEFT))
    assert len(found) == len(clip)
    assert "shown on frame 8, and the last frame of the video is 5" in caplog.text


def test_exemplars_of_another_image_are_shown_on_each_frame(
    tiny: es3.ImageModel, clip: list[Picture], photo: Picture
) -> None:
    shown = tiny.exemplar(photo, boxes=[LEFT])
    alone = list(es3.track(tiny, clip[:2], exemplars=shown, threshold=0.4))
    assert {name for frame in alone for name in frame.instances.concepts} == {"visual"}
    named = list(es3.track(tiny, clip[:2], "pig", exemplars=[shown], threshold=0.4))
    assert {name for frame in named for name in frame.instances.concepts} == {"pig"}
    by_iou = list(es3.track(tiny, clip[:2], exemplars=shown, tracker="iou", threshold=0.4))
    settings = TrackSettings()
    found = tiny.segment(clip[0], exemplars=shown, threshold=0.4, nms=settings.nms)
    assert len(by_iou[0].instances) == (found.scores >= settings.iou.new_track_threshold).sum()
    with pytest.raises(es3.PromptError, match="exemplars show one concept; got 2"):
        es3.track(tiny, clip, ["pig", "dog"], exemplars=shown)
    with pytest.raises(es3.PromptError, match=r"model\.exemplar\(image"):
        es3.track(tiny, clip, exemplars=[LEFT])  # type: ignore[list-item]


def test_detections_without_presence(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    def best(presence: str) -> float:
        iou = IoUSettings(new_track_threshold=0.0)
        settings = TrackSettings(presence=presence, detection_threshold=0.0, nms=1.0, iou=iou)
        tracked = es3.track(tiny, clip[:1], "dog", tracker="iou", settings=settings)
        return float(next(iter(tracked)).instances.scores.max(initial=0))

    expected = tiny.segment(clip[0], "dog", threshold=0.0, presence="separate").scores.max()
    assert best("separate") == pytest.approx(expected, abs=1e-5)
    assert best("separate") > best("multiply")
    with pytest.raises(es3.PromptError, match="'multiply'"):
        TrackSettings(presence="none")
