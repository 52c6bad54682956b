"""The documentation agrees with the code: commands, options, Python examples and files exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click import Context
from typer.main import get_command

from efficientsam3.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "fiftyone_esam3" / "README.md",
    ROOT / "supervision_adapters" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def command_lines(page: Path) -> list[list[str]]:
    """The words of each command in a page's shell blocks."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def unknown_options(words: list[str]) -> list[str]:
    """Commands and options in an ``efficientsam3 ...`` line that do not exist."""
    command: Any = get_command(app)
    known: set[str] = {"--help", "--debug"}
    rest = list(words)
    while rest and hasattr(command, "commands"):
        name = rest.pop(0)
        # Commands of other packages are not in ``commands``; the group finds them by entry points.
        found = command.get_command(Context(command), name)
        if found is None:
            return [name]
        command = found
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    return [w for w in rest if re.match(r"--?[a-z]", w) and w.split("=")[0] not in known]


@each_page
def test_commands_exist(page: Path) -> None:
    for words in command_lines(page):
        if "efficientsam3" in words[:6] and words[0] in ("efficientsam3", "torchrun"):
            start = words.index("efficientsam3") + 1
            assert not unknown_options(words[start:]), " ".join(words)
        elif words[0] == "python" and words[1].endswith(".py"):
            script = (ROOT / words[1]).read_text()
            options = [w for w in words[2:] if w.startswith("--")]
            assert not [o for o in options if f'"{o}"' not in script], " ".join(words)
        elif words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {w for w in words[1:] if "=" not in w} <= set(targets), " ".join(words)


@each_page
def test_python_examples_are_valid(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@each_page
def test_links_to_files_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.slow
def test_the_tutorial_s_first_steps_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box and the point of the tutorial lie on an object of its image."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "tutorial.md").read_text()
    section = text.partition("## 2.")[2].partition("## 3.")[0]
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, names)
    assert len(names["out"]) > 3 and len(names["similar"]) > 3 and len(names["clicked"]) == 1
