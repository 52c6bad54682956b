"""Every public function documents every parameter, and every public class its fields."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "model/efficientsam3",
    "model/efficientsam3_stickers",
    "fiftyone_esam3",
    "supervision_adapters",
)
SECTION = re.compile(r"^ *(Args|Attributes):\n((?:(?: +.*)?\n)*)", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def documented(docstring: str) -> set[str]:
    """The names that the ``Args`` and ``Attributes`` sections of a docstring explain."""
    names: set[str] = set()
    for match in SECTION.finditer(docstring + "\n"):
        lines = [line for line in match[2].splitlines() if line.strip()]
        if not lines:
            continue
        indent = len(lines[0]) - len(lines[0].lstrip())
        for line in lines:
            name = re.match(rf" {{{indent}}}(\*{{0,2}}\w+)(?: ?\([^)]*\))?:", line)
            if name:
                names.add(name[1].lstrip("*"))
            elif len(line) - len(line.lstrip()) < indent:
                break
    return names


def parameters(function: Function) -> list[str]:
    """The names of a function's parameters, without ``self`` and names with an underscore."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [a.arg for a in named if a.arg not in ("self", "cls") and not a.arg.startswith("_")]


def has_help(function: Function, name: str) -> bool:
    """Whether a parameter is an option of a command, which its help text documents."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        if argument.arg == name and argument.annotation is not None:
            annotation = ast.unparse(argument.annotation)
            return "typer." in annotation or annotation.endswith(
                ("Option", "Argument", "ModelOptions", "ModelOptions | None")
            )
    return False


def decorators(node: Function | ast.ClassDef) -> set[str]:
    """The last part of the names of a definition's decorators."""
    return {re.split(r"[.(]", ast.unparse(d).split("(")[0])[-1] for d in node.decorator_list}


def fields(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """Public fields of a dataclass or named tuple, and whether a string below explains each."""
    for here, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            name = here.target.id
            if name.startswith("_") or "ClassVar" in ast.unparse(here.annotation):
                continue
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield name, text and isinstance(after.value.value, str)  # type: ignore[union-attr]


def missing(path: Path) -> Iterator[str]:
    """What is not documented in a file, each as ``file:line: name``."""
    tree = ast.parse(path.read_text())
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path

    def check_function(node: Function, owner: str, inherited: bool) -> Iterator[str]:
        if decorators(node) & {"overload", "callback", "command", "override"}:
            return
        docstring = ast.get_docstring(node) or ""
        names = parameters(node)
        if inherited and not docstring:  # a method of an interface that documents it
            return
        known = documented(docstring)
        lost = [name for name in names if name not in known and not has_help(node, name)]
        for name in lost:
            yield f"{where}:{node.lineno}: {owner}{node.name}({name})"
        if not docstring:
            yield f"{where}:{node.lineno}: {owner}{node.name} has no docstring"

    def check_class(node: ast.ClassDef, owner: str) -> Iterator[str]:
        docstring = ast.get_docstring(node) or ""
        if not docstring:
            yield f"{where}:{node.lineno}: {owner}{node.name} has no docstring"
        known = documented(docstring)
        bases = {ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases}
        if "dataclass" in decorators(node) or bases & {"NamedTuple", "TypedDict"}:
            for name, explained in fields(node):
                if not explained and name not in known:
                    yield f"{where}:{node.lineno}: {owner}{node.name}.{name}"
        for member in node.body:
            if isinstance(member, ast.ClassDef) and not member.name.startswith("_"):
                yield from check_class(member, f"{owner}{node.name}.")
            if not isinstance(member, Function):
                continue
            if member.name == "__init__":
                initial = documented(ast.get_docstring(member) or "")
                for name in parameters(member):
                    if name not in known | initial:
                        yield f"{where}:{member.lineno}: {owner}{node.name}({name})"
            elif not member.name.startswith("_"):
                yield from check_function(member, f"{owner}{node.name}.", bool(bases))

    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from check_class(node, "")
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield from check_function(node, "", False)


def files() -> list[Path]:
    """All Python files of the packages."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_every_public_parameter_is_documented() -> None:
    lost = [line for path in files() for line in missing(path)]
    assert not lost, f"{len(lost)} are not documented:\n" + "\n".join(lost)


def test_a_missing_parameter_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Module."""\n'
        "def scale(value, factor=1):\n"
        '    """Scale.\n\n    Args:\n        value: A number.\n    """\n'
        "def bare(): ...\n"
        "def _private(x): ...\n"
    )
    lost = [line.split(": ", 1)[1] for line in missing(path)]
    assert lost == ["scale(factor)", "bare has no docstring"]


if __name__ == "__main__":
    named = [Path(argument).resolve() for argument in sys.argv[1:]]
    chosen = [p for n in named for p in (sorted(n.rglob("*.py")) if n.is_dir() else [n])]
    report = [line for path in chosen or files() for line in missing(path)]
    print("\n".join(report))  # noqa: T201
    print(f"{len(report)} not documented")  # noqa: T201
