"""Files in upstream's layout become models, or errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import efficientsam3 as es3
from efficientsam3.checkpoints import assemble, layout, read
from efficientsam3.config import OPTIONAL, PART_NAMES, REQUIRED
from efficientsam3.variants import find_variant

from ...parity.upstream import MOBILECLIP_ROWS, part, placeholders, released_keys
from .conftest import (
    NAME,
    TEXT,
    VISION,
    State,
    each,
    load,
    numbers,
    released,
    spell_bare,
    value_of,
    write,
)

# What is read --------------------------------------------------------------------------------


def test_each_weight_goes_where_the_table_says(state: State, expected: dict[str, Any]) -> None:
    rename = layout.to_ours(VISION, TEXT)
    placed = {}
    for key in state:
        canonical = layout.canonical(key)
        if not layout.ignored(canonical):
            placed[rename(canonical)] = value_of(key)
    assert {name: value for name, (_, _, value) in expected.items()} == placed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spell", "wrapper"),
    [
        (lambda key: key, "model"),
        (lambda key: key, "state_dict"),
        (lambda key: key, None),
        (spell_bare, "model"),
        (spell_bare, None),
        (lambda key: "module." + key, "model"),
        (lambda key: key.replace("trunk.", "trunk.student_trunk."), "model"),
    ],
    ids=["model", "state_dict", "unwrapped", "bare", "bare-unwrapped", "module", "student_trunk"],
)
def test_every_layout_of_upstream_gives_the_same_model(
    state: State,
    expected: dict[str, Any],
    tmp_path: Path,
    spell: Callable[[str], str],
    wrapper: str | None,
) -> None:
    path = write(tmp_path / "file.pt", {spell(k): v for k, v in state.items()}, wrapper)
    config, net = load(path)
    assert (config.vision, config.text, config.context) == (VISION, TEXT, 16)
    assert numbers(net) == expected


def test_what_training_left_beside_the_model_is_not_read(
    state: State, expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "file.pt"
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}]}
    torch.save({"model": state, "optimizer": optimizer, "epoch": 3, "meta": {"note": None}}, path)
    assert numbers(load(path)[1]) == expected


@pytest.mark.slow
def test_what_fine_tuning_preserved_of_the_base_model_is_read(
    state: State, expected: dict[str, Any], tmp_path: Path
) -> None:
    frozen = {k: v for k, v in state.items() if part(k) in ("geometry", "interactive", "memory")}
    frozen |= {k: v for k, v in state.items() if part(k) == "interactive_neck"}
    trained = {k.removeprefix("detector."): v for k, v in state.items() if k not in frozen}
    path = tmp_path / "file.pt"
    torch.save({"model": trained, "preserved_base_model": frozen, "epoch": 3}, path)
    assert numbers(load(path)[1]) == expected
    # In whichever way its keys are spelt.
    bare = {spell_bare(k): v for k, v in frozen.items()}
    torch.save({"model": trained, "preserved_base_model": bare}, path)
    assert numbers(load(path)[1]) == expected
    # What was trained wins over what the base had under another spelling.
    stale = each({k: v for k, v in state.items() if part(k) == "decoder"}, lambda v: v + 1)
    torch.save({"model": trained, "preserved_base_model": frozen | stale}, path)
    assert numbers(load(path)[1]) == expected


def test_the_format_before_2020_is_read(
    state: State, expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    assert numbers(load(path)[1]) == expected


@pytest.mark.slow
def test_safetensors_of_the_same_keys(expected: dict[str, Any], tmp_path: Path) -> None:
    state = placeholders(released())
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / "file.safetensors"
    save_file({k: v.contiguous() for k, v in halves.items()}, path)
    assert numbers(load(path)[1]) == expected  # whole numbers below 1000 survive float16


def test_other_precisions_become_float32(state: State, tmp_path: Path) -> None:
    cast = each(state, lambda v: v.bfloat16() if v.is_floating_point() else v)
    _, net = load(write(tmp_path / "file.pt", cast))
    learned = {k: v for k, v in net.state_dict().items() if not layout.DERIVED.search(k)}
    assert {v.dtype for v in learned.values()} == {torch.float32}
    key = "detector.transformer.decoder.norm.weight"
    assert learned["decoder.norm.weight"][0] == cast[key][0].float()


@pytest.mark.slow
def test_what_is_not_learned_may_be_in_the_file_or_not(
    state: State, expected: dict[str, Any], tmp_path: Path
) -> None:
    counters = {k for k in state if k.endswith("num_batches_tracked")}
    assert counters
    without = {k: v for k, v in state.items() if k not in counters}
    assert numbers(load(write(tmp_path / "file.pt", without))[1]) == expected

    trunk = "detector.backbone.vision_backbone.trunk."
    more = state | {
        f"{trunk}model.backbone.model.head.0.conv.weight": torch.zeros(8, 8),
        f"{trunk}model.backbone.model.classifier.classifier.l.weight": torch.zeros(8, 8),
        f"{trunk}model.backbone.model.stages.1.attn.attention_bias_idxs": torch.zeros(4, 4).long(),
        "detector.transformer.decoder.compilable_cord_cache": torch.zeros(2),
    }
    assert numbers(load(write(tmp_path / "file.pt", more))[1]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("release", ["3.0", "3.1"])
def test_rotary_tables_in_the_file_change_nothing(tmp_path: Path, release: str) -> None:
    state = placeholders(released_keys("sam3", TEXT, 16, release))
    tables = {k for k in state if k.endswith("freqs_cis")}
    assert len(tables) == 32
    _, with_tables = load(write(tmp_path / "with.pt", state))
    bare = {k: v for k, v in state.items() if k not in tables}
    _, without = load(write(tmp_path / "without.pt", bare))
    assert numbers(with_tables) == numbers(without)
    attention = without.trunk.blocks[0].attn  # type: ignore[union-attr, index]
    angle = torch.complex(attention.cos, attention.sin)  # type: ignore[arg-type]
    assert torch.allclose(angle.abs(), torch.ones(()))


def test_the_teachers_image_encoder_left_in_a_students_file_is_dropped(
    state: State, expected: dict[str, Any], tmp_path: Path
) -> None:
    teacher = {k: v for k, v in released_keys("sam3", TEXT, 16).items() if part(k) == "trunk"}
    assert len(teacher) == 420
    config, net = load(write(tmp_path / "file.pt", state | placeholders(teacher)))
    assert config.vision == VISION
    assert numbers(net) == expected


@pytest.mark.slow
def test_release_3_1_is_recognised_and_its_copies_for_old_loaders_are_not_read(
    tmp_path: Path,
) -> None:
    state = placeholders(released("3.1"))
    config, net = load(write(tmp_path / "file.pt", state))
    assert config.scales == (4, 2, 1)
    assert set(config.parts) == set(OPTIONAL) - {"memory"}
    neck = "detector.backbone.vision_backbone."
    copies = {
        k.replace("interactive_convs", "sam2_convs"): v
        for k, v in each(state, lambda v: v + 1).items()
        if k.startswith(neck + "interactive_convs.")
    }
    assert len(copies) == 18
    _, again = load(write(tmp_path / "copies.pt", state | copies))
    assert numbers(again) == numbers(net)


@pytest.mark.slow
def test_half_precision_without_the_projection_that_no_model_reads(tmp_path: Path) -> None:
    keys = {k: v for k, v in released("3.1").items() if not k.endswith("projection_layer")}
    state = each(placeholders(keys), lambda v: v.half() if v.is_floating_point() else v)
    config, net = load(write(tmp_path / "file.pt", state))
    assert set(config.parts) == set(OPTIONAL) - {"memory"}
    assert numbers(net).pop("text.clip_projection")[1:] == (torch.float32, 0)
    assert {dtype for _, dtype, _ in numbers(net).values()} == {torch.float32}


@pytest.mark.slow
def test_both_releases_give_the_same_image_model(state: State, tmp_path: Path) -> None:
    """A 3.1 file made of the numbers of a 3.0 file, by the names that upstream reads it by."""
    old = {layout.to_ours(VISION, TEXT)(layout.canonical(k)): v for k, v in state.items()}
    keys = released("3.1")
    rename = layout.to_ours(VISION, TEXT, "3.1")
    new = {k: old.get(rename(layout.canonical(k)), placeholders({k: keys[k]})[k]) for k in keys}
    _, net = load(write(tmp_path / "file.pt", new))
    found = numbers(net)
    _, reference = load(write(tmp_path / "reference.pt", state))
    image_parts = {"trunk", "text", "geometry", "fusion", "decoder", "scoring", "masks"}
    for name, number in numbers(reference).items():
        head = name.split(".")[0]
        if head in image_parts | {"interactive"} or ("neck" in head and ".3." not in name):
            assert found[name] == number, name


# Context -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose text encoder has 77 positions; row i holds the number i."""
    state = placeholders(released(context=77))
    width = state[MOBILECLIP_ROWS].shape[-1]
    rows = torch.arange(77, dtype=torch.float32)
    state[MOBILECLIP_ROWS] = rows.view(1, 1, 77, 1).expand(1, 1, 77, width)
    return write(tmp_path_factory.mktemp("long") / "file.pt", state)


@pytest.mark.parametrize(
    ("asked", "named", "used"),
    [(None, True, 16), (None, False, 77), (32, True, 32), (77, True, 77), (3, True, 3)],
)
def test_a_longer_position_table_is_cut(
    long_table: Path, asked: int | None, named: bool, used: int
) -> None:
    variant = find_variant(NAME) if named else None
    config, net = load(long_table, variant=variant, context=asked)
    assert config.context == used
    table = net.state_dict()["text.positions"]
    assert table.shape[2] == used
    assert torch.equal(table[0, 0, :, 0], torch.arange(used, dtype=torch.float32))


@pytest.mark.parametrize("context", [2, 0, -1, 78])
def test_a_context_that_the_weights_do_not_have(long_table: Path, context: int) -> None:
    with pytest.raises(es3.ArgumentError, match=rf"context={context}\b.*77.*choose 3 to 77"):
        es3.load(NAME, checkpoint=long_table, context=context)


# Another model's file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            ["vision_encoder.neck.fpn.weight", "detr_encoder.weight"],
            "in the layout of Hugging Face transformers, and 2 of its weights are unknown there",
        ),
        (["trunk.head.0.weight", "neck.levels.0.up.weight"], "Load the folder itself"),
        (["image_encoder.trunk.pos_embed", "sam_mask_decoder.w"], "a checkpoint of SAM or SAM 2"),
        (["conv1.weight", "fc.bias"], "2 weights that no EfficientSAM3 model has: conv1.weight"),
    ],
)
def test_a_file_in_another_layout_is_named(tmp_path: Path, keys: list[str], expected: str) -> None:
    path = write(tmp_path / "other.pt", {key: torch.zeros(1) for key in keys})
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load(NAME, checkpoint=path)
    assert expected in str(caught.value) and str(path) in str(caught.value)
    assert "base=" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_that_is_not_finite_is_named(
    tiny: es3.ImageModel, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    config, net = tiny.config, tiny.learned()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    key = "text.positions"
    state[key] = state[key].to(dtype)
    state[key].view(-1)[-1] = value
    with pytest.raises(es3.CheckpointError, match=rf"{key} holds NaN or infinite values"):
        assemble.assemble(config, state, "the file")


def test_a_weight_of_another_type_is_named(tiny: es3.ImageModel) -> None:
    """Such as the integers of a quantized file."""
    state = {k: v.clone() for k, v in tiny.learned().state_dict().items()}
    state["text.positions"] = state["text.positions"].to(torch.int8)
    with pytest.raises(es3.CheckpointError, match=r"text\.positions holds torch\.int8"):
        assemble.assemble(tiny.config, state, "the file")


def test_a_file_without_weights(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(es3.CheckpointError, match="holds no weights"):
        es3.load(NAME, checkpoint=tmp_path / "empty.safetensors")


def test_a_file_of_another_image_encoder(plain: Path) -> None:
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load("efficientsam3-tinyvit-11m", checkpoint=plain)
    for word in (str(plain), "image encoder", VISION, "tinyvit-11m"):
        assert word in str(caught.value)


def test_another_text_encoder_than_the_file_has(plain: Path) -> None:
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load(NAME, checkpoint=plain, text="mobileclip-s1")
    for word in (str(plain), "text encoder", TEXT, "mobileclip-s1"):
        assert word in str(caught.value)


def test_an_unknown_text_encoder(plain: Path) -> None:
    with pytest.raises(ValueError, match=r"'clip'.*mobileclip-s0.*sam3"):
        es3.load(NAME, checkpoint=plain, text="clip")


@pytest.mark.parametrize("text", ["mobileclip-s0", "mobileclip-s1", "mobileclip2-l", "sam3"])
@pytest.mark.parametrize("vision", ["repvit-m0.9", "tinyvit-5m", "efficientvit-b2", "sam3"])
def test_encoders_are_recognized(vision: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file.pt", placeholders(released_keys(vision, text, 32)))
    contents = read.Contents.read(path)
    assert (contents.vision, contents.text) == (vision, text)
    assert (contents.positions, contents.release) == (32, "3.0")


def test_weights_of_an_unrelated_model(tmp_path: Path) -> None:
    path = write(tmp_path / "resnet.pth", {"conv1.weight": torch.zeros(64, 3, 7, 7)}, None)
    with pytest.raises(
        es3.CheckpointError,
        match=r"resnet\.pth has 1 weights that no EfficientSAM3 model has: conv1",
    ):
        es3.load(NAME, checkpoint=path)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("detector.transformer.decoder.extra.weight", "decoder.extra.weight"),
        ("detector.backbone.vision_backbone.trunk.model.head.5.weight", "trunk.head.5.weight"),
        ("tracker.something_new", "tracker.something_new"),
        ("optimizer_step", "optimizer_step"),
    ],
)
def test_a_left_over_key_is_an_error_that_names_it(
    state: State, tmp_path: Path, key: str, named: str
) -> None:
    path = write(tmp_path / "file.pt", state | {key: torch.zeros(1)})
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load(NAME, checkpoint=path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_a_misshapen_weight_is_an_error_with_both_shapes(state: State, tmp_path: Path) -> None:
    key = "detector.transformer.decoder.norm.weight"
    path = write(tmp_path / "file.pt", state | {key: torch.zeros(128)})
    with pytest.raises(es3.CheckpointError, match=r"decoder\.norm\.weight is \(128,\).*\(256,\)"):
        es3.load(NAME, checkpoint=path)


# Missing groups ------------------------------------------------------------------------------


def lacking(state: State, *parts: str) -> State:
    return {k: v for k, v in state.items() if part(k) not in parts}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "abilities"),
    [
        ((), {"concepts", "exemplars", "masks", "interactive", "video"}),
        (("geometry",), {"masks", "interactive", "video"}),
        (("masks",), {"concepts", "exemplars", "interactive", "video"}),
        (("memory",), {"concepts", "exemplars", "masks", "interactive"}),
        (("interactive",), {"concepts", "exemplars", "masks"}),
        (("interactive_neck",), {"concepts", "exemplars", "masks"}),
        (
            ("geometry", "interactive", "interactive_neck", "memory"),
            {"masks"},
        ),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, tuple) else None,
)
def test_a_group_that_is_absent_takes_its_ability_along(
    state: State, tmp_path: Path, parts: tuple[str, ...], abilities: set[str]
) -> None:
    config, net = load(write(tmp_path / "file.pt", lacking(state, *parts)))
    assert set(config.parts) == set(OPTIONAL) - {"propagation_neck", "multiplex", *parts}
    assert not set(parts) & {name for name, _ in net.named_children()}
    assert config.abilities == abilities


def test_an_absent_group_is_an_error_when_it_is_asked_for(state: State, tmp_path: Path) -> None:
    absent = lacking(state, "geometry", "interactive", "interactive_neck", "memory")
    path = write(tmp_path / "file.pt", absent)
    model = es3.load(NAME, checkpoint=path, device="cpu", dtype="float32")
    assert model.abilities == {"masks"}
    image = np.zeros((8, 8, 3), np.uint8)
    questions: list[tuple[Callable[[], Any], str]] = [
        (lambda: model.segment(image, ["bus"]), "geometry encoder"),
        (lambda: model.segment(image, boxes=[[1, 1, 5, 5]]), "geometry encoder"),
        (lambda: model.segment(image, points=[[1, 1]]), "interactive head and no second neck"),
        (lambda: model.segment_objects(image, boxes=[[1, 1, 5, 5]]), "interactive head"),
        (lambda: model.ground(model.preprocess(image), ["bus"]), "geometry encoder"),
    ]
    for ask, part_name in questions:
        with pytest.raises(es3.MissingAbilityError) as caught:
            ask()
        assert part_name in str(caught.value)
        assert "base=" in str(caught.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM3's own file; all its numbers are higher by 0.5."""
    state = placeholders(released_keys("sam3", "sam3", 32))
    shifted = each(state, lambda v: v + 0.5)
    return write(tmp_path_factory.mktemp("base") / "sam3.pt", shifted)


def test_base_fills_what_is_absent_and_nothing_else(
    state: State, expected: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    gone = ("geometry", "interactive", "interactive_neck", "memory")
    path = write(tmp_path / "file.pt", lacking(state, *gone))
    config, net = load(path, base=base)
    assert (config.vision, config.text, config.context) == (VISION, TEXT, 16)
    found = numbers(net)
    assert found.keys() == expected.keys()
    for name, (shape, dtype, number) in expected.items():
        shift = 0.5 if name.split(".")[0] in gone else 0.0
        assert found[name] == (shape, dtype, number + shift)


@pytest.mark.slow
def test_base_brings_a_text_encoder(state: State, base: Path, tmp_path: Path) -> None:
    stage1 = write(tmp_path / "file.pt", lacking(state, "text"))
    with pytest.raises(es3.CheckpointError, match=r"has no text encoder.*base="):
        es3.load(NAME, checkpoint=stage1)
    config, net = load(stage1, base=base)
    assert (config.vision, config.text, config.context) == (VISION, "sam3", 32)
    assert numbers(net)["text.positions"][2] % 1 == 0.5

    both = write(tmp_path / "both.pt", state)
    assert load(both, base=base)[0].text == TEXT
    config, net = load(both, base=base, text="sam3", context=20)
    assert (config.text, config.context) == ("sam3", 20)
    assert net.state_dict()["text.positions"].shape == (20, 1024)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_group_that_is_absent(state: State, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "file.pt", lacking(state, name))
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load(NAME, checkpoint=path)
    for word in (str(path), PART_NAMES[name], "base="):
        assert word in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("release", ["3.0", "3.1"])
def test_a_group_that_is_partly_there_is_an_error_that_names_keys(
    tmp_path: Path, release: str
) -> None:
    state = placeholders(released(release))
    rename = layout.to_ours(VISION, TEXT, release)
    lost = {}
    for key in reversed(state):
        # Encoders are recognized by some of their keys: lose others.
        if "num_batches" not in key and "head.0" not in key:
            lost.setdefault(part(key), key)
    assert set(lost) == {part(k) for k in state}
    if release == "3.1":  # what it has of its own
        own = ("propagation_neck", "interactive_neck", "interactive", "multiplex")
        lost = {group: lost[group] for group in own}
    for group, key in lost.items():
        path = write(tmp_path / "file.pt", {k: v for k, v in state.items() if k != key})
        with pytest.raises(es3.CheckpointError, match="only part of the") as caught:
            load(path)
        for word in (str(path), PART_NAMES[group], rename(layout.canonical(key))):
            assert word in str(caught.value)
