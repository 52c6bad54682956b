"""Nothing is sent, listened on, downloaded or written but what was asked for.

Each test runs a process of its own with an audit hook of Python, which sees every connection,
every address that is looked up and every file that is opened for writing; and, where that is
permitted, in a network name space without any network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "demo" / "scenes" / "images"

NAME_SPACES = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--map-root-user")
"""A process without a network, which sees no other processes: FiftyOne looks among all for a
database that runs."""

HOOK = """
import json, os, sys
NET = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
       "socket.gethostbyname", "urllib.Request", "http.client.connect", "ftplib.connect"}
seen, written = [], []
APART = {"os.fork"}  # what a process of its own does would not be seen here
def hook(event, arguments):
    if event in APART:
        seen.append([event, ""])
    elif event in NET:
        is_call = isinstance(arguments[0], (str, bytes, type(None)))  # else the first is a socket
        seen.append([event, repr(arguments if is_call else arguments[1:])])
    elif event == "open" and isinstance(arguments[0], str):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            written.append(os.path.abspath(arguments[0]))
sys.addaudithook(hook)
def kept():
    # not /dev/null, nor the file by which Python tries the folder of temporary files
    return [path for path in written if os.path.isfile(path)]
"""
REPORT = """
with open(sys.argv[1], "w") as file:
    json.dump({"seen": seen}, file)
"""

CORE = """
import efficientsam3, efficientsam3.cli.app
assert not seen and not kept(), ("import", seen, kept())
model = efficientsam3.load("efficientsam3-stickers", device="cpu")
found = model.segment(sys.argv[2], ["animal"])
assert found.labels
for frame in efficientsam3.track(model, [sys.argv[2]] * 2, ["animal"]):
    assert frame.instances.size == found.size
assert not seen and not kept(), ("use", seen, kept())
"""

COMMANDS = """
from efficientsam3.cli.app import app
out = sys.argv[3]
for line in (
    ["segment", sys.argv[2], "-c", "animal", "-m", "efficientsam3-stickers", "-o", out + "/a"],
    ["track", sys.argv[2], "-c", "animal", "-m", "efficientsam3-stickers", "--json",
     out + "/b/t.jsonl", "--mot", out + "/b/t.txt", "--coco", out + "/b/t.json",
     "--sheet", out + "/b/t.jpg", "--out", out + "/b/t.mp4"],
    ["models"],
    ["export", "-m", "efficientsam3-stickers", "--to", "openvino", "--out", out + "/c"],
):
    try:
        app(line)
    except SystemExit as end:
        assert not end.code, (line, end.code)
assert not seen, seen
outside = [p for p in kept() if not p.startswith(out)]
assert not outside, outside
"""

FIFTYONE = """
import fiftyone as fo
import fiftyone.operators as foo
import fiftyone_esam3
dataset = fo.Dataset()
dataset.add_samples([fo.Sample(filepath=sys.argv[2])])
foo.execute_operator(
    "@efficientsam3/curation/segment_concepts",
    ctx={"view": dataset.view()},
    params={"concepts": ["animal"], "model": "efficientsam3-stickers"},
)
assert dataset.first()["esam3"] is not None
import psutil
here = psutil.Process()
for process in [here, *here.children(recursive=True)]:
    for connection in process.net_connections():
        if connection.status == "LISTEN":
            assert connection.laddr.ip in ("127.0.0.1", "::1"), connection
"""


RAY = """
import psutil
from efficientsam3.distributed.cluster import connected
with connected(None, 1) as ray:
    here, listening = psutil.Process(), 0
    for process in [here, *here.children(recursive=True)]:
        for connection in process.net_connections():
            if connection.status == "LISTEN":
                listening += 1
                assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), connection
    assert listening
    servers = [p for p in here.children(recursive=True) if p.name() in ("raylet", "gcs_server")]
    assert len(servers) == 2
    assert all(p.environ()["RAY_USAGE_STATS_ENABLED"] == "0" for p in servers)
"""


def run(code: str, tmp_path: Path, *arguments: Any, **env: str) -> dict[str, Any]:
    """What a process did, without a network where that is permitted."""
    report = tmp_path / "report.json"
    script = tmp_path / "script.py"
    script.write_text(HOOK + code + REPORT)
    command = [sys.executable, str(script), str(report), *map(str, arguments)]
    if has_name_spaces():
        # A name space of its own has no interface but the loopback, which is down at first.
        loopback = 'ip link set lo up 2>/dev/null; exec "$@"'
        command = [*NAME_SPACES, "sh", "-c", loopback, "sh", *command]
    paths = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    # FiftyOne leaves the port of this process's database in the environment for its children.
    outer = {k: v for k, v in os.environ.items() if not k.startswith("FIFTYONE_PRIVATE_")}
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**outer, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **env},
        cwd=tmp_path,
        umask=0o027,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads(report.read_text()))


def has_name_spaces() -> bool:
    """Whether this user may make a network name space in which the loopback works."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    command = [*NAME_SPACES, "ip", "link", "set", "lo", "up"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A scene in a folder of its own."""
    (tmp_path / "photos").mkdir()
    return Path(shutil.copy(SCENES / "scene_0000001.jpg", tmp_path / "photos"))


@pytest.mark.slow  # a process that imports torch
def test_import_load_segment_and_track_ask_nobody_and_write_nothing(
    photo: Path, tmp_path: Path
) -> None:
    done = run(CORE, tmp_path, photo)
    assert done["seen"] == []


@pytest.mark.slow  # a process that imports torch
def test_commands_write_their_outputs_alone_with_the_users_umask(
    photo: Path, tmp_path: Path
) -> None:
    before = photo.read_bytes(), photo.stat().st_mtime_ns
    run(COMMANDS, tmp_path, photo.parent, tmp_path / "out")
    assert (photo.read_bytes(), photo.stat().st_mtime_ns) == before
    assert [p.name for p in photo.parent.iterdir()] == [photo.name]
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} >= {".json", ".jsonl", ".png", ".jpg", ".txt", ".mp4"}
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in files} == {
        p.name: "0o640" for p in files
    }
    assert not [p for p in files if p.name.startswith(".")], "no temporary file is left"


@pytest.mark.slow  # starts a database
@pytest.mark.fiftyone
@pytest.mark.xdist_group("fiftyone")
@pytest.mark.skipif(importlib.util.find_spec("fiftyone") is None, reason="needs FiftyOne")
def test_operators_speak_to_their_own_database_alone(photo: Path, tmp_path: Path) -> None:
    home = {f"FIFTYONE_{name}": str(tmp_path / "home" / name.lower()) for name in (
        "DATABASE_DIR", "DEFAULT_DATASET_DIR", "MODEL_ZOO_DIR", "PLUGINS_DIR")}  # fmt: skip
    done = run(
        FIFTYONE,
        tmp_path,
        photo,
        **home,
        FIFTYONE_CONFIG_PATH=str(tmp_path / "home" / "config.json"),
        FIFTYONE_DATABASE_NAME=f"esam3-alone-{os.getpid()}",
        FIFTYONE_DO_NOT_TRACK="true",
    )
    here = ("'127.0.0.1'", "'localhost'", "'::1'", "(None,", "('',")
    strangers = [seen for seen in done["seen"] if not any(name in seen[1] for name in here)]
    assert strangers == []


@pytest.mark.slow  # starts a cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_a_cluster_on_this_machine_speaks_to_itself_alone(tmp_path: Path) -> None:
    done = run(RAY, tmp_path, TMPDIR="/tmp")
    here = ("'127.0.0.1'", "'localhost'", "'::1'", "(None,", "('',", "('0.0.0.0', 0)")
    strangers = [seen for seen in done["seen"] if not any(name in seen[1] for name in here)]
    assert strangers == []
