"""The commands `efficientsam3 scenes` and `efficientsam3 embed`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from efficientsam3.cli.common import (
    ProgressBar,
    output_console,
    print_status,
    resumable,
    status_console,
)
from efficientsam3.variants import EMBEDDED

from .concepts import SPLITS, STYLES

if TYPE_CHECKING:
    from .scenes import SceneGenerator

scenes = typer.Typer(
    help="Images and clips of named stickers, with exact masks.", no_args_is_help=True
)

embed = typer.Typer(add_completion=False)


class SplitName(str, Enum):
    """Names of the splits."""

    train = "train"
    seen = "seen"
    unseen_style = "unseen-style"
    unseen_concepts = "unseen-concepts"
    unseen_backgrounds = "unseen-backgrounds"
    unseen = "unseen"


StickersOption = Annotated[
    Path | None,
    typer.Option("--stickers", help="Folder of the baked stickers; the user's cache if omitted."),
]
SplitOption = Annotated[
    SplitName,
    typer.Option(
        help="Concepts, styles and backgrounds: train; seen: those of train in other scenes; "
        "unseen-...: what no recipe trains on."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the first scene.")]
SizeOption = Annotated[int, typer.Option(min=48, max=2048, help="Side of the images in pixels.")]
ClipsOption = Annotated[bool, typer.Option("--clips", help="Clips instead of images.")]


@scenes.command()
def fetch(stickers: StickersOption = None) -> None:
    """Download emoji sets (60 MB, by npm and apt-get), verify them, and bake stickers (0.4 GB).

    Finished work is not done again.
    """
    from .archives import archives
    from .bake import fetch_stickers

    with resumable(), _progress_bar("Downloading") as report:
        baked = fetch_stickers(stickers, report)
    table = Table("style", "stickers", "license", title=f"Stickers in {baked.folder}")
    for style in STYLES:
        count = sum(style in concept.styles for concept in baked.concepts.values())
        table.add_row(style, str(count), archives()[style].license)
    output_console().print(table)
    total, seen = len(baked.concepts), len(baked.concept_names("seen"))
    output_console().print(
        f"{total} concepts, {seen} for training and {total - seen} unseen. "
        f"Fingerprint {baked.fingerprint}."
    )


@scenes.command()
def make(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files.")],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Number of scenes or clips.")
    ] = 100,
    seed: SeedOption = 0,
    split: SplitOption = SplitName.seen,
    clips: ClipsOption = False,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip.")] = 16,
    phrases: Annotated[int, typer.Option(min=1, help="Most phrases of a scene.")] = 8,
    size: SizeOption = 336,
    stickers: StickersOption = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Write all scenes again; else the run continues.")
    ] = False,
) -> None:
    """Write scenes as SA-Co/Gold JSON and images, or clips as SA-Co/VEval JSON and frames.

    A run that was stopped continues when the command is given again.
    """
    from .scene_files import write_clips, write_scenes

    generator = _make_generator(stickers, split, size)
    kind = "clips" if clips else "scenes"
    started = time.perf_counter()
    with resumable(), _progress_bar(f"Making {kind}") as report:
        options: dict[str, Any] = {
            "first_seed": seed,
            "phrases": phrases,
            "restart": restart,
            "progress": lambda done, total: report(f"Making {kind}", done, total),
        }
        if clips:
            path = write_clips(generator, out, count, frames=frames, **options)
        else:
            path = write_scenes(generator, out, count, **options)
    output_console().print(f"{path}: {count} {kind} in {time.perf_counter() - started:.1f} s")


@scenes.command()
def show(
    out: Annotated[Path, typer.Option("--out", "-o", help="Image file to write.")] = Path(
        "scenes.png"
    ),
    seed: SeedOption = 0,
    split: SplitOption = SplitName.train,
    clips: ClipsOption = False,
    size: SizeOption = 336,
    stickers: StickersOption = None,
) -> None:
    """Write a contact sheet of scenes or clips, with outlined objects and their phrases."""
    from efficientsam3.io.atomic import write_picture

    from .contact_sheet import clip_sheet, scene_sheet

    generator = _make_generator(stickers, split, size)
    sheet = (clip_sheet if clips else scene_sheet)(generator, seed)
    try:
        write_picture(sheet, out)
    except ValueError as error:
        raise typer.BadParameter(f"{out}: {error}; name it .png or .jpg") from error
    output_console().print(f"{out}: {sheet.width} x {sheet.height} pixels")


@embed.command()
def _embed(
    folder: Annotated[Path, typer.Argument(help="A saved model, as training writes it.")],
    image: Annotated[
        Path | None,
        typer.Option(help="Image for the comparison; a scene or noise if omitted.", exists=True),
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", "-c", help="Concept for the comparison; repeat it for more."),
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=1, help="Scenes of each split that decide whether it is better.")
    ] = 64,
    accept_worse: Annotated[
        bool, typer.Option(help="Do not compare it with the packaged model on scenes.")
    ] = False,
) -> None:
    """For developers: put a trained model into the package, in half precision.

    It replaces the packaged model if it is at least as good, or nothing changes.
    """
    from rich.table import Table

    from .embed import embed as embed_model

    with status_console().status(f"embedding {folder}"):
        report = embed_model(
            folder,
            EMBEDDED,
            image=image,
            concepts=tuple(concept or ()),
            scenes=scenes,
            accept_worse=accept_worse,
        )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("parameters", f"{report.parameters / 1e6:.2f} M")
    table.add_row("size", f"{report.size / 1e6:.1f} MB of {report.max_bytes / 1e6:.0f} MB")
    for name, value in report.differences.items():
        table.add_row(f"rounding, {name}", f"{value:.2g}")
    if report.scores:
        for split, value in report.scores[0].items():
            table.add_row(f"cgF1, {split}", f"{value:.1f}, before {report.scores[1][split]:.1f}")
    output_console().print(table)
    for remark in report.remarks:
        print_status(remark, "yellow")
    print_status(f"{folder} -> {report.folder}", "green")


def _make_generator(folder: Path | None, split: SplitName, size: int) -> SceneGenerator:
    from .art import StickerArt
    from .scenes import SceneGenerator

    return SceneGenerator(StickerArt.open(folder), SPLITS[split.value], size)


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that starts anew when the title changes; gives the function that reports to it."""
    with ProgressBar(title) as bar:
        current = title

        def report(title: str, done: int, total: int) -> None:
            nonlocal current
            if title != current:
                bar.restart(title, total)
                current = title
            bar.update(done, total)

        yield report
