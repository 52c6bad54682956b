"""Reader of SA-V's training videos (arXiv 2408.00714), as released."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..io.frames import read_frames
from ..io.paths import log_unnamed
from ..io.rle import Mask, mask_size
from ..types import Array
from .annotated_images import read_image
from .clip import TrainingClip
from .name_lists import first_names, read_names
from .sample import decode_mask, source_files
from .tar_members import Place, TarMember, file_of, find_tars, list_members, read_json_of

ANNOTATION_STRIDE = 4
"""One of so many frames of a video is annotated: 6 of 24 a second."""
KINDS = ("manual", "auto", "both")


class SAV:
    """SA-V's training videos.

    Below ``root``, at any depth, there are tars, which are read where they are, or the folders that
    they contain: ``sav_000001_manual.json`` and ``sav_000001_auto.json``; beside them is the video
    ``sav_000001.mp4``, or its frames as images ``sav_000001/00000.jpg``. Images are numbered as the
    video's frames (all, or every fourth), or, if there are as many as annotated frames, as those.

    Args:
        root: Folder of the annotations.
        masklets: Which annotations: "manual", "auto" or "both".
        frames: A folder that has a folder of images for each video; None:
            ``root/extracted_frames`` if it exists, else the images are beside the annotations.
        subset: A file of names, one a line, or the names: of videos (``sav_000001``,
            ``sav_000001.mp4``), or of tars (``sav_000.tar``) whose videos are in the tar or in a
            folder of that name. None takes all.

    Raises:
        DataError: There are no annotations, or annotations have no video.
    """

    def __init__(
        self,
        root: str | Path,
        masklets: str = "manual",
        frames: str | Path | None = None,
        subset: str | Path | Iterable[str] | None = None,
    ) -> None:
        if masklets not in KINDS:
            raise DataError(f"masklets is {masklets!r}; known: {', '.join(KINDS)}")
        self.root = Path(root)
        kinds = ("manual", "auto") if masklets == "both" else (masklets,)
        names = None if subset is None else read_names(subset)
        packed = _list_tars(self.root, names)
        self._labels: dict[str, list[Place]] = {}
        for kind in kinds:
            end = f"_{kind}.json"
            unpacked = {path.name: path for path in self.root.rglob(f"*{end}")}
            for name, place in {**packed, **unpacked}.items():
                if name.endswith(end):
                    self._labels.setdefault(name.removesuffix(end), []).append(place)
        if names is not None:
            self._labels = _choose(self._labels, names)
        if not self._labels:
            raise DataError(
                f"there is no sav_*_{kinds[0]}.json, and no tar with some, below {self.root}. "
                "Download tars of SA-V there."
            )
        extracted = self.root / "extracted_frames"
        folder = Path(frames) if frames else extracted if extracted.is_dir() else None
        self._videos = {
            key: _video(key, places[0], folder, packed) for key, places in self._labels.items()
        }
        if missing := {key for key, video in self._videos.items() if video is None}:
            raise DataError(
                f"{len(missing):,} annotations below {self.root} are of missing videos: "
                f"{first_names(missing)}. Unpack their tars again, pass frames= with their images, "
                "or a subset without them."
            )
        self._keys = sorted(self._labels)
        if subset is None:
            others = self.root.rglob("*_auto.json" if masklets == "manual" else "*_manual.json")
            log_unnamed([self.root], [*source_files(self), *others])

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The name without suffix, ``sav_000001``.

        Args:
            index: Which video.
        """
        return self._keys[index]

    def files(self, index: int) -> list[Path]:
        """The files of a video: itself or the images of its frames, and its annotations; or a tar.

        Args:
            index: Which video.
        """
        key = self._keys[index]
        video = self._videos[key]
        places: list[Place] = [*self._labels[key]]
        if isinstance(video, Path) and video.is_dir():
            places += sorted(video.glob("*.jpg"))
        elif video is not None:
            places.append(video)
        return list(dict.fromkeys(map(file_of, places)))

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """Cut consecutive annotated frames, 6 a second, at a random place.

        An object is visible on the first of them, if there is such a place.

        Args:
            index: Which video.
            frames: Frames of the clip, at most.
            random: What decides the place.
        """
        key = self._keys[index]
        rows = self._masklets(key)
        length = min(frames, len(rows))
        starts = random.permutation(len(rows) - length + 1).tolist()
        visible = (s for s in starts if any(decode_mask(m, key).any() for m in rows[s]))
        start = next(visible, starts[0])
        images = self._images(key, range(start, start + length), len(rows))
        return TrainingClip(key, tuple(images), tuple(rows[start : start + length]))

    def _masklets(self, key: str) -> list[tuple[Mask, ...]]:
        """Masks of all objects by annotated frame."""
        parts = []
        for path in self._labels[key]:
            content = read_json_of(path)
            try:
                rows = [[_mask(m, content, path) for m in row] for row in content["masklet"]]
            except DataError:
                raise
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DataError(
                    f"{path} is not an annotation of SA-V: {type(error).__name__} {error}"
                ) from error
            counts = {len(row) for row in rows}
            if len(counts) != 1:
                raise DataError(
                    f"{path} has masklets of {sorted(counts)} objects by frame; each frame has "
                    "one entry for every object"
                )
            parts.append(rows)
        lengths = {len(rows) for rows in parts}
        if len(lengths) > 1:
            raise DataError(
                f"the annotations of {key} have {sorted(lengths)} frames; manual and automatic "
                "ones are of the same frames. Load one of them alone, or download the files again"
            )
        return [tuple(m for row in together for m in row) for together in zip(*parts, strict=True)]

    def _images(self, key: str, wanted: range, annotated: int) -> list[Array]:
        """Read the images of annotated frames, which are numbered as annotations are."""
        video = self._videos[key]
        if video is None:  # The constructor raises.
            return []
        if isinstance(video, TarMember):
            with tempfile.TemporaryDirectory(prefix="efficientsam3-") as folder:
                file = Path(folder) / video.name
                file.write_bytes(video.read())
                return _read_video(file, str(video), wanted)
        if video.is_dir():
            numbered = {int(p.stem): p for p in video.glob("*.jpg") if p.stem.isdecimal()}
            only_annotated = len(numbered) == annotated and max(numbered) < annotated
            stride = 1 if only_annotated else ANNOTATION_STRIDE
            if missing := [n * stride for n in wanted if n * stride not in numbered]:
                raise DataError(
                    f"{video} has no image of frame {missing[0]}, which is annotated: extract the "
                    "frames of the video again"
                )
            return [read_image(numbered[n * stride], key) for n in wanted]
        return _read_video(video, str(video), wanted)


def _list_tars(root: Path, names: set[str] | None) -> dict[str, Place]:
    """The files in the tars below a folder by name; where names are of tars alone, in these."""
    tars = find_tars(root)
    if names and all(name.endswith(".tar") for name in names):
        tars = [tar for tar in tars if tar.name in names]
    return {member.name: member for tar in tars for member in list_members(tar)}


def _choose(labels: dict[str, list[Place]], names: set[str]) -> dict[str, list[Place]]:
    """The annotations of videos and tars with these names."""
    stems = {name.removesuffix(".mp4").removesuffix(".tar") for name in names}
    fitting = {k: stems & {k, *places[0].parts} for k, places in labels.items()}
    if missing := stems.difference(*fitting.values()):
        raise DataError(f"the subset names missing videos: {first_names(missing)}")
    return {k: places for k, places in labels.items() if fitting[k]}


def _read_video(file: Path, name: str, wanted: range) -> list[Array]:
    first, last = wanted[0] * ANNOTATION_STRIDE, wanted[-1] * ANNOTATION_STRIDE
    with read_frames(file, start=first, stop=last + 1, stride=ANNOTATION_STRIDE) as reader:
        images = [frame.image for frame in reader]
    if len(images) < len(wanted):
        raise DataError(
            f"{name} ends before frame {last}, which is annotated: it is cut short; download "
            "it again"
        )
    return images


def _video(
    key: str, label: Place, frames: Path | None, packed: Mapping[str, Place]
) -> Place | None:
    """Find the frames of a video: a folder of images, a file, or a file in a tar."""
    beside = file_of(label).parent
    folder = beside / key if frames is None else frames / key
    if folder.is_dir():
        return folder
    file = beside / f"{key}.mp4"
    return file if file.is_file() else packed.get(f"{key}.mp4")


def _mask(value: Any, content: Mapping[str, Any], path: Place) -> Mask:
    if isinstance(value, Mapping):
        return value
    if value is not None:
        raise DataError(f"{path}: a mask of a masklet is run lengths; got {value!r:.40}")
    height, width = int(content["video_height"]), int(content["video_width"])
    mask_size({"size": [height, width], "counts": ()})  # refuses a size that no video has
    return {"size": [height, width], "counts": [height * width]}
