"""Checks of the machine, packages, programs and weights, for `efficientsam3 doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..checkpoints.hub import cached_models
from ..runtime.threads import usable_processors

Status = Literal["ok", "warning", "missing"]

OPENCV_WHEELS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
MEMORY_FOR_ONE_IMAGE = 2.0
"""GiB that one image needs, with Python and its libraries."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    """What was checked."""
    status: Status
    """"ok", "warning" or "missing"."""
    found: str
    """What was found."""
    needed_for: str
    """The features that need it."""
    fix: str = ""
    """What to do, where the status is not "ok"."""


# --- The core -------------------------------------------------------------------------------------


def check_python() -> Check:
    """Report the Python version and the system."""
    found = f"{platform.python_version()} at {sys.executable}, {platform.platform(terse=True)}"
    return Check("python", "ok", found, "everything")


def check_torch() -> Check:
    """Import torch and torchvision. A torchvision built for another torch fails only on import."""
    versions = []
    for name in ("torch", "torchvision"):
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except (ImportError, OSError, RuntimeError) as error:
            return Check(
                "torch",
                "missing",
                f"{name} cannot be imported: {first_line(error)}",
                "everything",
                "install matching versions: pip install --force-reinstall torch torchvision",
            )
    return Check("torch", "ok", ", ".join(versions), "everything")


def check_device() -> Check:
    """Report the device on which a model computes."""
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
    """Report whether `load` computes in bfloat16, which it does where the hardware supports it."""
    from ..devices import best_device, best_dtype

    device = best_device()
    dtype = str(best_dtype(device)).removeprefix("torch.")
    used_for = "speed: about twice float32's in convolutions and linear layers"
    real = dtype == "bfloat16"
    found = f"yes, in {device.type}'s own instructions" if real else f"no: {device.type}, {dtype}"
    return Check("bfloat16", "ok", found, used_for)


def check_threads() -> Check:
    """Report torch's threads beside the processors that this process may use.

    The command line lets waiting threads sleep; in other processes the variable is set by the user.
    """
    import torch

    usable = usable_processors()
    threads = torch.get_num_threads()
    found = f"torch uses {threads} of {usable} usable processors"
    if threads > usable:
        fix = f"set OMP_NUM_THREADS={usable}: more threads than processors wait for each other"
        return Check("threads", "warning", found, "speed on the CPU", fix)
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        found += "; threads that wait sleep (OMP_WAIT_POLICY=passive)"
    else:
        found += "; threads that wait keep their processors busy (OMP_WAIT_POLICY is not passive)"
    return Check("threads", "ok", found, "speed on the CPU, also beside other processes")


def check_memory() -> Check:
    """Report total and available memory."""
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
    """Read the memory of the machine or container.

    Args:
        meminfo: Linux's file of memory figures.
        limit: The container's memory limit.

    Returns:
        Total and available memory in GiB; None where they are not known.
    """
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
    """Report the version of a package, from its metadata and without importing it.

    Args:
        distribution: Name of the distribution.
        needed_for: The features that need it.
        extra: Extra of efficientsam3 that installs it.

    Returns:
        The result.
    """
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


def check_runtimes() -> Check:
    """Report what can run models here, and how to find out which is fastest."""
    names = {"torch": "PyTorch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
    found = [name for package, name in names.items() if installed_version(package)]
    if not found:
        fix = "pip install --force-reinstall efficientsam3"
        return Check("runtimes", "missing", "none", "every model", fix)
    needed_for = "speed; `efficientsam3 benchmark --all-backends` says which is fastest here"
    return Check("runtimes", "ok", ", ".join(found), needed_for)


def absent_requirements(distribution: str) -> list[str]:
    """List requirements of a package that are not installed, as after `pip install --no-deps`.

    Args:
        distribution: Name of the distribution.

    Returns:
        Names of the missing distributions.
    """
    names = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, metadata.requires(distribution) or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    if any(installed_version(wheel) for wheel in OPENCV_WHEELS):
        names -= set(OPENCV_WHEELS)  # each of them gives the same cv2
    return sorted(name for name in names if installed_version(name) is None)


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, or None.

    Args:
        distribution: Name of the distribution.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_program(name: str, needed_for: str) -> Check:
    """Report whether a program of FFmpeg is on the path, and its version.

    Args:
        name: Name of the program.
        needed_for: The features that need it.

    Returns:
        The result.
    """
    path = shutil.which(name)
    if path is None:
        fix = "install ffmpeg (on Debian: apt-get install ffmpeg)"
        return Check(name, "missing", "not on PATH", needed_for, fix)
    # The output starts with "ffmpeg version 7.1-3 Copyright ...".
    words = _output([path, "-version"]).split()
    version = words[2] if len(words) > 2 and words[1] == "version" else "version not known"
    return Check(name, "ok", f"{version} at {path}", needed_for)


def check_opencv() -> Check:
    """Report OpenCV wheels. All write the same folder, so two wheels overwrite each other."""
    needed_for = "FiftyOne, Ultralytics"
    wheels = {name: version for name in OPENCV_WHEELS if (version := installed_version(name))}
    found = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if not wheels:
        return Check("opencv", "ok", "not installed", f"{needed_for}: they install it")
    if len(wheels) > 1:
        # The headless wheel works for all packages and needs no libGL. It is installed again,
        # because removing any wheel deletes the shared folder.
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
        return Check("opencv", "missing", f"{found}: {first_line(error)}", needed_for, fix)
    return Check("opencv", "ok", found, needed_for)


def opencv_in_use() -> tuple[str, list[str]]:
    """Return the version of the cv2 in use, and packages whose requirement excludes it."""
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


# --- Weights --------------------------------------------------------------------------------------


def check_cache() -> Check:
    """Report the models whose weights are on this machine."""
    from huggingface_hub import constants

    from ..variants import VARIANTS, Packaged

    folder = Path(constants.HF_HUB_CACHE)
    here = cached_models()
    shipped = [name for name in here if isinstance(VARIANTS[name].weights, Packaged)]
    names = [name for name in here if name not in shipped]
    found = f"{folder}: {', '.join(names) or 'no model of ours yet'}"
    if shipped:
        found += f"; in the package: {', '.join(shipped)}"
    return Check("weights", "ok", found, "load(...) without a download")


def check_offline(environment: Sequence[str] = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")) -> Check:
    """Report whether downloads are switched off.

    Args:
        environment: Variables that switch them off.

    Returns:
        The result.
    """
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message.

    Args:
        error: The error.
    """
    return (str(error) or type(error).__name__).splitlines()[0]
