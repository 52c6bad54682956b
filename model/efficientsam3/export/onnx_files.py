"""Graphs as ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..types import Array
from .graphs import Graph

OPSET = 18
HALF_FROM = 1024
"""Constants with at least this many values are stored in half precision."""


def write_graph(graph: Graph, folder: Path, precision: str) -> str:
    """Write a graph as an ONNX file.

    Args:
        graph: The graph.
        folder: The folder of the file.
        precision: "float32", or "float16" to store large constants in half precision.

    Returns:
        Name of the file.
    """
    file = f"{graph.name}.onnx"
    shapes: Any = None
    if graph.free:
        dynamic = torch.export.Dim.DYNAMIC
        shapes = tuple(dict.fromkeys(graph.free.get(name, ()), dynamic) for name in graph.inputs)
    with quiet():
        torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            str(folder / file),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if precision == "float16":
        halve(folder / file)
    return file


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter from printing about its own parts."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def halve(path: Path) -> None:
    """Store large float32 constants as float16, with a cast that the runtime computes once.

    Args:
        path: An ONNX file, which is replaced.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    nodes = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < HALF_FROM:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).clip(-65504, 65504).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        whole = onnx.TensorProto.FLOAT
        nodes.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=whole))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, str(path))


class OnnxQuantizer:
    """Quantizes ONNX files by ONNX Runtime's static quantization."""

    KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

    def layers(self, file: Path) -> list[str]:
        """Names of the layers that can be quantized, in the order in which they run.

        Args:
            file: The file of a graph.
        """
        import onnx

        nodes = onnx.load(str(file)).graph.node
        return [node.name for node in nodes if node.op_type in self.KINDS]

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
            roughly: Not used: no step takes long.
        """
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            rows = iter(feeds)

            def get_next(self) -> dict[str, Array] | None:
                return next(self.rows, None)

        with quiet():
            quantize_static(
                str(file),
                str(target),
                Reader(),
                op_types_to_quantize=list(self.KINDS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept,
                extra_options={"MatMulConstBOnly": True},
            )

    def halve(self, file: Path) -> None:
        """Store what is not quantized in half precision.

        Args:
            file: The file, which is replaced.
        """
        halve(file)
