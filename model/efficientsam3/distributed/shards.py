"""The files of results: one Parquet shard a partition; COCO made of it.

A row is an image, or a frame of a video.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..io import rle
from .stores import import_pyarrow, open_file

if TYPE_CHECKING:
    from ..types import Instances

FORMAT = "efficientsam3-annotations-2"
"""Name and version of the schema, in the metadata of each shard."""
FORMAT_KEY = b"efficientsam3.format"
COUNTS_KEY = b"efficientsam3.counts"
MOST_REASONS = 20
"""Failed images of a partition that are named in its metadata."""
IMAGE_NUMBERS = 10**6
"""Numbers of COCO images that each partition has for itself."""
ANNOTATION_NUMBERS = 10**9
"""Numbers of COCO annotations that each partition has for itself."""
TRACK_NUMBERS = 10**6
"""Numbers of COCO tracks that each partition has for itself."""

Record = dict[str, Any]
"""A row of a shard, as plain values."""


@dataclass
class Counts:
    """What a shard holds.

    Attributes:
        images: Number of rows.
        instances: Number of instances.
        failed: Number of rows with an error.
        left_out: Number of instances without a pixel, which are not in it.
        reasons: Key and error of the first failed rows.
    """

    images: int = 0
    instances: int = 0
    failed: int = 0
    left_out: int = 0
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def note(self, record: Record) -> None:
        """Count a row.

        Args:
            record: The row.
        """
        self.images += 1
        self.instances += len(record["instances"])
        self.left_out += record["left_out"]
        if record["error"] is not None:
            self.failed += 1
            if len(self.reasons) < MOST_REASONS:
                self.reasons.append((record["key"], record["error"]))

    def add(self, other: Counts) -> None:
        """Add those of another shard.

        Args:
            other: Its counts.
        """
        self.images += other.images
        self.instances += other.instances
        self.failed += other.failed
        self.left_out += other.left_out
        self.reasons += other.reasons[: MOST_REASONS - len(self.reasons)]


def schema() -> Any:
    """The Arrow schema of a shard; `docs/how-to/many-machines.md` explains its columns.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    arrow = import_pyarrow("")
    text, number, real = arrow.string(), arrow.int32(), arrow.float32()
    mask = arrow.struct([("size", arrow.list_(number, 2)), ("counts", text)])
    instance = arrow.struct(
        [
            ("label", text),
            ("phrase", text),
            ("score", real),
            ("presence", real),
            ("box", arrow.list_(real, 4)),
            ("area", real),
            ("mask", mask),
            ("track", number),
        ]
    )
    presence = arrow.struct([("label", text), ("presence", real)])
    return arrow.schema(
        [
            arrow.field("key", text, nullable=False),
            ("path", text),
            ("frame", number),
            ("time", arrow.float64()),
            ("width", number),
            ("height", number),
            ("instances", arrow.list_(instance)),
            ("presence", arrow.list_(presence)),
            arrow.field("left_out", number, nullable=False),
            ("error", text),
        ]
    )


def failed_record(key: str, path: str | None, error: str) -> Record:
    """The row of an image that has no result.

    Args:
        key: What the row is called.
        path: Path or URI of the image; None where it has none of its own.
        error: Why, as a sentence.
    """
    values: Record = dict.fromkeys(("key", "path", "frame", "time", "width", "height"))
    values |= {"key": key, "path": path}
    return values | {"instances": [], "presence": [], "left_out": 0, "error": error}


def to_record(
    key: str,
    path: str | None,
    found: Instances,
    frame: int | None = None,
    time: float | None = None,
) -> Record:
    """The row of an image or a frame, with the numbers that `efficientsam3 segment` writes.

    Args:
        key: What the row is called.
        path: Path or URI of the image or the video; None where it has none of its own.
        found: Its instances.
        frame: Number of the frame in its video, from 0; None for an image.
        time: Seconds since the first frame of the video; None where they are not known.
    """
    from ..segment_files import to_annotations

    instances, tracks = [], found.track_ids
    for one in to_annotations(found)[0]:
        x, y, width, height = one["bbox"]
        instances.append(
            {
                "label": one["concept"],
                "phrase": one.get("phrase", one["concept"]),
                "score": one["score"],
                "presence": one["presence"],
                "box": [x, y, x + width, y + height],
                "area": one["area"],
                "mask": one.get("segmentation"),
                "track": None if tracks is None else int(tracks[one["number"] - 1]),
            }
        )
    presence = found.concept_presence.items()
    return {
        "key": key,
        "path": path,
        "frame": frame,
        "time": time,
        "width": found.size[1],
        "height": found.size[0],
        "instances": instances,
        "presence": [{"label": name, "presence": round(value, 5)} for name, value in presence],
        "left_out": len(found) - len(instances),
        "error": None,
    }


def encode_shard(records: Sequence[Record], run: str) -> tuple[bytes, Counts]:
    """Make the content of a shard.

    Args:
        records: The rows, in order.
        run: The digest of what was asked.

    Returns:
        A Parquet file, and what is in it.
    """
    arrow, parquet = import_pyarrow(""), import_pyarrow("parquet")
    counts = Counts()
    for record in records:
        counts.note(record)
    metadata = {FORMAT_KEY: FORMAT, b"efficientsam3.run": run, COUNTS_KEY: json.dumps(vars(counts))}
    table = arrow.Table.from_pylist(list(records), schema().with_metadata(metadata))
    sink = arrow.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes(), counts


def read_counts(place: str) -> Counts:
    """Read what a shard holds, from its last bytes.

    Args:
        place: Path or URI.

    Raises:
        DataError: It is not a shard of this version, or is damaged.
    """
    metadata = _open(place).schema_arrow.metadata or {}
    try:
        if metadata[FORMAT_KEY].decode() != FORMAT:
            raise DataError(
                f"{place} is of the version {metadata[FORMAT_KEY].decode()}, and this version of "
                f"efficientsam3 reads {FORMAT}: annotate with --restart, or read it with pyarrow"
            )
        counts = Counts(**json.loads(metadata[COUNTS_KEY]))
        counts.reasons = [(key, reason) for key, reason in counts.reasons]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place} is not a shard of annotations") from error
    return counts


def read_shard(place: str) -> list[Record]:
    """Read the rows of a shard.

    Args:
        place: Path or URI.

    Raises:
        DataError: It is not a shard of this version, or is damaged.
    """
    read_counts(place)
    arrow = import_pyarrow("")
    try:
        return list(_open(place).read().to_pylist())
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place} is damaged: {error}. {AGAIN}") from error


def read_first_path(place: str) -> str | None:
    """Read the path of the first row of a shard, without its masks.

    Args:
        place: Path or URI.

    Returns:
        The path; None where the shard has no row, or the row no path.

    Raises:
        DataError: It is not a shard of this version, or is damaged.
    """
    read_counts(place)
    arrow = import_pyarrow("")
    try:
        paths = _open(place).read(["path"])["path"]
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place} is damaged: {error}. {AGAIN}") from error
    return paths[0].as_py() if len(paths) else None


AGAIN = "Delete it, and the same command makes it again"


def _open(place: str) -> Any:
    arrow, parquet = import_pyarrow(""), import_pyarrow("parquet")
    try:
        return parquet.ParquetFile(open_file(place))
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place} is damaged: {error}. {AGAIN}") from error


def to_coco(records: Sequence[Record], number: int, asked: Mapping[str, Any]) -> bytes:
    """Make COCO JSON of the rows of a shard.

    Numbers of images and annotations differ between the partitions of a run, so that their files
    can be joined.

    Args:
        records: The rows.
        number: Number of the partition.
        asked: What was asked, with the concepts in the order of their categories.
    """
    categories = {name: i for i, name in enumerate(asked["concepts"], 1)}
    images: list[Record] = []
    annotations: list[Record] = []
    for row, record in enumerate(records, 1):
        if record["error"] is not None:
            continue
        image = number * IMAGE_NUMBERS + row
        images.append(
            {
                "id": image,
                "file_name": record["path"] or record["key"],
                **({} if record["frame"] is None else {"frame_index": record["frame"]}),
                "width": record["width"],
                "height": record["height"],
                "presence": {p["label"]: round(p["presence"], 5) for p in record["presence"]},
            }
        )
        for one in record["instances"]:
            x0, y0, x1, y1 = one["box"]
            annotation = {
                "id": number * ANNOTATION_NUMBERS + len(annotations) + 1,
                "image_id": image,
                "category_id": categories[one["label"]],
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round(one["area"], 2),
                "iscrowd": 0,
                "score": round(one["score"], 5),
                "presence": round(one["presence"], 5),
            }
            if one["phrase"] != one["label"]:
                annotation["phrase"] = one["phrase"]
            if one["track"] is not None:
                annotation["track_id"] = number * TRACK_NUMBERS + one["track"]
            if one["mask"] is not None:
                annotation["segmentation"] = dict(one["mask"])
            annotations.append(annotation)
    content = {
        "info": {
            "description": f"Instances found by {asked['model']}",
            "settings": asked,
        },
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": ""} for name, i in categories.items()
        ],
        "images": images,
        "annotations": annotations,
    }
    return json.dumps(content).encode()


def decode_masks(record: Record) -> list[Any]:
    """The masks of a row.

    Args:
        record: From ``read_shard``.

    Returns:
        (H, W) bool of each instance.

    Raises:
        MaskError: A mask is damaged, or the model has no masks.
    """
    return [rle.decode(one["mask"]) for one in record["instances"]]
