"""`efficientsam3 doctor`: what this machine has, and what is missing for which feature.

`examine()` returns the findings as data, `table()` draws them. Nothing is changed, downloaded or
left running. FiftyOne is not imported, because that starts its database.
"""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich.table import Table
from rich.text import Text

from .common import EXIT_FAILED, output_console
from .doctor_checks import (
    Check,
    check_bfloat16,
    check_cache,
    check_device,
    check_memory,
    check_offline,
    check_opencv,
    check_package,
    check_program,
    check_python,
    check_runtimes,
    check_threads,
    check_torch,
)
from .doctor_database import check_database


def doctor() -> None:
    """Show what this machine has, and what is missing for which feature."""
    checks = examine()
    output_console().print(table(checks))
    if any(c.status == "missing" and c.needed_for == "everything" for c in checks):
        raise typer.Exit(EXIT_FAILED)


def examine(start_database: bool = True) -> list[Check]:
    """Run all checks, which takes about three seconds.

    Args:
        start_database: Whether to start FiftyOne's MongoDB on an empty folder, which takes two of
            the seconds.

    Returns:
        The results.
    """
    return [
        check_python(),
        check_torch(),
        check_device(),
        check_bfloat16(),
        check_threads(),
        check_memory(),
        check_package("timm", "the image encoders"),
        check_package("open_clip_torch", "the text encoders' vocabulary"),
        check_package("pycocotools", "masks in COCO's run-length form"),
        check_package("fiftyone", "the FiftyOne zoo model and plugin", extra="fiftyone"),
        check_database(start=start_database),
        check_program("ffmpeg", "videos in FiftyOne"),
        check_program("ffprobe", "videos in FiftyOne"),
        check_package("av", "video files, read and written", extra="video"),
        check_package("pi-heif", "HEIC pictures", extra="pictures"),
        check_package("tifffile", "TIFF files of any type", extra="pictures"),
        check_package("supervision", "supervision.Detections", extra="supervision"),
        check_package("trackers", "McByte, and being one of its trackers", extra="trackers"),
        check_package("ultralytics", "Ultralytics results", extra="ultralytics"),
        check_package("lap", "Ultralytics' trackers", extra="ultralytics"),
        check_package("openvino", "models exported to OpenVINO", extra="openvino"),
        check_package("nncf", "OpenVINO exports in eight bits", extra="int8"),
        check_package("onnxruntime", "models exported to ONNX", extra="onnx"),
        check_runtimes(),
        check_opencv(),
        check_cache(),
        check_offline(),
    ]


def table(checks: Iterable[Check]) -> Table:
    """Draw the results as a table.

    Args:
        checks: Results of ``examine``.

    Returns:
        One row for each result, with the fix below what was found.
    """
    marks = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "missing": ("missing", "red")}
    drawn = Table(title="efficientsam3 doctor", title_justify="left")
    drawn.add_column("what", no_wrap=True)
    drawn.add_column("status", no_wrap=True)
    drawn.add_column("found", overflow="fold")
    drawn.add_column("needed for", overflow="fold")
    for check in checks:
        mark, color = marks[check.status]
        found = Text(check.found)
        if check.fix:
            found.append(f"\n{check.fix}", style="bold")
        drawn.add_row(Text(check.name), Text(mark, style=color), found, Text(check.needed_for))
    return drawn
