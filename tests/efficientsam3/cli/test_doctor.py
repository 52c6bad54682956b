"""The doctor's findings: on this machine where it can show them, with stand-ins where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console

from efficientsam3 import devices
from efficientsam3.checkpoints import hub
from efficientsam3.cli import doctor, doctor_checks, doctor_database
from efficientsam3.variants import EMBEDDED, VARIANTS, find_variant


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A made-up set of installed packages: name -> version."""
    packages: dict[str, str] = {}
    monkeypatch.setattr(doctor_checks, "installed_version", packages.get)
    return packages


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_examine_reports_everything_once_and_leaves_fiftyone_alone() -> None:
    source = (
        "import sys\n"
        "from efficientsam3.cli import doctor\n"
        "names = [check.name for check in doctor.examine(start_database=False)]\n"
        "assert len(names) == len(set(names)), names\n"
        "assert {'python', 'torch', 'bfloat16', 'fiftyone database', 'opencv'} <= set(names)\n"
        "assert 'fiftyone' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", source], check=True, timeout=300)


def test_every_trouble_names_a_way_out() -> None:
    for check in doctor.examine(start_database=False):
        assert check.found
        assert check.needed_for
        assert (check.status == "ok") == (not check.fix), check


def test_table_shows_the_fix_beside_the_finding_and_no_markup_is_read_from_it() -> None:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    trouble = doctor_checks.Check(
        "thing", "missing", "nothing", "x", 'pip install "efficientsam3[y]"'
    )
    console.print(doctor.table([trouble, doctor_checks.Check("other", "ok", "[red]1.0", "z")]))
    text = console.export_text()
    assert 'pip install "efficientsam3[y]"' in text
    assert "[red]1.0" in text
    console.file.close()


# --- The core -------------------------------------------------------------------------------------


def test_torch_names_both_versions() -> None:
    check = doctor_checks.check_torch()
    assert check.status == "ok"
    assert torch.__version__ in check.found


def test_a_torchvision_for_another_torch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return torch

    monkeypatch.setattr(doctor_checks.importlib, "import_module", broken)
    check = doctor_checks.check_torch()
    assert check.status == "missing"
    assert check.found == (
        "torchvision cannot be imported: operator torchvision::nms does not exist"
    )
    assert "pip install" in check.fix


@pytest.mark.parametrize(
    ("dtype", "found"),
    [(torch.bfloat16, "yes, in cpu's own instructions"), (torch.float32, "no: cpu, float32")],
)
def test_bfloat16_is_what_load_would_choose(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, found: str
) -> None:
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(devices, "best_dtype", lambda device: dtype)
    assert doctor_checks.check_bfloat16().found == found


def test_more_threads_than_processors_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(doctor_checks, "usable_processors", lambda: 2)
    check = doctor_checks.check_threads()
    assert (check.status, check.found) == ("warning", "torch uses 8 of 2 usable processors")
    assert "OMP_NUM_THREADS=2" in check.fix


def test_runtimes_are_named_with_how_to_compare_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.0", "onnxruntime": "1.0"}
    monkeypatch.setattr(doctor_checks, "installed_version", installed.get)
    check = doctor_checks.check_runtimes()
    assert (check.status, check.found) == ("ok", "PyTorch, ONNX Runtime")
    assert "benchmark --all-backends" in check.needed_for
    installed.clear()
    assert doctor_checks.check_runtimes().status == "missing"


def test_memory_is_bound_by_a_containers_limit(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n")
    assert doctor_checks.read_memory(meminfo, limit) == (16.0, 8.0)
    limit.write_text("max\n")
    assert doctor_checks.read_memory(meminfo, limit) == (16.0, 8.0)
    limit.write_text(f"{4 * 2**30}\n")
    assert doctor_checks.read_memory(meminfo, limit) == (4.0, 4.0)


@pytest.mark.parametrize(("memory", "status"), [((16.0, 1.0), "warning"), (None, "ok")])
def test_little_memory_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, memory: tuple[float, float] | None, status: str
) -> None:
    monkeypatch.setattr(doctor_checks, "read_memory", lambda: memory)
    assert doctor_checks.check_memory().status == status


# --- Packages and programs ------------------------------------------------------------------------


def test_a_package_that_is_there_and_one_that_is_not() -> None:
    there = doctor_checks.check_package("numpy", "everything")
    assert (there.status, there.found) == ("ok", importlib.metadata.version("numpy"))
    absent = doctor_checks.check_package("no-such-package", "dreams", extra="dreams")
    assert (absent.status, absent.fix) == ("missing", 'pip install "efficientsam3[dreams]"')


def test_a_package_without_its_requirements_is_a_warning(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = [
        "numpy>=1",
        "lap>=0.5",
        "opencv-python>=4.6",
        'coremltools>=8; extra == "export"',
        'pywin32; sys_platform == "never"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    installed.update({"ultralytics": "8.4", "numpy": "2.4"})
    check = doctor_checks.check_package("ultralytics", "results", extra="ultralytics")
    assert (check.status, check.found) == ("warning", "8.4, without lap, opencv-python")
    installed.update({"lap": "0.5", "opencv-python-headless": "4.14"})
    assert doctor_checks.check_package("ultralytics", "results", extra="ultralytics").status == "ok"


def test_programs_are_looked_for_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = doctor_checks.check_program("ffmpeg", "videos")
    assert absent.status == "missing"
    assert "apt-get install ffmpeg" in absent.fix
    script(tmp_path / "ffmpeg", "print('ffmpeg version 7.1-3 Copyright (c) 2000')")
    assert (
        doctor_checks.check_program("ffmpeg", "videos").found == f"7.1-3 at {tmp_path / 'ffmpeg'}"
    )


def test_a_program_that_says_nothing_is_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = script(tmp_path / "ffprobe", "raise SystemExit(3)")
    found = doctor_checks.check_program("ffprobe", "videos")
    assert (found.status, found.found) == ("ok", f"version not known at {path}")


def test_two_opencv_wheels_clash_and_the_headless_one_stays(installed: dict[str, str]) -> None:
    installed.update({"opencv-python": "5.0.0.93", "opencv-python-headless": "4.14.0.94"})
    check = doctor_checks.check_opencv()
    assert check.status == "warning"
    assert "opencv-python 5.0.0.93" in check.found
    assert check.fix == (
        "pip uninstall -y opencv-python, then "
        'pip install --force-reinstall --no-deps "opencv-python-headless==4.14.0.94"'
    )


def test_the_opencv_that_won_is_named_with_those_that_must_not_have_it(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    bounds = {"fiftyone": ["opencv-python-headless<5"], "ultralytics": ["opencv-python>=4.7"]}
    installed.update({"opencv-python": "5.0.0.93", "opencv-python-headless": "4.14.0.94"})
    installed.update(dict.fromkeys(bounds, "1"))
    monkeypatch.setattr(importlib.metadata, "requires", bounds.get)
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(__version__="5.0.0"))
    found = doctor_checks.check_opencv().found
    assert found.endswith("what is there now is 5.0.0, which fiftyone must not have")
    sys.modules["cv2"].__version__ = "4.14.0"
    assert doctor_checks.check_opencv().found.endswith("what is there now is 4.14.0")


def test_three_opencv_wheels_name_all_that_go(installed: dict[str, str]) -> None:
    installed.update(dict.fromkeys(doctor_checks.OPENCV_WHEELS[:3], "4.14"))
    fix = doctor_checks.check_opencv().fix
    assert fix.startswith("pip uninstall -y opencv-python opencv-contrib-python, then")


def test_an_opencv_that_cannot_be_imported(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> object:
        raise ImportError("libGL.so.1: cannot open shared object file")

    installed["opencv-python"] = "4.14"
    monkeypatch.setattr(doctor_checks.importlib, "import_module", broken)
    check = doctor_checks.check_opencv()
    assert check.status == "missing"
    assert "libGL.so.1" in check.found
    assert "headless" in check.fix


def test_no_opencv_is_no_trouble(installed: dict[str, str]) -> None:
    assert doctor_checks.check_opencv().status == "ok"


# --- FiftyOne's database --------------------------------------------------------------------------


@pytest.fixture
def no_own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings without a database of the user's own; returns the settings file (absent)."""
    config = tmp_path / "config.json"
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.setenv("FIFTYONE_CONFIG_PATH", str(config))
    return config


@pytest.fixture
def fiftyone_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package, with an empty place for mongod."""
    package = tmp_path / "site" / "fiftyone"
    (package / "db" / "bin").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('FiftyOne was imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.delitem(sys.modules, "fiftyone", raising=False)
    return package


@pytest.mark.fiftyone
def test_the_embedded_database_starts_here(no_own_database: Path) -> None:
    if find_spec("fiftyone") is None:
        pytest.skip("FiftyOne is not installed")
    assert doctor_database.check_database() == doctor_checks.Check(
        "fiftyone database", "ok", "embedded MongoDB starts", "FiftyOne datasets"
    )


@pytest.mark.usefixtures("no_own_database")
def test_a_database_program_that_is_missing(fiftyone_folder: Path) -> None:
    check = doctor_database.check_database()
    assert check.status == "missing"
    assert check.found == f"no program at {fiftyone_folder / 'db' / 'bin' / 'mongod'}"
    assert doctor_database.MONGOD_WHEEL in check.fix


@pytest.mark.usefixtures("no_own_database")
def test_a_database_program_that_cannot_run(fiftyone_folder: Path) -> None:
    script(
        fiftyone_folder / "db" / "bin" / "mongod",
        "raise SystemExit('error while loading shared libraries: libcrypto.so.3')",
    )
    check = doctor_database.check_database()
    assert check.status == "missing"
    assert "does not start: it ended with code 1" in check.found
    assert "libcrypto.so.3" in check.found
    assert doctor_database.check_database(start=False).status == "ok"


@pytest.mark.slow
def test_a_database_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    mongod = script(
        tmp_path / "mongod",
        f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)",
    )
    assert doctor_database.try_database(mongod, seconds=1.0) == "not ready after 1 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.usefixtures("fiftyone_folder")
def test_an_own_database_is_believed_and_its_password_is_not_shown(
    no_own_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_own_database.write_text('{"database_uri": "mongodb://me:secret@db.example:27017"}')
    check = doctor_database.check_database()
    assert (check.status, check.found) == ("ok", "your own, at db.example (not tried)")
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:27017")
    assert "127.0.0.1" in doctor_database.check_database().found
    monkeypatch.delenv("FIFTYONE_DATABASE_URI")
    no_own_database.write_text("{not json")
    assert doctor_database.check_database().status == "missing"


# --- Weights --------------------------------------------------------------------------------------


def test_cached_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("EFFICIENTSAM3_ASSETS", str(tmp_path / "assets"))
    check = doctor_checks.check_cache()
    assert (check.status, check.found) == ("ok", f"{tmp_path}: no model of ours yet")

    weights = find_variant("efficientsam3-tinyvit-11m").weights
    repo = tmp_path / f"models--{weights.repo.replace('/', '--')}"
    commit = "0" * 40
    file = repo / "snapshots" / commit / weights.path
    for path, text in ((repo / "refs" / weights.revision, commit), (file, "weights")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = hub.cached_models()
    assert "efficientsam3-tinyvit-11m" in found
    assert len(found) < len(VARIANTS)

    shipped = tmp_path / "assets" / EMBEDDED
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")
    assert EMBEDDED not in hub.cached_models()
    (shipped / "model.safetensors").write_bytes(b"")
    assert EMBEDDED in hub.cached_models()
    assert doctor_checks.check_cache().found.endswith(f"; in the package: {EMBEDDED}")


def test_offline_mode_is_named_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    check = doctor_checks.check_offline()
    assert check.status == "warning"
    assert "HF_HUB_OFFLINE" in check.found
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert doctor_checks.check_offline().status == "ok"
