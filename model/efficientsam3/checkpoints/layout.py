"""Upstream's names of weights and ours: one written table, read in both directions.

A line is a pair of prefixes; ``#`` stands for a number that both sides share, and what
follows the prefix is carried over. The first line that fits wins.
"""

from __future__ import annotations

import functools
import re

TEXT_MOBILECLIP = """
encoder.embedding_layer.                        embedding.
encoder.positional_embedding.pos_embed.pos_embed positions
encoder.transformer.#.pre_norm_mha.0.           blocks.#.norm1.
encoder.transformer.#.pre_norm_mha.1.           blocks.#.attn.
encoder.transformer.#.pre_norm_ffn.0.           blocks.#.norm2.
encoder.transformer.#.pre_norm_ffn.1.           blocks.#.fc1.
encoder.transformer.#.pre_norm_ffn.4.           blocks.#.fc2.
encoder.transformer.#.token_mixer.norm.rbr_skip. blocks.#.skip_norm.
encoder.transformer.#.token_mixer.mixer.rbr_skip. blocks.#.mixer_skip_norm.
encoder.transformer.#.token_mixer.mixer.rbr_conv.0.conv. blocks.#.mixer_conv.
encoder.transformer.#.token_mixer.mixer.rbr_conv.0.bn. blocks.#.mixer_conv_norm.
encoder.transformer.#.token_mixer.layer_scale   blocks.#.mixer_scale
encoder.transformer.#.convffn.conv.conv.        blocks.#.conv.
encoder.transformer.#.convffn.conv.bn.          blocks.#.conv_norm.
encoder.transformer.#.convffn.fc1.              blocks.#.expand.
encoder.transformer.#.convffn.fc2.              blocks.#.reduce.
encoder.transformer.#.layer_scale               blocks.#.scale
encoder.final_layer_norm.                       norm.
encoder.projection_layer                        clip_projection
projector.                                      projector.
"""

TEXT_SAM3 = """
encoder.token_embedding.                        embedding.
encoder.positional_embedding                    positions
encoder.transformer.resblocks.#.mlp.c_fc.       blocks.#.fc1.
encoder.transformer.resblocks.#.mlp.c_proj.     blocks.#.fc2.
encoder.transformer.resblocks.#.                blocks.#.
encoder.ln_final.                               norm.
encoder.text_projection                         clip_projection
resizer.                                        projector.
"""

PYRAMID = """
0.dconv_2x2_0.                                  0.up.0.
0.dconv_2x2_1.                                  0.up.1.
1.dconv_2x2.                                    1.up.0.
#.conv_1x1.                                     #.mix.
#.conv_3x3.                                     #.smooth.
"""

MASKS = """
mask_predictor.mask_embed.                      mask_embed.
pixel_decoder.                                  pixel_decoder.
cross_attend_prompt.                            cross_attend_prompt.
cross_attn_norm.                                cross_attn_norm.
semantic_seg_head.                              semantic_seg_head.
instance_seg_head.                              instance_seg_head.
"""

INTERACTIVE = """
sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix prompts.frequencies
sam_prompt_encoder.                             prompts.
sam_mask_decoder.transformer.layers.#.mlp.lin1. masks.transformer.layers.#.fc1.
sam_mask_decoder.transformer.layers.#.mlp.lin2. masks.transformer.layers.#.fc2.
sam_mask_decoder.                               masks.
no_mem_embed                                    no_memory
"""

MEMORY = """
maskmem_backbone.fuser.layers.                  encoder.fuser.
maskmem_backbone.                               encoder.
transformer.encoder.                            attention.
maskmem_tpos_enc                                frame_positions
no_mem_pos_enc                                  no_memory_position
no_obj_ptr                                      no_object_pointer
no_obj_embed_spatial                            no_object
mask_downsample.                                mask_downsample.
obj_ptr_proj.                                   pointer.
obj_ptr_tpos_proj.                              pointer_position.
spatial_perceiver.layers.#.attn.norm_latents.   perceiver.layers.#.look.norm.
spatial_perceiver.layers.#.attn.norm_x.         perceiver.layers.#.look.norm_tokens.
spatial_perceiver.layers.#.attn.to_q.           perceiver.layers.#.look.q.
spatial_perceiver.layers.#.attn.to_kv.          perceiver.layers.#.look.kv.
spatial_perceiver.layers.#.attn.to_out.         perceiver.layers.#.look.out.
spatial_perceiver.layers.#.ff.0.                perceiver.layers.#.feed.norm.
spatial_perceiver.layers.#.ff.1.                perceiver.layers.#.feed.widen.
spatial_perceiver.layers.#.ff.3.                perceiver.layers.#.feed.narrow.
spatial_perceiver.layers.#.self_attn.norm.      perceiver.layers.#.mix.norm.
spatial_perceiver.layers.#.self_attn.to_q.      perceiver.layers.#.mix.q.
spatial_perceiver.layers.#.self_attn.to_kv.     perceiver.layers.#.mix.kv.
spatial_perceiver.layers.#.self_attn.to_out.    perceiver.layers.#.mix.out.
spatial_perceiver.layers.#.self_ff.0.           perceiver.layers.#.mix_feed.norm.
spatial_perceiver.layers.#.self_ff.1.           perceiver.layers.#.mix_feed.widen.
spatial_perceiver.layers.#.self_ff.3.           perceiver.layers.#.mix_feed.narrow.
spatial_perceiver.                              perceiver.
"""
"""SAM3's tracker; its Perceiver, which SAM3 has not, is spelled as EdgeTAM spells its own."""

MULTIPLEX = """
interactive_mask_downsample.                    mask_downsample.
interactive_obj_ptr_proj.                       object_pointer.
sam_mask_decoder.transformer.layers.#.mlp.lin1. masks.transformer.layers.#.fc1.
sam_mask_decoder.transformer.layers.#.mlp.lin2. masks.transformer.layers.#.fc2.
sam_mask_decoder.                               masks.
image_pe_layer.positional_encoding_gaussian_matrix frequencies
maskmem_backbone.fuser.layers.                  encoder.fuser.
maskmem_backbone.                               encoder.
transformer.encoder.                            attention.
maskmem_tpos_enc                                frame_positions
no_obj_embed_spatial                            no_object
output_valid_embed                              output_valid
output_invalid_embed                            output_invalid
no_obj_ptr_linear.                              no_object_pointer.
obj_ptr_proj.                                   pointer.
obj_ptr_tpos_proj.                              pointer_position.
"""
"""The rest of SAM3.1's tracker; what is named "interactive" there is SAM3's."""

TINYVIT = (
    """
patch_embed.seq.0.c.                            patch_embed.conv1.conv.
patch_embed.seq.0.bn.                           patch_embed.conv1.bn.
patch_embed.seq.2.c.                            patch_embed.conv2.conv.
patch_embed.seq.2.bn.                           patch_embed.conv2.bn.
"""
    + "".join(
        # timm counts a stage's downsampling to the stage after it
        f"layers.{i}.downsample.{conv}.{theirs}. stages.{i + 1}.downsample.{conv}.{ours}.\n"
        for i in range(3)
        for conv in ("conv1", "conv2", "conv3")
        for theirs, ours in (("c", "conv"), ("bn", "bn"))
    )
    + """
layers.#.blocks.#.conv1.c.                      stages.#.blocks.#.conv1.conv.
layers.#.blocks.#.conv2.c.                      stages.#.blocks.#.conv2.conv.
layers.#.blocks.#.conv3.c.                      stages.#.blocks.#.conv3.conv.
layers.#.blocks.#.local_conv.c.                 stages.#.blocks.#.local_conv.conv.
layers.#.                                       stages.#.
"""
)

EFFICIENTVIT = """
input_stem.op_list.0.                           stem.in_conv.
input_stem.op_list.1.                           stem.res0.
stages.#.op_list.                               stages.#.blocks.
"""

REPVIT_DEPTHS = {"m0.9": (2, 2, 14, 2), "m1.1": (2, 2, 12, 2), "m2.3": (6, 6, 34, 2)}
"""Blocks of each stage, without those around the downsampling."""


def _repvit(size: str) -> str:
    """Upstream numbers all blocks in a row; timm by stage, with the downsampling apart."""
    block = """
token_mixer.0.                                  token_mixer.
token_mixer.1.                                  se.
channel_mixer.m.0.                              channel_mixer.conv1.
channel_mixer.m.2.                              channel_mixer.conv2.
"""
    down = """
token_mixer.0.                                  spatial_downsample.
token_mixer.2.                                  channel_downsample.
channel_mixer.m.0.                              ffn.conv1.
channel_mixer.m.2.                              ffn.conv2.
"""
    table = ["features.0.0. stem.conv1.", "features.0.2. stem.conv2."]
    places: list[tuple[str, str]] = []
    for stage, depth in enumerate(REPVIT_DEPTHS[size]):
        if stage:
            places.append((f"stages.{stage}.downsample.pre_block.", block))
            places.append((f"stages.{stage}.downsample.", down))
        places += [(f"stages.{stage}.blocks.{i}.", block) for i in range(depth)]
    for index, (place, lines) in enumerate(places, start=1):
        for theirs, ours in _lines(lines):
            table.append(f"features.{index}.{theirs} {place}{ours}")
    return "\n".join(table)


def _lines(table: str) -> list[tuple[str, str]]:
    return [(a, b) for a, b in (line.split() for line in table.splitlines() if line.strip())]


def under(theirs: str, ours: str, table: str = "") -> list[tuple[str, str]]:
    """The pairs of a written table, each behind a pair of prefixes; that pair alone without one.

    Args:
        theirs: Prefix of the names on the left.
        ours: Prefix of the names on the right.
        table: A pair a line.
    """
    if not table:
        return [(theirs, ours)]
    return [(theirs + a, ours + b) for a, b in _lines(table)]


@functools.cache
def table(vision: str, text: str, release: str = "3.0") -> tuple[tuple[str, str], ...]:
    """Return the table of key prefixes of a model.

    Args:
        vision: Image encoder, a name of ``build.VISIONS``.
        text: Text encoder, a name of ``build.TEXTS``.
        release: "3.0", or "3.1", which has three necks and another tracker.

    Returns:
        Pairs of upstream's prefix and ours.
    """
    trunk = "backbone.vision_backbone.trunk."
    rows: list[tuple[str, str]] = []
    if vision == "sam3":
        rows += under(trunk, "trunk.")
    else:
        family, size = vision.split("-")
        backbone = {"tinyvit": TINYVIT, "efficientvit": EFFICIENTVIT}.get(family) or _repvit(size)
        rows += under(trunk + "model.backbone.model.", "trunk.backbone.", backbone)
        rows += under(trunk + "model.head.", "trunk.head.")
    words = TEXT_SAM3 if text == "sam3" else TEXT_MOBILECLIP
    rows += under("backbone.language_backbone.", "text.", words)
    second = "interactive_convs" if release == "3.1" else "sam2_convs"
    for theirs, ours in (
        ("convs", "neck"),
        (second, "interactive_neck"),
        ("propagation_convs", "propagation_neck"),
    ):
        rows += under(f"backbone.vision_backbone.{theirs}.", f"{ours}.levels.", PYRAMID)
    rows += under("geometry_encoder.", "geometry.")
    rows += under("transformer.encoder.", "fusion.")
    rows += under("transformer.decoder.", "decoder.")
    rows += under("dot_prod_scoring.", "scoring.")
    rows += under("segmentation_head.", "masks.", MASKS)
    if release == "3.1":
        renamed = INTERACTIVE.replace("no_mem_embed ", "interactivity_no_mem_embed ")
        renamed = renamed.replace("\nsam_", "\ninteractive_sam_")
        rows += under("tracker.model.", "interactive.", renamed)
        rows += under("tracker.model.", "multiplex.", MULTIPLEX)
    else:
        rows += under("tracker.", "interactive.", INTERACTIVE)
        rows += under("tracker.", "memory.", MEMORY)
    return tuple(rows)


class Renamer:
    """Applies a table of prefixes.

    Args:
        rows: Pairs of the prefix to replace and its replacement; "#" stands for a number.
    """

    def __init__(self, rows: tuple[tuple[str, str], ...]) -> None:
        self._rules: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        for source, target in rows:
            # A prefix without a final "." must be followed by "." or the end of the key.
            end = "" if source.endswith(".") else "(?![^.])"
            pattern = re.compile(re.escape(source).replace(r"\#", r"(\d+)") + end)
            parts = target.split("#")
            replacement = "".join(
                part + (f"\\g<{i}>" if i < len(parts) else "") for i, part in enumerate(parts, 1)
            )
            self._rules.setdefault(source.split(".", 1)[0], []).append((pattern, replacement))

    def __call__(self, key: str) -> str | None:
        """Rename a key; None where no row fits."""
        for pattern, replacement in self._rules.get(key.split(".", 1)[0], ()):
            match = pattern.match(key)
            if match:
                return match.expand(replacement) + key[match.end() :]
        return None


@functools.cache
def to_ours(vision: str, text: str, release: str = "3.0") -> Renamer:
    """Return what renames upstream's canonical keys to ours.

    Args:
        vision: Image encoder, a name of ``build.VISIONS``.
        text: Text encoder, a name of ``build.TEXTS``.
        release: "3.0" or "3.1".
    """
    return Renamer(table(vision, text, release))


@functools.cache
def to_upstream(vision: str, text: str, release: str = "3.0") -> Renamer:
    """Return what renames our keys to upstream's canonical keys.

    Args:
        vision: Image encoder, a name of ``build.VISIONS``.
        text: Text encoder, a name of ``build.TEXTS``.
        release: "3.0" or "3.1".
    """
    return Renamer(tuple((b, a) for a, b in table(vision, text, release)))


_PREFIXES = (
    # file's prefix -> canonical: the detector bare, the tracker behind "tracker."
    ("module.", ""),
    ("detector.", ""),
    ("sam3_model.", ""),  # SAM3.1 before release
    ("sam2_predictor.", "tracker.model."),
    ("inst_interactive_predictor.model.", "tracker."),
)

DERIVED = re.compile(
    r"(\.freqs_cis(_real|_imag)?|\.attention_bias_idxs|\.attn_mask|\.relative_coords"
    r"|\.num_batches_tracked|\.coord_cache.*|\.compilable_cord_cache)$"
)
"""Tensors that are computed from shapes, or counters. A file may have them or not."""

UNREAD = frozenset({"text.clip_projection"})
"""Weights by our keys that no model reads. Where a file leaves one out, it is zero."""

LEGACY_COPY = re.compile(r"^backbone\.vision_backbone\.sam2_convs\.")
"""In a SAM3.1 file: copies of ``interactive_convs`` for old loaders."""

CLASSIFIER = re.compile(
    r"^backbone\.vision_backbone\.trunk\.model\.backbone\.model\."
    r"(classifier|distill_head|head|norm_head)\."
)
"""ImageNet heads that some files still carry and no model runs."""


TEACHER_TRUNK = re.compile(r"^backbone\.vision_backbone\.trunk\.(?!model\.)")
"""SAM3's own image encoder, left in some early student files."""


def canonical(key: str) -> str:
    """Bring a key of a file into the form that ``table`` expects.

    Args:
        key: A key of a checkpoint.

    Returns:
        The canonical key.
    """
    for prefix, replacement in _PREFIXES:
        if key.startswith(prefix):
            key = replacement + key[len(prefix) :]
    return key.replace("student_trunk.", "")


def ignored(key: str, release: str = "3.0", *, student: bool = False) -> bool:
    """Whether a key is known to hold no weight of the model.

    Args:
        key: A canonical key.
        release: "3.0" or "3.1".
        student: Whether the file has a student's image encoder.
    """
    copy = release == "3.1" and LEGACY_COPY.match(key)
    teacher = student and TEACHER_TRUNK.match(key)
    return bool(copy or teacher or DERIVED.search(key) or CLASSIFIER.match(key))


def full_key(key: str) -> str:
    """Return a canonical key as released files have it, with ``detector.`` or ``tracker.``.

    Args:
        key: A canonical key.
    """
    return key if key.startswith("tracker.") else "detector." + key
