"""Partial checkpoints are merged into a model, or the weight that does not fit is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from efficientsam3.build import build
from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import ModelConfig, TextConfig, VitConfig
from efficientsam3.errors import CheckpointError
from efficientsam3.nn.detector import Detector
from efficientsam3.train.merge import (
    PartialCheckpoint,
    as_prefixes,
    merge,
    merge_files,
    trained_prefixes,
)
from efficientsam3.train.tasks.image_distillation import MapStudent
from efficientsam3.train.tasks.text_distillation import TextStudent

from .conftest import tiny_net

Teacher = tuple[ModelConfig, Detector]

SMALL = VitConfig(width=32, depth=1, heads=2, hidden=24, window=4, everywhere=(0,))


def student_of(config: ModelConfig) -> tuple[ModelConfig, Detector]:
    """Another image encoder and another text encoder with a longer context."""
    config = replace(config, vision=SMALL, text=TextConfig("mobileclip", 24, 1, 2), context=20)
    return config, build(config)


def same(a: nn.Module, b: nn.Module, part: str) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    keys = [k for k in ours if k.startswith(part + ".")]
    return bool(keys) and all(torch.equal(ours[k], theirs[k]) for k in keys)


# What trained -------------------------------------------------------------------------------


def test_prefixes_cover_the_trained_parameters(teacher: Teacher) -> None:
    _, net = teacher
    net.requires_grad_(False)
    assert trained_prefixes(net) == ()
    net.part("trunk").requires_grad_(True)
    net.part("decoder").norm.weight.requires_grad_(True)
    net.part("decoder").layers[1].requires_grad_(True)
    assert trained_prefixes(net) == ("trunk.", "decoder.layers.1.", "decoder.norm.weight")
    net.requires_grad_(True)
    assert "trunk." in trained_prefixes(net)
    assert "decoder." in trained_prefixes(net)
    assert as_prefixes(["trunk", "decoder.layers.1."]) == ("trunk.", "decoder.layers.1.")


def test_a_partial_checkpoint_holds_trained_weights_only(teacher: Teacher, tmp_path: Path) -> None:
    config, net = teacher
    net.requires_grad_(False)
    net.part("scoring").requires_grad_(True)
    PartialCheckpoint.of(config, net).save(tmp_path / "part.safetensors")
    state = load_file(tmp_path / "part.safetensors")
    assert {k.split(".")[0] for k in state} == {"scoring"}
    found = PartialCheckpoint.load(tmp_path / "part.safetensors")
    assert found.config == config
    assert found.prefixes == ("scoring.",)
    with pytest.raises(CheckpointError, match="nothing is trained"):
        PartialCheckpoint.of(config, net.requires_grad_(False))
    with pytest.raises(CheckpointError, match=r"no weights begin with memory\.; the module has"):
        PartialCheckpoint.of(config, net, ["memory"])


# The merge ----------------------------------------------------------------------------------


def test_encoders_of_a_student_are_merged(teacher: Teacher) -> None:
    config, net = teacher
    small, student = student_of(config)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trunk = MapStudent(student.part("trunk"), config.grid, 32, 40)  # with a projection, not kept
    merged_config, merged = merge(
        config,
        net,
        PartialCheckpoint.of(small, trunk, ["trunk"]),
        PartialCheckpoint.of(small, TextStudent(student.part("text")), ["text"]),
    )
    assert (merged_config.vision, merged_config.text, merged_config.context) == (
        SMALL,
        small.text,
        20,
    )
    assert same(merged, student, "trunk")
    assert same(merged, student, "text")
    for part in ("neck", "fusion", "decoder", "scoring", "geometry", "masks"):
        assert same(merged, net, part)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    pixels = torch.zeros(1, 3, config.resolution, config.resolution)
    image = merged.read_image(pixels)
    text = merged.read_text(torch.ones(1, 20, dtype=torch.long))
    assert merged.answer(image, *merged.read_prompt(image, text)).logits.shape == (1, 12)
    # The merged model is a copy: training goes on without it.
    with torch.no_grad():
        student.part("trunk").pos_embed.zero_()
    assert not same(merged, student, "trunk")


def test_weights_are_merged_by_prefix(teacher: Teacher) -> None:
    config, net = teacher
    _, other = tiny_net()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    _, merged = merge(
        config, net, PartialCheckpoint.of(config, other, ["decoder.layers.1.", "scoring"])
    )
    assert same(merged, other, "decoder.layers.1")
    assert same(merged, net, "decoder.layers.0")
    assert same(merged, other, "scoring")


def change(partial: PartialCheckpoint, **state: torch.Tensor | None) -> PartialCheckpoint:
    named = {k.replace("__", "."): v for k, v in state.items()}
    merged = {**partial.state, **named}
    return replace(partial, state={k: v for k, v in merged.items() if v is not None})


def test_weights_that_do_not_fit_are_named(teacher: Teacher) -> None:
    config, net = teacher
    part = PartialCheckpoint.of(config, net, ["scoring"])
    one = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 weights are left over, .*: scoring\.extra"):
        merge(config, net, change(part, scoring__extra=one))
    with pytest.raises(CheckpointError, match=r"are missing: scoring\.hs_proj\.bias"):
        merge(config, net, change(part, scoring__hs_proj__bias=None))
    with pytest.raises(CheckpointError, match=r"scoring\.hs_proj\.bias is \(1,\), but .* \(16,\)"):
        merge(config, net, change(part, scoring__hs_proj__bias=one))
    trunk = PartialCheckpoint.of(config, net, ["trunk"])
    with pytest.raises(CheckpointError, match=r"missing: trunk\.pos_embed"):
        merge(config, net, change(trunk, trunk__pos_embed=None))
    with pytest.raises(CheckpointError, match=r"has not: trunk\.extra"):
        merge(config, net, change(trunk, trunk__extra=one))
    with pytest.raises(CheckpointError, match=r"trained with grid 9, but the model has 8"):
        merge(config, net, replace(trunk, config=replace(config, grid=9)))
    text = PartialCheckpoint.of(config, net, ["text"])
    with pytest.raises(CheckpointError, match="width 99, but the model has 16"):
        merge(config, net, replace(text, config=replace(config, width=99)))


@pytest.mark.slow
def test_files_are_merged(teacher: Teacher, tmp_path: Path) -> None:
    config, net = teacher
    small, student = student_of(config)
    save_folder(tmp_path / "teacher", "the teacher", config, net)
    PartialCheckpoint.of(small, student, ["trunk"]).save(tmp_path / "trunk.safetensors")
    PartialCheckpoint.of(small, student, ["text"]).save(tmp_path / "text.safetensors")
    files = [tmp_path / "trunk.safetensors", tmp_path / "text.safetensors"]
    merge_files(tmp_path / "teacher", files, tmp_path / "student", "the student")
    name, merged_config, merged = load_folder(tmp_path / "student")
    assert name == "the student"
    assert merged_config == small
    assert same(merged, student, "trunk")
    assert same(merged, net, "decoder")


def test_damaged_files_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    config, net = teacher
    path = tmp_path / "part.safetensors"
    with pytest.raises(CheckpointError, match="no partial checkpoint at"):
        PartialCheckpoint.load(path)
    part = PartialCheckpoint.of(config, net, ["scoring"])
    part.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        PartialCheckpoint.load(path)
    save_file(part.state, path)
    with pytest.raises(CheckpointError, match="not a partial checkpoint"):
        PartialCheckpoint.load(path)
    replace(part, prefixes=("trunk.",)).save(path)
    with pytest.raises(CheckpointError, match=r"holds trunk\., but also has scoring\."):
        PartialCheckpoint.load(path)


def test_weights_are_loaded_into_a_module(teacher: Teacher) -> None:
    config, net = teacher
    _, other = tiny_net()
    part = PartialCheckpoint.of(config, net, ["scoring"])
    with torch.no_grad():
        other.part("scoring").hs_proj.bias.add_(1)
    assert not same(net, other, "scoring")
    part.load_into(other)
    assert same(net, other, "scoring")
    with pytest.raises(CheckpointError, match=r"lacks scoring\.hs_proj\.bias"):
        change(part, scoring__hs_proj__bias=None).load_into(other)
    with pytest.raises(CheckpointError, match=r"has no scoring\.extra"):
        change(part, scoring__extra=torch.zeros(1)).load_into(other)
    with pytest.raises(CheckpointError, match=r"bias is \(1,\), but the module has"):
        change(part, scoring__hs_proj__bias=torch.zeros(1)).load_into(other)


@pytest.mark.slow
def test_a_merge_in_upstreams_layout(tmp_path: Path) -> None:
    """A student of the table, merged into SAM3's heads, as upstream's loaders read it."""
    from efficientsam3.checkpoints.assemble import load_upstream
    from efficientsam3.checkpoints.save import save_untrained, save_upstream

    base = save_untrained("efficientsam3-tinyvit-5m", tmp_path / "base.pt")
    config, net = load_upstream(base)
    other = replace(config, vision="efficientvit-b0")
    trunk = MapStudent(build(other).part("trunk"), 72, 1024, 1024)
    PartialCheckpoint.of(other, trunk, ["trunk"]).save(tmp_path / "trunk.safetensors")
    merge_files(base, [tmp_path / "trunk.safetensors"], tmp_path / "merged.pt")
    found, merged = load_upstream(tmp_path / "merged.pt")
    assert found.vision == "efficientvit-b0"
    assert same(merged, trunk, "trunk")
    assert same(merged, net, "decoder")
    save_upstream(tmp_path / "again.pt", found, merged)
    keys = torch.load(tmp_path / "again.pt", weights_only=True)["model"].keys()
    assert keys == torch.load(tmp_path / "merged.pt", weights_only=True)["model"].keys()
    assert json.dumps(sorted(keys)).count("trunk.model.head.") >= 4
