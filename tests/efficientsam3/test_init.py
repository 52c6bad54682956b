"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import types

import pytest

import efficientsam3 as es3


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_all_is_what_is_exported() -> None:
    values = {name: getattr(es3, name) for name in dir(es3) if not name.startswith("_")}
    public = {k for k, v in values.items() if not isinstance(v, types.ModuleType)}
    assert public - {"TYPE_CHECKING"} == set(es3.__all__) - {"__version__"}
    assert es3.__all__ == sorted(es3.__all__, key=lambda n: (n.islower(), n))


def test_type_checkers_see_what_is_imported_later() -> None:
    tree = ast.parse(inspect.getsource(es3))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    imports = [i for i in block.body if isinstance(i, ast.ImportFrom)]
    seen = {f".{i.module}": {a.name for a in i.names} for i in imports}
    assert seen == {module: set(names.split()) for module, names in es3._MODULES.items()}


def test_importing_takes_no_torch() -> None:
    heavy = run(
        "import sys, efficientsam3 as es3; es3.list_models(); dir(es3); "
        "print([m for m in ('torch', 'numpy', 'PIL', 'timm') if m in sys.modules])"
    )
    assert heavy == "[]"


@pytest.mark.slow
def test_names_come_when_asked_for() -> None:
    code = "from efficientsam3 import load, Instances\nfrom efficientsam3 import *"
    assert run(f"{code}\nprint(ImageModel)") == "<class 'efficientsam3.predictor.ImageModel'>"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'efficientsam3' has no attribute 'lode'"):
        es3.lode  # noqa: B018
