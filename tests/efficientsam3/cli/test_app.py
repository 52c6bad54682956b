"""The program itself: registration, versions, errors, and commands of other packages."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import efficientsam3 as es3
from efficientsam3.cli import common, doctor
from efficientsam3.cli.app import app

from .conftest import run, run_refused


@pytest.mark.parametrize(
    "arguments", [["--help"], ["segment", "--help"], ["models"], ["--version"]]
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    code = (
        "import sys; from efficientsam3.cli.app import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = doctor.Check("ffmpeg", "missing", "not on PATH", "videos", "install it")
    monkeypatch.setattr(doctor, "examine", lambda: [fine])
    assert "not on PATH" in run("doctor").stdout
    bad = doctor.Check("torch", "missing", "cannot be imported", "everything", "install it")
    monkeypatch.setattr(doctor, "examine", lambda: [fine, bad])
    run("doctor", code=1)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_where_an_error_comes_from(place: int) -> None:
    arguments = ["segment", "nosuch.jpg", "-c", "cat"]
    arguments.insert(place, "--debug")
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, es3.ImageError)


def test_version() -> None:
    assert run("--version").stdout == f"efficientsam3 {es3.__version__}\n"
    assert run("version").stdout.startswith(f"efficientsam3 {es3.__version__}, torch 2.")


# Errors ---------------------------------------------------------------------------------------


def test_an_unexpected_exception_is_one_sentence_without_debug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def examine() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "examine", examine)
    message = run_refused("doctor")
    assert message.startswith("error: ZeroDivisionError: by zero")
    assert "--debug" in message
    result = CliRunner().invoke(app, ["doctor", "--debug"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "empty", [["-m", ""], ["--out", ""], ["--out="], ["-o", ""], ["--checkpoint", ""]]
)
def test_an_empty_option_is_not_the_current_folder(empty: list[str]) -> None:
    said = run_refused("segment", "photo.jpg", "-c", "cat", *empty)
    assert f"the value of {empty[0].rstrip('=')} is empty" in said


def test_an_unknown_command_is_left_to_typer() -> None:
    result = CliRunner().invoke(app, ["segmnet"])
    assert result.exit_code == 2 and "No such command 'segmnet'" in result.stderr


# Commands of other packages -------------------------------------------------------------------

extension = typer.Typer(help="An extension.")


@extension.command()
def greet(name: str) -> None:
    typer.echo(f"hello {name}")


@extension.command()
def part() -> None:
    raise es3.PromptError("the extension failed")


def count_to(number: int) -> None:
    """Count."""
    typer.echo(" ".join(map(str, range(number))))


@pytest.fixture
def extensions(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """Entry points that tests can add to, instead of the installed ones."""
    points: dict[str, EntryPoint] = {}
    monkeypatch.setattr(common, "extension_points", lambda: points)
    return points


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, common.EXTENSION_GROUP)


def test_an_extension_is_a_typer_app_or_a_function(
    extensions: dict[str, EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "an_extension", sys.modules[__name__])
    extensions["hello"] = point("hello", "an_extension:extension")
    extensions["count"] = point("count", "an_extension:count_to")
    assert run("hello", "greet", "you").stdout == "hello you\n"
    assert run("count", 3).stdout == "0 1 2\n"
    assert "the extension failed" in run_refused("hello", "part")
    listing = run("--help").stdout
    assert "An extension." in listing and "Count." in listing


def test_a_broken_extension_is_absent_and_harms_no_other(
    extensions: dict[str, EntryPoint],
) -> None:
    extensions["scenes"] = point("scenes", "no_such_package.cli:app")
    extensions["count"] = point("count", "sys:no_such_function")
    listing = run("--help").stdout
    assert "segment" in listing and "scenes" not in listing and "count" not in listing
    assert "comes from the package efficientsam3_stickers" in run_refused("scenes", "--help")
    assert run("version").exit_code == 0


def test_a_missing_extension_names_its_package(extensions: dict[str, Any]) -> None:
    assert "comes from the package efficientsam3_stickers" in run_refused("embed", "folder")
