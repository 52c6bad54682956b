"""A MongoDB that is stopped and started again during a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fiftyone
import pytest

from ..conftest import make_picture

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
import fiftyone as fo
from fiftyone_esam3.runs import run
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import finish

run.CHUNK_SECONDS = 0.0
dataset = fo.Dataset("restart", persistent=True)
dataset.add_samples([fo.Sample(filepath=path) for path in sys.argv[2:]])
options = {"threshold": 0.0, "max_instances": 2, "device": "cpu"}

def say(step):
    print(step.done, flush=True)
    if step.done == 2:
        sys.stdin.readline()

summary = finish(segment_concepts(dataset, ["bus"], model=sys.argv[1], **options), say)
dataset.reload()
print("done", summary["done"], len(dataset.exists("esam3")))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """The address of a database, and a function that starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "database"
    folder.mkdir()
    program = Path(fiftyone.__file__).parent / "db" / "bin" / "mongod"
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [program, "--dbpath", folder, "--bind_ip", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(
            [*map(str, command), "--nounixsocket"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield f"mongodb://127.0.0.1:{port}", start
    for process in started:
        process.kill()
        process.wait()


def test_a_run_goes_on_when_the_database_is_back(
    server: tuple[str, Callable[[], subprocess.Popen[bytes]]], tiny_folder: Path, tmp_path: Path
) -> None:
    address, start = server
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        make_picture(i).save(path)
    database = start()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tiny_folder), *paths],
        env={**os.environ, "FIFTYONE_DATABASE_URI": address, "FIFTYONE_DATABASE_NAME": "restart"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    for line in process.stdout:
        if line.strip() == "2":
            break
    database.terminate()
    database.wait()
    process.stdin.write("go on\n")
    process.stdin.flush()
    time.sleep(2)  # the run meets a database that is away
    start()
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == 0
    assert rest.splitlines()[-1] == "done 6 6"
