"""The interactive head as two ONNX files: an image is encoded once, clicks are decoded.

Their inputs and outputs are those of SAM 2's files in browsers, such as FiftyOne's App runs, so
that these can take their place. What differs is in the graph: the encoder takes 1024 pixels a side
normalized as for ImageNet, and resizes and normalizes them anew; masks leave with 256 a side.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.atomic import replacing
from ..nn.detector import Detector, fold
from ..nn.interactive import InteractiveFeatures
from ..predictor import ImageModel
from ..types import NOT_A_POINT
from .errors import ExportError
from .onnx_files import OPSET, quiet

SIDE, MASK_SIDE = 1024, 256
"""Pixels a side of the encoder's input, and cells a side of the masks."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ENCODER, DECODER = "encoder.with_runtime_opt.ort", "decoder.onnx"
"""What FiftyOne's App asks for. Both hold ONNX, whatever the first one's ending says: runtimes
look at the content."""


class ClickFiles(NamedTuple):
    """The two files of an exported interactive head."""

    encoder: Path
    """The ONNX file that encodes an image."""
    decoder: Path
    """The ONNX file that decodes clicks."""


class ClickEncoder(nn.Module):
    """Encodes an image for the interactive head.

    Args:
        net: The network in inference form, float32.
        resolution: Pixels a side of the network's input.
        mean: Mean of the network's normalization, on values in [0, 1].
        std: Standard deviation of the network's normalization.
    """

    def __init__(self, net: Detector, resolution: int, mean: float, std: float) -> None:
        super().__init__()
        self.net = net
        given_mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        given_std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
        self.register_buffer("scale", given_std / std)
        self.register_buffer("shift", (given_mean - mean) / std)
        # Resizing is linear in rows and in columns. As a matrix product it equals torch's
        # antialiased resizing and needs no operator that some runtimes lack.
        rows = F.interpolate(
            torch.eye(SIDE)[None, None],
            (resolution, SIDE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, 0]
        self.register_buffer("rows", rows)
        self.scale: Tensor
        self.shift: Tensor
        self.rows: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode an image.

        Args:
            image: (1, 3, 1024, 1024), normalized with ImageNet's mean and standard deviation.

        Returns:
            Coarse, fine and middle features.
        """
        small = self.rows @ (image * self.scale + self.shift) @ self.rows.T
        frame = self.net.read_frame(self.net.part("trunk")(small))
        features = self.net.part("interactive").without_memory(frame)
        return features.coarse, features.fine, features.middle


class ClickDecoder(nn.Module):
    """Decodes clicks to masks.

    It returns all four masks of the head, the single one first. One click is ambiguous, so for one
    click the quality of the single mask is -1; for several points that of the three candidates is.

    Args:
        net: The network in inference form, float32.
        grid: Cells a side of the coarsest level.
    """

    def __init__(self, net: Detector, grid: int) -> None:
        super().__init__()
        self.head = net.part("interactive")
        self.mask_side = 4 * grid

    def forward(
        self,
        image_embed: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode clicks on one object.

        Args:
            image_embed: Coarse features of the encoder.
            high_res_feats_0: Fine features of the encoder.
            high_res_feats_1: Middle features of the encoder.
            point_coords: (1, N, 2) xy in [0, 1024].
            point_labels: (1, N) 1 on the object, 0 off it, 2 and 3 the corners of a box, -1
                padding.
            mask_input: (1, 1, 256, 256) mask logits of an earlier result.
            has_mask_input: (1,) 1 where ``mask_input`` counts, otherwise 0.

        Returns:
            Mask logits (1, 4, 256, 256) and their predicted IoU (1, 4).
        """
        features = InteractiveFeatures(image_embed, high_res_feats_1, high_res_feats_0)
        prompts = self.head.prompts
        labels = point_labels.long()
        sparse = prompts.points(point_coords / SIDE, labels)
        side = (self.mask_side, self.mask_side)
        earlier = prompts.masks(F.interpolate(mask_input, side, mode="bilinear"), 1)
        given = has_mask_input.view(-1, 1, 1, 1)
        dense = given * earlier + (1 - given) * prompts.masks(None, 1)
        positions = prompts.encode_grid(*image_embed.shape[-2:])
        args = features, positions, sparse, dense
        one = self.head.masks(*args, multimask=False)
        three = self.head.masks(*args, multimask=True)
        alone = ((labels != NOT_A_POINT).sum(1, keepdim=True) == 1).float()
        logits = torch.cat([one.logits, three.logits], 1)
        quality = torch.cat(
            [one.quality * (1 - alone) - alone, three.quality * alone - (1 - alone)], 1
        )
        size = (MASK_SIDE, MASK_SIDE)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False), quality


def click_modules(model: ImageModel) -> tuple[ClickEncoder, ClickDecoder]:
    """Make the modules that are exported, in float32 on the CPU.

    Args:
        model: A model with an interactive head.

    Returns:
        Encoder and decoder.

    Raises:
        MissingAbilityError: the weights have no interactive head.
    """
    model.require("interactive")
    net = fold(model.learned(), torch.float32).cpu().eval()
    c = model.config
    with torch.no_grad():  # the pyramid is folded on first use, which must not be traced
        net.read_frame(net.part("trunk")(torch.zeros(1, 3, c.resolution, c.resolution)))
    return ClickEncoder(net, c.resolution, c.mean, c.std).eval(), ClickDecoder(net, c.grid).eval()


@torch.no_grad()
def export_clicks(model: ImageModel, folder: str | os.PathLike[str]) -> ClickFiles:
    """Write both ONNX files. Existing files are replaced when the new ones are complete.

    Args:
        model: A model with an interactive head.
        folder: Folder of the files; made if it does not exist.

    Returns:
        The files.

    Raises:
        MissingAbilityError: the weights have no interactive head.
        ExportError: a package that writes ONNX is missing.
    """
    missing = [n for n in ("onnx", "onnxscript") if importlib.util.find_spec(n) is None]
    if missing:
        raise ExportError(
            f"{' and '.join(missing)} not installed: pip install 'efficientsam3[export]'"
        )
    encoder, decoder = click_modules(model)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    image = torch.zeros(1, 3, SIDE, SIDE)
    _write(encoder, {"image": image}, FEATURES, place / ENCODER)
    clicks = {
        **dict(zip(FEATURES, encoder(image), strict=True)),
        "point_coords": torch.full((1, 2, 2), 512.0),
        "point_labels": torch.ones(1, 2),
        "mask_input": torch.zeros(1, 1, MASK_SIDE, MASK_SIDE),
        "has_mask_input": torch.zeros(1),
    }
    points = torch.export.Dim("points", min=1, max=64)
    shapes: dict[str, Any] = dict.fromkeys(clicks)
    shapes["point_coords"] = shapes["point_labels"] = {1: points}
    _write(decoder, clicks, ("masks", "iou_predictions"), place / DECODER, shapes)
    return ClickFiles(place / ENCODER, place / DECODER)


FEATURES = ("image_embed", "high_res_feats_0", "high_res_feats_1")


def _write(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: tuple[str, ...],
    path: Path,
    shapes: dict[str, Any] | None = None,
) -> None:
    with quiet(), replacing(path) as temporary:
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(temporary),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=None if shapes is None else tuple(shapes.values()),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
