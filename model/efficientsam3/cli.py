"""The command line: reads what is asked, calls the modules that do it, says what came of it.

Torch is imported by the commands that compute, so that `efficientsam3 --help` answers at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from . import __version__
from .distill.cli import distill
from .errors import EfficientSam3Error
from .evaluate.cli import evaluate
from .options import Dtype, Speed
from .scenes.cli import app as scenes
from .variants import EMBEDDED, VARIANTS, Packaged, Variant, find_variant, list_models
from .video.cli import track

if TYPE_CHECKING:
    from .batch import Results, Task
    from .image import ImageModel

DEFAULT = "efficientsam3-tinyvit-11m"
UPSTREAM = (".pt", ".pth")
WIDE = 150  # columns that the table of models needs
STOPPED = 130  # what shells expect of a program that Ctrl-C ended


class UsageError(EfficientSam3Error):
    """Arguments that do not go together."""


class Commands(TyperGroup):
    """Says the package's errors, and the file system's, in a sentence; --debug goes anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["debug"] = "--debug" in args
        return super().parse_args(ctx, [a for a in args if a != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `efficientsam3 models | head`
            raise
        except (EfficientSam3Error, OSError) as error:
            if ctx.meta["debug"]:
                raise
            _say(f"error: {error}", "red")
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    help="Segment everything you can name, in images, on the machine you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Layout(str, Enum):
    folder = "folder"
    upstream = "upstream"


ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A name of `efficientsam3 models`, or a saved folder.")
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="A local weight file instead of the hub's.", exists=True)
]
BaseOption = Annotated[
    Path | None,
    typer.Option(help="A second file, for parts that the first lacks.", exists=True),
]
TextOption = Annotated[
    str | None, typer.Option(help="Another text encoder, which is in the file or in --base.")
]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of a phrase: 16, 32 or 77.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps; the best here if omitted.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="The best here if omitted.")]
SpeedOption = Annotated[
    Speed, typer.Option(help="fast: pooled keys and values, slightly other masks.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"efficientsam3 {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    pass


# segment ------------------------------------------------------------------------------------


@app.command()
def segment(
    images: Annotated[
        list[str],
        typer.Argument(help="Files, folders, and patterns in quotes."),
    ],
    concept: Annotated[
        list[str] | None, typer.Option("--concept", "-c", help="What to find; again for more.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("out"),
    model: ModelOption = DEFAULT,
    checkpoint: CheckpointOption = None,
    base: BaseOption = None,
    text: TextOption = None,
    context: ContextOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    speed: SpeedOption = Speed.exact,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Instances score more than this.")
    ] = 0.5,
    max_instances: Annotated[
        int | None, typer.Option(min=0, help="Keep the best of an image.")
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Drop what overlaps a better one by more than this IoU."),
    ] = None,
    masks: Annotated[
        bool, typer.Option(help="Write a PNG of instance numbers for each image.")
    ] = True,
    overlay: Annotated[bool, typer.Option(help="Write a picture to look at.")] = True,
    box: Annotated[
        list[str] | None,
        typer.Option(help="x0,y0,x1,y1 pixels: an example of what to find.", metavar="BOX"),
    ] = None,
    not_box: Annotated[
        list[str] | None, typer.Option(help="An example of what not to find.", metavar="BOX")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="x,y pixels. With a concept or a box: an example; alone: a click on one object.",
            metavar="POINT",
        ),
    ] = None,
    not_point: Annotated[
        list[str] | None, typer.Option(help="x,y that is not on it.", metavar="POINT")
    ] = None,
) -> None:
    """Find concepts in images; write overlays, masks and a COCO JSON.

    Run it again after an interruption: what is done stays done.

    Example: efficientsam3 segment photos/ "more/*.png" -c person -c "yellow bus" --out out/
    """
    from .batch import Question, Results, find_images

    question = Question(
        concepts=tuple(concept or ()),
        boxes=_numbers(box, 4) + _numbers(not_box, 4),
        box_labels=(1,) * len(box or ()) + (0,) * len(not_box or ()),
        points=_numbers(point, 2) + _numbers(not_point, 2),
        point_labels=(1,) * len(point or ()) + (0,) * len(not_point or ()),
        threshold=threshold,
        max_instances=max_instances,
        nms=nms,
    )
    sources = find_images(images, out)
    settings = {
        "model": _known(model),
        "weights": _weights(model, checkpoint, base),
        "text": text,
        "context": context,
        "dtype": dtype.value if dtype else None,
        "speed": speed.value,
    }
    results = Results(out, question, settings, masks=masks, overlays=overlay)
    plan = results.plan(sources)
    if plan.done:
        _say(f"{_count(plan.done, 'image')} of {len(sources)} done before")
    for why, count in plan.again.items():
        _say(f"{_count(count, 'image')} done again: {why}", "yellow")
    stopped, failed = False, list[tuple[Path, str]]()
    if plan.tasks:
        try:
            loaded = _load(model, checkpoint, base, text, context, device, dtype, speed)
            _work(loaded, results, plan.tasks, failed)
        except KeyboardInterrupt:
            stopped = True
    merged = results.merge()
    _say(
        f"{_count(merged.images, 'image')} with {_count(merged.annotations, 'instance')} "
        f"in {merged.path}",
        "green",
    )
    if merged.left_out:
        _say(
            f"{_count(merged.left_out, 'image')} in {out} with other settings: not in that file",
            "yellow",
        )
    for path, reason in failed:
        _say(f"failed: {reason if str(path) in reason else f'{path}: {reason}'}", "red")
    if stopped:
        _say("stopped. What is done is kept: run the same command again to go on", "yellow")
        raise typer.Exit(STOPPED)
    if failed:
        _say(f"{_count(len(failed), 'image')} of {len(sources)} failed", "red")
        raise typer.Exit(1)


def _work(
    model: ImageModel, results: Results, tasks: Sequence[Task], failed: list[tuple[Path, str]]
) -> None:
    """Do the tasks under a progress bar; what fails, and why, is added to ``failed``."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .batch import segment_images

    found = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=_errors()) as progress:
        bar = progress.add_task("segment", total=len(tasks), said="")
        for task, answer in segment_images(model, results, tasks):
            if isinstance(answer, Exception):
                failed.append((task.source.path, str(answer) or type(answer).__name__))
            else:
                found += len(answer)
            said = _count(found, "instance") + (f", {len(failed)} failed" if failed else "")
            progress.update(bar, advance=1, said=said)


def _numbers(values: Sequence[str] | None, count: int) -> tuple[tuple[float, ...], ...]:
    out = []
    for value in values or ():
        try:
            numbers = tuple(float(v) for v in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(abs(v) < 1e9 for v in numbers):
            form = "x0,y0,x1,y1" if count == 4 else "x,y"
            raise UsageError(f"{value!r} is not {form}: {count} numbers with commas")
        out.append(numbers)
    return tuple(out)


# models, convert ----------------------------------------------------------------------------


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, as JSON.")] = False,
) -> None:
    """List the models, what they can, and where they are."""
    from .doctor import cached_models

    here = set(cached_models())
    rows = [VARIANTS[name] for name in list_models()]
    if as_json:
        typer.echo(json.dumps([_as_json(v, v.name in here) for v in rows], indent=1))
        return
    console = _console()
    titles = ("model", "image encoder", "text encoder", "context", "M param.", "can", "licence")
    table = Table(*titles, "weights", box=None, pad_edge=False)
    for v in rows:
        state = _state(v, v.name in here)
        cells = [v.name, v.vision, v.text, str(v.context), _millions(v)]
        cells += [_abilities(v), v.weights.licence, state]
        if console.width >= WIDE:
            table.add_row(*cells, style="bold" if v.name in here else "")
        else:  # a narrow table would cut the names
            console.print(Text(v.name, "bold"))
            text = (
                f"  {cells[1]}, {cells[2]}, {cells[3]} tokens, {cells[4]} M, {', '.join(cells[5:])}"
            )
            console.print(text, highlight=False, soft_wrap=True)
    if console.width >= WIDE:
        console.print(table)
    console.print(
        "\ncan: c concepts, e exemplars, m masks, i interactive (points, boxes), v video; "
        "? not confirmed for this file\n"
        "weights: in the package, nothing is downloaded; here, in the hub's cache; hub, downloaded "
        "when first used; gated, the hub gives them to accounts that their owner let in",
        soft_wrap=True,
        highlight=False,
    )


def _state(variant: Variant, here: bool) -> str:
    source = variant.weights
    if isinstance(source, Packaged):
        return "in the package" if here else "not in this package"
    return "here" if here else "gated" if source.gated else "hub"


def _millions(variant: Variant) -> str:
    count = variant.params_millions
    if count != count:  # not embedded yet
        return "-"
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def _abilities(variant: Variant) -> str:
    from .variants import ABILITIES

    return "".join(
        (a[0] if a in variant.abilities else "-") + ("?" if a in variant.uncertain else "")
        for a in ABILITIES
    )


def _as_json(variant: Variant, cached: bool) -> dict[str, Any]:
    source = variant.weights
    count = variant.params_millions
    if isinstance(source, Packaged):
        place: dict[str, Any] = {"packaged": True, "folder": str(source.location)}
    else:
        place = {
            "packaged": False,
            "repo": source.repo,
            "path": source.path,
            "revision": source.revision,
            "gated": source.gated,
            "how_to_get_access": source.how_to_get_access,
        }
    return {
        "name": variant.name,
        "aliases": list(variant.aliases),
        "vision": variant.vision,
        "text": variant.text,
        "context": variant.context,
        "release": variant.release,
        "stage": variant.stage,
        "params_millions": count if count == count else None,
        "abilities": sorted(variant.abilities),
        "uncertain": list(variant.uncertain),
        "licence": source.licence,
        **place,
        "cached": cached,
        "coco_miou": variant.coco_miou,
        "gold_cgf1": variant.gold_cgf1,
        "notes": variant.notes,
    }


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="An upstream .pt or .pth, a saved folder, or a model's name.")
    ],
    dest: Annotated[Path, typer.Argument(help="A folder to write, or a .pt file.")],
    model: Annotated[
        str | None,
        typer.Option(help="What an upstream file should be; by its own keys if omitted."),
    ] = None,
    base: BaseOption = None,
    text: TextOption = None,
    context: ContextOption = None,
    to: Annotated[
        Layout | None, typer.Option(help="The other layout than the source's if omitted.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Convert weights: upstream's files to folders and back."""
    from . import weights

    path = Path(source)
    to = to or (Layout.upstream if path.is_dir() else Layout.folder)
    _check_target(dest, to, overwrite)
    if path.is_dir():
        if model or base or text or context:
            raise UsageError("--model, --base, --text and --context go with upstream files")
        name, config, net = weights.load_folder(path)
    else:
        variant = find_variant(model) if model else None
        if not path.exists() and path.suffix not in (*UPSTREAM, ".safetensors"):
            variant = variant or find_variant(source)
            if isinstance(variant.weights, Packaged):
                raise UsageError(
                    f"{variant.name} is in our layout already: {variant.weights.location}"
                )
            path = weights.download(variant.name)
        name = variant.name if variant else path.stem
        config, net = weights.load_upstream(path, variant, base=base, text=text, context=context)
    if to is Layout.folder:
        weights.save_folder(dest, name, config, net)
    else:
        weights.save_upstream(dest, config, net)
    _print_contents(name, config, net)
    _say(f"{source} -> {dest}", "green")


def _check_target(dest: Path, to: Layout, overwrite: bool) -> None:
    if to is Layout.upstream:
        if dest.suffix not in UPSTREAM:
            raise UsageError(f"upstream's files end in .pt or .pth; got {dest}")
        taken = dest.exists()
    else:
        if dest.suffix in (*UPSTREAM, ".safetensors") or dest.is_file():
            raise UsageError(f"our layout is a folder, not a file; got {dest}")
        taken = dest.is_dir() and any(dest.iterdir())
    if taken and not overwrite:
        raise UsageError(f"{dest} is there already: choose another, or pass --overwrite")


def _print_contents(name: str, config: Any, net: Any) -> None:
    from .build import REQUIRED
    from .image import ABILITIES
    from .weights import MEANING

    counts: dict[str, int] = {}
    for key, value in net.state_dict().items():
        part = key.split(".", 1)[0]
        counts[part] = counts.get(part, 0) + value.numel()
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("M param.", justify="right")
    table.add_column("")
    kinds = {"trunk": config.vision, "text": f"{config.text}, context {config.context}"}
    for part in (*REQUIRED, *config.parts):
        kind = str(kinds.get(part, ""))
        table.add_row(MEANING[part], f"{counts.get(part, 0) / 1e6:.2f}", kind)
    console = _console()
    console.print(name, highlight=False)
    console.print(table)
    can = [a for a, parts in ABILITIES.items() if set(parts) <= set(config.parts)]
    lacks = [a for a in ABILITIES if a not in can]
    console.print(f"can: {', '.join(can) or 'encode images'}", highlight=False)
    if lacks:
        console.print(f"cannot: {', '.join(lacks)}", highlight=False)


@app.command()
def embed(
    folder: Annotated[Path, typer.Argument(help="A saved model, as training leaves it.")],
    image: Annotated[
        Path | None,
        typer.Option(help="To compare answers on; a scene, or noise, if omitted.", exists=True),
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", "-c", help="To ask of the image.")
    ] = None,
) -> None:
    """For developers: put a trained model into the package, in half precision.

    It takes the place of the embedded one, or nothing changes.
    """
    from .embedded import embed as put_in

    with _errors().status(f"embedding {folder}"):
        done = put_in(folder, EMBEDDED, image=image, concepts=tuple(concept or ()))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("parameters", f"{done.parameters / 1e6:.2f} M")
    table.add_row("size", f"{done.size / 1e6:.1f} MB of {done.most / 1e6:.0f} MB")
    for name, value in done.differences.items():
        table.add_row(f"rounding, {name}", f"{value:.2g}")
    console = _console()
    console.print(table)
    for remark in done.remarks:
        _say(remark, "yellow")
    _say(f"{folder} -> {done.folder}", "green")


# doctor, benchmark, version -----------------------------------------------------------------


@app.command()
def doctor() -> None:
    """Show what this machine has and lacks."""
    from .doctor import examine, table

    checks = examine()
    _console().print(table(checks))
    if any(c.status == "missing" and c.needed_for == "everything" for c in checks):
        raise typer.Exit(1)


@app.command()
def benchmark(
    image: Annotated[
        Path | None, typer.Argument(help="An image; noise if omitted, which takes as long.")
    ] = None,
    model: ModelOption = DEFAULT,
    checkpoint: CheckpointOption = None,
    base: BaseOption = None,
    text: TextOption = None,
    context: ContextOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    speed: SpeedOption = Speed.exact,
    repeat: Annotated[int, typer.Option(min=1, help="Runs to take the median of.")] = 3,
    parts: Annotated[bool, typer.Option("--parts", help="Each part of the model as well.")] = False,
) -> None:
    """Time a model on this machine.

    Time does not depend on the weights: where they are not here, random ones take their place.
    """
    import numpy as np

    from . import benchmark as timing

    with _weights_or_random(model, checkpoint) as file:
        loaded = _load(model, file, base, text, context, device, dtype, speed)
        pixels: Any = image or np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
        with _errors().status("timing"):
            # The whole comes first: the parts hold more in memory than a user's run does.
            seconds = timing.whole(loaded, pixels, ("bus", "a person in black"), repeat=repeat)
            peak = seconds.pop("peak MiB")
            start = time.perf_counter()
            for _ in range(repeat):
                loaded.preprocess(pixels)
            seconds = {"preprocess": (time.perf_counter() - start) / repeat, **seconds}
            rows = timing.costs(loaded, pixels, repeat=repeat) if parts else []
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    table.add_column("ms", justify="right")
    names = {"image": "encode, with preprocess", "both": "image and first concept"}
    for step, value in seconds.items():
        table.add_row(names.get(step, step), f"{value * 1e3:.0f}")
    console = _console()
    console.print(repr(loaded), highlight=False)
    console.print(table)
    console.print(f"peak memory {peak / 1024:.2f} GiB" if peak else "peak memory not known here")
    if parts:
        detail = Table(box=None, pad_edge=False)
        detail.add_column("part")
        for title in ("ms", "GFLOP", "GFLOP/s"):
            detail.add_column(title, justify="right")
        for row in rows:
            detail.add_row(
                row.part, f"{row.milliseconds:.0f}", f"{row.gflop:.1f}", f"{row.gflops:.0f}"
            )
        console.print()
        console.print(detail)


@contextmanager
def _weights_or_random(model: str, checkpoint: Path | None) -> Iterator[Path | None]:
    """The file to load: time does not depend on the weights, so nothing is downloaded."""
    from .doctor import cached_models

    if checkpoint or Path(model).is_dir() or _known(model) in cached_models():
        yield checkpoint
        return
    source = find_variant(model).weights
    if isinstance(source, Packaged):
        source.find()  # its numbers are as far away as its weights: the error says how to get them
    with tempfile.TemporaryDirectory() as folder:
        _say(f"no weights of {model} here: timing random ones")
        file = Path(folder, "random.pt")
        # In a process of its own, since what writing takes is no memory of the model.
        code = (
            "import sys; from efficientsam3.weights import write_untrained as w; w(*sys.argv[1:])"
        )
        subprocess.run([sys.executable, "-c", code, model, str(file)], check=True)
        yield file


@app.command()
def version() -> None:
    """Print the versions of this package and of torch."""
    from .doctor import installed_version

    typer.echo(f"efficientsam3 {__version__}, torch {installed_version('torch')}")


app.command()(track)
app.command()(evaluate)
app.command()(distill)
app.add_typer(scenes, name="scenes")


# Common -------------------------------------------------------------------------------------


def _load(
    model: str,
    checkpoint: Path | None,
    base: Path | None,
    text: str | None,
    context: int | None,
    device: str | None,
    dtype: Dtype | None,
    speed: Speed,
) -> ImageModel:
    if (checkpoint or base or text or context) and (
        Path(model).is_dir() or isinstance(find_variant(model).weights, Packaged)
    ):
        raise UsageError(
            f"{model} is a saved model, whole as it is: --checkpoint, --base, --text and "
            "--context go with a name of `efficientsam3 models` that comes from the hub"
        )
    with _errors().status(f"loading {model}"):
        import torch

        from .loading import load

        if device is not None:
            try:
                torch.zeros(1, device=device)
            except (RuntimeError, AssertionError) as error:  # not compiled in is an assertion
                reason = str(error).splitlines()[0]
                raise UsageError(f"device {device!r} is not to be had: {reason}") from error
        return load(
            model,
            checkpoint=checkpoint,
            text=text,
            context=context,
            base=base,
            device=device,
            dtype=dtype.value if dtype else None,
            speed=speed.value,
        )


def _known(model: str) -> str:
    """The model's name in the table, or the folder."""
    return str(Path(model).absolute()) if Path(model).is_dir() else find_variant(model).name


def _weights(model: str, checkpoint: Path | None, base: Path | None) -> list[Any]:
    """What tells whether weights are still the same."""
    files = [file for file in (checkpoint, base) if file is not None]
    if Path(model).is_dir():
        files = [file for file in sorted(Path(model).iterdir()) if file.is_file()]
    elif checkpoint is None:
        source = find_variant(model).weights
        if isinstance(source, Packaged):
            return [_identity(file) for file in sorted(source.find().iterdir())]
        return [source.repo, source.path, source.revision, *map(_identity, files)]
    return [_identity(file) for file in files]


def _identity(file: Path) -> list[Any]:
    stat = file.stat()
    return [str(file.absolute()), stat.st_size, stat.st_mtime_ns]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _console() -> Console:
    """For results. A file or pipe has no edge to wrap at."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _errors() -> Console:
    """For progress and remarks, so that results can be piped."""
    return Console(stderr=True)


def _say(sentence: str, style: str = "") -> None:
    _errors().print(Text(sentence, style), soft_wrap=True)


if __name__ == "__main__":
    app()
