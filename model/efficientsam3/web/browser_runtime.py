"""ONNX Runtime for browsers: an npm package, of which the files are kept that the page loads."""

from __future__ import annotations

from pathlib import Path

from ..export.cache import cache_folder
from ..io.archives import Archive, ArchiveError, fetch_archive, read_folder
from ..io.atomic import replacing_folder

VERSION = "1.30.0"
RUNTIME = Archive(
    title="ONNX Runtime for browsers",
    file=f"onnxruntime-web-{VERSION}.tgz",
    sha256="d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
    command=f"npm pack --silent onnxruntime-web@{VERSION}",
    license="MIT",
)

FILES = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
)
"""For WebAssembly, and for WebGPU. The package's other build for WebGPU makes code from text, which
the page's Content-Security-Policy forbids."""


def browser_runtime(folder: Path | None = None) -> Path:
    """Return the folder with the runtime's files, which are downloaded once and verified.

    Args:
        folder: Where archive and files are kept. None: ``efficientsam3/web`` in the user's cache.

    Returns:
        A folder with ``FILES``.

    Raises:
        ArchiveError: The archive cannot be downloaded, is altered, or lacks a file.
    """
    place = cache_folder().with_name("web") if folder is None else folder
    unpacked = place / f"onnxruntime-web-{VERSION}"
    if unpacked.is_dir():
        return unpacked
    archive = fetch_archive(RUNTIME, place)
    found = {name: data for name, data in read_folder(archive, "package/dist") if name in FILES}
    if lost := set(FILES) - found.keys():
        raise ArchiveError(f"{archive} has no {', '.join(sorted(lost))}: it is of another version")
    with replacing_folder(unpacked) as new:
        for name in FILES:
            (new / name).write_bytes(found[name])
    return unpacked
