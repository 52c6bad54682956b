"""Reader of videos with masks of given objects: DAVIS, YouTube-VOS, MOSE, LVOS, SA-V.

A folder of annotations has a folder for each video. As in DAVIS, this holds an image for each
annotated frame, whose pixels are numbers of objects; as in SA-V, it holds a folder for each object,
with black and white images. The frames are in a folder for each video elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import AnnotationError, EfficientSam3Error
from ..types import Array
from .name_lists import read_lines

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
VOID = 255
"""In maps of objects: a pixel that is not scored."""


@dataclass(frozen=True, eq=False)
class ObjectVideo:
    """A video with annotated objects.

    Attributes:
        name: Name of its folders.
        frame_files: All frames in order; empty where none were asked for.
        maps: By name of a frame, an image whose pixels are numbers of objects (DAVIS).
        object_masks: By name of an object, then of a frame, a black and white image (SA-V).
    """

    name: str
    frame_files: tuple[Path, ...]
    maps: Mapping[str, Path] = field(default_factory=dict)
    object_masks: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)

    @cached_property
    def frames(self) -> tuple[str, ...]:
        """Names of the annotated frames in order."""
        of_objects = (name for files in self.object_masks.values() for name in files)
        return tuple(sorted({*self.maps, *of_objects}))

    def masks(self, frame: str) -> dict[str, Array]:
        """Read the masks of a frame.

        Args:
            frame: Name of the frame.

        Returns:
            (H, W) bool by name of the object, empty where it is not visible. Objects that the
            frame's annotation does not mention are absent: a map mentions only visible ones.
        """
        if frame in self.maps:
            return read_object_map(self.maps[frame])
        return {
            id: read_gray(files[frame]) > 0
            for id, files in self.object_masks.items()
            if frame in files
        }


def read_object_map(path: Path) -> dict[str, Array]:
    """Read the masks (H, W) bool of the objects in an image of numbers.

    Args:
        path: A PNG as DAVIS has it.
    """
    numbers = read_gray(path)
    return {str(n): numbers == n for n in object_numbers(numbers)}


def object_numbers(pixels: Array) -> list[int]:
    """The numbers of objects in a map, in order.

    Args:
        pixels: (H, W), the number of an object at each pixel.
    """
    return [n for n in np.unique(pixels).tolist() if n not in (0, VOID)]


def read_gray(path: Path, error: type[EfficientSam3Error] = AnnotationError) -> Array:
    """Read an image with one number a pixel, a palette or gray image: (H, W).

    Args:
        path: The image.
        error: The class of error to raise.

    Raises:
        error: The image cannot be read, or has colors.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except Exception as cause:  # damaged bytes make Pillow raise whatever they lead to
        raise error(f"{path} cannot be read as an image: {cause}") from cause
    if pixels.ndim != 2:
        raise error(
            f"{path} is {image.mode}, in colors; an annotation has one number a pixel: a palette "
            "or gray image, as DAVIS, YouTube-VOS, MOSE and SA-V have them"
        )
    return pixels


def read_object_videos(
    annotations: str | Path,
    frames: str | Path | None = None,
    videos: str | Path | Sequence[str] | None = None,
) -> list[ObjectVideo]:
    """Read the videos of a folder of annotations.

    Args:
        annotations: Such as ``DAVIS/Annotations/480p``, ``sav_val/Annotations_6fps``.
        frames: Such as ``DAVIS/JPEGImages/480p``, ``sav_val/JPEGImages_24fps``; None reads
            annotations alone.
        videos: Which videos: names, or a file with one a line (``sav_val.txt``); None takes all.

    Raises:
        AnnotationError: A folder or a file is missing or wrong; the message names it.
    """
    root = Path(annotations)
    if not root.is_dir():
        raise AnnotationError(f"there is no folder of annotations at {root}")
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    if videos is not None:
        wanted = videos if not isinstance(videos, (str, Path)) else _read_list(Path(videos))
        if missing := [name for name in wanted if name not in found]:
            raise AnnotationError(f"{root} has no video {', '.join(missing[:3])}")
        found = {name: found[name] for name in wanted}
    out = [_video(path, None if frames is None else Path(frames)) for path in found.values()]
    if not out:
        raise AnnotationError(
            f"{root} has no folder of a video; DAVIS's is Annotations/480p, SA-V's Annotations_6fps"
        )
    return out


def _read_list(path: Path) -> list[str]:
    return [
        line.strip() for line in read_lines(path, "list of videos", AnnotationError) if line.strip()
    ]


def _video(path: Path, frames: Path | None) -> ObjectVideo:
    maps = {p.stem: p for p in sorted(path.glob("*.png"))}
    object_masks = {
        folder.name: {p.stem: p for p in sorted(folder.glob("*.png"))}
        for folder in sorted(path.iterdir())
        if folder.is_dir()
    }
    object_masks = {id: files for id, files in object_masks.items() if files}
    if bool(maps) == bool(object_masks):
        raise AnnotationError(
            f"{path} has {'images and folders of images' if maps else 'no image'}: a video has a "
            "PNG for each frame (DAVIS), or a folder of them for each object (SA-V)"
        )
    files = () if frames is None else _frame_files(path.name, frames)
    video = ObjectVideo(path.name, files, maps, object_masks)
    names = {file.stem for file in files}
    if frames is not None and (missing := [name for name in video.frames if name not in names]):
        raise AnnotationError(
            f"{frames / path.name} has no image of frame {missing[0]}, which {path} annotates"
        )
    return video


def _frame_files(name: str, frames: Path) -> tuple[Path, ...]:
    folder = frames / name
    if not folder.is_dir():
        raise AnnotationError(f"there are no frames of {name}: no folder {folder}")
    return tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES))
