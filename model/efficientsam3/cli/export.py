"""`efficientsam3 export`: a model as a folder that runs without PyTorch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .common import UsageError, output_console, print_status, status_console
from .concept_options import ConceptOption, parse_concepts
from .model_options import ModelOptions, with_model_options


class Backend(str, Enum):
    """Runtimes of exported models."""

    onnx = "onnx"
    openvino = "openvino"
    coreml = "coreml"


class Precision(str, Enum):
    """Number formats of exported models."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


@with_model_options()
def export(
    *,
    out: Annotated[Path, typer.Option(help="The folder to write; an earlier export is replaced.")],
    to: Annotated[Backend, typer.Option(help="The runtime.")] = Backend.openvino,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Number format of the files; bfloat16 for OpenVINO alone; int8 with --calibrate."
        ),
    ] = Precision.float32,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="For int8: a folder with pictures like those that the model will see."),
    ] = None,
    calibrate_count: Annotated[
        int, typer.Option(min=1, help="Pictures of the folder to quantize by, at most.")
    ] = 32,
    calibrate_loss: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="For int8: what the mask IoU may lose; 1 quantizes all costly layers and searches "
            "none to keep.",
        ),
    ] = 0.03,
    concept: ConceptOption = None,
    options: ModelOptions,
) -> None:
    """Export a model to a folder that runs without PyTorch.

    Give the folder in the place of a model's name: `efficientsam3 segment photos --model FOLDER`.
    """
    if options.dtype is not None or options.device is not None:
        raise UsageError("--dtype and --device do not go with export: use --precision")
    if precision is Precision.int8 and calibrate is None:
        raise UsageError(
            "--precision int8 needs --calibrate FOLDER: pictures like those that the model will see"
        )
    if precision is not Precision.int8 and (calibrate is not None or concept):
        raise UsageError("--calibrate and --concept go with --precision int8")
    model = options.load()
    from ..export import export_model

    with status_console().status(f"exporting {model.name}") as status:
        manifest = export_model(
            model,
            out,
            to=to.value,
            precision=precision.value,
            calibrate=calibrate,
            calibrate_count=calibrate_count,
            concepts=parse_concepts(concept),
            loss=calibrate_loss,
            report=lambda text: status.update(f"exporting {model.name}: {text}"),
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("graph")
    table.add_column("size", justify="right")
    table.add_column("difference from PyTorch", justify="right")
    differences = manifest.agreement.get("differences", {})
    for name, entry in manifest.graphs.items():
        stem = Path(entry["file"]).stem
        size = sum(n for f, n in manifest.files.items() if Path(f).parts[0].split(".")[0] == stem)
        own = [v for key, v in differences.items() if key.startswith(f"{name}.")]
        row = f"{max(own):.1g}" if own else "not measured"
        table.add_row(name, f"{size / 2**20:.1f} MiB", row)
    console = output_console()
    console.print(table)
    a = manifest.agreement
    if "mask IoU" in a:
        console.print(f"mean mask IoU with PyTorch in float32: {a['mask IoU']}")
    if "presence difference" in a:
        pictures = "other pictures" if a["measured on other pictures"] else "the same pictures"
        console.print(
            f"mean difference of presence: {a['presence difference']}, of the best score: "
            f"{a['score difference']}; calibrated by "
            f"{a['calibrated by']}, measured on {a['measured on']} {pictures}"
        )
        for name, layers in a["kept in half precision"].items():
            console.print(f"{name}: {len(layers)} layers are kept in half precision")
    print_status(f"{model.name}, {precision.value} for {to.value} -> {out}", "green")
