"""What pip installs: read from wheels built here, both the usual and the editable one."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import numpy as np
import pytest

import efficientsam3

ROOT = Path(__file__).parents[1]
PACKAGES = ("efficientsam3", "efficientsam3_stickers", "fiftyone_esam3", "supervision_adapters")
AUTOLOAD = ("fiftyone_esam3_autoload.pth", "_fiftyone_esam3_autoload.py")
PLUGIN = "_fiftyone_esam3_plugin"

wheel_builder = pytest.importorskip("hatchling.builders.wheel", reason="needs the extra `dev`")
sdist_builder = pytest.importorskip("hatchling.builders.sdist", reason="needs the extra `dev`")


def build(folder: Path, version: str, root: Path = ROOT) -> zipfile.ZipFile:
    builder = wheel_builder.WheelBuilder(str(root))
    (path,) = builder.build(directory=str(folder), versions=[version])
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(tmp_path_factory.mktemp("wheel"), "standard")


SOURCES = {".py", ".js", ".json", ".yml", ".svg", ".typed", ".html", ".css", ".jpg", ".txt"}


@pytest.mark.slow
def test_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    sources = {
        path.relative_to(root).as_posix()
        for root, package in (
            (ROOT / "model", "efficientsam3"),
            (ROOT / "model", "efficientsam3_stickers"),
            (ROOT, "fiftyone_esam3"),
            (ROOT, "supervision_adapters"),
        )
        for path in (root / package).rglob("*")
        if path.suffix in SOURCES and "autoload" not in path.parts
    }
    # FiftyOne reads it from the plugin's own folder; hatchling puts a file into one place.
    moved = {"fiftyone_esam3/fiftyone.yml": "_fiftyone_esam3_plugin/fiftyone.yml"}
    assert {moved.get(name, name) for name in sources} - set(wheel.namelist()) == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= sources


@pytest.mark.slow
def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/", 1)[0] for name in wheel.namelist()}
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    assert top == {*PACKAGES, *AUTOLOAD, PLUGIN, info}


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


# The embedded model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the archives are made of, with a tiny model embedded in it."""
    from efficientsam3.config import tiny_config
    from efficientsam3_stickers.embed import embed

    root = tmp_path_factory.mktemp("checkout") / "project"
    listed = ("model", "fiftyone_esam3", "supervision_adapters", "demo", "scripts")
    for folder in listed:
        away = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(ROOT / folder, root / folder, ignore=away)
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "Makefile", ".gitignore"):
        shutil.copy(ROOT / file, root / file)
    assets = root / "model" / "efficientsam3" / "assets"
    model = efficientsam3.ImageModel.from_config(tiny_config(), device="cpu", dtype="float32")
    model.save(root.parent / "trained")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFICIENTSAM3_ASSETS", str(assets))
        embed(root.parent / "trained", "efficientsam3-stickers", image=noise)
    (root / "model" / "efficientsam3" / "stray.pt").write_bytes(b"not to be shipped")
    return root


@pytest.mark.slow
def test_archives_hold_the_embedded_model(checkout: Path, tmp_path: Path) -> None:
    asset = checkout / "model" / "efficientsam3" / "assets" / "efficientsam3-stickers"
    files = {p.name: p.read_bytes() for p in asset.iterdir()}
    assert set(files) == {"config.json", "model.safetensors"}
    wheel = build(tmp_path, "standard", checkout)
    inside = "efficientsam3/assets/efficientsam3-stickers"
    (path,) = sdist_builder.SdistBuilder(str(checkout)).build(directory=str(tmp_path))
    with tarfile.open(path) as sdist:
        for name, content in files.items():
            assert wheel.read(f"{inside}/{name}") == content
            top = sdist.getnames()[0].split("/")[0]
            stored = sdist.extractfile(f"{top}/model/{inside}/{name}")
            assert stored is not None and stored.read() == content
        names = [*sdist.getnames(), *wheel.namelist()]
    assert not [name for name in names if name.endswith("stray.pt")]
    assert not [name for name in names if "/assets/." in name]


def test_the_embedded_model_is_small_enough(wheel: zipfile.ZipFile) -> None:
    """Of this checkout; before a model is embedded, its share is nothing."""
    from efficientsam3_stickers.embed import MAX_BYTES

    sizes = {
        item.filename: item.file_size
        for item in wheel.infolist()
        if item.filename.startswith("efficientsam3/assets/")
    }
    folder = ROOT / "model" / "efficientsam3" / "assets"
    shipped = {f"efficientsam3/assets/{p.relative_to(folder).as_posix()}" for p in files(folder)}
    assert set(sizes) == shipped
    assert sum(sizes.values()) <= MAX_BYTES


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "editable"])
def test_autoload_lies_beside_the_packages(tmp_path: Path, version: str) -> None:
    built = build(tmp_path, version)
    for name in AUTOLOAD:
        assert built.read(name) == (ROOT / "fiftyone_esam3" / "autoload" / name).read_bytes()


def test_editable_install_exposes_only_the_packages(tmp_path: Path) -> None:
    built = build(tmp_path, "editable")
    text = built.read("_editable_impl_efficientsam3.py").decode()
    assert set(re.findall(r"map_module\('([^']+)'", text)) == set(PACKAGES)


def test_metadata_names_license_script_and_extras(wheel: zipfile.ZipFile) -> None:
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Version"] == efficientsam3.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("License-File", [])) == {"LICENSE", "NOTICE"}
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("fiftyone", "supervision", "ultralytics", "video", "pictures", "train", "scenes"),
        *(
            "teachers",
            "onnx",
            "openvino",
            "coreml",
            "int8",
            "export",
            "ray",
            "trackers",
            "dev",
            "docs",
            "all",
        ),
    }
    scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert "efficientsam3 = efficientsam3.cli.app:app" in scripts
    for line in ("scenes = efficientsam3_stickers.cli:scenes", "[efficientsam3.recipes]"):
        assert line in scripts


def test_the_readme_lists_every_extra(wheel: zipfile.ZipFile) -> None:
    """All but those of developers, and what "all" leaves out."""
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
    extras = set(metadata.get_all("Provides-Extra") or ()) - {"dev", "docs"}
    (_, table) = metadata.get_payload().split("| extra | adds |", 1)
    rows = table.split("\n\n", 1)[0].splitlines()[2:]
    listed = {word for row in rows for word in re.findall(r"`([a-z0-9]+)`", row)}
    assert listed == extras
    needs: dict[str, set[str]] = {extra: set() for extra in extras}
    for line in metadata.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        if (found := re.search(r"extra == '([a-z0-9]+)'", marker)) and found[1] in extras:
            needs[found[1]].add(requirement.strip())
    left_out = {extra for extra, own in needs.items() if not own <= needs["all"]}
    (row,) = (row for row in rows if row.startswith("| `all` |"))
    assert set(re.findall(r"`([a-z]+)`", row.split("|")[2])) == left_out


def test_agpl_code_is_only_installed_by_its_own_name(wheel: zipfile.ZipFile) -> None:
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    needs = [line for line in metadata.get_all("Requires-Dist", []) if "ultralytics" in line]
    assert needs
    assert all("extra == 'ultralytics'" in line for line in needs), needs


def third_party(folder: Path) -> set[str]:
    """Top-level names that the files of a package import, at file level or in functions."""
    names = set()
    others = [ROOT / other for other in EXTRAS if ROOT / other != folder]
    for path in folder.rglob("*.py"):
        if any(path.is_relative_to(other) for other in others):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


# What is imported from these folders comes with an extra of its own.
EXTRAS = {
    "model/efficientsam3/train": "train",
    "model/efficientsam3_stickers": "scenes",
}
# Packages that single files of the core import when they are used, by extra.
OPTIONAL = {"av": "video", "tifffile": "pictures", "pyarrow": "train"}
OPTIONAL |= {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}
OPTIONAL |= {"coremltools": "coreml", "nncf": "int8", "ray": "ray"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "extra"),
    [
        ("model/efficientsam3", ""),
        ("fiftyone_esam3", "fiftyone"),
        ("supervision_adapters", ""),
        *EXTRAS.items(),
    ],
)
def test_what_is_imported_is_declared(wheel: zipfile.ZipFile, folder: str, extra: str) -> None:
    """A package that is not declared works only where another package installs it."""
    info = f"efficientsam3-{efficientsam3.__version__}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())

    def requirements(name: str) -> set[str]:
        return {
            re.split(r"[^\w-]", line)[0].lower().replace("_", "-")
            for line in metadata.get_all("Requires-Dist", [])
            if "extra ==" not in line or f"extra == '{name}'" in line
        }

    declared = requirements(extra)
    for package, optional in OPTIONAL.items():
        assert package in requirements(optional)
    owners = importlib.metadata.packages_distributions()
    # Names that the extras' packages bring by their own declaration, or that this wheel installs.
    known = {"cv2", "openvino_telemetry", "_fiftyone_esam3_autoload", *OPTIONAL}
    known |= {"eta"} if extra == "fiftyone" else set()
    strangers = {
        name
        for name in third_party(ROOT / folder) - known
        if not {owner.lower().replace("_", "-") for owner in owners.get(name, [])} & declared
    }
    assert strangers == set()
