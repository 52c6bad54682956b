"""Initial weights of students from timm and MobileCLIP, loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.checkpoints import layout
from efficientsam3.errors import CheckpointError, WeightsNotFoundError
from efficientsam3.nn.student import StudentTrunk
from efficientsam3.nn.text import ClipText, MobileClipText
from efficientsam3.train.merge import PartialCheckpoint
from efficientsam3.train.pretrained_init import init_text, init_trunk
from efficientsam3.train.tasks.image_distillation import MapStudent

from .conftest import TinyTrunk, tiny_net


def mobileclip(context: int) -> MobileClipText:
    return MobileClipText(32, 1, 2, context, mixers=True, vocabulary=100, out=16)


def mobileclip_state(text: MobileClipText) -> dict[str, torch.Tensor]:
    """The same weights under Apple's names, beside an image encoder."""
    pairs = [line.split() for line in layout.TEXT_MOBILECLIP.splitlines() if line]
    rename = layout.Renamer(tuple((ours, theirs) for theirs, ours in pairs))
    out = {"image_encoder.model.x": torch.zeros(2), "logit_scale": torch.zeros(())}
    for key, value in text.state_dict().items():
        if not key.startswith("projector."):
            out[f"text_{rename(key)}"] = value
    return out


def test_text_encoder_from_mobileclip(tmp_path: Path) -> None:
    source, target = mobileclip(77), mobileclip(16)
    torch.save(mobileclip_state(source), tmp_path / "mobileclip.pt")
    projector = target.projector.weight.clone()
    init_text(target, str(tmp_path / "mobileclip.pt"))
    assert torch.equal(target.positions, source.positions[:, :, :16])
    for key, value in source.state_dict().items():
        if not key.startswith(("positions", "projector")):
            assert torch.equal(target.state_dict()[key], value), key
    assert torch.equal(target.projector.weight, projector)


def test_mobileclip_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mobileclip.pt"

    def refused(message: str, edit: Any, text: torch.nn.Module | None = None) -> None:
        state = mobileclip_state(mobileclip(16))
        edit(state)
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=message):
            init_text(text or mobileclip(16), str(path))

    norm = "text_encoder.final_layer_norm.weight"
    refused(r"missing: norm\.weight", lambda s: s.pop(norm))
    refused("unknown: text_encoder.odd", lambda s: s.update({"text_encoder.odd": torch.zeros(1)}))
    refused("another shape: norm.weight", lambda s: s.update({norm: torch.zeros(5)}))
    refused("another shape: positions", lambda s: None, mobileclip(20))
    refused("no text_encoder", lambda s: [s.pop(k) for k in list(s) if k.startswith("text_")])
    refused("only MobileCLIP", lambda s: None, ClipText(32, 1, 2, 16, 100, 16))


def test_nothing_leaves_the_weights() -> None:
    trunk, text = TinyTrunk(), mobileclip(16)
    before = [p.clone() for p in (*trunk.parameters(), *text.parameters())]
    init_trunk(trunk, "tinyvit-5m", "nothing")
    init_text(text, "nothing")
    after = (*trunk.parameters(), *text.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_image_encoder_from_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    trunk = StudentTrunk("efficientvit-b0", 32)
    source = StudentTrunk("efficientvit-b0", 8).backbone
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: source)
    init_trunk(trunk, "efficientvit-b0", "imagenet")
    for key, value in source.state_dict().items():
        assert torch.equal(trunk.backbone.state_dict()[key], value), key

    def offline(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsNotFoundError, match="Set init=nothing"):
        init_trunk(trunk, "efficientvit-b0", "imagenet")
    with pytest.raises(CheckpointError, match="no ImageNet weights"):
        init_trunk(TinyTrunk(), "mine", "imagenet")


def test_image_encoder_from_a_partial_checkpoint(tmp_path: Path) -> None:
    config, _ = tiny_net()
    first, second = TinyTrunk(), TinyTrunk()
    PartialCheckpoint.of(config, MapStudent(first, 8, 32, 32), ["trunk"]).save(
        tmp_path / "t.safetensors"
    )
    init_trunk(second, "mine", str(tmp_path / "t.safetensors"))
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
