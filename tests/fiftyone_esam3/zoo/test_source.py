"""How FiftyOne finds the models: installed, as a registered source, or as a copied folder."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote

import fiftyone as fo
import fiftyone.plugins as fop
import fiftyone.zoo as foz
import pytest

import efficientsam3 as es3
import fiftyone_esam3
from efficientsam3.checkpoints.save import save_untrained
from efficientsam3.config import tiny_config
from efficientsam3.variants import EMBEDDED, VARIANTS, WEIGHTS_FILE, Packaged
from fiftyone_esam3.plugin import OPERATORS, PLUGIN
from fiftyone_esam3.zoo import manifests
from fiftyone_esam3.zoo.manager import WeightsManager, WeightsManagerConfig
from fiftyone_esam3.zoo.source import VIDEO_MODEL

from ..conftest import make_picture

FOLDER = Path(fiftyone_esam3.__file__).parent
ROOT = FOLDER.parent
NAME = "efficientsam3-tinyvit-11m"


def python(script: str, *args: object, **env: str) -> str:
    """Run a script in a new process, and give what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


# The lists of models ------------------------------------------------------------------------


@pytest.mark.parametrize("file", manifests.MANIFESTS)
def test_manifests_are_up_to_date(file: str) -> None:
    """If not, run python -m fiftyone_esam3.zoo.manifests."""
    assert (FOLDER / file).read_text() == manifests.text(file)


@pytest.mark.parametrize("file", manifests.MANIFESTS)
def test_manifests_list_every_model(file: str) -> None:
    listed = [m["base_name"] for m in json.loads((FOLDER / file).read_text())["models"]]
    assert sorted(listed) == sorted([*VARIANTS, VIDEO_MODEL])


def test_the_repository_has_one_manifest_and_one_plugin() -> None:
    """FiftyOne reads every file of those names."""
    ignored = {".venv", ".git", "build", "dist", "out"}
    folders = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in ignored]
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in [ROOT, *folders]
        for name in ("manifest.json", "fiftyone.yml")
        for path in (folder.glob(name) if folder == ROOT else folder.rglob(name))
    ]
    assert found == ["fiftyone_esam3/manifest.json", "fiftyone_esam3/fiftyone.yml"]


def test_file_names_have_the_suffix_of_the_weights() -> None:
    *images, _ = manifests.remote_manifest()["models"]
    for model in images:
        source = VARIANTS[model["base_name"]].weights
        path = WEIGHTS_FILE if isinstance(source, Packaged) else source.path
        assert Path(model["base_filename"]).suffix == Path(path).suffix


def test_the_remote_name_is_not_a_module() -> None:
    name = manifests.remote_manifest()["name"]
    assert not {".", "/"} & set(name)
    assert importlib.util.find_spec(name) is None


# Installed ----------------------------------------------------------------------------------


def test_the_models_are_in_the_zoo(caplog: pytest.LogCaptureFixture) -> None:
    assert set(VARIANTS) <= set(foz.list_zoo_models())
    assert not caplog.records  # FiftyOne warns about a name that two models have
    assert set(foz.list_zoo_models(tags="efficientsam3")) == {*VARIANTS, VIDEO_MODEL}


APPLY = """
import sys
import fiftyone as fo, fiftyone.zoo as foz
model = foz.load_zoo_model(sys.argv[1], classes=["person", "bus"], **eval(sys.argv[3]))
dataset = fo.Dataset()
dataset.add_samples([fo.Sample(filepath=sys.argv[2])])
dataset.apply_model(model, label_field="esam3", num_workers=0)
found = dataset.first().esam3
print(type(model).__module__, sorted(found.concept_presence), len(found.detections))
dataset.delete()
"""


@pytest.mark.slow
def test_a_new_process_loads_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    make_picture(0).save(tmp_path / "photo.png")
    options = {"variant": str(tiny_folder), "threshold": 0, "max_instances": 3, "device": "cpu"}
    output = python(APPLY, NAME, tmp_path / "photo.png", options, HF_HOME=str(tmp_path / "hub"))
    assert "fiftyone_esam3.zoo.image_model ['bus', 'person'] 3" in output


@pytest.mark.slow
def test_the_packaged_model_is_loaded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any
) -> None:
    """Its name is enough: nothing is downloaded from the hub."""
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was called")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setenv("EFFICIENTSAM3_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setattr(fo.config, "model_zoo_dir", str(tmp_path / "zoo"))
    with pytest.raises(es3.WeightsNotFoundError, match="efficientsam3 embed"):
        foz.load_zoo_model(EMBEDDED, cache=False)
    trained = es3.ImageModel.from_config(tiny_config(), EMBEDDED, device="cpu", dtype="float32")
    trained.save(tmp_path / "assets" / EMBEDDED)
    model = foz.load_zoo_model(
        EMBEDDED, classes=["person", "bus"], threshold=0.0, device="cpu", cache=False
    )
    dataset.apply_model(model, label_field="esam3", num_workers=0)
    assert set(dataset.first().esam3.concept_presence) == {"person", "bus"}
    (link,) = (tmp_path / "zoo").iterdir()
    assert link.resolve() == tmp_path / "assets" / EMBEDDED / WEIGHTS_FILE


@pytest.mark.slow
def test_a_new_process_with_weights_in_the_cache(tmp_path: Path) -> None:
    """The weights go from the cache through the download manager to labels, at full size."""
    make_picture(0, 240, 320).save(tmp_path / "photo.png")
    source = VARIANTS[NAME].weights
    repo = tmp_path / "hub" / "hub" / f"models--{source.repo.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / source.revision).write_text("0" * 40)
    cached = save_untrained(NAME, repo / "snapshots" / ("0" * 40) / source.path)
    zoo = tmp_path / "zoo"
    output = python(
        APPLY,
        NAME,
        tmp_path / "photo.png",
        {"threshold": 0.0, "max_instances": 2},
        HF_HOME=str(tmp_path / "hub"),
        FIFTYONE_MODEL_ZOO_DIR=str(zoo),
    )
    assert "fiftyone_esam3.zoo.image_model ['bus', 'person']" in output
    (link,) = zoo.iterdir()
    assert link.resolve() == cached.resolve()


@pytest.mark.slow
def test_autoload_can_be_switched_off() -> None:
    script = "import fiftyone.zoo as foz; print([m for m in foz.list_zoo_models() if 'sam3-' in m])"
    assert python(script, FIFTYONE_ESAM3_AUTOLOAD="0").strip() == "[]"


def test_python_starts_without_importing_fiftyone() -> None:
    script = "import sys; print([m for m in ('fiftyone', 'torch') if m in sys.modules])"
    assert python(script).strip() == "[]"


@pytest.fixture
def autoload(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that runs when Python starts, imported anew."""
    path = FOLDER / "autoload" / "_fiftyone_esam3_autoload.py"
    spec = importlib.util.spec_from_file_location("autoload_under_test", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(fo.config, "model_zoo_manifest_paths", None)
    spec.loader.exec_module(
        module
    )  # FiftyOne is imported already, so its configuration is extended
    return module


def test_autoload_extends_a_configuration_once(autoload: ModuleType) -> None:
    ours = str(FOLDER / "zoo_manifest.json")
    assert fo.config.model_zoo_manifest_paths == [ours]
    autoload.add_to_zoo(fo.config)
    assert fo.config.model_zoo_manifest_paths == [ours]
    config = SimpleNamespace(model_zoo_dir=None, model_zoo_manifest_paths=["/mine.json"])
    autoload.add_to_zoo(config)
    assert config.model_zoo_manifest_paths == ["/mine.json", ours]


def test_autoload_ignores_a_registered_source(autoload: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / manifests.REMOTE_NAME
    source.mkdir()
    (source / "manifest.json").write_text("{}")
    config = SimpleNamespace(model_zoo_dir=str(tmp_path), model_zoo_manifest_paths=None)
    autoload.add_to_zoo(config)
    assert config.model_zoo_manifest_paths is None


def test_the_app_s_server_has_the_script_of_the_installed_plugin() -> None:
    """FiftyOne serves scripts of plugins from its folder of plugins only."""
    (plugin,) = (p for p in fop.list_plugins() if p.name == PLUGIN)
    script = FOLDER / "panel" / "panel.js"
    assert plugin.has_js and Path(plugin.js_bundle_path).samefile(script)
    address = plugin.js_bundle_server_path
    assert address == f"/media?filepath={quote(plugin.js_bundle_path)}&version="


def test_the_installed_autoload_is_this_one() -> None:
    """If not, run pip install -e . again."""
    installed = importlib.util.find_spec("_fiftyone_esam3_autoload")
    source = FOLDER / "autoload" / "_fiftyone_esam3_autoload.py"
    assert Path(installed.origin).read_text() == source.read_text()
    line = Path(installed.origin).with_name("fiftyone_esam3_autoload.pth").read_text()
    assert line == source.with_name("fiftyone_esam3_autoload.pth").read_text()
    assert line.startswith("import ") and line.count("\n") == 1  # what Python runs


@pytest.mark.slow
def test_uninstalling_removes_all_files(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    here = Path(fo.__file__).parents[1]
    (site / "packages_of_the_tests.pth").write_text(f"{here}\n")
    before = sorted(p.relative_to(site) for p in site.rglob("*"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "env" / "bin" / "python"]
    script = "import fiftyone.zoo as foz; print([m for m in foz.list_zoo_models() if 'sam3-' in m])"

    def listed() -> str:
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        run = [tmp_path / "env" / "bin" / "python", "-c", script]
        return subprocess.run(
            run, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True
        ).stdout

    subprocess.run([*pip, "install", "--no-deps", "--no-compile", wheel], check=True)
    assert NAME in listed()
    subprocess.run([*pip, "uninstall", "-y", "efficientsam3"], check=True)
    assert listed().strip() == "[]"
    left = sorted(p.relative_to(site) for p in site.rglob("*") if "__pycache__" not in p.parts)
    assert left == before


# Downloads ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Replace the core's download by one file that exists."""
    file = tmp_path / "cached.pt"
    file.write_bytes(b"weights")
    monkeypatch.setattr("efficientsam3.checkpoints.hub.download", lambda name: file)
    return file


def test_a_download_is_linked_from_the_zoo(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fo.config, "model_zoo_dir", str(tmp_path / "zoo"))
    assert not foz.is_zoo_model_downloaded(NAME)
    foz.download_zoo_model(NAME)
    assert foz.is_zoo_model_downloaded(NAME)
    assert Path(foz.find_zoo_model(NAME)).resolve() == hub
    assert NAME in foz.list_downloaded_zoo_models()
    foz.download_zoo_model(NAME, overwrite=True)
    foz.delete_zoo_model(NAME)
    assert not foz.is_zoo_model_downloaded(NAME)
    assert hub.exists()


def test_without_links_the_download_is_repeated(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    manager = WeightsManager(WeightsManagerConfig({"model": NAME}))
    manager.download_model(str(tmp_path / "zoo" / f"{NAME}.pt"))
    assert not manager.is_model_downloaded(str(tmp_path / "zoo" / f"{NAME}.pt"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise es3.WeightsNotFoundError("put the file here")

    monkeypatch.setattr("efficientsam3.checkpoints.hub.download", refuse)


@pytest.mark.usefixtures("offline")
def test_a_local_checkpoint_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    received = {}

    class Stop(Exception):
        pass

    def load(name: str, **kwargs: Any) -> None:
        received.update(kwargs, name=name)
        raise Stop

    monkeypatch.setattr(es3, "load", load)
    with pytest.raises(Stop):
        foz.load_zoo_model(NAME, checkpoint="mine.pt", cache=False)
    assert (received["name"], received["checkpoint"]) == (NAME, "mine.pt")


@pytest.mark.usefixtures("offline")
def test_missing_weights_are_an_error() -> None:
    with pytest.raises(es3.WeightsNotFoundError, match="put the file here"):
        foz.load_zoo_model(NAME, cache=False)
    with pytest.raises(es3.WeightsNotFoundError, match="put the file here"):
        foz.download_zoo_model(NAME)


# Registered as a source ---------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of an archive of the repository."""
    archive = tmp_path / "www" / "efficientsam3.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for folder in ("fiftyone_esam3", "tests"):
            for path in (ROOT / folder).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    file.write(path, f"efficientsam3-main/{path.relative_to(ROOT)}")
    handler = functools.partial(Quiet, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/efficientsam3.zip"
        server.shutdown()
        thread.join()


REGISTER = (
    """
import sys
import fiftyone.zoo as foz
foz.register_zoo_model_source(sys.argv[4])
foz.register_zoo_model_source(sys.argv[4], overwrite=True)
print(foz.list_zoo_model_sources(), len(foz.list_zoo_models(source=sys.argv[4])))
"""
    + APPLY
)


@pytest.mark.slow
def test_the_repository_is_a_model_source(served: str, tiny_folder: Path, tmp_path: Path) -> None:
    make_picture(0).save(tmp_path / "photo.png")
    options = {"variant": str(tiny_folder), "threshold": 0, "max_instances": 3, "device": "cpu"}
    output = python(
        REGISTER,
        NAME,
        tmp_path / "photo.png",
        options,
        served,
        FIFTYONE_ESAM3_AUTOLOAD="0",
        FIFTYONE_MODEL_ZOO_DIR=str(tmp_path / "zoo"),
        HF_HOME=str(tmp_path / "hub"),
    )
    assert f"['{served}'] {len(VARIANTS) + 1}" in output
    assert "efficientsam3-zoo.zoo.image_model ['bus', 'person'] 3" in output
    assert os.listdir(tmp_path / "zoo") == [manifests.REMOTE_NAME]


# Installed as a plugin ----------------------------------------------------------------------

LISTED = """
import fiftyone.operators as foo, fiftyone.plugins as fop
print([p.directory for p in fop.list_plugins() if p.name == '@efficientsam3/curation'])
print(sum("efficientsam3" in o.uri for o in foo.list_operators()))
"""


@pytest.mark.slow
def test_the_installed_plugin_is_listed() -> None:
    output = python(LISTED).splitlines()
    assert "_fiftyone_esam3_plugin" in output[-2] and output[-1] == str(len(OPERATORS) + 1)
    assert python(LISTED, FIFTYONE_ESAM3_AUTOLOAD="0").splitlines()[-2:] == ["[]", "0"]


DOWNLOAD = (
    """
import sys
import fiftyone.plugins as fop
fop.download_plugin(sys.argv[1])
"""
    + LISTED
    + """
fop.delete_plugin("@efficientsam3/curation")
print([p.directory for p in fop.list_plugins() if p.name == '@efficientsam3/curation'])
"""
)


@pytest.mark.slow
def test_the_repository_can_be_downloaded_as_a_plugin(served: str, tmp_path: Path) -> None:
    """Without the autoload: the copy registers the operators of the package."""
    folder = tmp_path / "plugins"
    output = python(
        DOWNLOAD, served, FIFTYONE_ESAM3_AUTOLOAD="0", FIFTYONE_PLUGINS_DIR=str(folder)
    ).splitlines()
    assert (
        str(folder) in output[-3] and output[-2] == str(len(OPERATORS) + 1) and output[-1] == "[]"
    )
    assert not [p for p in folder.rglob("*") if p.is_file()]


@pytest.mark.slow
def test_a_downloaded_plugin_is_listed_once(tmp_path: Path) -> None:
    folder = tmp_path / "plugins" / "mine"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "autoload"))
    output = python(LISTED, FIFTYONE_PLUGINS_DIR=str(tmp_path / "plugins")).splitlines()
    assert output[-2] == f"['{folder}']"


def test_deleting_the_plugin_keeps_the_package() -> None:
    """FiftyOne deletes the folder that it lists for a plugin."""
    import fiftyone.plugins as fop

    (plugin,) = (p for p in fop.list_plugins() if p.name == PLUGIN)
    place = Path(plugin.directory)
    assert not place.is_relative_to(FOLDER) and not FOLDER.is_relative_to(place)
    assert {p.name for p in place.iterdir()} - {"__pycache__"} == {"__init__.py", "fiftyone.yml"}
    for name, source in (("fiftyone.yml", "fiftyone.yml"), ("__init__.py", "autoload/plugin.py")):
        assert (place / name).read_text() == (FOLDER / source).read_text()
