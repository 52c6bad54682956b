"""What a student knows before it is taught: ImageNet for images, MobileCLIP for words."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .. import layout
from ..errors import CheckpointError, WeightsNotFoundError
from ..nn.student import BACKBONES, StudentTrunk
from ..nn.text import MobileClipText
from ..weights import read_state

NOTHING, IMAGENET = "nothing", "imagenet"


def start_trunk(trunk: nn.Module, encoder: str, start: str) -> None:
    """Fill a student's image encoder.

    Args:
        encoder: its name in ``build.VISIONS``. start: "nothing", "imagenet" (timm's weights
            of its backbone, from the hub), or a partial checkpoint.

    Raises:
        CheckpointError, WeightsNotFoundError: the message says the way out.
    """
    if start == NOTHING:
        return
    if start != IMAGENET:
        from .merge import Partial, load_partial_into

        load_partial_into(nn.ModuleDict({"trunk": trunk}), Partial.load(start))
        return
    if not isinstance(trunk, StudentTrunk):
        raise CheckpointError(f"{encoder} has no ImageNet weights; say start={NOTHING}")
    import timm

    try:
        taught = timm.create_model(BACKBONES[encoder], pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise WeightsNotFoundError(
            f"timm's ImageNet weights of {BACKBONES[encoder]} cannot be had: {error}. Say "
            f"start={NOTHING} to learn from nothing, or give a partial checkpoint."
        ) from error
    taught.head = nn.Identity()
    trunk.backbone.load_state_dict(taught.state_dict())


def start_text(text: nn.Module, start: str) -> None:
    """Fill a student's text encoder; its projector stays new.

    Args:
        start: "nothing", or a MobileCLIP checkpoint of Apple's (keys ``text_encoder.``).

    Raises:
        CheckpointError: names what does not fit.
    """
    if start == NOTHING:
        return
    if not isinstance(text, MobileClipText):
        raise CheckpointError(f"only MobileCLIP's encoders start from {start}; say {NOTHING}")
    table = [line.split() for line in layout.TEXT_MOBILECLIP.splitlines() if line]
    rename = layout.Renamer(tuple((theirs, ours) for theirs, ours in table))
    found, left = {}, []
    for key, value in read_state(Path(start)).items():
        if not key.startswith("text_encoder."):
            continue  # the image encoder, the logit scale
        name = rename(key.removeprefix("text_"))
        if name is not None:
            found[name] = value.float()
        elif not layout.DERIVED.search(key):
            left.append(key)
    if not found:
        raise CheckpointError(f"{start} has no text_encoder.*: it is not a file of MobileCLIP")
    if "positions" in found:
        found["positions"] = found["positions"][..., : text.context, :].clone()
    state = text.state_dict()
    learned = {k for k in state if not layout.DERIVED.search(k) and not k.startswith("projector.")}
    missing = sorted(learned - found.keys())
    wrong = sorted(k for k in learned & found.keys() if found[k].shape != state[k].shape)
    if left or missing or wrong:
        problems = (("unknown", left), ("missing", missing), ("of another shape", wrong))
        said = "; ".join(f"{what}: {', '.join(keys[:4])}" for what, keys in problems if keys)
        raise CheckpointError(f"{start} does not fit this text encoder: {said}")
    with torch.no_grad():
        for key, value in found.items():
            state[key].copy_(value)
