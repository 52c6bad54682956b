"""The files of the site: the page, the runtime for browsers, and an exported model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArgumentError
from ..io.atomic import replacing_folder
from ..runtime.manifest import MANIFEST_FILE, REQUIREMENTS_FILE, TRACKER_GRAPHS, read_manifest

PAGE = Path(__file__).with_name("page")
MARK = "worker.js"
"""A file of the page by which a folder is known to be an earlier site."""


def site_files(model: Path, runtime: Path) -> dict[str, Path]:
    """List the files of the site.

    Args:
        model: A folder that ``export_model`` wrote for ONNX.
        runtime: From ``browser_runtime``.

    Returns:
        The files by their paths in the site, which begin with no slash.

    Raises:
        ArgumentError: The model was exported for another runtime.
        CheckpointError: The folder is damaged or of another version.
    """
    manifest = read_manifest(model)
    if manifest.backend != "onnx":
        raise ArgumentError(
            f"{model} was exported for {manifest.backend}, and browsers run ONNX: "
            "efficientsam3 export --to onnx"
        )
    files = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.is_file()}
    files |= {f"runtime/{path.name}": path for path in runtime.iterdir()}
    # The page answers prompts about images, and does not track.
    tracker = {entry["file"] for n, entry in manifest.graphs.items() if n in TRACKER_GRAPHS}
    unused = {*tracker, REQUIREMENTS_FILE}
    names = [MANIFEST_FILE, *(name for name in manifest.files if name not in unused)]
    return files | {f"model/{name}": model / name for name in names}


def write_site(files: Mapping[str, Path], folder: str | os.PathLike[str]) -> int:
    """Write the site to a folder, which any web server can host.

    An earlier site in its place is replaced when the new one is complete.

    Args:
        files: From ``site_files``.
        folder: The folder.

    Returns:
        Bytes of all files.

    Raises:
        ArgumentError: The folder holds something else.
    """
    place = Path(folder)
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not (place / MARK).exists()):
        raise ArgumentError(
            f"{place} exists and is not such a site; choose another folder, or empty it"
        )
    with replacing_folder(place) as new:
        for name, source in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, new / name)
    return sum(path.stat().st_size for path in files.values())
