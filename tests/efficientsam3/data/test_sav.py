"""SA-V as released: videos or images, masklets of every fourth frame, errors."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.data.sample import source_identity
from efficientsam3.data.sav import SAV
from efficientsam3.data.subsets import hold_out_clips
from efficientsam3.errors import DataError

from ..video.films import number, picture, write_film

SIZE = (48, 64)
FRAMES = 21
"""Frames of the video; 0, 4, ..., 20 are annotated."""


def masklets(seed: int, objects: int = 2) -> list[list[dict[str, Any]]]:
    """Objects by annotated frame; object n is a square in column n + frame; frame 0 has none."""
    rows = []
    for t in range(6):
        row = []
        for n in range(objects):
            mask = np.zeros(SIZE, np.uint8)
            if t >= 1:
                mask[10 * n : 10 * n + 8, 5 * t + seed : 5 * t + seed + 8] = 1
            rle = coco.encode(np.asfortranarray(mask))
            row.append({"size": rle["size"], "counts": rle["counts"].decode()})
        rows.append(row)
    return rows


def write_labels(folder: Path, key: str, kind: str = "manual", objects: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "video_id": key,
        "video_duration": FRAMES / 24,
        "video_frame_count": float(FRAMES),
        "video_height": float(SIZE[0]),
        "video_width": float(SIZE[1]),
        "masklet": masklets(0 if kind == "manual" else 7, objects),
        "masklet_id": list(range(objects)),
        "masklet_num": objects,
        "masklet_type": [kind] * objects,
    }
    path = folder / f"{key}_{kind}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Two videos in one tar's folder."""
    folder = tmp_path / "sav_train" / "sav_000"
    for key in ("sav_000001", "sav_000002"):
        write_labels(folder, key)
        write_labels(folder, key, "auto", objects=3)
        write_film(folder / f"{key}.mp4", FRAMES, rate=24)
    return tmp_path / "sav_train"


@pytest.fixture
def tars(released: Path, tmp_path: Path) -> Path:
    """The same as one tar, and a tar with another video."""
    folder = tmp_path / "tars"
    folder.mkdir()
    write_labels(tmp_path / "sav_001", "sav_000003")
    write_film(tmp_path / "sav_001" / "sav_000003.mp4", FRAMES, rate=24)
    for part in (released / "sav_000", tmp_path / "sav_001"):
        with tarfile.open(folder / f"{part.name}.tar", "w") as archive:
            archive.add(part, part.name)
    return folder


def test_tars_are_read_where_they_are(released: Path, tars: Path) -> None:
    unpacked, data = SAV(released, "both"), SAV(tars, "both", subset=["sav_000.tar"])
    assert [data.key(i) for i in range(len(data))] == ["sav_000001", "sav_000002"]
    assert data.files(0) == [tars / "sav_000.tar"]
    for i in range(2):
        ours, theirs = (d.cut(i, 3, np.random.default_rng(i)) for d in (data, unpacked))
        assert ours.masks == theirs.masks
        for a, b in zip(ours.images, theirs.images, strict=True):
            np.testing.assert_array_equal(a, b)
    several = SAV(tars, subset=["sav_001.tar", "sav_000002.mp4"])
    assert [several.key(i) for i in range(len(several))] == ["sav_000002", "sav_000003"]
    assert len(SAV(tars)) == 3 and len(SAV(released, subset=["sav_000.tar"])) == 2
    with pytest.raises(DataError, match="missing videos: sav_002"):
        SAV(tars, subset=["sav_002.tar", "sav_000001"])


def test_damaged_tars_are_named(tars: Path) -> None:
    data = SAV(tars, subset=["sav_000.tar"])
    path = tars / "sav_000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"sav_000\.tar is cut short in sav_000/sav_"):
        data.cut(0, 2, np.random.default_rng(0))
    for length in (2000, 2048, 5000):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"sav_000\.tar (is cut short|cannot be read as a tar)"):
            SAV(tars)


def test_layout_as_released(released: Path) -> None:
    source = SAV(released)
    assert [source.key(i) for i in range(len(source))] == ["sav_000001", "sav_000002"]
    starts = set()
    for seed in range(12):
        clip = source.cut(1, 3, np.random.default_rng(seed))
        assert (clip.key, len(clip), clip.objects) == ("sav_000002", 3, 2)
        shown = [number(image) for image in clip.images]
        assert shown == [shown[0], shown[0] + 4, shown[0] + 8]
        for t, frame in enumerate(shown):
            x = 5 * (frame // 4)
            dense = clip.mask_at(t, 1, 64)
            want = np.zeros(SIZE, bool)
            want[10:18, x : x + 8] = True
            assert np.array_equal(dense.any(0).numpy(), want.any(0))
        starts.add(shown[0])
    assert starts == {4, 8, 12}  # Nothing is visible on frame 0.


def test_kinds_of_masklets(released: Path) -> None:
    random = np.random.default_rng(0)
    assert SAV(released, "auto").cut(0, 2, random).objects == 3
    assert SAV(released, "both").cut(0, 2, random).objects == 5
    assert len(SAV(released, subset=["sav_000002.mp4"])) == 1
    assert len(SAV(released).cut(0, 40, random)) == 6  # All that are annotated.


def test_files_of_videos_are_known(
    released: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So that training notices that one of its own has changed."""
    source = SAV(released)
    assert not caplog.text, "automatic masklets are not passed over, they are not asked for"
    names = [path.name for path in source.files(1)]
    assert names == ["sav_000002_manual.json", "sav_000002.mp4"]
    training, held_out = hold_out_clips(source, 1, seed=0)
    parts = [source_identity(part) for part in (training, held_out, source)]
    (video,) = (path for path in training.files(0) if path.suffix == ".mp4")
    video.write_bytes(video.read_bytes()[:-1] + b"!")
    changed = [
        source_identity(part) != old
        for part, old in zip((training, held_out, source), parts, strict=True)
    ]
    assert changed == [True, False, True]
    folder = tmp_path / "extracted"
    for key in ("sav_000001", "sav_000002"):
        (folder / key).mkdir(parents=True)
        Image.fromarray(picture(0, SIZE)).save(folder / key / "00000.jpg")
    assert [p.name for p in SAV(released, frames=folder).files(0)][1:] == ["00000.jpg"]
    write_film(released / "sav_000" / "sav_000003.mp4", 3, rate=24)
    SAV(released)
    assert "1 file is passed over, because the annotations do not name it: 1 .mp4" in caplog.text


@pytest.mark.parametrize("numbering", ["all", "every fourth", "annotated"])
def test_extracted_frames(tmp_path: Path, numbering: str) -> None:
    write_labels(tmp_path, "sav_000001")
    folder = tmp_path / "extracted_frames" / "sav_000001"
    folder.mkdir(parents=True)
    for frame in range(FRAMES):
        if numbering == "all" or frame % 4 == 0:
            name = frame // 4 if numbering == "annotated" else frame
            Image.fromarray(picture(frame, SIZE)).save(folder / f"{name:05d}.jpg", quality=95)
    clip = SAV(tmp_path).cut(0, 5, np.random.default_rng(0))
    assert [number(image) for image in clip.images] == [4, 8, 12, 16, 20]


def test_frames_in_another_folder(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", "sav_000001")
    folder = tmp_path / "frames" / "sav_000001"
    folder.mkdir(parents=True)
    for frame in range(0, FRAMES, 4):
        Image.fromarray(picture(frame, SIZE)).save(folder / f"{frame:05d}.jpg", quality=95)
    source = SAV(tmp_path / "labels", frames=tmp_path / "frames")
    assert number(source.cut(0, 5, np.random.default_rng(0)).images[0]) == 4
    (folder / "00012.jpg").unlink()
    with pytest.raises(DataError, match="no image of frame 12"):
        source.cut(0, 5, np.random.default_rng(0))


def test_wrong_files_are_named(released: Path) -> None:
    random = np.random.default_rng(0)
    with pytest.raises(DataError, match="known: manual, auto, both"):
        SAV(released, "best")
    with pytest.raises(DataError, match=r"there is no sav_\*_manual.json"):
        SAV(released / "nothing")
    with pytest.raises(DataError, match="names missing videos: sav_000009"):
        SAV(released, subset=["sav_000009"])
    film = released / "sav_000" / "sav_000001.mp4"
    write_film(film, 9, rate=24)
    with pytest.raises(DataError, match=r"ends before frame 20.*cut short"):
        SAV(released).cut(0, 5, random)
    write_film(film, FRAMES, size=(24, 64), rate=24)
    with pytest.raises(DataError, match="another copy of the data"):
        SAV(released).cut(0, 5, random)
    film.unlink()
    with pytest.raises(DataError, match=r"annotations below .* are of missing videos: sav_000001"):
        SAV(released)
    path = released / "sav_000" / "sav_000002_manual.json"
    content = json.loads(path.read_text())
    only_two = SAV(released, subset=["sav_000002"])
    path.write_text(
        json.dumps(
            {**content, "masklet": [r[: 1 + (t > 2)] for t, r in enumerate(content["masklet"])]}
        )
    )
    with pytest.raises(DataError, match=r"masklets of \[1, 2\] objects"):
        only_two.cut(0, 2, random)
    path.write_text(json.dumps({"video": 1}))
    with pytest.raises(DataError, match="not an annotation of SA-V: KeyError"):
        only_two.cut(0, 2, random)
    path.write_text(json.dumps({**content, "masklet": [[None, None]] * 6}))
    assert not only_two.cut(0, 2, random).mask_at(0, 1, 16).any()


def test_annotations_of_different_lengths_are_named(released: Path) -> None:
    path = released / "sav_000" / "sav_000001_auto.json"
    content = json.loads(path.read_text())
    content["masklet"] = content["masklet"][:-1]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"sav_000001 have \[5, 6\] frames"):
        SAV(released, "both").cut(0, 4, np.random.default_rng(0))
