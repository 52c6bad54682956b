"""What pip installs: read from wheels built here, both the usual and the editable one."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import efficientsam3

ROOT = Path(__file__).parents[1]
PACKAGES = ("efficientsam3", "fiftyone_esam3", "supervision_adapters")
AUTOLOAD = ("fiftyone_esam3_autoload.pth", "_fiftyone_esam3_autoload.py")

wheel_builder = pytest.importorskip("hatchling.builders.wheel", reason="needs the extra `dev`")


def build(folder: Path, version: str) -> zipfile.ZipFile:
    builder = wheel_builder.WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(folder), versions=[version])
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(tmp_path_factory.mktemp("wheel"), "standard")


SOURCES = {".py", ".json", ".yml", ".svg", ".typed"}


def test_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(root).as_posix()
        for root, package in (
            (ROOT / "model", "efficientsam3"),
            (ROOT, "fiftyone_esam3"),
            (ROOT, "supervision_adapters"),
        )
        for path in (root / package).rglob("*")
        if path.suffix in {".py", ".json", ".yml", ".svg", ".typed"}
        and "autoload" not in path.parts
    }
    assert sources - set(wheel.namelist()) == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= sources


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/", 1)[0] for name in wheel.namelist()}
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    assert top == {*PACKAGES, *AUTOLOAD, info}


def test_wheel_holds_no_stray_weights(wheel: zipfile.ZipFile) -> None:
    weights = [
        name
        for name in wheel.namelist()
        if re.search(r"\.(pt|pth|ckpt|onnx|safetensors)$", name)
        and not name.startswith("efficientsam3/assets/")
        and name not in AUTOLOAD
    ]
    assert weights == []
    size = sum(item.compress_size for item in wheel.infolist()) / 2**20
    assert size < 60, f"the wheel grew to {size:.0f} MiB"


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_autoload_lies_beside_the_packages(tmp_path: Path, version: str) -> None:
    built = build(tmp_path, version)
    for name in AUTOLOAD:
        assert built.read(name) == (ROOT / "fiftyone_esam3" / "autoload" / name).read_bytes()


def test_editable_install_exposes_only_the_packages(tmp_path: Path) -> None:
    built = build(tmp_path, "editable")
    text = built.read("_editable_impl_efficientsam3.py").decode()
    assert set(re.findall(r"map_module\('([^']+)'", text)) == set(PACKAGES)


def test_metadata_names_licence_script_and_extras(wheel: zipfile.ZipFile) -> None:
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Version"] == efficientsam3.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("License-File", [])) == {"LICENSE", "NOTICE"}
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("fiftyone", "supervision", "ultralytics", "train", "export", "dev", "all"),
    }
    scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert "efficientsam3 = efficientsam3.cli:app" in scripts


def test_agpl_code_is_only_installed_by_its_own_name(wheel: zipfile.ZipFile) -> None:
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    needs = [line for line in metadata.get_all("Requires-Dist", []) if "ultralytics" in line]
    assert needs
    assert all("extra == 'ultralytics'" in line for line in needs), needs


def third_party(folder: Path) -> set[str]:
    """Top-level names that the files of a package import, at file level or in functions."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.mark.parametrize(
    ("folder", "extra"),
    [("model/efficientsam3", ""), ("fiftyone_esam3", "fiftyone"), ("supervision_adapters", "")],
)
def test_what_is_imported_is_declared(wheel: zipfile.ZipFile, folder: str, extra: str) -> None:
    """Else it works only where another package happens to bring it along."""
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    declared = {
        re.split(r"[^\w-]", line)[0].lower().replace("_", "-")
        for line in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in line or f"extra == '{extra}'" in line
    }
    owners = importlib.metadata.packages_distributions()
    # Names that the extras' packages bring by their own declaration, or that this wheel installs.
    known = {"cv2", "_fiftyone_esam3_autoload"} | ({"eta"} if extra == "fiftyone" else set())
    strangers = {
        name
        for name in third_party(ROOT / folder) - known
        if not {owner.lower().replace("_", "-") for owner in owners.get(name, [])} & declared
    }
    assert strangers == set()
