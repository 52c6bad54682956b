"""Tracks in a file, who is who after a stop, and forms that are written from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3 import draw
from efficientsam3.types import BitPatch, Instances
from efficientsam3.video import forms
from efficientsam3.video.concepts import TrackedFrame
from efficientsam3.video.errors import VideoError
from efficientsam3.video.journal import (
    Journal,
    ResumeError,
    from_record,
    last_records,
    read_records,
    to_record,
)
from efficientsam3.video.resume import Identities

IDENTITY = {"source": ["a.mp4", 7], "threshold": 0.5}
VIDEO = {"name": "a.mp4", "rate": 10.0, "frames": None, "concepts": ["cat", "dog"]}


def frame(index: int, *objects: tuple[int, str, int], masks: bool = True) -> TrackedFrame:
    """Objects as (identity, concept, x): squares of 6 pixels."""
    patches = []
    for _, _, x in objects:
        mask = np.zeros((20, 60), bool)
        mask[4:10, x : x + 6] = True
        patches.append(BitPatch.cut(mask))
    scores = np.full(len(objects), 0.75, np.float32)
    instances = Instances(
        boxes=np.array([[x, 4, x + 6, 10] for *_, x in objects], np.float32).reshape(-1, 4),
        scores=scores,
        presence=np.ones_like(scores),
        labels=[concept for _, concept, _ in objects],
        size=(20, 60),
        patches=list(patches) if masks else None,
        concepts=("cat", "dog"),
        track_ids=np.array([identity for identity, *_ in objects], np.int64),
    )
    return TrackedFrame(index, index / 10, instances)


@pytest.mark.parametrize("masks", [True, False])
def test_a_frame_comes_back(masks: bool) -> None:
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


def test_a_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path, IDENTITY, VIDEO) as journal:
        journal.add(frame(2, (0, "cat", 5)))
        journal.add(frame(4, (7, "cat", 6)))
        with pytest.raises(VideoError, match="frame 4 comes after frame 4"):
            journal.add(frame(4))
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:30])  # a kill while it wrote
    with Journal(path, IDENTITY, VIDEO) as journal:
        assert (journal.last, journal.count, journal.ids) == (4, 2, 8)
        assert path.read_bytes() == whole
        assert not journal.is_whole(None)
        journal.add(frame(5))
        journal.finish(6)
    with Journal(path, IDENTITY, VIDEO) as journal:
        assert journal.is_whole(6) and journal.is_whole(3)
        assert not journal.is_whole(7) and not journal.is_whole(None)
        journal.add(frame(6))
        journal.finish(None)
    with Journal(path, IDENTITY, VIDEO) as journal:
        assert journal.is_whole(None) and journal.is_whole(9) and journal.count == 4
    assert [r["frame"] for r in read_records(path)] == [2, 4, 5, 6]
    assert [r["frame"] for r in last_records(path, 2)] == [5, 6]


def test_a_file_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path, IDENTITY, VIDEO) as journal:
        journal.add(frame(0))
    with pytest.raises(ResumeError, match=r"threshold was 0.5 and is 0.25.*--restart"):
        Journal(path, {**IDENTITY, "threshold": 0.25}, VIDEO)
    path.write_text("something else\n")
    with pytest.raises(ResumeError, match="no file of tracks"):
        Journal(path, IDENTITY, VIDEO)
    assert path.read_text() == "something else\n"
    with Journal(path, IDENTITY, VIDEO, restart=True) as journal:
        assert journal.last is None
    with pytest.raises(VideoError, match=r"\.jsonl"):
        Journal(tmp_path / "a.json", IDENTITY, VIDEO)


# Who is who ------------------------------------------------------------------------------------


def ids(identities: Identities, tracked: TrackedFrame) -> list[int]:
    found = identities.rename(tracked).instances.track_ids
    assert found is not None
    return found.tolist()


@pytest.mark.parametrize("masks", [True, False])
def test_old_objects_keep_their_identities(masks: bool) -> None:
    def before(t: int) -> TrackedFrame:
        return frame(t, (5, "cat", t), (2, "cat", 50 - t), (9, "dog", 20 + t), masks=masks)

    def after(t: int) -> TrackedFrame:  # the tracker counts from 0 again
        return frame(t, (1, "cat", t), (0, "cat", 50 - t), (2, "dog", 20 + t), masks=masks)

    identities = Identities([to_record(before(t)) for t in range(10, 14)], free=12)
    for t in range(8, 14):  # the first two are not in what was kept
        identities.compare(after(t))
    assert ids(identities, after(14)) == [5, 2, 9]
    new = frame(15, (1, "cat", 3), (7, "cat", 40), (-1, "dog", 20), (8, "dog", 9), masks=masks)
    assert ids(identities, new) == [5, 12, -1, 13]


def test_another_concept_or_another_place_is_another_object() -> None:
    old = [to_record(frame(t, (3, "cat", 10), (4, "cat", 30))) for t in range(4)]
    identities = Identities(old, free=5)
    for t in range(4):
        identities.compare(frame(t, (0, "dog", 10), (1, "cat", 34)))
    assert ids(identities, frame(4, (0, "dog", 10), (1, "cat", 34))) == [5, 6]


def test_an_object_that_was_seen_later_than_it_was_kept_is_the_same() -> None:
    """A tracker that begins anew needs some frames before it is sure."""
    old = [to_record(frame(t, (3, "cat", 10))) for t in range(8)]
    identities = Identities(old, free=4)
    for t in range(8):
        identities.compare(frame(t, *([(0, "cat", 10)] if t >= 3 else [])))
    assert ids(identities, frame(8, (0, "cat", 10))) == [3]


def test_without_a_past_identities_count_up() -> None:
    identities = Identities()
    assert ids(identities, frame(0, (4, "cat", 1), (9, "cat", 20))) == [0, 1]
    assert ids(identities, frame(1, (9, "cat", 1), (2, "cat", 20))) == [1, 2]
    unconfirmed = frame(2)
    assert ids(identities, unconfirmed) == []


# Forms -----------------------------------------------------------------------------------------


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    with Journal(path, IDENTITY, VIDEO) as journal:
        journal.add(frame(0, (0, "cat", 5), (-1, "dog", 40)))
        journal.add(frame(2, (0, "cat", 7), (1, "dog", 42)))
        journal.add(frame(4, (1, "dog", 44), (2, "cat", 1)))
    return path


@pytest.mark.parametrize("at_once", [1, 30, 10**6])
def test_forms_do_not_depend_on_what_fits_into_memory(
    tracks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(forms, "AT_ONCE", at_once)
    forms.write_coco(tracks, tmp_path / "coco.json")
    content: dict[str, Any] = json.loads((tmp_path / "coco.json").read_text())
    assert content["videos"][0]["frames"] == [0, 2, 4]
    rows = [(a["track_id"], a["category_id"], a["score"]) for a in content["annotations"]]
    assert rows == [(0, 1, 0.75), (1, 2, 0.75), (2, 1, 0.75)], "-1 is no track"
    boxes = [a["bboxes"] for a in content["annotations"]]
    assert boxes[0] == [[5, 4, 6, 6], [7, 4, 6, 6], None]
    assert boxes[1] == [None, [42, 4, 6, 6], [44, 4, 6, 6]]
    assert [a["areas"] for a in content["annotations"]][2] == [None, None, 36]
    forms.write_veval(tracks, tmp_path / "veval.json")
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
    cats, dogs = forms.write_mot(tracks, tmp_path / "m.txt")
    assert (cats.name, dogs.name) == ("m-cat.txt", "m-dog.txt")
    assert cats.read_text().splitlines() == [
        "1,1,5.00,4.00,6.00,6.00,0.75000,-1,-1,-1",
        "3,1,7.00,4.00,6.00,6.00,0.75000,-1,-1,-1",
        "5,3,1.00,4.00,6.00,6.00,0.75000,-1,-1,-1",
    ]
    assert len(dogs.read_text().splitlines()) == 2


def test_boxes_without_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path, IDENTITY, {**VIDEO, "concepts": ["cat"]}) as journal:
        journal.add(frame(0, (0, "cat", 5), masks=False))
    forms.write_coco(path, tmp_path / "coco.json")
    (track,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert track["segmentations"] == [None] and track["bboxes"] == [[5, 4, 6, 6]]
    assert track["areas"] == [36]
    (file,) = forms.write_mot(path, tmp_path / "m.txt")
    assert file.name == "m.txt"


def test_pictures_name_objects_by_their_identity() -> None:
    found = frame(0, (4, "cat", 5), (-1, "dog", 40)).instances
    assert [draw._name(found, i) for i in (0, 1)] == ["cat #4", "dog"]
    assert draw._name(replace(found, track_ids=None), 0) == "cat"
