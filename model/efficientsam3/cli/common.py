"""What the commands share: errors, consoles, a progress bar, model options, parsing of prompts.

Exit codes: 0 success; 1 some inputs failed, or a check failed; 2 the command cannot run; 130 the
user stopped the command with Ctrl-C.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ..errors import ArgumentError, EfficientSam3Error, EfficientSam3Warning

EXIT_FAILED = 1
EXIT_ERROR = 2
EXIT_STOPPED = 130

EXTENSION_GROUP = "efficientsam3.commands"
"""Entry points by which other packages add commands: name = "module:typer app or function"."""

EXTENSIONS = {"scenes": "efficientsam3_stickers", "embed": "efficientsam3_stickers"}
"""Packages of known extension commands, named when the package is not installed."""


class UsageError(ArgumentError):
    """Options of a command that do not go together, or an option with a wrong value."""


# Errors ---------------------------------------------------------------------------------------


class CommandGroup(TyperGroup):
    """The group of all commands.

    It prints errors as one sentence, accepts ``--debug`` at any position, and adds the commands
    that other packages register as entry points. An extension is imported only when its command
    or the help of the group is asked for, and one that cannot be imported is left out.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remove ``--debug`` from the arguments and store it in the context.

        Args:
            ctx: Click's context.
            args: Arguments of the command line.

        Returns:
            The arguments that are left.
        """
        ctx.meta["debug"] = "--debug" in args
        return super().parse_args(ctx, [a for a in args if a != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an exception becomes a sentence and an exit code.

        Args:
            ctx: Click's context.

        Returns:
            What the command returns.

        Raises:
            typer.Exit: The command failed.
        """
        package, printer = logging.getLogger("efficientsam3"), _WarningPrinter(logging.WARNING)
        package.addHandler(printer)
        try:
            with _warnings_as_sentences():
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader of `efficientsam3 models | head` has left
            raise
        except Exception as error:
            # Typer itself handles Exit, Abort and errors of parsing, which format_message().
            is_typers = isinstance(error, (typer.Exit, typer.Abort)) or hasattr(
                error, "format_message"
            )
            if is_typers or ctx.meta["debug"]:
                raise
            if isinstance(error, (EfficientSam3Error, OSError)):
                print_status(f"error: {error}", "red")
            else:
                print_status(
                    f"error: {type(error).__name__}: {error}. This is a defect of efficientsam3: "
                    "run the command again with --debug for the traceback, and report it",
                    "red",
                )
            raise typer.Exit(EXIT_ERROR) from error
        finally:
            package.removeHandler(printer)

    def list_commands(self, ctx: Any) -> list[str]:
        """List the built-in commands, then those of other packages.

        Args:
            ctx: Click's context.

        Returns:
            The names.
        """
        own = super().list_commands(ctx)
        return [*own, *sorted(extension_points().keys() - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command by its name.

        Args:
            ctx: Click's context.
            cmd_name: The name.

        Returns:
            The command, or None.
        """
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = extension_points().get(cmd_name)
        try:
            return None if point is None else as_command(point.load(), cmd_name)
        except (ImportError, AttributeError):
            return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Resolve a command; for a missing extension command, name its package.

        Args:
            ctx: Click's context.
            args: Arguments, the command's name first.

        Returns:
            Click's result.

        Raises:
            UsageError: The package of the command is not installed, or an option is empty.
        """
        name = args[0]
        for option, value in zip(args, [*args[1:], "-"], strict=True):
            # To Path, an empty name is the current folder. Commands say what a concept is.
            if option.rstrip("=") in ("-c", "--concept"):
                continue
            if option.startswith("-") and (not value or re.fullmatch(r"--[\w-]+=", option)):
                raise UsageError(
                    f'the value of {option.rstrip("=")} is empty; the current folder is "."'
                )
        if name in EXTENSIONS and self.get_command(ctx, name) is None:
            raise UsageError(
                f"the command {name!r} comes from the package {EXTENSIONS[name]}, which is not "
                "installed or cannot be imported"
            )
        return super().resolve_command(ctx, args)


class _WarningPrinter(logging.Handler):
    """Prints the package's logged warnings as sentences."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, unless its logger has a handler of its own."""
        if not logging.getLogger(record.name).handlers:
            print_status(record.getMessage(), "yellow")


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Print warnings about what the user asks as one sentence each, once, and others as usual."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=EfficientSam3Warning)
        usual, said = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, EfficientSam3Warning):
                usual(message, category, *place)
            elif str(message) not in said:
                said.add(str(message))
                print_status(f"warning: {message}", "yellow")

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def extension_points() -> dict[str, metadata.EntryPoint]:
    """Return the commands that installed packages register, by name."""
    return {point.name: point for point in metadata.entry_points(group=EXTENSION_GROUP)}


def as_command(extension: typer.Typer | Callable[..., Any], name: str) -> Any:
    """Make a command of the group.

    Args:
        extension: A Typer app, or a function with Typer options.
        name: Name of the command.

    Returns:
        Click's command.
    """
    if not isinstance(extension, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name)(extension)
        extension = app
    command = typer.main.get_command(extension)
    command.name = name
    return command


@contextmanager
def resumable() -> Iterator[None]:
    """End the command on Ctrl-C and say that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        exit_stopped()


def exit_stopped() -> None:
    """End a command that the user stopped."""
    print_status("stopped; the finished part is kept: run the same command to continue", "yellow")
    raise typer.Exit(EXIT_STOPPED)


# Output ---------------------------------------------------------------------------------------


def output_console() -> Console:
    """Return the console for results, on standard output; 200 characters wide in a file or pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def status_console() -> Console:
    """Return the console for messages, on standard error, so that results can be piped."""
    return Console(stderr=True)


def print_status(sentence: str, style: str = "") -> None:
    """Print one line on standard error.

    Args:
        sentence: The text.
        style: A style of Rich, such as "yellow".
    """
    status_console().print(Text(sentence, style), soft_wrap=True)


def pluralize(count: int, noun: str) -> str:
    """Format a count with its noun: "1 image", "3 images".

    Args:
        count: The count.
        noun: The noun in the singular.

    Returns:
        The text.
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


class ProgressBar:
    """The progress bar of all commands: title, bar, count, time, time left, and a note.

    Args:
        title: Text before the bar.
        total: Steps in all; None where that is not known.
        done: Steps that an earlier run finished.
    """

    def __init__(self, title: str, total: int | None = None, done: int = 0) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = status_console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def restart(self, title: str, total: int | None = None, done: int = 0) -> None:
        """Use the bar for the next stage; the clock starts again.

        Args:
            title: Text before the bar.
            total: Steps in all; None where that is not known.
            done: Steps that an earlier run finished.
        """
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def update(
        self, done: int | None = None, total: int | None = None, note: str | None = None
    ) -> None:
        """Set values that are not None.

        Args:
            done: Steps done.
            total: Steps in all.
            note: Text after the bar.
        """
        fields = {} if note is None else {"note": note}
        self._progress.update(self._task, completed=done, total=total, **fields)  # type: ignore[arg-type]

    def advance(self, note: str | None = None) -> None:
        """Count one step.

        Args:
            note: Text after the bar; None keeps it.
        """
        fields = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=1, **fields)  # type: ignore[arg-type]


RestartOption = Annotated[
    bool,
    typer.Option("--restart", help="Do everything again instead of continuing an earlier run."),
]


# Prompts --------------------------------------------------------------------------------------

Numbers = tuple[tuple[float, ...], ...]
Labels = tuple[int, ...]


def parse_boxes(
    boxes: Sequence[str] | None, not_boxes: Sequence[str] | None
) -> tuple[Numbers, Labels]:
    """Parse the values of ``--box`` and ``--not-box``.

    Args:
        boxes: Values of ``--box``, "x0,y0,x1,y1" each.
        not_boxes: Values of ``--not-box``.

    Returns:
        Boxes as (x0, y0, x1, y1), and their labels: 1 for ``--box``, 0 for ``--not-box``.

    Raises:
        UsageError: a value is not four numbers.
    """
    return _parse(boxes, not_boxes, "x0,y0,x1,y1")


def parse_points(
    points: Sequence[str] | None, not_points: Sequence[str] | None
) -> tuple[Numbers, Labels]:
    """Parse the values of ``--point`` and ``--not-point``.

    Args:
        points: Values of ``--point``, "x,y" each.
        not_points: Values of ``--not-point``.

    Returns:
        Points as (x, y), and their labels: 1 for ``--point``, 0 for ``--not-point``.

    Raises:
        UsageError: a value is not two numbers.
    """
    return _parse(points, not_points, "x,y")


def _parse(
    positive: Sequence[str] | None, negative: Sequence[str] | None, form: str
) -> tuple[Numbers, Labels]:
    positive, negative = positive or (), negative or ()
    count = form.count(",") + 1
    out = []
    for value in (*positive, *negative):
        try:
            numbers = tuple(float(v) for v in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(abs(v) < 1e9 for v in numbers):
            raise UsageError(f"{value!r} is not {form}: {count} numbers with commas, in pixels")
        out.append(numbers)
    return tuple(out), (1,) * len(positive) + (0,) * len(negative)
