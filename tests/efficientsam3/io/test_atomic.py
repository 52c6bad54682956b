"""Files and folders that appear only when they are complete."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from efficientsam3.io.atomic import replacing, replacing_folder


def write_folder(path: Path, content: str) -> None:
    with replacing_folder(path) as temporary:
        (temporary / "file").write_text(content)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("second")
        raise KeyError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_folder_replaces_the_earlier_one_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "folder"
    write_folder(path, "first")
    (path / "other").touch()
    write_folder(path, "second")
    assert [p.name for p in path.iterdir()] == ["file"]
    assert (path / "file").read_text() == "second"
    with pytest.raises(KeyError), replacing_folder(path) as temporary:
        (temporary / "file").write_text("third")
        raise KeyError
    assert (path / "file").read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_a_folder_that_cannot_take_its_place_brings_the_earlier_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", "first")
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "folder", "second")
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.name == "nt", reason="files are not locked")
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(
    tmp_path: Path,
) -> None:
    path, other, folder = tmp_path / "a.json", tmp_path / "a.json.b", tmp_path / "folder"
    for target, context in ((path, replacing), (other, replacing), (folder, replacing_folder)):
        pid = os.fork()
        if not pid:
            with context(target):
                os._exit(0)  # as if it was killed: no handler runs
        os.waitpid(pid, 0)
    assert len(list(tmp_path.glob(".a.json.*"))) == 2 and len(list(tmp_path.glob(".folder*"))) == 1
    with replacing(path) as mine:
        mine.write_text("mine")
        with replacing(path) as second:
            second.write_text("second")
            assert mine.exists(), "a file that is being written is not abandoned"
        assert path.read_text() == "second"
    assert path.read_text() == "mine"
    write_folder(folder, "new")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".a.json.b.")] != []
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".a.json.b.")} == {
        "a.json",
        "folder",
    }


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked")
def test_a_folder_that_was_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "first")
    pid = os.fork()
    if not pid:
        with replacing_folder(tmp_path / "folder") as new:
            os.replace(tmp_path / "folder", new.parent / "old")
            os._exit(0)
    os.waitpid(pid, 0)
    assert not (tmp_path / "folder").exists()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "folder"):
        raise KeyError
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_and_folders_have_the_permissions_of_the_users_umask(
    umask: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o666 & ~umask
        with replacing(tmp_path / "weights") as temporary:
            save_file({"weight": torch.zeros(2)}, temporary)  # makes a private file of its own
        write_folder(tmp_path / "folder", "first")
    finally:
        os.umask(before)
    for name in ("file", "weights"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask, name
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    with replacing(path) as temporary:
        temporary.write_text("{}")
    assert path.read_text() == "{}"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_picture_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path, suffix: str) -> None:
    """A limit of file sizes takes a part of the last block, as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from efficientsam3.io.atomic import write_picture\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)\n"
        "try: write_picture(Image.fromarray(noise), Path(sys.argv[1]))\n"
        "except OSError as error: print('refused', error.errno)\n"
    )
    path = tmp_path / f"noise{suffix}"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs devices and pipes")
def test_devices_and_pipes_are_written_to_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as temporary:
        temporary.write_bytes(b"content")
    reader.join(20)
    assert received == [b"content"] and pipe.is_fifo()
    with replacing(Path(os.devnull)) as temporary:
        assert temporary.parent != Path(os.devnull).parent
        temporary.write_bytes(b"content")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(NotADirectoryError, match="pipe"), replacing_folder(pipe):
        pass
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(os.name != "posix", reason="needs sockets with names")
def test_a_socket_is_no_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="a disk or a socket"), replacing(tmp_path / "s"):
            pass
        assert (tmp_path / "s").is_socket()


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="needs /dev/stdout")
def test_the_output_of_a_process_can_be_named(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom efficientsam3.io.atomic import replacing\n"
        "with replacing(Path('/dev/stdout')) as file:\n    file.write_text('content')\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "model")}
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert piped.stdout == "content"
    with (tmp_path / "out.txt").open("w") as file:
        subprocess.run(command, env=environment, stdout=file, check=True)
    assert (tmp_path / "out.txt").read_text() == "content"
    assert Path("/dev/stdout").is_symlink()
