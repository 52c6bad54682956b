"""The run file of tracking, identities after a stop, and formats that are written from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3.data.veval import read_clip_annotations
from efficientsam3.errors import RunFileError, VideoError
from efficientsam3.evaluate.clip_predictions import read_clip_predictions
from efficientsam3.io import rle
from efficientsam3.types import BitPatch, Instances
from efficientsam3.video import track_writers
from efficientsam3.video.resume import IdentityMatcher
from efficientsam3.video.track_file import (
    TrackFile,
    from_record,
    last_records,
    read_frame_records,
    to_record,
)
from efficientsam3.video.types import TrackedFrame
from efficientsam3.viz import overlay as draw

ASKED = {"source": {"path": "a.mp4", "bytes": 7}, "threshold": 0.5}
VIDEO = {"name": "a.mp4", "rate": 10.0, "frames": None, "concepts": ["cat", "dog"]}


def frame(
    index: int,
    *objects: tuple[int, str, int],
    masks: bool = True,
    size: tuple[int, int] = (20, 60),
) -> TrackedFrame:
    """Objects as (identity, concept, x): squares of 6 pixels, without a pixel below 0."""
    patches = []
    for _, _, x in objects:
        mask = np.zeros(size, bool)
        if x >= 0:
            mask[4:10, x : x + 6] = True
        patches.append(BitPatch.cut(mask))
    scores = np.full(len(objects), 0.75, np.float32)
    instances = Instances(
        boxes=np.array([[x, 4, x + 6, 10] for *_, x in objects], np.float32).reshape(-1, 4),
        scores=scores,
        presence=np.ones_like(scores),
        labels=[concept for _, concept, _ in objects],
        size=size,
        patches=list(patches) if masks else None,
        concepts=("cat", "dog"),
        track_ids=np.array([identity for identity, *_ in objects], np.int64),
    )
    return TrackedFrame(index, index / 10, instances)


@pytest.mark.parametrize("masks", [True, False])
def test_a_record_gives_back_its_frame(masks: bool) -> None:
    before = frame(3, (0, "cat", 5), (4, "dog", 30), masks=masks)
    after = from_record(json.loads(json.dumps(to_record(before))), ("cat", "dog"))
    assert (after.index, after.time) == (3, 0.3)
    old, new = before.instances, after.instances
    assert new.labels == old.labels and new.concepts == old.concepts and new.size == old.size
    assert new.track_ids is not None and new.track_ids.tolist() == [0, 4]
    assert np.array_equal(new.boxes, old.boxes) and np.array_equal(new.scores, old.scores)
    if masks:
        assert np.array_equal(new.masks, old.masks)
    assert (new.patches is None) == (not masks)
    empty = from_record(to_record(frame(0)), ())
    assert len(empty.instances) == 0 and empty.instances.boxes.shape == (0, 4)


def test_a_file_is_continued_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, VIDEO) as file:
        file.add_frame(frame(2, (0, "cat", 5)))
        file.add_frame(frame(4, (7, "cat", 6)))
        with pytest.raises(VideoError, match="frame 4 comes after frame 4"):
            file.add_frame(frame(4))
    complete = path.read_bytes()
    path.write_bytes(complete + complete.splitlines()[1][:30])  # as a kill during a write leaves it
    with TrackFile(path, ASKED, VIDEO) as file:
        assert (file.last, file.count, file.next_id) == (4, 2, 8)
        file.begin()
        assert path.read_bytes() == complete
        assert not file.is_complete(None)
        file.add_frame(frame(5))
        file.finish(6)
    with TrackFile(path, ASKED, VIDEO) as file:
        assert file.is_complete(6) and file.is_complete(3)
        assert not file.is_complete(7) and not file.is_complete(None)
        file.add_frame(frame(6))
        file.finish(None)
    with TrackFile(path, ASKED, VIDEO) as file:
        assert file.is_complete(None) and file.is_complete(9) and file.count == 4
    assert [r["frame"] for r in read_frame_records(path)] == [2, 4, 5, 6]
    assert [r["frame"] for r in last_records(path, 2)] == [5, 6]


def test_a_run_that_asks_for_something_else_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, VIDEO) as file:
        file.add_frame(frame(0))
    with TrackFile(path, {**ASKED, "threshold": 0.25}, VIDEO) as file:
        assert (file.last, file.count, file.next_id) == (None, 0, 0)
        file.begin()
    assert "threshold was 0.5 and is 0.25" in caplog.text
    earlier = path.with_name("a.jsonl.previous")
    assert [r["frame"] for r in read_frame_records(earlier)] == [0]


def test_other_files_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("something else\n")
    for restart in (False, True):
        with pytest.raises(RunFileError, match="not a file of tracks"):
            TrackFile(path, ASKED, VIDEO, restart=restart)
    assert path.read_text() == "something else\n"
    with pytest.raises(RunFileError, match=r"\.jsonl"):
        TrackFile(tmp_path / "a.json", ASKED, VIDEO)


# Identities after a stop -----------------------------------------------------------------------


def ids(matcher: IdentityMatcher, tracked: TrackedFrame) -> list[int]:
    found = matcher.rename(tracked).instances.track_ids
    assert found is not None
    return found.tolist()


@pytest.mark.parametrize("masks", [True, False])
def test_old_objects_keep_their_identities(masks: bool) -> None:
    def before(t: int) -> TrackedFrame:
        return frame(t, (5, "cat", t), (2, "cat", 50 - t), (9, "dog", 20 + t), masks=masks)

    def after(t: int) -> TrackedFrame:  # the tracker counts from 0 again
        return frame(t, (1, "cat", t), (0, "cat", 50 - t), (2, "dog", 20 + t), masks=masks)

    matcher = IdentityMatcher([to_record(before(t)) for t in range(10, 14)], next_id=12)
    for t in range(8, 14):  # the first two are not in the records
        matcher.compare(after(t))
    assert ids(matcher, after(14)) == [5, 2, 9]
    new = frame(15, (1, "cat", 3), (7, "cat", 40), (-1, "dog", 20), (8, "dog", 9), masks=masks)
    assert ids(matcher, new) == [5, 12, -1, 13]


def test_another_concept_or_another_place_is_another_object() -> None:
    old = [to_record(frame(t, (3, "cat", 10), (4, "cat", 30))) for t in range(4)]
    matcher = IdentityMatcher(old, next_id=5)
    for t in range(4):
        matcher.compare(frame(t, (0, "dog", 10), (1, "cat", 34)))
    assert ids(matcher, frame(4, (0, "dog", 10), (1, "cat", 34))) == [5, 6]


def test_an_object_that_is_tracked_later_than_before_is_the_same() -> None:
    """A new tracker needs some frames to confirm an object."""
    old = [to_record(frame(t, (3, "cat", 10))) for t in range(8)]
    matcher = IdentityMatcher(old, next_id=4)
    for t in range(8):
        matcher.compare(frame(t, *([(0, "cat", 10)] if t >= 3 else [])))
    assert ids(matcher, frame(8, (0, "cat", 10))) == [3]


def test_identities_without_an_earlier_run_count_from_0() -> None:
    matcher = IdentityMatcher()
    assert ids(matcher, frame(0, (4, "cat", 1), (9, "cat", 20))) == [0, 1]
    assert ids(matcher, frame(1, (9, "cat", 1), (2, "cat", 20))) == [1, 2]
    unconfirmed = frame(2)
    assert ids(matcher, unconfirmed) == []


# Formats ---------------------------------------------------------------------------------------


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, VIDEO) as file:
        file.add_frame(frame(0, (0, "cat", 5), (-1, "dog", 40)))
        file.add_frame(frame(2, (0, "cat", 7), (1, "dog", 42)))
        file.add_frame(frame(4, (1, "dog", 44), (2, "cat", 1)))
    return path


@pytest.mark.parametrize("at_once", [1, 30, 10**6])
def test_formats_do_not_depend_on_the_memory_limit(
    tracks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(track_writers, "MAX_CHARACTERS", at_once)
    track_writers.write_coco(tracks, tmp_path / "coco.json")
    content: dict[str, Any] = json.loads((tmp_path / "coco.json").read_text())
    assert content["videos"][0]["frames"] == [0, 2, 4]
    rows = [(a["track_id"], a["category_id"], a["score"]) for a in content["annotations"]]
    assert rows == [(0, 1, 0.75), (1, 2, 0.75), (2, 1, 0.75)], "-1 is no track"
    boxes = [a["bboxes"] for a in content["annotations"]]
    assert boxes[0] == [[5, 4, 6, 6], [7, 4, 6, 6], None]
    assert boxes[1] == [None, [42, 4, 6, 6], [44, 4, 6, 6]]
    assert [a["areas"] for a in content["annotations"]][2] == [None, None, 36]
    track_writers.write_veval(tracks, tmp_path / "veval.json")
    predictions = json.loads((tmp_path / "veval.json").read_text())
    assert [(p["video_id"], p["category_id"]) for p in predictions] == [(1, 1), (1, 2), (1, 1)]
    assert [m is not None for m in predictions[0]["segmentations"]] == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_mot_has_a_file_for_each_concept(tracks: Path, tmp_path: Path) -> None:
    cats, dogs = track_writers.write_mot(tracks, tmp_path / "m.txt")
    assert (cats.name, dogs.name) == ("m-cat.txt", "m-dog.txt")
    assert cats.read_text().splitlines() == [
        "1,1,5.00,4.00,6.00,6.00,0.75000,-1,-1,-1",
        "3,1,7.00,4.00,6.00,6.00,0.75000,-1,-1,-1",
        "5,3,1.00,4.00,6.00,6.00,0.75000,-1,-1,-1",
    ]
    assert len(dogs.read_text().splitlines()) == 2


def test_boxes_are_the_extent_of_the_masks_and_empty_masks_are_counted(tmp_path: Path) -> None:
    """A reader cuts masks by their boxes."""
    rough = frame(0, (0, "cat", 5), (3, "dog", -1))
    rough.instances.boxes[:] += np.array([-1, 1.5, 2, -0.5], np.float32)
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, VIDEO) as file:
        file.add_frame(rough)
        assert (file.left_out, file.next_id) == (1, 1)
    track_writers.write_coco(path, tmp_path / "coco.json")
    (track,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert (track["bboxes"], track["areas"]) == ([[5, 4, 6, 6]], [36])
    cats, dogs = track_writers.write_mot(path, tmp_path / "m.txt")
    assert cats.read_text().startswith("1,1,5.00,4.00,6.00,6.00,") and dogs.read_text() == ""
    with TrackFile(path, ASKED, VIDEO) as file:
        assert file.left_out == 1


def test_each_frame_has_its_own_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, VIDEO) as file:
        file.add_frame(frame(0, (0, "cat", 5)))
        file.add_frame(frame(2, (0, "cat", 30), size=(40, 90)))
    track_writers.write_coco(path, tmp_path / "coco.json")
    assert "frames of a.mp4 have 2 sizes, such as 60 x 20 and 90 x 40" in caplog.text
    (video,) = json.loads((tmp_path / "coco.json").read_text())["videos"]
    assert (video["height"], video["width"]) == (20, 60)
    assert video["sizes"] == [[20, 60], [40, 90]]
    read = read_clip_annotations(tmp_path / "coco.json")
    (track,) = (t for query in read.queries.values() for t in query.tracks)
    assert [rle.decode(m).sum() for m in track.masks if m is not None] == [36, 36]
    assert track.boxes == [(5, 4, 11, 10), (30, 4, 36, 10)]

    track_writers.write_veval(path, tmp_path / "v.json")
    names = read_clip_annotations(tmp_path / "v.veval-names.json")
    assert names.clips[1].sizes == ((20, 60), (20, 60), (40, 90))
    predicted = read_clip_predictions(tmp_path / "v.json", names)
    assert [m is not None for m in predicted[1, 1][0].masks] == [True, False, True]
    truth = tmp_path / "truth.json"
    content = json.loads((tmp_path / "v.veval-names.json").read_text())
    del content["videos"][0]["sizes"]
    truth.write_text(json.dumps(content))
    with pytest.raises(VideoError, match=r"frame 2 of a\.mp4 has 90 x 40 pixels .* has 60 x 20"):
        track_writers.write_veval(path, tmp_path / "w.json", truth)
    assert not (tmp_path / "w.json").exists()


@pytest.mark.parametrize(
    ("concepts", "files"),
    [
        (["\U0001f98a", "Cat", "cat"], ["m-1.txt", "m-2-Cat.txt", "m-3-cat.txt"]),
        (["a/b", "a b"], ["m-1-a-b.txt", "m-2-a-b.txt"]),
        (["\u732b", "dog"], ["m-\u732b.txt", "m-dog.txt"]),
        (["x" * 300, "dog"], [f"m-{'x' * 100}.txt", "m-dog.txt"]),
    ],
)
def test_names_of_mot_files_are_told_apart(
    tmp_path: Path, concepts: list[str], files: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, {**VIDEO, "concepts": concepts}) as file:
        file.add_frame(frame(0, (0, concepts[0], 5), (1, concepts[1], 20)))
    assert [p.name for p in track_writers.write_mot(path, tmp_path / "m.txt")] == files
    names = json.loads((tmp_path / "m.mot-names.json").read_text())
    assert [(c["name"], c["file"]) for c in names["categories"]] == list(
        zip(concepts, files, strict=True)
    )


def test_boxes_without_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with TrackFile(path, ASKED, {**VIDEO, "concepts": ["cat"]}) as file:
        file.add_frame(frame(0, (0, "cat", 5), masks=False))
    track_writers.write_coco(path, tmp_path / "coco.json")
    (track,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert track["segmentations"] == [None] and track["bboxes"] == [[5, 4, 6, 6]]
    assert track["areas"] == [36]
    (file,) = track_writers.write_mot(path, tmp_path / "m.txt")
    assert file.name == "m.txt"


def test_pictures_name_objects_by_their_identity() -> None:
    found = frame(0, (4, "cat", 5), (-1, "dog", 40)).instances
    assert [draw._label(found, i) for i in (0, 1)] == ["cat #4", "dog"]
    assert draw._label(replace(found, track_ids=None), 0) == "cat"
