"""The batch stream: the same batches in the same order for any number of workers."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.errors import ImageError
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.loader import stream

MODULE = """
import time, torch
from efficientsam3.errors import ImageError

def make(number, rng):
    if number % 3 == 0:
        time.sleep(0.003)  # later batches are ready before this one
    if number == 40:
        raise ImageError("picture 40 is broken")
    return number, torch.from_numpy(rng.random(5))
"""
make: Any = None


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts ``make`` where a worker process can import it."""
    global make
    folder = tmp_path_factory.mktemp("stream")
    (folder / "tiny_batches.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        make = importlib.import_module("tiny_batches").make
        yield


def take(count: int, **options: Any) -> list[tuple[int, list[float]]]:
    batches = stream(make, seed=3, **options)
    try:
        return [(n, values.tolist()) for n, values in itertools.islice(batches, count)]
    finally:
        batches.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_workers_make_the_same_batches_in_order() -> None:
    before = torch.get_rng_state()
    batches = stream(make, seed=3, start=28, workers=2)
    made = [(n, values.tolist()) for n, values in itertools.islice(batches, 12)]
    with pytest.raises(ImageError, match=r"^picture 40 is broken$") as caught:
        next(batches)
    assert made == take(12, start=28)
    assert "in make" in str(caught.value.__cause__)
    assert torch.equal(torch.get_rng_state(), before)  # else a resumed run draws other numbers


def test_a_later_start_gives_the_rest() -> None:
    assert take(20)[12:] == take(8, start=12)
    assert take(4) != take(4, start=1)


def test_ranks_share_out_the_batches_of_one() -> None:
    one = take(12, start=4)
    two = [take(6, start=2, rank=r, world=2) for r in range(2)]
    assert [b for pair in zip(*two, strict=True) for b in pair] == one


def test_errors_are_raised_where_the_batch_is_taken() -> None:
    before = torch.get_rng_state()
    batches = stream(make, seed=3, start=38)
    assert [next(batches)[0], next(batches)[0]] == [38, 39]
    with pytest.raises(ImageError, match=r"^picture 40 is broken$"):
        next(batches)
    assert torch.equal(torch.get_rng_state(), before)


class Unpicklable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_be_pickled_keeps_its_text() -> None:
    def fail(number: int, rng: Any) -> None:
        raise Unpicklable("no", "file")

    with pytest.raises(RuntimeError, match=r"^Unpicklable: no file$"):
        next(stream(fail, seed=0))


@pytest.mark.parametrize("options", [{"start": -1}, {"workers": -1}, {"rank": 2, "world": 2}])
def test_values_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(SettingsError, match="must be 0 or more"):
        stream(make, seed=0, **options)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """A process that was killed cannot end its workers; they must notice."""
    (tmp_path / "work.py").write_text(
        "import os, pathlib\n"
        "def make(number, rng):\n"
        f"    (pathlib.Path({str(tmp_path)!r}) / f'pid-{{os.getpid()}}').touch()\n"
        "    return number\n"
    )
    code = (
        "import os, signal, work\nfrom efficientsam3.train.loader import stream\n"
        "if __name__ == '__main__':\n"
        "    batches = stream(work.make, seed=0, workers=1)\n"
        "    next(batches)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "main.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, str(tmp_path / "main.py")],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        timeout=120,
        stderr=subprocess.DEVNULL,
    )
    (pid,) = (int(p.name.removeprefix("pid-")) for p in tmp_path.glob("pid-*"))
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
