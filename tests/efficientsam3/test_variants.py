"""The table of models: legal rows, unique names, every released file."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from efficientsam3.checkpoints.assemble import config_of
from efficientsam3.config import TEXTS, VISIONS
from efficientsam3.errors import EfficientSam3Error
from efficientsam3.variants import (
    ABILITIES,
    EMBEDDED,
    REST_PARAMS,
    STAGES,
    TEXT_PARAMS,
    VARIANTS,
    VISION_PARAMS,
    Packaged,
    UnknownModelError,
    Variant,
    Weights,
    find_variant,
    list_models,
)

STUDENT_REPO = "Simon7108528/EfficientSAM3"

# Every released file, letter for letter.
FILES = {
    # Stage 1, image encoder alone
    "efficientsam3-repvit-m0.9-sam3text": "stage1_all_converted/efficient_sam3_repvit_s.pt",
    "efficientsam3-repvit-m1.1-sam3text": "stage1_all_converted/efficient_sam3_repvit_m.pt",
    "efficientsam3-repvit-m2.3-sam3text": "stage1_all_converted/efficient_sam3_repvit_l.pt",
    "efficientsam3-tinyvit-5m-sam3text": "stage1_all_converted/efficient_sam3_tinyvit_s.pt",
    "efficientsam3-tinyvit-11m-sam3text": "stage1_all_converted/efficient_sam3_tinyvit_m.pt",
    "efficientsam3-tinyvit-21m-sam3text": "stage1_all_converted/efficient_sam3_tinyvit_l.pt",
    "efficientsam3-efficientvit-b0-sam3text": (
        "stage1_all_converted/efficient_sam3_efficientvit_s.pt"
    ),
    "efficientsam3-efficientvit-b1-sam3text": (
        "stage1_all_converted/efficient_sam3_efficientvit_m.pt"
    ),
    "efficientsam3-efficientvit-b2-sam3text": (
        "stage1_all_converted/efficient_sam3_efficientvit_l.pt"
    ),
    # ... fine-tuned with boxes and points
    "efficientsam3-repvit-m1.1-sam3text-geo": (
        "stage1_all_converted/efficient_sam3_repvit_m_geo_ft.pt"
    ),
    "efficientsam3-tinyvit-11m-sam3text-geo": (
        "stage1_all_converted/efficient_sam3_tinyvit_m_geo_ft.pt"
    ),
    "efficientsam3-efficientvit-b1-sam3text-geo": (
        "stage1_all_converted/efficient_sam3_efficientvit_m_geo_ft.pt"
    ),
    # Stage 1, image and text encoder
    "efficientsam3-repvit-m0.9-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_repvit-m0_9_mobileclip_s1.pth"
    ),
    "efficientsam3-repvit-m1.1-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_repvit-m1_1_mobileclip_s1.pth"
    ),
    "efficientsam3-repvit-m2.3-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_repvit-m2_3_mobileclip_s1.pth"
    ),
    "efficientsam3-tinyvit-5m-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_tinyvit_5m_mobileclip_s1.pth"
    ),
    "efficientsam3-tinyvit-11m-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_tinyvit_11m_mobileclip_s1.pth"
    ),
    "efficientsam3-tinyvit-21m-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_tinyvit_21m_mobileclip_s1.pth"
    ),
    "efficientsam3-efficientvit-b0-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_efficientvit-b0_mobileclip_s1.pth"
    ),
    "efficientsam3-efficientvit-b1-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_efficientvit-b1_mobileclip_s1.pth"
    ),
    "efficientsam3-efficientvit-b2-mobileclip-s1": (
        "stage1_all_converted/efficient_sam3_efficientvit-b2_mobileclip_s1.pth"
    ),
    # ... text encoder fine-tuned
    "efficientsam3-repvit-m1.1-mobileclip-s1-ft": (
        "stage1_all_converted/efficient_sam3_repvit_m1.1_mobileclip_s1_ft.pth"
    ),
    "efficientsam3-tinyvit-11m-mobileclip-s1-ft": (
        "stage1_all_converted/efficient_sam3_tiny_vit_11m_mobileclip_s1_ft.pth"
    ),
    "efficientsam3-efficientvit-b1-mobileclip-s1-ft": (
        "stage1_all_converted/efficient_sam3_efficientvit_b1_mobileclip_s1_ft.pth"
    ),
    # LiteText
    "sam3-litetext-s0-16": "sam3_litetext/sam3_litetext_mobileclip_s0_ctx16.pt",
    "sam3-litetext-s0-32": "sam3_litetext/sam3_litetext_mobileclip_s0_ctx32.pt",
    "sam3-litetext-s1-16": "sam3_litetext/sam3_litetext_mobileclip_s1_ctx16.pt",
    "sam3-litetext-s1-32": "sam3_litetext/sam3_litetext_mobileclip_s1_ctx32.pt",
    "sam3-litetext-l-16": "sam3_litetext/sam3_litetext_mobileclip2_l_ctx16.pt",
    "sam3-litetext-l-32": "sam3_litetext/sam3_litetext_mobileclip2_l_ctx32.pt",
    # Fine-tuned full models
    "efficientsam3-repvit-m1.1": "efficientsam3_ft/efficientsam3_repvit.pt",
    "efficientsam3-tinyvit-11m": "efficientsam3_ft/efficientsam3_tinyvit.pt",
    "efficientsam3-efficientvit-b1": "efficientsam3_ft/efficientsam3_efficientvit.pt",
    # SAM3.1 students
    "efficientsam3-repvit-m0.9": ("stage1_sam3p1/efficient_sam3p1_repvit_s_mobileclip_s0_ctx16.pt"),
    "efficientsam3-repvit-m1.1-3.1": (
        "stage1_sam3p1/efficient_sam3p1_repvit_m_mobileclip_s0_ctx16.pt"
    ),
    "efficientsam3-repvit-m2.3": ("stage1_sam3p1/efficient_sam3p1_repvit_l_mobileclip_s0_ctx16.pt"),
    "efficientsam3-tinyvit-5m": ("stage1_sam3p1/efficient_sam3p1_tinyvit_s_mobileclip_s0_ctx16.pt"),
    "efficientsam3-tinyvit-11m-3.1": (
        "stage1_sam3p1/efficient_sam3p1_tinyvit_m_mobileclip_s0_ctx16.pt"
    ),
    "efficientsam3-tinyvit-21m": (
        "stage1_sam3p1/efficient_sam3p1_tinyvit_l_mobileclip_s0_ctx16.pt"
    ),
    "efficientsam3-efficientvit-b0": (
        "stage1_sam3p1/efficient_sam3p1_efficientvit_s_mobileclip_s0_ctx16.pt"
    ),
    "efficientsam3-efficientvit-b1-3.1": (
        "stage1_sam3p1/efficient_sam3p1_efficientvit_m_mobileclip_s0_ctx16.pt"
    ),
    "efficientsam3-efficientvit-b2": (
        "stage1_sam3p1/efficient_sam3p1_efficientvit_l_mobileclip_s0_ctx16.pt"
    ),
    # SAM3.1-LiteText
    "sam3-litetext-s0-16-3.1": "sam3p1_litetext/efficient_sam3p1_litetext_mobileclip_s0_ctx16.pt",
    "sam3-litetext-s0-32-3.1": "sam3p1_litetext/efficient_sam3p1_litetext_mobileclip_s0_ctx32.pt",
    "sam3-litetext-s1-16-3.1": "sam3p1_litetext/efficient_sam3p1_litetext_mobileclip_s1_ctx16.pt",
    "sam3-litetext-s1-32-3.1": "sam3p1_litetext/efficient_sam3p1_litetext_mobileclip_s1_ctx32.pt",
    "sam3-litetext-l-16-3.1": "sam3p1_litetext/efficient_sam3p1_litetext_mobileclip_l_ctx16.pt",
    "sam3-litetext-l-32-3.1": "sam3p1_litetext/efficient_sam3p1_litetext_mobileclip_l_ctx32.pt",
    # Meta's own
    "sam3": "sam3.pt",
    "sam3-3.1": "sam3.1_multiplex.pt",
}

RELEASED = [v for v in VARIANTS.values() if v.name != EMBEDDED]

each_row = pytest.mark.parametrize("variant", RELEASED, ids=lambda v: v.name)


def hub(variant: Variant) -> Weights:
    assert isinstance(variant.weights, Weights)
    return variant.weights


def test_every_released_file_has_its_row() -> None:
    assert {v.name: hub(v).path for v in RELEASED} == FILES
    assert len(set(FILES.values())) == len(FILES)


def test_one_model_is_part_of_the_package() -> None:
    variant = find_variant("stickers")
    assert variant is VARIANTS[EMBEDDED] and variant.name == "efficientsam3-stickers"
    assert isinstance(variant.weights, Packaged)
    assert variant.weights.location.parts[-2:] == ("assets", variant.name)
    assert variant.weights.license == "Apache-2.0"
    assert variant.abilities == set(ABILITIES)
    assert variant.stage in STAGES


@each_row
def test_fields_are_legal(variant: Variant) -> None:
    assert VARIANTS[variant.name] is variant
    assert variant.vision in VISION_PARAMS
    assert variant.text in TEXT_PARAMS
    assert variant.context in (16, 32, 77)
    assert variant.release in REST_PARAMS
    assert variant.stage in STAGES
    assert variant.abilities <= set(ABILITIES)
    assert set(variant.uncertain) <= variant.abilities
    assert dataclasses.astuple(variant.preprocessing) == (1008, 0.5, 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        variant.name = "another"  # type: ignore[misc]


@each_row
def test_the_name_says_what_is_inside(variant: Variant) -> None:
    lite = re.fullmatch(r"sam3-litetext-(s0|s1|l)-(16|32)(-3\.1)?", variant.name)
    if lite:
        size, context, release = lite.groups()
        assert variant.vision == "sam3"
        assert variant.text.endswith(f"-{size}")
        assert (variant.context, variant.release) == (int(context), "3.1" if release else "3.0")
        return
    if variant.vision == "sam3":
        assert variant.name in ("sam3", "sam3-3.1")
        return
    suffix = variant.name.removeprefix(f"efficientsam3-{variant.vision}")
    assert suffix in (
        "",
        "-3.1",
        "-sam3text",
        "-sam3text-geo",
        "-mobileclip-s1",
        "-mobileclip-s1-ft",
    )
    texts = {"": "mobileclip-s0", "-3.1": "mobileclip-s0", "-sam3text": "sam3"}
    assert variant.text == texts.get(suffix.removesuffix("-geo"), "mobileclip-s1")


@each_row
def test_weights_say_how_to_get_them(variant: Variant) -> None:
    weights = hub(variant)
    assert weights.revision == "main"
    assert weights.license
    assert weights.gated == (weights.repo != STUDENT_REPO)
    if weights.gated:
        assert weights.how_to_get_access is not None
        assert weights.repo in weights.how_to_get_access
        assert weights.path in weights.how_to_get_access
    else:
        assert weights.how_to_get_access is None


def test_count_of_each_kind() -> None:
    kinds = Counter((v.stage, v.release, v.vision == "sam3", v.text) for v in RELEASED)
    assert kinds == {
        ("stage-1", "3.0", False, "sam3"): 9,
        ("stage-1-geometry", "3.0", False, "sam3"): 3,
        ("stage-1", "3.0", False, "mobileclip-s1"): 9,
        ("stage-1-text", "3.0", False, "mobileclip-s1"): 3,
        ("stage-3", "3.0", False, "mobileclip-s0"): 3,
        ("stage-1", "3.1", False, "mobileclip-s0"): 9,
        ("stage-1", "3.0", True, "mobileclip-s0"): 2,
        ("stage-1", "3.0", True, "mobileclip-s1"): 2,
        ("stage-1", "3.0", True, "mobileclip2-l"): 2,
        ("stage-1", "3.1", True, "mobileclip-s0"): 2,
        ("stage-1", "3.1", True, "mobileclip-s1"): 2,
        ("stage-1", "3.1", True, "mobileclip2-l"): 2,
        ("original", "3.0", True, "sam3"): 1,
        ("original", "3.1", True, "sam3"): 1,
    }


def test_names_and_aliases_are_unique() -> None:
    labels = [label.lower() for v in VARIANTS.values() for label in (v.name, *v.aliases)]
    assert [label for label, count in Counter(labels).items() if count > 1] == []


def test_bare_names_are_complete_models_with_a_small_text_encoder() -> None:
    for vision in set(VISION_PARAMS) - {"sam3"}:
        variant = find_variant(f"efficientsam3-{vision}")
        assert (variant.text, variant.context) == ("mobileclip-s0", 16)
        assert variant.abilities == set(ABILITIES)


def test_every_student_has_its_3_1_name() -> None:
    for vision in set(VISION_PARAMS) - {"sam3"}:
        assert find_variant(f"efficientsam3-{vision}-3.1").release == "3.1"


def test_encoders_are_those_that_can_be_built() -> None:
    assert set(VISION_PARAMS) == set(VISIONS)
    assert set(TEXT_PARAMS) == set(TEXTS)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("efficientsam3-efficientvit-b1", 117.0),
        ("efficientsam3-repvit-m1.1", 120.4),
        ("efficientsam3-tinyvit-11m", 123.1),
        ("efficientsam3-tinyvit-11m-3.1", 136.2),
        ("sam3-litetext-s0-16-3.1", 562.0),
        ("sam3", 860.1),
    ],
)
def test_parameters(name: str, millions: float) -> None:
    assert find_variant(name).params_millions == millions


def test_published_metrics_are_percents() -> None:
    values = [m for v in VARIANTS.values() for m in (v.coco_miou, v.gold_cgf1) if m is not None]
    assert len(values) == 9 + 3 + 9 + 3 + 6 + 1
    assert all(50 < value < 75 for value in values)


def test_list_is_complete_and_in_natural_order() -> None:
    names = list_models()
    assert set(names) == set(VARIANTS)
    tiny = [n for n in names if re.fullmatch(r"efficientsam3-tinyvit-\d+m", n)]
    assert tiny == [f"efficientsam3-tinyvit-{size}" for size in ("5m", "11m", "21m")]
    assert names[0] == "efficientsam3-efficientvit-b0"
    assert names.index("efficientsam3-tinyvit-11m") < names.index("efficientsam3-tinyvit-11m-3.1")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("TV-M", "efficientsam3-tinyvit-11m"),
        ("efficientsam3-tinyvit-11m-mobileclip-s0-ft", "efficientsam3-tinyvit-11m"),
        ("efficientsam3-tinyvit-5m-3.1", "efficientsam3-tinyvit-5m"),
        ("ES-RV-S-SAM3.1", "efficientsam3-repvit-m0.9"),
        ("ES-EV-L-MC-S1", "efficientsam3-efficientvit-b2-mobileclip-s1"),
        ("SAM3-LiteText-S0-16", "sam3-litetext-s0-16"),
        ("LiteText-L-32", "sam3-litetext-l-32"),
        ("SAM3.1-LiteText-S1-16", "sam3-litetext-s1-16-3.1"),
        ("sam3.1", "sam3-3.1"),
        ("efficient_sam3_image_encoder_mobileclip2_l_ctx16", "sam3-litetext-l-16"),
        (" SAM3 ", "sam3"),
    ],
)
def test_upstreams_labels(label: str, name: str) -> None:
    assert find_variant(label).name == name


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("efficientsam3-tinyvit-12m", "efficientsam3-tinyvit-11m"),
        ("tinyvit-21m", "efficientsam3-tinyvit-21m"),
        ("efficientsam3_repvit_m1.1", "efficientsam3-repvit-m1.1"),
        ("ES-TV-M", "efficientsam3-tinyvit-11m-3.1"),  # ambiguous upstream
    ],
)
def test_unknown_name_teaches_the_near_ones(asked: str, near: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        find_variant(asked)
    message = str(caught.value)
    assert repr(asked) in message
    assert near in re.split(r"[ ?]", message)
    assert "list_models()" in message


@pytest.mark.parametrize("asked", ["", "zzz"])
def test_unknown_name_without_a_near_one(asked: str) -> None:
    with pytest.raises(UnknownModelError, match=r"^unknown model '\w*'; list_models\(\) has all"):
        find_variant(asked)
    assert issubclass(UnknownModelError, ValueError)
    assert issubclass(UnknownModelError, EfficientSam3Error)


@each_row
def test_a_complete_file_of_a_row_has_its_abilities(variant: Variant) -> None:
    if not isinstance(variant.weights, Packaged):
        assert config_of(variant).abilities == variant.abilities
