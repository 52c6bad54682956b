"""The table of names: every pairing of encoders, every released file, in both directions."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from efficientsam3.build import build
from efficientsam3.checkpoints import layout
from efficientsam3.checkpoints.assemble import config_of
from efficientsam3.config import REQUIRED, TEXTS, VISIONS, ModelConfig
from efficientsam3.variants import VARIANTS, Variant, Weights

from ...parity.upstream import Keys, released_keys

RELEASED = [v for v in VARIANTS.values() if isinstance(v.weights, Weights)]

Shapes = dict[str, tuple[int, ...]]


def renamed(keys: Keys, vision: str, text: str, release: str) -> Shapes:
    """What was learned, by our names; each name leads back to the released one."""
    ours = layout.to_ours(vision, text, release)
    theirs = layout.to_upstream(vision, text, release)
    out: Shapes = {}
    for key, (shape, _) in keys.items():
        canonical = layout.canonical(key)
        if layout.ignored(canonical, release):
            continue
        name = ours(canonical)
        assert name is not None, f"no line of the table fits {key}"
        assert name not in out, f"{key} and another key both become {name}"
        back = theirs(name)
        assert back == canonical
        assert layout.full_key(back) == key
        out[name] = shape
    return out


@functools.cache
def learned(config: ModelConfig) -> Shapes:
    """Names and shapes of the model that is built, without counters."""
    state = build(config, "meta").state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if not layout.DERIVED.search(k)}


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("vision", VISIONS)
def test_any_image_encoder_goes_with_any_text_encoder(vision: str, text: str) -> None:
    names = renamed(released_keys(vision, text, 32), vision, text, "3.0")
    expected = {k: v for k, v in names.items() if k.split(".")[0] in REQUIRED}
    assert learned(ModelConfig(vision, text, 32, parts=())) == expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", RELEASED, ids=lambda v: v.name)
def test_every_row_of_the_table_has_the_keys_of_its_file(variant: Variant) -> None:
    v = variant
    keys = released_keys(v.vision, v.text, v.context, v.release)
    assert learned(config_of(v)) == renamed(keys, v.vision, v.text, v.release)


@pytest.mark.parametrize("context", [16, 32, 77])
@pytest.mark.parametrize("text", ["mobileclip-s0", "mobileclip-s1", "mobileclip2-l"])
def test_context_is_the_length_of_the_position_table(text: str, context: int) -> None:
    keys = released_keys("efficientvit-b0", text, context)
    shapes = renamed(keys, "efficientvit-b0", text, "3.0")
    assert shapes["text.positions"][2] == context
    config = ModelConfig("efficientvit-b0", text, context)
    assert learned(config)["text.positions"] == shapes["text.positions"]


@pytest.mark.parametrize("vision", ["tinyvit-11m", "sam3"])
def test_what_the_two_releases_share_has_one_name_here(vision: str) -> None:
    shapes = [
        renamed(
            released_keys(vision, "mobileclip-s0", 16, release), vision, "mobileclip-s0", release
        )
        for release in ("3.0", "3.1")
    ]
    only_old, only_new = (set(a) - set(b) for a, b in (shapes, shapes[::-1]))
    assert {k.split(".")[0] for k in only_old} == {"neck", "interactive_neck", "memory"}
    assert {k for k in only_old if "neck" in k} == {
        f"{neck}.levels.3.{leaf}"
        for neck in ("neck", "interactive_neck")
        for leaf in ("mix.weight", "mix.bias", "smooth.weight", "smooth.bias")
    }
    assert {k.split(".")[0] for k in only_new} == {"propagation_neck", "multiplex"}
    both = set(shapes[0]) & set(shapes[1])
    assert {k for k in both if shapes[0][k] != shapes[1][k]} == set()


def test_comfyuis_file_of_sam3_1_has_upstreams_names() -> None:
    """All in half precision, but for rotary tables and CLIP's projection: its size shows it."""
    offset, header = 0, {}
    for key, (shape, _) in sorted(released_keys("sam3", "sam3", 32, "3.1").items()):
        if not key.endswith(("attn.freqs_cis", "encoder.text_projection")):
            end = offset + 2 * torch.Size(shape).numel()
            header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
            offset = end
    length = len(json.dumps(header, separators=(",", ":")))  # as in a safetensors file
    assert 8 + length + -length % 8 + offset == 1_745_546_848


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("detector.transformer.decoder.norm.weight", "transformer.decoder.norm.weight"),
        ("module.detector.transformer.decoder.norm.weight", "transformer.decoder.norm.weight"),
        ("sam3_model.transformer.decoder.norm.weight", "transformer.decoder.norm.weight"),
        ("tracker.no_mem_embed", "tracker.no_mem_embed"),
        ("inst_interactive_predictor.model.no_mem_embed", "tracker.no_mem_embed"),
        ("sam2_predictor.maskmem_tpos_enc", "tracker.model.maskmem_tpos_enc"),
        (
            "backbone.vision_backbone.trunk.student_trunk.model.head.0.weight",
            "backbone.vision_backbone.trunk.model.head.0.weight",
        ),
    ],
)
def test_every_spelling_of_a_key_has_one_form(key: str, canonical: str) -> None:
    assert layout.canonical(key) == canonical


@pytest.mark.parametrize(
    "key",
    [
        "backbone.vision_backbone.convs.0.conv_1x1x.weight",
        "transformer.encoders.layers.0.norm1.weight",
        "backbone.language_backbone.encoder.projection_layers",
        "somewhere.else",
    ],
)
def test_a_key_that_only_looks_alike_is_unknown(key: str) -> None:
    assert layout.to_ours("tinyvit-5m", "mobileclip-s0")(key) is None
