"""Graphs as files of OpenVINO's intermediate representation."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from ..runtime.telemetry import import_openvino, without_telemetry
from ..types import Array
from .graphs import Graph

IR_VERSION = 11
MAP_SOURCES = ("image", "mask_image")
"""Graphs whose large outputs only other graphs read."""
LARGE_MAP = 1 << 16
"""Numbers from which an output is a map."""


def openvino_version() -> str:
    """The installed version, such as "2026.1.0"."""
    from importlib.metadata import version

    return version("openvino")


def convert(graph: Graph) -> Any:
    """Convert a graph to OpenVINO's form in memory.

    Args:
        graph: The graph.

    Returns:
        An ``openvino.Model`` with the graph's names of inputs and outputs.
    """
    openvino = import_openvino()

    shapes = [
        openvino.PartialShape(
            [-1 if axis in graph.free.get(name, ()) else size for axis, size in enumerate(x.shape)]
        )
        for name, x in graph.inputs.items()
    ]
    with without_telemetry(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constant here
        made = openvino.convert_model(
            graph.module, example_input=tuple(graph.inputs.values()), input=shapes
        )
    for port, name in zip(made.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(made.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    return made


def write_graph(graph: Graph, folder: Path, precision: str) -> str:
    """Write a graph as an .xml file with its weights in a .bin file.

    Args:
        graph: The graph.
        folder: The folder of the files.
        precision: "float32"; otherwise weights are stored in float16.

    Returns:
        Name of the .xml file.
    """
    openvino = import_openvino()

    file = f"{graph.name}.xml"
    openvino.save_model(convert(graph), str(folder / file), precision != "float32")
    return file


def halve_maps(folder: Path, graphs: dict[str, Any]) -> None:
    """Let maps go from one graph to others in float16, which halves their memory and copies.

    Args:
        folder: The folder of the files, which are replaced.
        graphs: The manifest's entries of the graphs, whose dtypes are changed.
    """
    openvino = import_openvino()

    maps = {
        name
        for source in MAP_SOURCES
        for name, value in graphs.get(source, {"outputs": {}})["outputs"].items()
        if value["dtype"] == "float32" and math.prod(value["shape"]) >= LARGE_MAP
    }
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # files are replaced while they are read
    for entry in graphs.values():
        taken = [name for name in entry["inputs"] if name in maps]
        given = [name for name in entry["outputs"] if name in maps]
        if not taken and not given:
            continue
        path = str(folder / entry["file"])
        steps = openvino.preprocess.PrePostProcessor(core.read_model(path))
        for name in taken:
            steps.input(name).tensor().set_element_type(openvino.Type.f16)
            entry["inputs"][name]["dtype"] = "float16"
        for name in given:
            steps.output(name).tensor().set_element_type(openvino.Type.f16)
            entry["outputs"][name]["dtype"] = "float16"
        openvino.save_model(steps.build(), path, compress_to_fp16=False)


class OpenVinoQuantizer:
    """Quantizes files of OpenVINO by NNCF."""

    def layers(self, file: Path) -> list[str]:
        """Names of the layers that can be quantized, in the order in which they run.

        Args:
            file: The file of a graph.
        """
        openvino = import_openvino()

        kinds = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
        ops = openvino.Core().read_model(str(file)).get_ordered_ops()
        return [op.get_friendly_name() for op in ops if op.get_type_name() in kinds]

    def quantize(
        self,
        file: Path,
        target: Path,
        feeds: list[dict[str, Array]],
        kept: list[str],
        *,
        roughly: bool = False,
    ) -> None:
        """Quantize a graph.

        Args:
            file: Its file, float32.
            target: The file to write.
            feeds: Inputs by which ranges are measured.
            kept: Names of layers that are not quantized.
            roughly: Leave out steps that take long, to compare layers with each other.
        """
        openvino = import_openvino()

        with without_telemetry(), _quiet_nncf():
            import nncf

            made = nncf.quantize(
                openvino.Core().read_model(str(file)),
                nncf.Dataset(feeds),
                subset_size=len(feeds),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=kept),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=roughly
                ),
            )
        openvino.save_model(made, str(target), compress_to_fp16=False)

    def halve(self, file: Path) -> None:
        """Store what is not quantized in half precision.

        Args:
            file: The file, which is replaced.
        """
        openvino = import_openvino()

        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file is replaced while it is read
        model = core.read_model(str(file))
        openvino.save_model(model, str(file), compress_to_fp16=True)


@contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Keep NNCF from printing progress bars and notes about its own parts."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
