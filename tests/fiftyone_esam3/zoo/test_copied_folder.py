"""The folder alone, copied under another name, and the form of a model in the App."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import fiftyone_esam3

FOLDER = Path(fiftyone_esam3.__file__).parent
NAME = "efficientsam3-tinyvit-11m"


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[[], ModuleType]]:
    """Import a copy of the folder under another name, as FiftyOne does."""
    name = "somebody-else"
    folder = tmp_path / name
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield load
    for loaded in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[loaded]


@pytest.mark.slow
def test_a_copy_works_under_another_name(copy: Any, tiny_folder: Path, dataset: Any) -> None:
    copy()
    module = copy()  # FiftyOne runs it again for every model
    assert set(module.__all__) == {
        *("download_model", "load_model", "parse_parameters", "register", "resolve_input"),
    }
    model = module.load_model(
        NAME, "unused.pt", variant=str(tiny_folder), classes=["bus"], threshold=0, device="cpu"
    )
    assert type(model).__module__ == "somebody-else.zoo.image_model"
    dataset.apply_model(model, label_field="esam3", num_workers=2, batch_size=2)
    assert len(dataset.exists("esam3")) == 3


@pytest.mark.parametrize(
    ("url", "command"),
    [
        (None, "pip install the repository that this folder comes from"),
        ("https://github.com/a/b", '"efficientsam3 @ git+https://github.com/a/b"'),
        ("https://github.com/a/b/tree/dev", '"efficientsam3 @ git+https://github.com/a/b@dev"'),
        ("https://example.org/b.zip", '"efficientsam3 @ https://example.org/b.zip"'),
    ],
)
def test_without_the_core_a_copy_says_what_to_install(
    copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, command: str
) -> None:
    manifest = tmp_path / "somebody-else" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "url": url}))
    monkeypatch.setitem(sys.modules, "efficientsam3", None)
    module = copy()
    for call in (module.load_model, module.download_model):
        with pytest.raises(ImportError, match="needs the efficientsam3 package") as caught:
            call(NAME, str(tmp_path / "x.pt"))
        assert command in str(caught.value)


def test_a_folder_that_hides_the_core_is_refused(
    copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientsam3", ModuleType("efficientsam3"))
    with pytest.raises(ImportError, match="hides the efficientsam3 package"):
        copy().load_model(NAME)


# The form in the App ------------------------------------------------------------------------


def test_the_form_offers_fields_that_can_hold_prompts(dataset: Any) -> None:
    form = fiftyone_esam3.resolve_input(NAME, SimpleNamespace(dataset=dataset, params={}))
    properties = form.type.properties
    fields = {"classes", "class_phrases", "operation_mode", "text_prompt_field", "prompt_field"}
    assert set(properties) == fields | {"nms", "class_agnostic", "overlap_metric"}

    def offered(name: str) -> list[str]:
        return [choice.value for choice in properties[name].view.choices]

    assert {"words", "scene", "tags"} <= set(offered("text_prompt_field"))
    assert offered("prompt_field") == ["boxes", "clicks"]
    assert fiftyone_esam3.resolve_input(NAME, SimpleNamespace(dataset=None, params={})) is not None


def test_values_of_the_form_become_arguments(load: Any) -> None:
    params = {"classes": "person, yellow bus,", "operation_mode": "concept", "prompt_field": ""}
    fiftyone_esam3.parse_parameters(NAME, None, params)
    assert params == {"classes": ["person", "yellow bus"], "operation_mode": "concept"}
    assert load(**params).classes == ["person", "yellow bus"]
