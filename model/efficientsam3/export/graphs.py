"""The graphs of an exported model: which there are, with example inputs and free sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..bpe import clip_tokenizer
from ..nn.detector import FoldedDetector
from ..nn.late_detector import FoldedLateDetector
from ..predictor import ImageModel
from . import forms, late_forms, tracker_forms

Axes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """A part of a model that becomes one file.

    Attributes:
        name: Name of the graph, and of its file.
        module: A module with plain tensors in and out.
        inputs: Example inputs by name, in the order of the module's arguments.
        outputs: Names of the outputs, in order.
        free: Axes of inputs whose size is free.
        example: Outputs of the example inputs, by name.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: Axes
    example: dict[str, Tensor]


@torch.no_grad()
def graphs_of(model: ImageModel, net: FoldedDetector, pixels: Tensor) -> list[Graph]:
    """Make the graphs of a model. Examples of later graphs are outputs of earlier ones.

    Args:
        model: The model.
        net: Its network in inference form, float32, on the CPU.
        pixels: (1, 3, R, R) an image to make the examples of.

    Returns:
        The graphs that the model's parts allow, in the order in which they run.
    """
    out: list[Graph] = []
    known: dict[str, Tensor] = {"pixels": pixels}

    def add(name: str, module: Any, given: dict[str, Tensor] | None = None, **free: Any) -> None:
        inputs = {key: (given or {}).get(key, known.get(key)) for key in forms.names_of(module)}
        graph = Graph(name, module.eval(), inputs, tuple(module.outputs), free, {})  # type: ignore[arg-type]
        graph.example.update(run_graph(graph, graph.inputs))
        known.update(graph.example)
        out.append(graph)

    c = model.config
    image: Any
    if isinstance(net, FoldedLateDetector):
        image = late_forms.LateImageForm(net, c.resolution)
    else:
        image = forms.ImageForm(net, c.resolution)
    add("image", image)
    if "concepts" in model.abilities:
        _add_concepts(add, known, model, net, image.grid)
    if "interactive" in model.abilities:
        _add_objects(add, net, c.grid)
    if "video" in model.abilities and not c.multiplexed:
        _add_tracker(add, known, net, c.grid)
    return out


def _add_concepts(
    add: Any, known: dict[str, Tensor], model: ImageModel, net: FoldedDetector, grid: Any
) -> None:
    ids = torch.from_numpy(clip_tokenizer()(["a red bus", "person"], model.config.context))
    add("text", forms.TextForm(net), {"ids": ids}, ids=(0,))
    exemplars = {
        "points": torch.tensor([[[0.3, 0.6], [0.8, 0.2], [0.5, 0.5]]]),
        "point_labels": torch.tensor([[1, 0, 1]]),
        "point_valid": torch.tensor([[True, True, False]]),
        "boxes": torch.tensor([[[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]]),
        "box_labels": torch.tensor([[1, 0]]),
        "box_valid": torch.tensor([[True, True]]),
    }
    form = forms.ExemplarForm(net.part("geometry"), grid)
    add("exemplars", form, exemplars, **dict.fromkeys(exemplars, (1,)))
    known["ids"] = ids
    join_prompt(known)
    late = net if isinstance(net, FoldedLateDetector) else None
    heads = late_forms.LateHeadsForm(late) if late else forms.HeadsForm(net, grid)
    add("heads", heads, prompt=(0, 1), valid=(0, 1))
    if "masks" not in model.abilities:
        return
    one = choose_queries(known, torch.arange(3))
    if late:
        add("mask_image", late_forms.LateMaskImageForm(late, grid))
        add("masks", late_forms.LateMasksForm(late), one, queries=(1,), boxes=(1,))
        return
    add("mask_image", forms.MaskImageForm(net.part("masks")))
    free = {"prompt": (1,), "valid": (1,), "queries": (1,), "boxes": (1,)}
    add("masks", forms.MasksForm(net.part("masks"), grid), one, **free)


def run_graph(graph: Graph, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run a graph in PyTorch.

    Args:
        graph: The graph.
        inputs: Its inputs by name.

    Returns:
        The outputs by name.
    """
    found = graph.module(*(inputs[name] for name in graph.inputs))
    found = found if isinstance(found, tuple) else (found,)
    return dict(zip(graph.outputs, found, strict=True))


def join_prompt(known: dict[str, Tensor]) -> None:
    """Join phrases and the token of a prompt without exemplars.

    Args:
        known: Has "ids", "words" and "bare_prompt"; "prompt" and "valid" are added.
    """
    count = len(known["words"])
    known["prompt"] = torch.cat([known["words"], known["bare_prompt"].expand(count, -1, -1)], 1)
    one = torch.ones(count, 1, dtype=torch.bool)
    known["valid"] = torch.cat([known["ids"] != 0, one], 1)


def choose_queries(known: dict[str, Tensor], queries: Tensor) -> dict[str, Tensor]:
    """The first prompt with some of its queries, for the graph of masks.

    Args:
        known: Tensors by name.
        queries: (K,) indices.

    Returns:
        A copy of ``known``.
    """
    out = dict(known)
    out.update((name, known[name][:1]) for name in ("memory", "prompt", "valid") if name in known)
    out.update((name, known[name][:1, queries]) for name in ("queries", "boxes"))
    return out


def _add_objects(add: Any, net: FoldedDetector, grid: int) -> None:
    if isinstance(net, FoldedLateDetector):
        add("frame", late_forms.LateFrameForm(net))
    else:
        add("frame", forms.FrameForm(net))
    points = {
        "points": torch.tensor([[[0.3, 0.6], [0.8, 0.2]], [[0.1, 0.1], [0.9, 0.9]]]),
        "labels": torch.tensor([[1, 0], [2, 3]]),
    }
    add("points", forms.PointsForm(net), points, points=(0, 1), labels=(0, 1))
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, 4 * grid)] * 2, indexing="ij")
    disc = 4 - 16 * (rows**2 + columns**2)  # logits of a disc
    earlier = {
        "mask_input": disc.expand(2, 1, -1, -1).contiguous(),
        "has_mask": torch.tensor([0.0, 1.0]).view(2, 1, 1, 1),
    }
    form = forms.ObjectsForm(net, grid)
    add("objects", form, earlier, sparse=(0, 1), mask_input=(0,), has_mask=(0,))


def _add_tracker(add: Any, known: dict[str, Tensor], net: FoldedDetector, grid: int) -> None:
    memory = net.tracker()[1]
    add("look", tracker_forms.LookForm(memory))
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, 16 * grid)] * 2, indexing="ij")
    add("given_mask", tracker_forms.GivenMaskForm(memory), {"mask": disc_of(rows, columns)})
    present = torch.tensor([True, False])
    token = {"token": known["object_tokens"][:, 0], "present": present}
    add("pointer", tracker_forms.PointerForm(memory), token, token=(0,), present=(0,))
    form = tracker_forms.RememberForm(memory)
    entries = []
    for shift in (0.5, 0.0):
        given = {"mask": disc_of(rows - shift, columns), "present": present[:1]}
        entries.append(form(known["projected"], *given.values()))
    add("remember", form, given)
    read = {
        "entries": torch.stack(entries, 1),
        "when": torch.tensor([[0, 1]]),
        "pointers": known["pointer"][None],
        "ages": torch.tensor([[0.0, 0.5]]),
    }
    add("recall", tracker_forms.RecallForm(memory), read, **dict.fromkeys(read, (1,)))


def disc_of(rows: Tensor, columns: Tensor) -> Tensor:
    """A soft disc.

    Args:
        rows: (h, w) rows, 0 at the center, about 1 at the border.
        columns: (h, w) columns, likewise.

    Returns:
        (1, 1, h, w) in [0, 1].
    """
    return (4 - 16 * (rows**2 + columns**2)).sigmoid()[None, None]
