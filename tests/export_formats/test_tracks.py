"""COCO-VID, MOT and SA-Co/VEval, written from tracks and read by their readers."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientsam3.data.veval import read_clip_annotations
from efficientsam3.evaluate.clip_predictions import read_clip_predictions
from efficientsam3.io import rle
from efficientsam3.io.frames import name_files
from efficientsam3.video.track_file import TrackFile, read_video
from efficientsam3.video.track_writers import names_path, write_coco, write_mot, write_veval
from efficientsam3.video.types import TrackedFrame

from .instances import QUICK, SLOW, Mask, Scene, class_names, mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILES = ["1.jpg", "2 - Kopie.jpg", "10.jpg", "\U0001f98a.png", "caf\u00e9.jpg", "%03d.jpg", "#.jpg"]


class Film(NamedTuple):
    """Objects through some frames."""

    names: list[str]
    """All concepts."""
    classes: list[str]
    """The concept of each object, by identity."""
    frames: list[int]
    """Indices of the frames that were tracked."""
    masks: list[Mask]
    """(N, H, W) of each of these frames, for all objects; without a pixel where one is absent."""

    def seen(self, identity: int) -> dict[int, int]:
        """Frames in which an object has a pixel, each with its place."""
        places = enumerate(self.frames)
        return {t: p for p, t in places if self.masks[p][identity].any()}

    def objects(self, concept: str | None = None) -> list[int]:
        """Identities of objects that have a pixel somewhere, perhaps of one concept."""
        every = (i for i, c in enumerate(self.classes) if concept in (None, c))
        return [i for i in every if self.seen(i)]


@st.composite
def films(draw: st.DrawFn) -> Film:
    names = draw(class_names(printable=True))
    classes = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    frames = sorted(draw(st.sets(st.integers(0, len(FILES) - 1), min_size=1, max_size=4)))
    sizes = draw(
        st.lists(st.tuples(*[st.integers(1, 30)] * 2), min_size=1, max_size=draw(st.integers(1, 2)))
    )
    masks = []
    for _ in frames:
        size = draw(st.sampled_from(sizes))
        masks.append(np.stack([draw(mask(size)) for _ in classes]))
    return Film(names, classes, frames, masks)


def track(film: Film, folder: Path) -> Path:
    """The run file of the tracks."""
    files = [folder / "clip \U0001f98a" / name for name in FILES]
    video = {"name": "clip \U0001f98a", "rate": None, "frames": len(files), "concepts": film.names}
    with TrackFile(folder / "a.jsonl", {}, video | {"file_names": list(name_files(files))}) as file:
        for index, masks in zip(film.frames, film.masks, strict=True):
            scene = Scene(film.names, film.classes, masks)
            found = scene.instances(track_ids=np.arange(len(masks)))
            file.add_frame(TrackedFrame(index, None, found))
        empty = sum(not mask.any() for masks in film.masks for mask in masks)
        assert file.left_out == empty
    return file.path


def check_tracks(film: Film, tracks: list, places: dict[int, int]) -> None:
    """Each object has its masks and boxes in its frames, and none elsewhere.

    Args:
        film: The truth.
        tracks: An ``ObjectTrack`` for each object that is seen.
        places: For each frame its place in the lists of a track.
    """
    for identity, found in zip(film.objects(), tracks, strict=True):
        seen = film.seen(identity)
        by_place = {places[t]: film.masks[p][identity] for t, p in seen.items()}
        assert [m is not None for m in found.masks] == [
            p in by_place for p in range(len(found.masks))
        ]
        for place, truth in by_place.items():
            assert np.array_equal(rle.decode(found.masks[place]), truth)
            y, x = np.nonzero(truth)
            assert found.boxes[place] == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def check_all(film: Film) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = track(film, folder)
        check_coco(film, source, folder / "c.json")
        check_polygons(film, source, folder / "p.json")
        check_veval(film, source, folder / "v.json")
        check_mot(film, source, folder / "m.txt")


def check_polygons(film: Film, source: Path, path: Path) -> None:
    """Polygons without tolerance have every pixel, as pycocotools draws them."""
    write_coco(source, path, masks="polygon")
    polygons = json.loads(path.read_text())["annotations"]
    write_coco(source, path)
    for drawn, exact in zip(polygons, json.loads(path.read_text())["annotations"], strict=True):
        for one, run_lengths in zip(drawn["segmentations"], exact["segmentations"], strict=True):
            assert (one is None) == (run_lengths is None)
            if run_lengths is not None:
                assert isinstance(one, list)
                mask = rle.decode(rle.from_segmentation(one, tuple(run_lengths["size"])))
                assert np.array_equal(mask, rle.decode(run_lengths))


def check_coco(film: Film, source: Path, path: Path) -> None:
    write_coco(source, path)
    content = json.loads(path.read_text())
    (video,) = content["videos"]
    assert video["name"] == "clip \U0001f98a" and video["frames"] == film.frames
    assert video["file_names"] == [f"clip \U0001f98a/{FILES[t]}" for t in film.frames]
    assert [c["name"] for c in content["categories"]] == film.names
    assert [a["track_id"] for a in content["annotations"]] == film.objects()
    named = {c["id"]: c["name"] for c in content["categories"]}
    assert [named[a["category_id"]] for a in content["annotations"]] == [
        film.classes[i] for i in film.objects()
    ]
    if not film.objects():
        return
    read = read_clip_annotations(path)
    assert [clip.name for clip in read.clips.values()] == ["clip \U0001f98a"]
    assert list(read.phrases.values()) == film.names
    tracks = {
        i: t
        for query in read.queries.values()
        for i, t in zip(film.objects(query.phrase), query.tracks, strict=True)
    }
    places = {t: p for p, t in enumerate(film.frames)}
    check_tracks(film, [tracks[i] for i in film.objects()], places)


def check_veval(film: Film, source: Path, path: Path) -> None:
    write_veval(source, path)
    names = read_clip_annotations(names_path(path, "veval"))
    (clip,) = names.clips.values()
    assert (clip.name, clip.length) == ("clip \U0001f98a", len(FILES))
    predicted = read_clip_predictions(path, names)
    tracks = {
        i: t
        for (_, category), found in predicted.items()
        for i, t in zip(film.objects(names.phrases[category]), found, strict=True)
    }
    check_tracks(film, [tracks[i] for i in film.objects()], {t: t for t in film.frames})
    (video,) = json.loads(names_path(path, "veval").read_text())["videos"]
    assert video["file_names"] == [f"clip \U0001f98a/{file}" for file in FILES]


def check_mot(film: Film, source: Path, path: Path) -> None:
    """TrackEval reads the boxes, and the second file has the names."""
    written = write_mot(source, path)
    content = json.loads(names_path(path, "mot").read_text())
    assert [c["name"] for c in content["categories"]] == film.names
    assert [c["file"] for c in content["categories"]] == [file.name for file in written]
    assert content["videos"][0]["file_names"] == [f"clip \U0001f98a/{file}" for file in FILES]
    assert read_video(source)["concepts"] == film.names
    for concept, file in zip(film.names, written, strict=True):
        ids, boxes = read_with_trackeval(file)
        for t in range(len(FILES)):
            there = [i for i in film.objects(concept) if t in film.seen(i)]
            assert ids[t] == [i + 1 for i in there]
            truth = []
            for i in there:
                y, x = np.nonzero(film.masks[film.seen(i)[t]][i])
                truth.append([x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1])
            assert boxes[t] == truth


def read_with_trackeval(file: Path) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Identities and boxes [x, y, width, height] of each frame."""
    pytest.importorskip("trackeval")
    from trackeval.datasets import MotChallenge2DBox

    if not file.read_text():
        return [[] for _ in FILES], [[] for _ in FILES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "truth/clip/gt").mkdir(parents=True)
        (folder / "truth/clip/gt/gt.txt").write_text("1,1,0,0,1,1,1,1,1\n")
        (folder / "tracks/ours/data").mkdir(parents=True)
        (folder / "tracks/ours/data/clip.txt").write_bytes(file.read_bytes())
        with contextlib.redirect_stdout(io.StringIO()):
            data = MotChallenge2DBox(
                {
                    "GT_FOLDER": str(folder / "truth"),
                    "TRACKERS_FOLDER": str(folder / "tracks"),
                    "SEQ_INFO": {"clip": len(FILES)},
                    "SKIP_SPLIT_FOL": True,
                    "PRINT_CONFIG": False,
                }
            ).get_raw_seq_data("ours", "clip")
    ids = [frame.tolist() for frame in data["tracker_ids"]]
    return ids, [frame.tolist() for frame in data["tracker_dets"]]


@QUICK
@given(films())
def test_tracks(film: Film) -> None:
    check_all(film)


@pytest.mark.long
@SLOW
@given(films())
def test_tracks_more(film: Film) -> None:
    check_all(film)
