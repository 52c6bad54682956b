"""Upstream's checkpoints without upstream's weights: names and shapes, and seeded values.

What a released file is, is known exactly: names, shapes and dtypes (``upstream_keys.json.gz``,
written out of upstream's own modules). Values come from a generator seeded by each name, so
anyone can make the file on which upstream's answers (``*.npz``) were computed.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import zlib
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent

Keys = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name in a released file -> shape and dtype."""

TRUNK = "detector.backbone.vision_backbone.trunk."
WORDS = "detector.backbone.language_backbone."
MOBILECLIP_ROWS = WORDS + "encoder.positional_embedding.pos_embed.pos_embed"


@functools.cache
def groups() -> dict[str, Keys]:
    """Keys by group.

    ``trunk/<encoder>`` and ``text/<encoder>`` (MobileCLIP's with 77 positions); ``detector``,
    what all models share; ``3.0`` and ``3.1``, what the releases add: necks and tracker.
    """
    packed = json.loads(gzip.decompress((HERE / "upstream_keys.json.gz").read_bytes()))
    return {
        name: {k: (tuple(shape), getattr(torch, dtype)) for k, (shape, dtype) in keys.items()}
        for name, keys in packed.items()
    }


def released_keys(vision: str, text: str, context: int, release: str = "3.0") -> Keys:
    """All keys of a complete released file of these encoders."""
    known = groups()
    keys = {**known[f"trunk/{vision}"], **known[f"text/{text}"]}
    if MOBILECLIP_ROWS in keys:
        shape, dtype = keys[MOBILECLIP_ROWS]
        keys[MOBILECLIP_ROWS] = ((*shape[:2], context, *shape[3:]), dtype)
    return {**keys, **known["detector"], **known[release]}


def part(key: str) -> str:
    """Which part of the model a released key belongs to, as ``build`` calls it."""
    second = {"sam2_convs": "interactive_neck", "interactive_convs": "interactive_neck"}
    table = [
        (TRUNK, "trunk"),
        (WORDS, "text"),
        ("detector.backbone.vision_backbone.convs.", "neck"),
        *((f"detector.backbone.vision_backbone.{k}.", v) for k, v in second.items()),
        ("detector.backbone.vision_backbone.propagation_convs.", "propagation_neck"),
        ("detector.geometry_encoder.", "geometry"),
        ("detector.transformer.encoder.", "fusion"),
        ("detector.transformer.decoder.", "decoder"),
        ("detector.dot_prod_scoring.", "scoring"),
        ("detector.segmentation_head.", "masks"),
        ("tracker.sam_", "interactive"),
        ("tracker.no_mem_embed", "interactive"),
        ("tracker.model.interactive_sam_", "interactive"),
        ("tracker.model.interactivity_no_mem_embed", "interactive"),
        ("tracker.model.", "multiplex"),
        ("tracker.", "memory"),
    ]
    return next(name for prefix, name in table if key.startswith(prefix))


# Values --------------------------------------------------------------------------------------

_DERIVED = re.compile(
    r"(freqs_cis|freqs_cos|freqs_sin|attention_bias_idxs|rel_pos_idx|relative_position_index"
    r"|image_pe_layer_cache|attn_mask$|compilable_cord_cache|compilable_stored_size|position_ids"
    r"|coord_cache|bb_pos|inv_freq|pixel_mean|pixel_std)"
)
_LAYER_SCALE = re.compile(r"(\.gamma\d*$|layer_scale\w*$|\.ls\d*\.gamma$)")
_EMBEDDING = re.compile(r"(token_embedding|embedding_layer|word_embeddings)\S*weight$")
_POSITIONS = re.compile(
    r"(pos_embed|positional_embedding|pos_embedding|absolute_pos|cls_token|attention_biases"
    r"|rel_pos_[hw]|maskmem_tpos_enc|no_mem_pos_enc|no_mem_embed|no_obj_ptr|no_obj_embed"
    r"|occ_spatial)"
)
_OF_ORDER_ONE = re.compile(
    r"(query_embed|reference_points|presence_token\.weight|instance_query|label_embed|cls_embed"
    r"|point_embeddings|not_a_point_embed|no_mask_embed|iou_token|mask_tokens|obj_score_token"
    r"|positional_encoding_gaussian_matrix)"
)
_END_OF_BRANCH = re.compile(
    r"(mlp\.fc2\.weight|attn\.proj\.weight|\.conv3\.c\.weight|point_conv\.conv\.weight"
    r"|proj\.conv\.weight|token_mixer\.0\.conv1?\.(c\.)?weight|channel_mixer\.m\.\d+\.c\.weight"
    r"|pre_norm_ffn\.1\.\d+\.weight|context_module\.main\.proj"
    r"|(encoder|decoder|encode)\.(layers\.)?\d+\.(linear2|\w+\.out_proj)\.weight)"
)
_BLOCKWISE_TRANSPOSED = re.compile(r"(dconv_2x2|output_upscaling\.[03]\.|upscale_conv)")
_LOUD = ("trunk.model.head.3.weight", "dot_prod_scoring.hs_proj.weight")


def value(name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The float32 value of a tensor, at a scale that keeps activations sane.

    Args:
        name: as in upstream's image model: see ``module_name``.

    Returns:
        None for what is derived from shapes and is not learned.
    """
    if _DERIVED.search(name):
        return None
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) & 0x7FFFFFFF)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator)

    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_mean":
        return 0.05 * normal()
    if leaf == "running_var":
        return 0.75 + 0.75 * torch.rand(shape, generator=generator)
    if _LAYER_SCALE.search(name):
        return 0.1 * (1 + 0.1 * normal())
    if _EMBEDDING.search(name):
        return normal() * 0.5
    if _OF_ORDER_ONE.search(name):
        return normal()
    if _POSITIONS.search(name):
        return 0.02 * normal()
    if leaf == "bias" or leaf.endswith("_bias"):
        return 0.02 * normal()
    if len(shape) <= 1:
        scale = leaf.endswith("weight") or leaf == "scale"
        return 1 + 0.1 * normal() if scale else 0.02 * normal()
    taps = 1
    for size in shape[1:]:
        taps *= size
    if len(shape) == 4 and _BLOCKWISE_TRANSPOSED.search(name):
        taps = shape[0]
    gain = 1.2 if len(shape) == 4 else 1.0
    if _END_OF_BRANCH.search(name):
        gain = 0.25
    if name.endswith(_LOUD):
        gain = 3.0
    return normal() * (gain / taps**0.5)


def module_name(key: str) -> str:
    """A key of a released file as upstream's image model calls it, by which values are seeded."""
    if key.startswith("tracker."):
        return "inst_interactive_predictor.model." + key.removeprefix("tracker.")
    return key.removeprefix("detector.")


def values(keys: Keys) -> dict[str, Tensor]:
    """A state dict with seeded values, of all that was learned."""
    state = {}
    for key, (shape, dtype) in keys.items():
        tensor = value(module_name(key), shape) if dtype.is_floating_point else None
        if tensor is not None:
            state[key] = tensor
    return state


def placeholders(keys: Keys) -> dict[str, Tensor]:
    """A state dict of the right names and shapes that is small on disk.

    Each tensor is one number, different for each key, repeated without being stored.
    """
    return {
        key: torch.tensor(zlib.crc32(key.encode()) % 1000, dtype=dtype).expand(shape)
        for key, (shape, dtype) in keys.items()
    }
