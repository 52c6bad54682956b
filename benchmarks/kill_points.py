"""Stop a command at random points, run it again, and compare with an undisturbed run.

    python benchmarks/kill_points.py                     # 200 points of each command
    python benchmarks/kill_points.py segment --points 20
    python benchmarks/kill_points.py --seconds 300 --results counts.json  # adds to earlier runs

A point is one of: ``kill -9`` before the n-th time that the command opens a file for writing,
renames or deletes one; ``kill -9`` when a file reaches a size; ``kill -9`` after a time; and a disk
that is full after a number of bytes (a tmpfs, where mounting is permitted). For the commands in
FiftyOne it is ``kill -9`` before the n-th command to the database, or after a time.

After the point, the same command runs without disturbance. Its results must equal those of a run
that was never disturbed, byte for byte, and no other file may be there.

Each run is a process that is forked from this one, which has imported the packages already and,
but for ``distill``, loaded the model.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from kill_point_counts import Counts, Session
from tiny_inputs import make_inputs

from efficientsam3.cli.app import app
from efficientsam3.cli.model_options import ModelOptions

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
"""Audit events of Python that change a folder."""


@dataclass(frozen=True)
class Point:
    """Where a run is disturbed.

    Attributes:
        kind: "operation", "size", "time", "full" or "query".
        at: The number of the operation or query, bytes, or seconds.
    """

    kind: str
    at: float


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        code: Exit code; negative: the number of a signal.
        seconds: How long it took.
        operations: Changes of files that it made, as far as Python reports them.
        said: What it printed.
    """

    code: int
    seconds: float
    operations: int
    said: str


class Command:
    """A command on inputs that are made once.

    Args:
        folder: Folder of the inputs.
    """

    name = ""
    kinds: tuple[str, ...] = ("full", "operation", "size", "time", "operation")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def act(self, out: Path) -> int:
        """Run the command in this process; gives its exit code.

        Args:
            out: Folder of its results.
        """
        raise NotImplementedError

    def warm(self, out: Path) -> None:
        """Import in this process what the command imports, so that forked ones start at once.

        Args:
            out: An empty folder.
        """
        self.act(out)

    def results(self, out: Path) -> dict[str, str]:
        """What is compared: a digest of each file.

        Args:
            out: Folder of the results.
        """
        return {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }

    def reset(self, out: Path) -> None:
        """Remove the results of the point before.

        Args:
            out: Folder of the results.
        """
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def enter_child(self, point: Point | None, count: list[int]) -> None:
        """Prepare a forked process, and watch what it does.

        Args:
            point: Where the process ends itself; None: nowhere.
            count: Its first entry becomes the number of operations.
        """


def command_line(*arguments: Any) -> int:
    """Run the command line in this process; gives its exit code."""
    try:
        app([str(a) for a in arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


class Segment(Command):
    name = "segment"

    def act(self, out: Path) -> int:
        return command_line(
            *("segment", self.folder / "photos", "-c", "person", "-c", "bus", "--threshold", 0),
            *("-m", self.folder / "tiny", "--device", "cpu", "--max-instances", 3, "--out", out),
        )


class Track(Command):
    name = "track"

    def act(self, out: Path) -> int:
        return command_line(
            *("track", self.folder / "frames", "-c", "person", "--threshold", 0.3),
            *("-m", self.folder / "tiny", "--device", "cpu", "--json", out / "t.jsonl"),
            *("--mot", out / "t.txt", "--coco", out / "t.json", "--veval", out / "v.json"),
            *("--out", out / "t.mp4", "--sheet", out / "t.jpg", "--tracker", "memory"),
        )


class Evaluate(Command):
    name = "evaluate"

    def act(self, out: Path) -> int:
        return command_line(
            *("evaluate", "-a", self.folder / "truth.json", "-i", self.folder / "photos"),
            *("-m", self.folder / "tiny", "--device", "cpu", "-p", out / "p.json"),
            *("--json", out / "figures.json"),
        )


class Distill(Command):
    name = "distill"

    def warm(self, out: Path) -> None:
        """Import without training: a process in which torch has trained cannot be forked."""
        importlib.import_module("efficientsam3.train.recipes.stage3")
        importlib.import_module("lightning_fabric.loggers.tensorboard")

    def act(self, out: Path) -> int:
        settings = {
            "model": self.folder / "tiny",
            "saco": self.folder / "saco.json",
            "saco_images": self.folder / "photos",
            "held_out": 2,
            "prompts": 2,
            "workers": 0,
            "loop.accelerator": "cpu",
            "loop.precision": "32-true",
            "loop.save_every": 2,
        }
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return command_line("distill", "--recipe", "stage3", "--out", out, "--steps", 4, *options)

    def results(self, out: Path) -> dict[str, str]:
        """All files but logs, which hold times; of records all but times."""
        found = super().results(out)
        found = {name: d for name, d in found.items() if name.endswith((".safetensors", ".json"))}
        for name in found:
            if name.endswith(".json"):
                content = without_times(json.loads((out / name).read_text()))
                found[name] = json.dumps(content, sort_keys=True)
        return found


def without_times(value: Any) -> Any:
    """A record without what differs between two runs that were never disturbed."""
    if isinstance(value, dict):
        left_out = ("seconds", "started", "sessions", "eta", "memory", "rate", "date")
        return {
            k: without_times(v) for k, v in value.items() if not any(part in k for part in left_out)
        }
    return [without_times(v) for v in value] if isinstance(value, list) else value


COMMANDS: dict[str, Callable[[Path], Command]] = {
    c.name: c for c in (Segment, Track, Evaluate, Distill)
}
IN_FIFTYONE = ("segment_concepts", "track_video")


def command_of(name: str, folder: Path) -> Command:
    """The command of a name.

    Args:
        name: A name of ``COMMANDS`` or ``IN_FIFTYONE``.
        folder: Folder of the inputs.
    """
    if name in COMMANDS:
        return COMMANDS[name](folder)
    module: Any = importlib.import_module("kill_points_fiftyone")
    return module.COMMANDS[name](folder)


# Runs -------------------------------------------------------------------------------------------


def run(command: Command, out: Path, point: Point | None = None) -> Ended:
    """Run a command in a forked process, disturbed at a point."""
    log, count = out.parent / "log", out.parent / "count"
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(command, out, point, log, count)
    status = None
    if point is not None and point.kind == "time":
        status = _wait(pid, started + point.at)
        if status is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if status is None:
        status = os.waitpid(pid, 0)[1]
    operations = int(count.read_text() or 0) if count.exists() else 0
    seconds = time.monotonic() - started
    return Ended(
        os.waitstatus_to_exitcode(status), seconds, operations, log.read_text(errors="replace")
    )


def _wait(pid: int, until: float) -> int | None:
    """The status of a process that ends before a time; None if it does not."""
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    return None


def _child(command: Command, out: Path, point: Point | None, log: Path, count: Path) -> NoReturn:
    code = 99
    try:
        with log.open("wb", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        operations = _watch_operations(out, point)
        command.enter_child(point, operations)
        if point is not None and point.kind == "size":
            # Python ignores the signal; without that, the process ends in the middle of a write.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(point.at),) * 2)
        code = command.act(out)
        if point is None:
            count.write_text(str(operations[0]))
    except BaseException:  # noqa: BLE001 - it is printed
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch_operations(out: Path, point: Point | None) -> list[int]:
    """Count the changes of files below a folder; end the process at the one that is asked for."""
    count, inside = [0], str(out)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            is_change = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            path, is_change = arguments[0] if arguments else None, event in WRITES
        if not is_change or not isinstance(path, (str, os.PathLike)):
            return
        if str(path).startswith(inside):
            count[0] += 1
            if point is not None and point.kind == "operation" and count[0] == point.at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


# Points -----------------------------------------------------------------------------------------


def disturb(
    command: Command, session: Session, seed: int, folder: Path, *, may_mount: bool
) -> None:
    """Disturb a command at random points, and compare what the same command gives afterwards."""
    out = folder / "out"
    out.mkdir()
    with (folder / "warm.txt").open("w") as text, redirect_stdout(text), redirect_stderr(text):
        command.warm(out)
    command.reset(out)
    whole = run(command, out)
    if whole.code:
        raise RuntimeError(f"{command.name} fails undisturbed: {whole.said[-2000:]}")
    expected = command.results(out)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()] or [1]
    command.reset(out)
    again = run(command, out)
    if command.results(out) != expected:
        raise RuntimeError(
            f"{command.name} gives other results each time: "
            + compare(expected, command.results(out))
        )
    seconds = min(whole.seconds, again.seconds)
    counts = session.counts
    kinds = [k for k in command.kinds if k != "full" or may_mount]
    while not session.is_over():
        choice = random.Random(f"{seed} {command.name} {counts.tried}")
        kind = kinds[counts.tried % len(kinds)]
        at: float = {
            "operation": choice.randint(1, max(1, whole.operations)),
            "query": choice.randint(1, max(1, whole.operations)),
            "size": choice.randrange(0, max(sizes)),
            "time": choice.uniform(0, seconds),
            # The smallest tmpfs has a page for its root, and files take whole pages.
            "full": 4096 * choice.randint(1, 4 + sum(-(-size // 4096) for size in sizes)),
        }[kind]
        check(command, Point(kind, at), out, expected, counts)


def check(
    command: Command, point: Point, out: Path, expected: dict[str, str], counts: Counts
) -> None:
    """Disturb a command at one point, run it again, and compare."""
    full = point.kind == "full"
    if full:
        shutil.rmtree(out)
        out.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={int(point.at)}", "tmpfs", out], check=True
        )
    try:
        command.reset(out)
        first = run(command, out, None if full else point)
        if "Traceback" in first.said or "This is a defect" in first.said:
            counts.wrong.append(f"{point}: {first.said[-1500:]}")
        if full:
            subprocess.run(["mount", "-o", "remount,size=1g", out], check=True)
        if first.code == 0:
            counts.undisturbed += 1
        else:
            counts.points[point.kind] += 1
        second = run(command, out)
        if second.code:
            counts.wrong.append(f"{point}: the second run fails: {second.said[-1500:]}")
        elif difference := compare(expected, command.results(out)):
            counts.wrong.append(f"{point}: {difference}")
    finally:
        if full:
            subprocess.run(["umount", out], check=True)


def compare(expected: dict[str, str], found: dict[str, str]) -> str:
    """What differs; "" if nothing."""
    parts = [f"{name} is missing" for name in expected.keys() - found.keys()]
    parts += [f"{name} is left over" for name in found.keys() - expected.keys()]
    parts += [f"{n} differs" for n in expected.keys() & found.keys() if expected[n] != found[n]]
    return ", ".join(sorted(parts))


def can_mount() -> bool:
    """Whether this process may mount a file system of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return made.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Run the script; gives 1 if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=", ".join((*COMMANDS, *IN_FIFTYONE))
    )
    parser.add_argument("--points", type=int, default=200, help="of each command")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each command")
    parser.add_argument("--results", type=Path, help="a file of counts, to which this run adds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ModelOptions.load = functools.lru_cache(ModelOptions.load)  # type: ignore[method-assign]
    may_mount, wrong = os.name == "posix" and can_mount(), 0
    if not may_mount:
        print("a full disk is not tried: mounting is not permitted here", flush=True)
    for name in given.commands or (*COMMANDS, *IN_FIFTYONE):
        with tempfile.TemporaryDirectory(prefix="kill-points-") as folder:
            inputs = Path(folder, "inputs")
            inputs.mkdir()
            make_inputs(inputs)
            session = Session(name, given.points, given.seconds, given.results)
            command = command_of(name, inputs)
            disturb(command, session, given.seed, Path(folder), may_mount=may_mount)
        print(f"{name}: {session.counts}", flush=True)
        for text in session.counts.wrong[:10]:
            print("  " + text, flush=True)
        wrong += len(session.counts.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
