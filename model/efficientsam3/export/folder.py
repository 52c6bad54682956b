"""Export of a whole model to a folder that ONNX Runtime or OpenVINO runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..bpe import END, PAD, START, clip_tokenizer
from ..concepts import Concepts
from ..config import PART_NAMES, PARTS_OF_ABILITY
from ..errors import ArgumentError
from ..io.atomic import replacing_folder
from ..nn.detector import fold
from ..predictor import ImageModel
from ..runtime.manifest import (
    MANIFEST_FILE,
    REQUIREMENTS_FILE,
    TOKENIZER_FILE,
    Manifest,
)
from ..values import is_share
from .agreement import compare, example_pixels
from .calibration import calibrate as run_pictures
from .calibration import read_pictures
from .errors import ExportError
from .graphs import graphs_of
from .quantize import LOSS, QUANTIZED, Quantizer, quantize_graphs

PRECISIONS = {
    "onnx": ("float32", "float16", "int8"),
    "openvino": ("float32", "float16", "bfloat16", "int8"),
    "coreml": ("float32", "float16"),
}
"""Precisions of each backend."""

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "coreml": ("coremltools",),
}
"""What each backend needs to write and to check its files; the extra has the backend's name."""

REQUIREMENTS = (
    *("ftfy>=6.1", "numpy>=1.26", "packaging>=23.1", "pillow>=10.3", "pycocotools>=2.0.8"),
    *("rich>=13.7", "scipy>=1.11", "tokenizers>=0.20", "typer>=0.15"),
)
"""What runs an exported folder in Python and from the command line, beside the runtime."""
RUNTIMES = {"onnx": "onnxruntime>=1.20", "openvino": "openvino>=2025.1"}
"""Requirements of the backends that ``efficientsam3.load`` runs. Core ML runs in apps."""


def export_model(
    model: ImageModel,
    folder: str | os.PathLike[str],
    to: str = "openvino",
    precision: str = "float32",
    calibrate: str | os.PathLike[str] | None = None,
    calibrate_count: int = 32,
    concepts: Concepts | None = None,
    loss: float = LOSS,
    report: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Export a model to a folder, which ``efficientsam3.load`` reads without torch.

    The folder holds a file for each part of the model, the vocabulary, ``manifest.json`` and
    ``requirements.txt`` with the packages that run it. An earlier export in its place is replaced
    when the new one is complete. Packages for Core ML are for apps on Apple's systems: ``load``
    does not run them, and their numbers are not compared.

    Args:
        model: A loaded model; its ``speed`` is exported too, and its weights in float32.
        folder: The folder to write.
        to: "openvino", "onnx" or "coreml".
        precision: "float32"; "float16" for files of half the size, which are computed in float32,
            and in float16 by Core ML; for OpenVINO, "bfloat16": files of half the size, computed in
            bfloat16 where the processor can; or "int8": the costly layers in eight bits, those that
            lose too much agreement in half precision. With OpenVINO, all but
            "float32" pass large maps from one graph to another in float16.
        calibrate: A folder with pictures like those that the model will see, for "int8".
        calibrate_count: Pictures of this folder to quantize by, at most; up to eight others
            measure the agreement.
        concepts: What the model will be asked for, as ``ImageModel.segment`` takes it, for
            "int8"; None: a few general phrases.
        loss: What "int8" may lose of the mask IoU, and by how much presence may differ, in [0, 1];
            1: every layer of the costly graphs is quantized, without a search.
        report: Called with what is being done, which takes minutes.

    Returns:
        The manifest, with the measured agreement with PyTorch in float32, empty for "coreml".

    Raises:
        ArgumentError: The backend does not exist or does not have this precision, or the folder
            holds something else; ``calibrate`` is missing for "int8", or given for another;
            ``loss`` is not in [0, 1].
        ImageError: There is no picture in ``calibrate``, or none can be read.
        PromptError: A phrase is wrong.
        MissingAbilityError: "int8" of a model without masks.
        ExportError: A package is missing, or a part cannot be exported.
    """
    place = Path(folder)
    _check(place, to, precision)
    _check_calibration(model, precision, calibrate)
    if not is_share(loss):
        raise ArgumentError(
            f"loss is {loss!r}: what eight bits may lose of the mask IoU is from 0 to 1"
        )
    pictures = None
    if calibrate is not None:
        pictures = read_pictures(calibrate, calibrate_count, place)
    write = _writer(to)
    net = fold(model.learned(), torch.float32, pooled=model.speed == "fast").cpu().eval()
    pixels = example_pixels(model.config)
    graphs = graphs_of(model, net, pixels)
    if to == "coreml":
        from .coreml_files import for_one_prompt

        graphs = [for_one_prompt(graph) for graph in graphs]
    calibration = None
    if pictures is not None:
        calibration = run_pictures(model, graphs, pictures, concepts)
    with replacing_folder(place) as new:
        entries = {}
        for graph in graphs:
            report(f"converting {graph.name}")
            whole = calibration is not None and graph.name in QUANTIZED
            stored = "float16" if precision == "int8" else precision
            file = write(graph, new, "float32" if whole else stored)
            entries[graph.name] = {
                "file": file,
                "inputs": {k: _describe(v, graph.free.get(k, ())) for k, v in graph.inputs.items()},
                "outputs": {k: _describe(v) for k, v in graph.example.items()},
            }
        clip_tokenizer().save(new / TOKENIZER_FILE)
        if to in RUNTIMES:
            lines = sorted([RUNTIMES[to], *REQUIREMENTS])
            (new / REQUIREMENTS_FILE).write_text("\n".join(lines) + "\n")
        manifest = _manifest(model, to, precision, entries)
        measured = {}
        if calibration is not None:
            late = model.config.late is not None  # its queries have no fixed order
            measured = quantize_graphs(
                new,
                manifest,
                calibration,
                _quantizer(to),
                matched=late,
                loss=loss,
                report=report,
            )
        if to == "openvino" and precision != "float32":
            from .openvino_files import halve_maps

            halve_maps(new, entries)
        files = sorted(path for path in new.rglob("*") if path.is_file())
        manifest.files.update({f.relative_to(new).as_posix(): f.stat().st_size for f in files})
        if to in RUNTIMES:
            report("comparing with PyTorch")
            manifest.agreement.update({**compare(graphs, new, manifest), **measured})
        manifest.write(new)
    return manifest


def _check(place: Path, to: str, precision: str) -> None:
    if to not in PRECISIONS:
        raise ArgumentError(f"to is one of {', '.join(PRECISIONS)}; got {to!r}")
    if precision not in PRECISIONS[to]:
        raise ArgumentError(
            f"precision of {to} is one of {', '.join(PRECISIONS[to])}; got {precision!r}"
        )
    if place.is_file() or (
        place.is_dir() and any(place.iterdir()) and not (place / MANIFEST_FILE).is_file()
    ):
        raise ArgumentError(
            f"{place} exists and is not an exported model; choose another folder, or empty it"
        )
    needed, extra = PACKAGES[to], to
    if (to, precision) == ("openvino", "int8"):
        needed, extra = (*needed, "nncf"), "int8"
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{' and '.join(missing)} not installed: pip install 'efficientsam3[{extra}]'"
        )


def _check_calibration(
    model: ImageModel, precision: str, calibrate: str | os.PathLike[str] | None
) -> None:
    if precision != "int8":
        if calibrate is not None:
            raise ArgumentError(f"calibrate goes with precision='int8'; got {precision!r}")
        return
    if calibrate is None:
        raise ArgumentError(
            "precision='int8' needs calibrate: a folder with pictures like those that the model "
            "will see, by which ranges of numbers are measured"
        )
    model.require("concepts")
    model.require("masks")


def _quantizer(to: str) -> Quantizer:
    if to == "onnx":
        from .onnx_files import OnnxQuantizer

        return OnnxQuantizer()
    from .openvino_files import OpenVinoQuantizer

    return OpenVinoQuantizer()


def _writer(to: str) -> Any:
    if to == "onnx":
        from .onnx_files import write_graph

        return write_graph
    if to == "coreml":
        from .coreml_files import write_graph as write_package

        return write_package
    from .openvino_files import write_graph as write_ir

    return write_ir


def _manifest(model: ImageModel, to: str, precision: str, entries: dict[str, Any]) -> Manifest:
    c = model.config
    absent = {
        ability: [PART_NAMES[part] for part in parts if part not in c.parts]
        for ability, parts in PARTS_OF_ABILITY.items()
        if ability not in model.abilities
    }
    abilities = set(model.abilities)
    if c.multiplexed:  # SAM3.1's tracker is not exported
        abilities.discard("video")
        absent["video"] = [PART_NAMES["multiplex"]]
    return Manifest(
        name=model.name,
        backend=to,
        precision=precision,
        speed=model.speed,
        version=__version__,
        standard=_standard(to),
        graphs=entries,
        files={},
        tokenizer={
            "file": TOKENIZER_FILE,
            "context": c.context,
            "start": START,
            "end": END,
            "pad": PAD,
        },
        preprocessing={
            "resolution": c.resolution,
            "grid": c.grid,
            "mean": c.mean,
            "std": c.std,
            "resize": "uint8, bilinear with antialiasing, to a square",
        },
        postprocessing={"threshold": 0.5, "nms": c.nms},
        abilities=sorted(abilities),
        missing=absent,
        config=c.to_dict(),
    )


def _standard(to: str) -> dict[str, Any]:
    if to == "onnx":
        from .onnx_files import OPSET

        return {"opset": OPSET}
    if to == "coreml":
        from .coreml_files import TARGET

        return {"target": TARGET}
    from .openvino_files import IR_VERSION, openvino_version

    return {"ir": IR_VERSION, "openvino": openvino_version()}


def _describe(value: torch.Tensor, free: tuple[int, ...] = ()) -> dict[str, Any]:
    shape = [-1 if axis in free else size for axis, size in enumerate(value.shape)]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}
