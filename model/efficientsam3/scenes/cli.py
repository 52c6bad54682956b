"""`efficientsam3 scenes`: gets the art, writes scenes and clips as files, shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .concepts import SPLITS, STYLES

if TYPE_CHECKING:
    from .compose import World

app = typer.Typer(
    help="Pictures and clips of named stickers, with exact masks.", no_args_is_help=True
)


class SplitName(str, Enum):
    train = "train"
    seen = "seen"
    unseen_style = "unseen-style"
    unseen_concepts = "unseen-concepts"
    unseen_backgrounds = "unseen-backgrounds"
    unseen = "unseen"


FolderOption = Annotated[
    Path | None,
    typer.Option("--art", help="Folder of the art; the user's cache if omitted."),
]
SplitOption = Annotated[
    SplitName,
    typer.Option(
        help="Which concepts, styles and backgrounds: train; seen: the same in other scenes; "
        "unseen-...: what no model trains on."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the first scene.")]
SizeOption = Annotated[int, typer.Option(min=48, max=2048, help="Pixels a side.")]


@app.command()
def fetch(art: FolderOption = None) -> None:
    """Get the art (60 MB, by npm and apt-get), verify it, and bake it (0.4 GB).

    What is there already is not fetched again.
    """
    from rich.table import Table

    from . import sources
    from .art import fetch as get

    with _bar() as report:
        found = get(art, report)
    table = Table("style", "stickers", "licence", title=f"Art in {found.folder}")
    licences = {
        "noto": sources.NOTO,
        "fluent": sources.FLUENT,
        "twemoji": sources.TWEMOJI,
        "openmoji": sources.OPENMOJI,
    }
    for style in STYLES:
        count = sum(style in c.styles for c in found.concepts.values())
        table.add_row(style, str(count), licences[style].licence)
    _console().print(table)
    seen = len(found.names("seen"))
    _console().print(
        f"{len(found.concepts)} concepts, {seen} to train on and {len(found.concepts) - seen} "
        f"held out. Fingerprint {found.fingerprint}."
    )


@app.command()
def make(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Scenes, or clips.")] = 100,
    seed: SeedOption = 0,
    split: SplitOption = SplitName.seen,
    clips: Annotated[bool, typer.Option("--clips", help="Clips instead of images.")] = False,
    frames: Annotated[int, typer.Option(min=2, help="Of each clip.")] = 16,
    phrases: Annotated[int, typer.Option(min=1, help="Asked of each scene, at most.")] = 8,
    size: SizeOption = 336,
    art: FolderOption = None,
) -> None:
    """Write scenes as SA-Co/Gold JSON and images, or clips as SA-Co/VEval JSON and frames.

    Stopped, it goes on when called again.
    """
    from .files import write_clips, write_scenes

    world = _world(art, split.value, size)
    started = time.perf_counter()
    with _bar() as report:

        def progress(done: int, of: int) -> None:
            report("Making clips" if clips else "Making scenes", done, of)

        if clips:
            path = write_clips(
                world, out, count, frames=frames, first=seed, phrases=phrases, progress=progress
            )
        else:
            path = write_scenes(world, out, count, first=seed, phrases=phrases, progress=progress)
    seconds = time.perf_counter() - started
    _console().print(f"{path}: {count} {'clips' if clips else 'scenes'} in {seconds:.1f} s")


@app.command()
def show(
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path(
        "scenes.png"
    ),
    seed: SeedOption = 0,
    split: SplitOption = SplitName.train,
    clips: Annotated[bool, typer.Option("--clips", help="Clips instead of images.")] = False,
    size: SizeOption = 336,
    art: FolderOption = None,
) -> None:
    """Write one picture of many scenes, objects outlined: a row of each phrase asked of them."""
    from .sheet import clip_sheet, scene_sheet

    world = _world(art, split.value, size)
    picture = (clip_sheet if clips else scene_sheet)(world, seed)
    try:
        picture.save(out)
    except ValueError as error:
        raise typer.BadParameter(f"{out}: {error}; name it .png or .jpg") from error
    _console().print(f"{out}: {picture.width} x {picture.height} pixels")


def _world(folder: Path | None, split: str, size: int) -> World:
    from .art import Art
    from .compose import World

    return World(Art.open(folder), SPLITS[split], size)


def _console() -> Any:
    from rich.console import Console

    return Console()


@contextmanager
def _bar() -> Iterator[Any]:
    """A function that shows what is done, how much of it, and of how much."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=of)

        yield report
