"""Names of weights in files of Hugging Face transformers: one written table, read in one direction.

A line is a pair of prefixes as in ``layout``: transformers' name, and upstream's canonical one.
Where upstream has one projection of queries, keys and values, transformers has three; the table
calls them together ``qkv_proj``, and reading joins them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from .layout import Renamer, under

VIT = """
embeddings.position_embeddings                  pos_embed
embeddings.patch_embeddings.projection.         patch_embed.proj.
layer_norm.                                     ln_pre.
layers.#.layer_norm#.                           blocks.#.norm#.
layers.#.attention.qkv_proj.                    blocks.#.attn.qkv.
layers.#.attention.o_proj.                      blocks.#.attn.proj.
layers.#.mlp.                                   blocks.#.mlp.
"""

PYRAMID = """
0.scale_layers.0.                               0.dconv_2x2_0.
0.scale_layers.2.                               0.dconv_2x2_1.
1.scale_layers.0.                               1.dconv_2x2.
#.proj1.                                        #.conv_1x1.
#.proj2.                                        #.conv_3x3.
"""

TEXT_SAM3 = """
text_model.embeddings.token_embedding.          token_embedding.
text_model.embeddings.position_embedding.weight positional_embedding
text_model.encoder.layers.#.self_attn.qkv_proj. transformer.resblocks.#.attn.in_proj_
text_model.encoder.layers.#.self_attn.out_proj. transformer.resblocks.#.attn.out_proj.
text_model.encoder.layers.#.layer_norm#.        transformer.resblocks.#.ln_#.
text_model.encoder.layers.#.mlp.fc1.            transformer.resblocks.#.mlp.c_fc.
text_model.encoder.layers.#.mlp.fc2.            transformer.resblocks.#.mlp.c_proj.
text_model.final_layer_norm.                    ln_final.
text_projection.weight                          text_projection
"""

TEXT_MOBILECLIP = """
embeddings.token_embedding.                     embedding_layer.
embeddings.position_embedding.position_embedding positional_embedding.pos_embed.pos_embed
layers.#.layer_norm1.                           transformer.#.pre_norm_mha.0.
layers.#.self_attn.qkv_proj.                    transformer.#.pre_norm_mha.1.qkv_proj.
layers.#.self_attn.out_proj.                    transformer.#.pre_norm_mha.1.out_proj.
layers.#.layer_norm2.                           transformer.#.pre_norm_ffn.0.
layers.#.mlp.fc1.                               transformer.#.pre_norm_ffn.1.
layers.#.mlp.fc2.                               transformer.#.pre_norm_ffn.4.
layers.#.layer_scale                            transformer.#.layer_scale
layers.#.token_mixer.layer_scale                transformer.#.token_mixer.layer_scale
layers.#.token_mixer.reference_batchnorm.       transformer.#.token_mixer.norm.rbr_skip.
layers.#.token_mixer.mixer.batchnorm_skip.      transformer.#.token_mixer.mixer.rbr_skip.
layers.#.token_mixer.mixer.conv.                transformer.#.token_mixer.mixer.rbr_conv.0.conv.
layers.#.token_mixer.mixer.batchnorm_conv.      transformer.#.token_mixer.mixer.rbr_conv.0.bn.
layers.#.conv_feed_forward.depthwise_conv.      transformer.#.convffn.conv.conv.
layers.#.conv_feed_forward.depthwise_batchnorm. transformer.#.convffn.conv.bn.
layers.#.conv_feed_forward.mlp.                 transformer.#.convffn.
final_layer_norm.                               final_layer_norm.
projection.weight                               projection_layer
"""

LAYER = """
self_attn.qkv_proj.                             self_attn.in_proj_
self_attn.o_proj.                               self_attn.out_proj.
cross_attn.qkv_proj.                            cross_attn_image.in_proj_
cross_attn.o_proj.                              cross_attn_image.out_proj.
layer_norm#.                                    norm#.
mlp.fc#.                                        linear#.
"""
"""A layer of the geometry encoder, and of the fusion encoder."""

GEOMETRY = """
vision_layer_norm.                              img_pre_norm.
prompt_layer_norm.                              norm.
output_layer_norm.                              encode_norm.
label_embed.                                    label_embed.
cls_embed.                                      cls_embed.
final_proj.                                     final_proj.
boxes_direct_project.                           boxes_direct_project.
boxes_pool_project.                             boxes_pool_project.
boxes_pos_enc_project.                          boxes_pos_enc_project.
"""

DECODER = """
layers.#.self_attn.qkv_proj.                    layers.#.self_attn.in_proj_
layers.#.self_attn.o_proj.                      layers.#.self_attn.out_proj.
layers.#.text_cross_attn.qkv_proj.              layers.#.ca_text.in_proj_
layers.#.text_cross_attn.o_proj.                layers.#.ca_text.out_proj.
layers.#.vision_cross_attn.qkv_proj.            layers.#.cross_attn.in_proj_
layers.#.vision_cross_attn.o_proj.              layers.#.cross_attn.out_proj.
layers.#.vision_cross_attn_layer_norm.          layers.#.norm1.
layers.#.text_cross_attn_layer_norm.            layers.#.catext_norm.
layers.#.self_attn_layer_norm.                  layers.#.norm2.
layers.#.mlp_layer_norm.                        layers.#.norm3.
layers.#.mlp.fc#.                               layers.#.linear#.
output_layer_norm.                              norm.
presence_layer_norm.                            presence_token_out_norm.
presence_token.                                 presence_token.
query_embed.                                    query_embed.
reference_points.                               reference_points.
""" + "".join(
    # transformers counts the layers of these heads from 1
    f"{theirs}.layer{i + 1}. {ours}.layers.{i}.\n"
    for theirs, ours in (
        ("box_head", "bbox_embed"),
        ("presence_head", "presence_token_head"),
        ("ref_point_head", "ref_point_head"),
        ("box_rpb_embed_x", "boxRPB_embed_x"),
        ("box_rpb_embed_y", "boxRPB_embed_y"),
    )
    for i in range(3)
)

SCORING = """
text_mlp.layer1.                                prompt_mlp.layers.0.
text_mlp.layer2.                                prompt_mlp.layers.1.
text_mlp_out_norm.                              prompt_mlp.out_norm.
text_proj.                                      prompt_proj.
query_proj.                                     hs_proj.
"""

MASKS = """
pixel_decoder.                                  pixel_decoder.
mask_embedder.                                  mask_predictor.mask_embed.
instance_projection.                            instance_seg_head.
semantic_projection.                            semantic_seg_head.
prompt_cross_attn.qkv_proj.                     cross_attend_prompt.in_proj_
prompt_cross_attn.o_proj.                       cross_attend_prompt.out_proj.
prompt_cross_attn_norm.                         cross_attn_norm.
"""

TRACKER = (
    """
prompt_encoder.shared_embedding.positional_embedding \
sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
prompt_encoder.point_embed.                     sam_prompt_encoder.point_embeddings.
prompt_encoder.not_a_point_embed.               sam_prompt_encoder.not_a_point_embed.
prompt_encoder.no_mask_embed.                   sam_prompt_encoder.no_mask_embed.
prompt_encoder.mask_embed.conv1.                sam_prompt_encoder.mask_downscaling.0.
prompt_encoder.mask_embed.layer_norm1.          sam_prompt_encoder.mask_downscaling.1.
prompt_encoder.mask_embed.conv2.                sam_prompt_encoder.mask_downscaling.3.
prompt_encoder.mask_embed.layer_norm2.          sam_prompt_encoder.mask_downscaling.4.
prompt_encoder.mask_embed.conv3.                sam_prompt_encoder.mask_downscaling.6.
mask_decoder.transformer.layers.#.layer_norm#.  sam_mask_decoder.transformer.layers.#.norm#.
mask_decoder.transformer.layers.#.mlp.proj_in.  sam_mask_decoder.transformer.layers.#.mlp.lin1.
mask_decoder.transformer.layers.#.mlp.proj_out. sam_mask_decoder.transformer.layers.#.mlp.lin2.
mask_decoder.transformer.layer_norm_final_attn. sam_mask_decoder.transformer.norm_final_attn.
mask_decoder.upscale_conv1.                     sam_mask_decoder.output_upscaling.0.
mask_decoder.upscale_layer_norm.                sam_mask_decoder.output_upscaling.1.
mask_decoder.upscale_conv2.                     sam_mask_decoder.output_upscaling.3.
memory_attention.layers.#.layer_norm#.          transformer.encoder.layers.#.norm#.
memory_attention.layers.#.linear#.              transformer.encoder.layers.#.linear#.
memory_attention.layer_norm.                    transformer.encoder.norm.
memory_encoder.feature_projection.              maskmem_backbone.pix_feat_proj.
memory_encoder.projection.                      maskmem_backbone.out_proj.
memory_encoder.memory_fuser.layers.#.scale      maskmem_backbone.fuser.layers.#.gamma
memory_encoder.memory_fuser.layers.#.depthwise_conv. maskmem_backbone.fuser.layers.#.dwconv.
memory_encoder.memory_fuser.layers.#.layer_norm. maskmem_backbone.fuser.layers.#.norm.
memory_encoder.memory_fuser.layers.#.pointwise_conv#. maskmem_backbone.fuser.layers.#.pwconv#.
memory_encoder.mask_downsampler.final_conv.     maskmem_backbone.mask_downsampler.encoder.12.
memory_temporal_positional_encoding             maskmem_tpos_enc
no_memory_embedding                             no_mem_embed
no_memory_positional_encoding                   no_mem_pos_enc
no_object_pointer                               no_obj_ptr
occlusion_spatial_embedding_parameter           no_obj_embed_spatial
mask_downsample.                                mask_downsample.
temporal_positional_encoding_projection_layer.  obj_ptr_tpos_proj.
"""
    + "".join(
        f"memory_encoder.mask_downsampler.layers.{i}.{theirs}. "
        f"maskmem_backbone.mask_downsampler.encoder.{3 * i + place}.\n"
        for i in range(4)
        for place, theirs in enumerate(("conv", "layer_norm"))
    )
    + "".join(
        f"{theirs}.{layer}. {ours}.layers.{i}.\n"
        for theirs, ours in (
            (
                "mask_decoder.output_hypernetworks_mlps.#",
                "sam_mask_decoder.output_hypernetworks_mlps.#",
            ),
            ("mask_decoder.iou_prediction_head", "sam_mask_decoder.iou_prediction_head"),
            ("mask_decoder.pred_obj_score_head", "sam_mask_decoder.pred_obj_score_head"),
            ("object_pointer_proj", "obj_ptr_proj"),
        )
        for i, layer in enumerate(("proj_in", "layers.0", "proj_out"))
    )
    + "".join(
        f"{theirs}.{part}.{end}. {ours}.{part}.{end.replace('o_', 'out_')}.\n"
        for theirs, ours, parts in (
            (
                "mask_decoder.transformer.layers.#",
                "sam_mask_decoder.transformer.layers.#",
                ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"),
            ),
            (
                "mask_decoder.transformer",
                "sam_mask_decoder.transformer",
                ("final_attn_token_to_image",),
            ),
            (
                "memory_attention.layers.#",
                "transformer.encoder.layers.#",
                ("self_attn", "cross_attn_image"),
            ),
        )
        for part in parts
        for end in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    + "".join(
        f"mask_decoder.{name}. sam_mask_decoder.{name}.\n"
        for name in ("iou_token", "mask_tokens", "obj_score_token", "conv_s0", "conv_s1")
    )
)
"""The tracker; upstream, too, has three projections in its attention."""

UNUSED = re.compile(r"\.rotary_emb\.|\.position_ids$")
"""Tensors that are computed from shapes."""

FREQUENCIES = "tracker_model.prompt_encoder.shared_embedding.positional_embedding"
FREQUENCIES_COPY = "tracker_model.shared_image_embedding.positional_embedding"
"""One table upstream; transformers' own converter writes it twice."""

GROUPS = frozenset(
    {"detector_model", "tracker_model", "tracker_neck", "vision_encoder", "text_encoder"}
    | {"text_projection", "detr_encoder", "detr_decoder", "dot_product_scoring"}
)
"""First components of keys that only files of transformers have."""

_TRUNK, _WORDS = "backbone.vision_backbone.trunk.", "backbone.language_backbone."
_PROJECTION = re.compile(r"\.([qkv])_proj\.")


@functools.cache
def _renamer(*, lite: bool) -> Renamer:
    """What renames transformers' keys, without "detector_model.", to upstream's canonical keys."""
    necks = (
        ("vision_encoder.neck.fpn_layers.", "backbone.vision_backbone.convs."),
        ("tracker_neck.fpn_layers.", "backbone.vision_backbone.sam2_convs."),
    )
    layers = (
        ("geometry_encoder.layers.#.", "geometry_encoder.encode.#."),
        ("detr_encoder.layers.#.", "transformer.encoder.layers.#."),
    )
    return Renamer(
        (
            *under("vision_encoder.backbone.", _TRUNK, VIT),
            *(row for theirs, ours in necks for row in under(theirs, ours, PYRAMID)),
            *under("text_encoder.", _WORDS + "encoder.", TEXT_MOBILECLIP if lite else TEXT_SAM3),
            ("text_projection.", _WORDS + ("projector." if lite else "resizer.")),
            *(row for theirs, ours in layers for row in under(theirs, ours, LAYER)),
            *under("geometry_encoder.", "geometry_encoder.", GEOMETRY),
            *under("detr_decoder.", "transformer.decoder.", DECODER),
            *under("dot_product_scoring.", "dot_prod_scoring.", SCORING),
            *under("mask_decoder.", "segmentation_head.", MASKS),
            *under("tracker_model.", "tracker.", TRACKER),
        )
    )


def canonical(key: str) -> str:
    """Bring a key of a file into the form that the table expects.

    Args:
        key: A key, with "detector_model." or without. ``Sam3VideoModel.save_pretrained`` of
            transformers 5.23.0 writes "tracker_model." twice.

    Returns:
        The key without "detector_model.", and with one prefix for the tracker or its neck.
    """
    while key.startswith(("tracker_model.tracker_model.", "tracker_model.tracker_neck.")):
        key = key.removeprefix("tracker_model.")
    return key.removeprefix("detector_model.")


def is_transformers(keys: Iterable[str]) -> bool:
    """Whether a file is in transformers' layout.

    Args:
        keys: Its keys.
    """
    return not GROUPS.isdisjoint(key.split(".", 1)[0] for key in keys)


def to_upstream(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the weights of a file in transformers' layout, and give them upstream's shapes.

    What transformers leaves out is zero: the row of a class token that the image encoder does not
    use, and the projections of points, without which points are no exemplars.

    Args:
        state: Weights by canonical keys of ``Sam3VideoModel``, ``Sam3Model`` or
            ``Sam3LiteTextModel``.

    Returns:
        The weights by upstream's canonical keys, and the keys for which there is no line; with such
        keys no weights. Of three projections all are joined or none.

    Raises:
        RuntimeError: Shapes do not go together. Or an IndexError.
    """
    rename = _renamer(lite=any(key.startswith("text_encoder.embeddings.") for key in state))
    renamed: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in state.items():
        if UNUSED.search(key) or key == FREQUENCIES_COPY:
            continue
        projection = None if key.startswith("tracker_") else _PROJECTION.search(key)
        name = rename(_PROJECTION.sub(".qkv_proj.", key) if projection else key)
        if name is None:
            unknown.append(key)
        elif projection:
            apart.setdefault(name, {})[projection[1]] = value
        else:
            renamed[name] = value
    if unknown:
        return {}, unknown
    for name, parts in apart.items():
        if len(parts) == 3:
            renamed[name] = torch.cat([parts[p] for p in "qkv"])
    return _reshaped(renamed), unknown


def _reshaped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of upstream's names upstream's shapes."""
    positions = state.get(_TRUNK + "pos_embed")
    if positions is not None:
        state[_TRUNK + "pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    clip = state.get(_WORDS + "encoder.text_projection")
    if clip is not None:
        state[_WORDS + "encoder.text_projection"] = clip.t()
    kinds = state.pop("tracker.sam_prompt_encoder.point_embeddings.weight", None)
    for i, row in enumerate([] if kinds is None else kinds.split(1)):
        state[f"tracker.sam_prompt_encoder.point_embeddings.{i}.weight"] = row
    labels = state.get("geometry_encoder.label_embed.weight")
    if labels is not None:
        width = labels.shape[1]
        for name, inputs in (("direct", 2), ("pool", width), ("pos_enc", width)):
            key = f"geometry_encoder.points_{name}_project."
            state[key + "weight"] = labels.new_zeros(width, inputs)
            state[key + "bias"] = labels.new_zeros(width)
    return state
