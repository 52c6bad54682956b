"""Sessions of exported folders: what they leave in a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

SCRIPT = """
import gc, signal, subprocess, sys, threading
from pathlib import Path
from efficientsam3.runtime.manifest import Manifest
from efficientsam3.runtime.sessions import OpenVinoSessions

manifest = Manifest("a", "openvino", "float32", "exact", "1", {}, {}, {}, {}, {}, {}, [], {}, {})
loaded = [OpenVinoSessions(Path(), manifest, None) for _ in range(2)]

def end():
    while loaded:
        loaded.pop(0).close()
        gc.collect()

if sys.argv[1] == "another thread":
    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
else:
    end()
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
subprocess.run([sys.executable, "-c", ""], check=True)
print(f"{len(seen)} signal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other signal stacks")
@pytest.mark.parametrize("where", ["this thread", "another thread"])
def test_signals_are_handled_after_models_of_openvino_have_ended(where: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, where], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "1 signal\n"), ended.stderr
