"""`efficientsam3 models`, `convert` and `benchmark`: list, convert and time models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..checkpoints.hub import cached_models
from ..variants import ABILITIES, VARIANTS, Packaged, Variant, find_variant, list_models
from .common import UsageError, output_console, print_status, status_console
from .model_options import (
    AdapterOption,
    BaseOption,
    ContextOption,
    ModelOptions,
    TextOption,
    with_model_options,
)

UPSTREAM_SUFFIXES = (".pt", ".pth")
TABLE_WIDTH = 150
"""Columns of a terminal that the table of models needs."""


class Layout(str, Enum):
    """Layouts of weight files: a folder of ours, or upstream's single file."""

    folder = "folder"
    upstream = "upstream"


# models ---------------------------------------------------------------------------------------


def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything that is known, as JSON.")
    ] = False,
) -> None:
    """List the models, what they can do, and where their weights are."""
    cached = set(cached_models())
    variants = [VARIANTS[name] for name in list_models()]
    if as_json:
        typer.echo(json.dumps([_as_json(v, v.name in cached) for v in variants], indent=1))
        return
    console = output_console()
    titles = ("model", "image encoder", "text encoder", "context", "M param.", "can", "license")
    table = Table(*titles, "weights", box=None, pad_edge=False)
    for v in variants:
        row = [v.name, v.vision, v.text, str(v.context), _millions(v)]
        row += [_ability_letters(v), v.weights.license, _place(v, v.name in cached)]
        if console.width >= TABLE_WIDTH:
            table.add_row(*row, style="bold" if v.name in cached else "")
        else:  # a narrow table would cut the names
            console.print(Text(v.name, "bold"))
            line = f"  {row[1]}, {row[2]}, {row[3]} tokens, {row[4]} M, {', '.join(row[5:])}"
            console.print(line, highlight=False, soft_wrap=True)
    if console.width >= TABLE_WIDTH:
        console.print(table)
    console.print(
        "\ncan: c concepts, e exemplars, m masks, i interactive (points, boxes), v video; "
        "? not confirmed for this file\n"
        "weights: in the package, no download; here, in the hub's cache; hub, downloaded at "
        "first use; gated, the hub requires an account to which the owner gave access",
        soft_wrap=True,
        highlight=False,
    )


def _place(variant: Variant, cached: bool) -> str:
    source = variant.weights
    if isinstance(source, Packaged):
        return "in the package" if cached else "not in this package"
    return "here" if cached else "gated" if source.gated else "hub"


def _millions(variant: Variant) -> str:
    count = variant.params_millions
    if count != count:  # NaN: the packaged model is not in this package
        return "-"
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def _ability_letters(variant: Variant) -> str:
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
        fields = ("repo", "path", "revision", "gated", "how_to_get_access")
        place = {"packaged": False, **{field: getattr(source, field) for field in fields}}
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
        "license": source.license,
        **place,
        "cached": cached,
        "coco_miou": variant.coco_miou,
        "gold_cgf1": variant.gold_cgf1,
        "notes": variant.notes,
    }


# convert --------------------------------------------------------------------------------------


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A .pt, .pth or .safetensors in upstream's or transformers' layout, a saved "
            "folder, or a model's name."
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="The folder or the .pt file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that an upstream file is; found by its keys if omitted."),
    ] = None,
    base: BaseOption = None,
    text: TextOption = None,
    context: ContextOption = None,
    adapter: AdapterOption = None,
    to: Annotated[
        Layout | None,
        typer.Option(
            help="The layout to write; if omitted, the source's opposite, and with --adapter that "
            "of DEST."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file or folder.")
    ] = False,
) -> None:
    """Convert weights between upstream's files and folders of this package.

    With --adapter, the changes of a fine-tuned model are merged into its weights.
    """
    from ..checkpoints import assemble, hub, save

    path = Path(source)
    if to is None and adapter is not None:
        to = Layout.upstream if dest.suffix in UPSTREAM_SUFFIXES else Layout.folder
    to = to or (Layout.upstream if path.is_dir() else Layout.folder)
    _check_destination(dest, to, overwrite)
    if path.is_dir():
        if model or base or text or context:
            raise UsageError("--model, --base, --text and --context go with upstream files")
        name, config, net = assemble.load_folder(path)
    else:
        variant = find_variant(model) if model else None
        if not path.exists() and path.suffix not in (*UPSTREAM_SUFFIXES, ".safetensors"):
            variant = variant or find_variant(source)
            if isinstance(variant.weights, Packaged):
                if adapter is None:
                    raise UsageError(
                        f"{variant.name} is a folder of this package already: "
                        f"{variant.weights.location}"
                    )
                path = variant.weights.find()
            else:
                path = hub.download(variant.name)
        if path.is_dir():
            name, config, net = assemble.load_folder(path)
        else:
            name = variant.name if variant else path.stem
            config, net = assemble.load_upstream(
                path, variant, base=base, text=text, context=context
            )
    if adapter is not None:
        from ..checkpoints.adapter import Adapter

        changes = Adapter.load(adapter)
        changes.apply(config, net, source)
        name = f"{name}+{changes.name}"
    if to is Layout.folder:
        save.save_folder(dest, name, config, net)
    else:
        save.save_upstream(dest, config, net)
    _print_contents(name, config, net)
    print_status(f"{source} -> {dest}", "green")


def _check_destination(dest: Path, to: Layout, overwrite: bool) -> None:
    if to is Layout.upstream:
        if dest.suffix not in UPSTREAM_SUFFIXES:
            raise UsageError(f"upstream's files end in .pt or .pth; got {dest}")
        exists = dest.exists()
    else:
        if dest.suffix in (*UPSTREAM_SUFFIXES, ".safetensors") or dest.is_file():
            raise UsageError(f"our layout is a folder, not a file; got {dest}")
        exists = dest.is_dir() and any(dest.iterdir())
    if exists and not overwrite:
        raise UsageError(f"{dest} exists already: choose another, or pass --overwrite")


def _print_contents(name: str, config: Any, net: Any) -> None:
    """Print the parts of a model with their sizes, and what it can and cannot do."""
    from ..config import PART_NAMES, REQUIRED

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
        table.add_row(PART_NAMES[part], f"{counts.get(part, 0) / 1e6:.2f}", kind)
    console = output_console()
    console.print(name, highlight=False)
    console.print(table)
    can = [a for a in ABILITIES if a in config.abilities]
    cannot = [a for a in ABILITIES if a not in config.abilities]
    console.print(f"can: {', '.join(can) or 'encode images'}", highlight=False)
    if cannot:
        console.print(f"cannot: {', '.join(cannot)}", highlight=False)


# benchmark ------------------------------------------------------------------------------------


@with_model_options()
def benchmark(
    *,
    image: Annotated[
        Path | None, typer.Argument(help="An image; noise, which takes as long, if omitted.")
    ] = None,
    options: ModelOptions,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; their median is printed.")] = 3,
    parts: Annotated[
        bool, typer.Option("--parts", help="Time each part of the model too.")
    ] = False,
    all_backends: Annotated[
        bool,
        typer.Option(
            "--all-backends",
            help="Time each installed runtime, and say which is fastest here; the model is "
            "exported to the cache once.",
        ),
    ] = False,
) -> None:
    """Time a model on this machine.

    The time does not depend on the weights: random ones are used where they are not on this
    machine, and nothing is downloaded.
    """
    import numpy as np

    from .. import benchmark as timing

    if parts and all_backends:
        raise UsageError("--parts times PyTorch alone and does not go with --all-backends")
    with _weights_or_random(options) as available:
        loaded = available.load()
        pixels: Any = image or np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
        if all_backends:
            _compare_backends(loaded, pixels, repeat, random=available is not options)
            return
        with status_console().status("timing"):
            # The whole comes first: timing the parts holds more memory than a user's run does.
            steps = timing.whole(loaded, pixels, ("bus", "a person in black"), repeat=repeat)
            costs = timing.costs(loaded, pixels, repeat=repeat) if parts else []
    peak = steps.pop("peak MiB")
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    table.add_column("ms", justify="right")
    names = {"image": "encode, with preprocess", "both": "image and first concept"}
    for step, seconds in steps.items():
        table.add_row(names.get(step, step), f"{seconds * 1e3:.0f}")
    console = output_console()
    console.print(repr(loaded), highlight=False)
    console.print(table)
    console.print(f"peak memory {peak / 1024:.2f} GiB" if peak else "peak memory not known here")
    if parts:
        detail = Table(box=None, pad_edge=False)
        detail.add_column("part")
        for title in ("ms", "GFLOP", "GFLOP/s"):
            detail.add_column(title, justify="right")
        for cost in costs:
            figures = f"{cost.milliseconds:.0f}", f"{cost.gflop:.1f}", f"{cost.gflops:.0f}"
            detail.add_row(cost.part, *figures)
        console.print()
        console.print(detail)


def _compare_backends(loaded: Any, pixels: Any, repeat: int, *, random: bool) -> None:
    """Print the times of PyTorch and of each installed runtime; random weights are not cached."""
    from .. import benchmark as timing
    from ..export.backends import exports_of

    table = Table(box=None, pad_edge=False)
    table.add_column("backend")
    for title in ("image", "first concept", "next concept", "both"):
        table.add_column(f"{title}, ms", justify="right")
    table.add_column("mask IoU", justify="right")
    both: dict[str, float] = {}
    with status_console().status("timing") as status:
        dtype = str(loaded.dtype).removeprefix("torch.")
        for name, model, overlap in [
            (f"PyTorch {dtype}", loaded, ""),
            *exports_of(loaded, cached=not random, report=status.update),
        ]:
            status.update(f"timing {name}")
            steps = timing.whole(model, pixels, ("bus", "a person in black"), repeat=repeat)
            both[name] = steps["both"]
            columns = ("image", "first concept", "next concept", "both")
            table.add_row(name, *(f"{steps[c] * 1e3:.0f}" for c in columns), overlap)
    console = output_console()
    console.print(table)
    console.print(f"fastest here: {min(both, key=lambda name: both[name])}", highlight=False)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 1.5 * (os.cpu_count() or 1):
        console.print(
            f"{busy:.0f} processes were waiting for {os.cpu_count()} processors: the order may "
            "differ on a quiet machine"
        )


@contextmanager
def _weights_or_random(options: ModelOptions) -> Iterator[ModelOptions]:
    """The options, with a file of random weights where the model's are not on this machine."""
    model = options.model
    if options.checkpoint or Path(model).is_dir() or options.name in cached_models():
        yield options
        return
    source = find_variant(model).weights
    if isinstance(source, Packaged):
        source.find()  # raises: the configuration is missing as well, and the message says why
    with tempfile.TemporaryDirectory() as folder:
        print_status(f"the weights of {model} are not on this machine: timing random ones")
        file = Path(folder, "random.pt")
        # In a process of its own: the memory that writing takes must not count as the model's.
        code = (
            "import sys; from efficientsam3.checkpoints.save import save_untrained;"
            "save_untrained(*sys.argv[1:])"
        )
        subprocess.run([sys.executable, "-c", code, model, str(file)], check=True)
        yield replace(options, checkpoint=file)
