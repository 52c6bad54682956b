"""Initial weights of students: ImageNet's for image encoders, MobileCLIP's for text encoders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..checkpoints import layout
from ..checkpoints.read import read_state
from ..errors import CheckpointError, WeightsNotFoundError
from ..nn.student import BACKBONES, StudentTrunk
from ..nn.text import MobileClipText
from .merge import PartialCheckpoint

NOTHING, IMAGENET = "nothing", "imagenet"


def init_trunk(trunk: nn.Module, encoder: str, init: str) -> None:
    """Fill a student's image encoder with pretrained weights.

    Args:
        trunk: The image encoder.
        encoder: Its name in ``build.VISIONS``.
        init: "nothing" leaves it as it is; "imagenet" takes timm's weights of its backbone from the
            hub; else the path of a partial checkpoint.

    Raises:
        CheckpointError: The weights do not fit, or there are none for this encoder.
        WeightsNotFoundError: timm's weights cannot be downloaded.
    """
    if init == NOTHING:
        return
    if init != IMAGENET:
        PartialCheckpoint.load(init).load_into(nn.ModuleDict({"trunk": trunk}))
        return
    if not isinstance(trunk, StudentTrunk):
        raise CheckpointError(f"{encoder} has no ImageNet weights; set init={NOTHING}")
    import timm

    try:
        pretrained = timm.create_model(BACKBONES[encoder], pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise WeightsNotFoundError(
            f"timm's ImageNet weights of {BACKBONES[encoder]} cannot be loaded: {error}. Set "
            f"init={NOTHING} to learn from random weights, or to a partial checkpoint"
        ) from error
    pretrained.head = nn.Identity()
    trunk.backbone.load_state_dict(pretrained.state_dict())


def init_text(text: nn.Module, init: str) -> None:
    """Fill a student's text encoder with pretrained weights; its projector stays new.

    Args:
        text: The text encoder.
        init: "nothing" leaves it as it is; else the path of a MobileCLIP checkpoint of Apple's,
            with keys ``text_encoder.``.

    Raises:
        CheckpointError: Names the weights that do not fit.
    """
    if init == NOTHING:
        return
    if not isinstance(text, MobileClipText):
        raise CheckpointError(
            f"only MobileCLIP's text encoders take weights from {init}; set init={NOTHING}"
        )
    table = [line.split() for line in layout.TEXT_MOBILECLIP.splitlines() if line]
    rename = layout.Renamer(tuple((theirs, ours) for theirs, ours in table))
    found, unknown = {}, []
    for key, value in read_state(Path(init)).items():
        if not key.startswith("text_encoder."):
            continue  # the image encoder, the logit scale
        name = rename(key.removeprefix("text_"))
        if name is not None:
            found[name] = value.float()
        elif not layout.DERIVED.search(key):
            unknown.append(key)
    if not found:
        raise CheckpointError(f"{init} has no text_encoder.*: it is not a file of MobileCLIP")
    if "positions" in found:
        found["positions"] = found["positions"][..., : text.context, :].clone()
    state = text.state_dict()
    needed = {k for k in state if not layout.DERIVED.search(k) and not k.startswith("projector.")}
    missing = sorted(needed - found.keys())
    wrong = sorted(k for k in needed & found.keys() if found[k].shape != state[k].shape)
    if unknown or missing or wrong:
        problems = (("unknown", unknown), ("missing", missing), ("of another shape", wrong))
        listed = "; ".join(f"{what}: {', '.join(keys[:4])}" for what, keys in problems if keys)
        raise CheckpointError(f"{init} does not fit this text encoder: {listed}")
    with torch.no_grad():
        for key, value in found.items():
            state[key].copy_(value)
