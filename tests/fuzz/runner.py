"""Run inputs of a kind in a child process with limits, and find what is wrong.

The child is forked, so that it starts at once. The process that forks must have no threads.

An input is right if it gives an answer or a typed error. What is wrong: another exception, the end
of the process, more than ``CPU_SECONDS`` of computing or ``WALL_SECONDS`` of waiting, more memory
than ``MEMORY``, or a file of the input that has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Any, ClassVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from efficientsam3.errors import EfficientSam3Error

CPU_SECONDS = 20.0
WALL_SECONDS = 240.0
"""Longer than the bound of computing by what other processes of a busy machine take."""
MEMORY = 3 << 30
"""Bytes of address space beyond those that the process has before the first input."""
BLOCK = 100
"""Structured inputs are made so many at a time, from one seed."""


class Case:
    """The folder in which an input is used.

    Args:
        folder: The folder, with an empty folder "in".

    Attributes:
        folder: For outputs.
        inputs: For the files of the input.
        before: Digest of the files of the input, once they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs = folder, folder / "in"
        self.before: str | None = None

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the input.

        Args:
            name: Path below the folder of inputs.
            content: The bytes.
        """
        path = self.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def seal(self) -> None:
        """Note the content of the files: they must not change from here on."""
        self.before = digest(self.inputs)


class Kind:
    """A kind of inputs.

    A subclass makes inputs with ``make`` (from a random generator) or ``strategy`` (hypothesis),
    and says what is right with ``check``.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    slow: ClassVar[bool] = False
    """Whether 500 inputs take more than a few seconds."""

    def prepare(self, folder: Path) -> None:
        """Make what all inputs share; called once in the child process.

        Args:
            folder: An empty folder, for all of the run.
        """

    def strategy(self) -> SearchStrategy[Any] | None:
        """The strategy of structured inputs; None: inputs are made by ``make``."""
        return None

    def make(self, random: Random) -> Any:
        """Make one input.

        Args:
            random: What decides.
        """
        raise NotImplementedError

    def check(self, value: Any, case: Case) -> None:
        """Use an input, and raise an ``AssertionError`` if the answer is wrong.

        Args:
            value: The input.
            case: Where its files are written.

        Raises:
            EfficientSam3Error: The input is refused, which is right.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Finding:
    """An input with which something is wrong.

    Attributes:
        kind: Name of the kind.
        seed: Seed of the run.
        index: Which input.
        problem: "exception", "crash", "time", "memory", "wrong answer" or "changed file".
        detail: The last lines of a traceback, or the signal.
    """

    kind: str
    seed: int
    index: int
    problem: str
    detail: str

    @property
    def command(self) -> str:
        """The command that repeats the input."""
        return f"python -m tests.fuzz --kind {self.kind} --seed {self.seed} --index {self.index}"

    @property
    def cause(self) -> str:
        """What findings of one cause share: the problem and the place."""
        lines = [line for line in self.detail.splitlines() if line.startswith(("at ", "in "))]
        return " ".join((self.problem, *lines[-1:])) if lines else f"{self.problem} {self.detail}"

    def __str__(self) -> str:
        return f"{self.problem}: {self.detail}\n  {self.command}"


@dataclass
class Outcome:
    """What became of the inputs of a kind.

    Attributes:
        kind: Name of the kind.
        inputs: How many ran.
        answers: How many gave an answer; the rest was refused with a typed error.
        seconds: Seconds of computing of the child processes.
        findings: What was wrong.
    """

    kind: str
    inputs: int = 0
    answers: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def fuzz(
    kind: Kind,
    *,
    seed: int,
    start: int = 0,
    count: int | None = None,
    seconds: float | None = None,
    failures: Path | None = None,
) -> Outcome:
    """Run inputs of a kind.

    A child process runs them one after another. After a crash, another one goes on behind the
    input that crashed.

    Args:
        kind: The kind.
        seed: Seed of the inputs.
        start: Index of the first input.
        count: How many inputs; None: as many as ``seconds`` allow.
        seconds: Seconds after which no further input is begun; None: no limit.
        failures: Folder to which inputs with findings are written; None: they are not kept.
    """
    outcome = Outcome(kind.name)
    deadline = None if seconds is None else time.monotonic() + seconds
    stop = sys.maxsize if count is None else start + count
    while start < stop and (deadline is None or time.monotonic() < deadline):
        start = _run_child(kind, seed, start, stop, deadline, failures, outcome)
    return outcome


def _run_child(
    kind: Kind,
    seed: int,
    start: int,
    stop: int,
    deadline: float | None,
    failures: Path | None,
    outcome: Outcome,
) -> int:
    """Run inputs in one child; gives the index of the next input."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind.name}-"))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _child(kind, seed, start, stop, deadline, failures, folder, write)
    os.close(write)
    try:
        ended, index = _watch(kind, seed, pid, read, start, failures, folder, outcome)
    finally:
        os.close(read)
        shutil.rmtree(folder, ignore_errors=True)
    return stop if ended else index


def _watch(
    kind: Kind,
    seed: int,
    pid: int,
    read: int,
    start: int,
    failures: Path | None,
    folder: Path,
    outcome: Outcome,
) -> tuple[bool, int]:
    """Read a child's messages; gives whether it came to its end, and the next index."""
    current, ended, waited, rest = start, False, False, b""
    while True:
        if not select.select([read], [], [], WALL_SECONDS)[0]:
            waited = True
            os.kill(pid, signal.SIGKILL)
        block = os.read(read, 1 << 16)
        if not block:
            break
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "begin" in message:
                current = message["begin"]
            elif "end" in message:
                ended = True
            else:
                outcome.inputs += 1
                outcome.answers += message["answer"]
                if message["problem"]:
                    finding = Finding(
                        kind.name, seed, current, message["problem"], message["detail"]
                    )
                    outcome.findings.append(finding)
                current += 1
    _, status, usage = os.wait4(pid, 0)
    outcome.seconds += usage.ru_utime + usage.ru_stime
    if ended:
        return True, current
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    slow = waited or number == signal.SIGPROF
    if not number:
        log = (folder / "log").read_text(errors="replace")
        raise RuntimeError(f"{kind.name}, input {current}: the harness fails:\n{log[-3000:]}")
    limit = f"no answer after {CPU_SECONDS:g} s of computing or {WALL_SECONDS:g} s of waiting"
    log = (folder / "log").read_text(errors="replace")[-3000:] if (folder / "log").exists() else ""
    detail = limit if slow else f"the process ended with {signal.Signals(number).name}"
    detail += "".join(f"\nat {line.strip()}" for line in _frames_of_log(log))
    finding = Finding(kind.name, seed, current, "time" if slow else "crash", detail)
    outcome.inputs += 1
    outcome.findings.append(finding)
    if failures is not None:
        _keep(failures, finding, folder / "now")
    return False, current + 1


def _frames_of_log(log: str) -> list[str]:
    """The frames of our code in what faulthandler printed, innermost first."""
    lines = [line for line in log.splitlines() if line.lstrip().startswith("File ")]
    return [line for line in lines if "efficientsam3" in line or "esam3" in line][:1]


# The child ------------------------------------------------------------------------------------


def _child(
    kind: Kind,
    seed: int,
    start: int,
    stop: int,
    deadline: float | None,
    failures: Path | None,
    folder: Path,
    write: int,
) -> None:
    code = 1
    try:
        with (folder / "log").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        import faulthandler

        with (folder / "log").open("ab", buffering=0) as log, os.fdopen(write, "wb", 0) as pipe:
            faulthandler.enable(log, all_threads=False)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            shared = folder / "shared"
            shared.mkdir()
            kind.prepare(shared)
            (folder / "ready").touch()
            _limit_memory()
            for index, value in inputs(kind, seed, start, stop):
                if deadline is not None and time.monotonic() > deadline:
                    break
                _send(pipe, {"begin": index})
                message = _run_one(kind, value, folder / "now")
                if message["problem"] and failures is not None:
                    finding = Finding(kind.name, seed, index, message["problem"], message["detail"])
                    _keep(failures, finding, folder / "now")
                _send(pipe, message)
            _send(pipe, {"end": True})
            code = 0
    except BaseException:  # noqa: BLE001 - the parent reads the log
        with (folder / "log").open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)  # no handlers of the parent run here


def inputs(kind: Kind, seed: int, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """The inputs of a kind by their index. The same seed and index give the same input.

    Args:
        kind: The kind.
        seed: Seed of the run.
        start: Index of the first input.
        stop: Index to end before.
    """
    if kind.strategy() is None:
        for index in range(start, stop):
            yield index, kind.make(Random(f"{seed} {kind.name} {index}"))
        return
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        for place, value in enumerate(_draw(kind, f"{seed} {kind.name} {block}")):
            index = block * BLOCK + place
            if start <= index < stop:
                yield index, value


def _draw(kind: Kind, name: str) -> list[Any]:
    """``BLOCK`` values of a kind's strategy."""
    values: list[Any] = []
    strategy = kind.strategy()
    assert strategy is not None

    @seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    @settings(
        max_examples=BLOCK,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values[:BLOCK]


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(pipe: IO[bytes], message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")


def _run_one(kind: Kind, value: Any, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    case = Case(folder)
    try:
        kind.check(value, case)
        problem, detail, answer = "", "", True
    except EfficientSam3Error as error:
        problem, detail, answer = "", "", False
        if "Traceback" in str(error) or not str(error).strip():
            problem, detail = "exception", f"the message of an error is {str(error)!r}"
    except AssertionError as error:
        problem, detail, answer = "wrong answer", _describe(error), False
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is what is looked for
        is_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        problem = "memory" if is_memory else "exception"
        detail, answer = _describe(error), False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if not problem and case.before is not None and digest(case.inputs) != case.before:
        problem, detail = "changed file", "a file of the input is not as it was written"
    return {"answer": answer, "problem": problem, "detail": detail[:4000]}


def digest(folder: Path) -> str:
    """A digest of all files of a folder.

    Args:
        folder: The folder.
    """
    content = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = f"{path.relative_to(folder)}\0{path.stat().st_size}\0"
        content.update(name.encode("utf-8", "replace"))
        content.update(path.read_bytes())
    return content.hexdigest()


def _describe(error: BaseException) -> str:
    """The error's type and message, and the innermost frame of the package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "efficientsam3" in f.filename or "esam3" in f.filename]
    place = (ours or frames)[-1]
    message = str(error)[:600]
    name = "/".join(Path(place.filename).parts[-2:])
    return f"{type(error).__name__}: {message}\nat {name}:{place.lineno} in {place.name}"


def _keep(failures: Path, finding: Finding, folder: Path) -> None:
    target = failures / f"{finding.kind}-{finding.seed}-{finding.index}"
    shutil.rmtree(target, ignore_errors=True)
    if (folder / "in").is_dir():
        shutil.copytree(folder / "in", target)
    target.mkdir(parents=True, exist_ok=True)
    (target / "FINDING.txt").write_text(f"{finding}\n", errors="replace")
