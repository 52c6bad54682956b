"""Graphs as packages of Core ML, converted by coremltools, which runs them on Apple's systems."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ExportError
from .graphs import Graph, run_graph

LARGEST = 256
"""Largest size of a free axis; Core ML wants a limit."""

TARGET = "iOS17"
"""Core ML's version: iOS 17 and macOS 14."""


class _FromCoreMl(nn.Module):
    """Gives a form its dtypes: Core ML has inputs of floats and int32 alone.

    Args:
        module: The form.
        dtypes: Dtypes of its inputs.
    """

    def __init__(self, module: nn.Module, dtypes: list[torch.dtype]) -> None:
        super().__init__()
        self.module, self.dtypes = module, dtypes

    def forward(self, *inputs: Tensor) -> Any:
        """Run the form.

        Args:
            *inputs: Its inputs; 1.0 for True.
        """
        return self.module(
            *(
                x > 0.5 if dtype is torch.bool else x.to(dtype)
                for x, dtype in zip(inputs, self.dtypes, strict=True)
            )
        )


@torch.no_grad()
def for_one_prompt(graph: Graph) -> Graph:
    """A graph for one prompt or object at a time, which Core ML's converter can follow.

    Args:
        graph: The graph.

    Returns:
        The same, whose first axes are not free.
    """
    inputs = {k: x[:1] if 0 in graph.free.get(k, ()) else x for k, x in graph.inputs.items()}
    free = {k: tuple(a for a in axes if a) for k, axes in graph.free.items()}
    one = replace(graph, inputs=inputs, free={k: axes for k, axes in free.items() if axes})
    return replace(one, example=run_graph(one, inputs))


def write_graph(graph: Graph, folder: Path, precision: str) -> str:
    """Write a graph as an .mlpackage, which is a folder.

    Args:
        graph: A graph of ``for_one_prompt``.
        folder: The folder of the package.
        precision: "float32", or "float16" for weights and arithmetic of half precision.

    Returns:
        Name of the package.

    Raises:
        ExportError: The package does not have the graph's inputs and outputs.
    """
    with _quiet():
        import coremltools

        _add_operations()
        given = {k: _external(x) for k, x in graph.inputs.items()}
        module = _FromCoreMl(graph.module, [x.dtype for x in graph.inputs.values()]).eval()
        with torch.no_grad():
            traced = torch.jit.trace(module, tuple(given.values()), check_trace=False)
        half = precision == "float16"
        made = coremltools.convert(
            traced,
            inputs=[
                coremltools.TensorType(
                    name=name,
                    shape=coremltools.Shape(
                        [
                            coremltools.RangeDim(1, LARGEST, default=size)
                            if axis in graph.free.get(name, ())
                            else size
                            for axis, size in enumerate(x.shape)
                        ]
                    ),
                    dtype=np.int32 if x.dtype is torch.int32 else np.float32,
                )
                for name, x in given.items()
            ],
            outputs=[coremltools.TensorType(name=name) for name in graph.outputs],
            minimum_deployment_target=coremltools.target[TARGET],
            compute_precision=getattr(coremltools.precision, "FLOAT16" if half else "FLOAT32"),
            skip_model_load=True,
        )
        file = f"{graph.name}.mlpackage"
        made.save(str(folder / file))
        spec = coremltools.models.utils.load_spec(str(folder / file))
    found = [
        [port.name for port in ports] for ports in (spec.description.input, spec.description.output)
    ]
    if found != [list(graph.inputs), list(graph.outputs)]:
        raise ExportError(
            f"coremltools made a package whose inputs and outputs are not those of {graph.name}: "
            f"{found}"
        )
    return file


def _external(x: Tensor) -> Tensor:
    """An input as Core ML takes it."""
    if x.dtype is torch.int64:
        return x.int()
    return x.float()


def _add_operations() -> None:
    """Add what coremltools lacks, or reads wrong with current versions of numpy and torch."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
    from coremltools.converters.mil.mil import types

    def read_int(context: Any, node: Any) -> None:
        (x,) = _get_inputs(context, node, expected=1)
        if x.can_be_folded_to_const():
            value = int(np.asarray(x.val).item())
            context.add(Builder.const(val=value, name=node.name), node.name)
            return
        if len(x.shape):
            x = Builder.squeeze(x=x, name=f"{node.name}_item")
        context.add(Builder.cast(x=x, dtype="int32", name=node.name), node.name)

    def log_sigmoid(context: Any, node: Any) -> None:
        (x,) = _get_inputs(context, node, expected=1)
        negative = Builder.softplus(x=Builder.mul(x=-1.0, y=x))
        context.add(Builder.mul(x=-1.0, y=negative, name=node.name), node.name)

    def reciprocal(context: Any, node: Any) -> None:
        (x,) = _get_inputs(context, node, expected=1)
        if types.is_int(x.dtype):
            x = Builder.cast(x=x, dtype="fp32")
        context.add(Builder.inverse(x=x, name=node.name), node.name)

    register_torch_op(read_int, torch_alias=["int"], override=True)
    register_torch_op(log_sigmoid, override=True)
    register_torch_op(reciprocal, override=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools from printing that it cannot run models here, and its progress."""
    loggers = [logging.getLogger(name) for name in ("", "coremltools")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
