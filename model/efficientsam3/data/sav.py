"""Reader of SA-V's training videos (arXiv 2408.00714), as released."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..io.frames import read_frames
from ..io.rle import Mask, mask_size
from ..types import Array
from .annotated_images import read_image
from .clip import TrainingClip
from .json_records import read_json
from .name_lists import first_names, read_names
from .sample import decode_mask

ANNOTATION_STRIDE = 4
"""One of so many frames of a video is annotated: 6 of 24 a second."""
KINDS = ("manual", "auto", "both")


class SAV:
    """SA-V's training videos.

    Below ``root``, at any depth, there are ``sav_000001_manual.json`` and
    ``sav_000001_auto.json``; beside them is the video ``sav_000001.mp4``, or its frames as images
    ``sav_000001/00000.jpg``. Images are numbered as the video's frames (all, or every fourth), or,
    if there are as many as annotated frames, as those.

    Args:
        root: Folder of the annotations.
        masklets: Which annotations: "manual", "auto" or "both".
        frames: A folder that has a folder of images for each video; None:
            ``root/extracted_frames`` if it exists, else the images are beside the annotations.
        subset: A file of names of videos, one a line, or the names; None takes all.

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
        self._labels: dict[str, list[Path]] = {}
        for kind in kinds:
            for path in self.root.rglob(f"*_{kind}.json"):
                self._labels.setdefault(path.name.removesuffix(f"_{kind}.json"), []).append(path)
        if subset is not None:
            names = {name.removesuffix(".mp4") for name in read_names(subset)}
            if missing := names - self._labels.keys():
                raise DataError(f"the subset names missing videos: {first_names(missing)}")
            self._labels = {k: v for k, v in self._labels.items() if k in names}
        if not self._labels:
            raise DataError(
                f"there is no sav_*_{kinds[0]}.json below {self.root}. Unpack a tar of SA-V "
                "into a folder there."
            )
        extracted = self.root / "extracted_frames"
        folder = Path(frames) if frames else extracted if extracted.is_dir() else None
        self._videos = {key: _video(key, paths[0], folder) for key, paths in self._labels.items()}
        if missing := {key for key, video in self._videos.items() if video is None}:
            raise DataError(
                f"{len(missing):,} annotations below {self.root} are of missing videos: "
                f"{first_names(missing)}. Unpack their tars again, pass frames= with their images, "
                "or a subset without them."
            )
        self._keys = sorted(self._labels)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The name without suffix, ``sav_000001``.

        Args:
            index: Which video.
        """
        return self._keys[index]

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
            content = read_json(path)
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
        first, last = wanted[0] * ANNOTATION_STRIDE, wanted[-1] * ANNOTATION_STRIDE
        with read_frames(video, start=first, stop=last + 1, stride=ANNOTATION_STRIDE) as reader:
            images = [frame.image for frame in reader]
        if len(images) < len(wanted):
            raise DataError(
                f"{video} ends before frame {last}, which is annotated: it is cut short; download "
                "it again"
            )
        return images


def _video(key: str, label: Path, frames: Path | None) -> Path | None:
    """Find the frames of a video: a folder of images, or a file."""
    folders = [label.parent / key] if frames is None else [frames / key]
    found = [p for p in folders if p.is_dir()]
    found += [p for p in (label.parent / f"{key}.mp4",) if p.is_file()]
    return found[0] if found else None


def _mask(value: Any, content: Mapping[str, Any], path: Path) -> Mask:
    if isinstance(value, Mapping):
        return value
    if value is not None:
        raise DataError(f"{path}: a mask of a masklet is run lengths; got {value!r:.40}")
    height, width = int(content["video_height"]), int(content["video_width"])
    mask_size({"size": [height, width], "counts": ()})  # refuses a size that no video has
    return {"size": [height, width], "counts": [height * width]}
