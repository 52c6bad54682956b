"""Files in the layout of Hugging Face transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import efficientsam3 as es3
from efficientsam3.checkpoints import layout, transformers_layout
from efficientsam3.checkpoints.assemble import assemble
from efficientsam3.checkpoints.read import Contents
from efficientsam3.config import MemoryConfig, ModelConfig, TextConfig, tiny_config
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.geometry import Exemplars
from efficientsam3.nn.layers import cxcywh_to_xyxy

from ...parity.transformers_files import detector_keys, groups, values
from ...parity.upstream import HERE, Keys, placeholders, released_keys
from .conftest import VISION, load, write

# Names and shapes ----------------------------------------------------------------------------


def on_meta(keys: Keys) -> dict[str, Tensor]:
    return {k: torch.empty(s, dtype=d, device="meta") for k, (s, d) in keys.items()}


def learned(keys: Keys) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what was learned, by upstream's canonical names."""
    bare = {layout.canonical(k): shape for k, (shape, _) in keys.items()}
    return {k: shape for k, shape in bare.items() if not layout.ignored(k)}


def of_detector(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {k: v for k, v in shapes.items() if not k.startswith("tracker.") and "sam2_" not in k}


def renamed(keys: Keys) -> dict[str, tuple[int, ...]]:
    state = {transformers_layout.canonical(k): v for k, v in on_meta(keys).items()}
    state, unknown = transformers_layout.to_upstream(state)
    assert unknown == []
    return {k: tuple(v.shape) for k, v in state.items() if not layout.ignored(k)}


def test_every_weight_of_the_whole_model_has_one_place() -> None:
    assert renamed(groups()["video"]) == learned(released_keys("sam3", "sam3", 32))


def test_every_weight_of_the_image_model_has_one_place() -> None:
    expected = of_detector(learned(released_keys("sam3", "sam3", 32)))
    assert renamed(detector_keys()) == expected


@pytest.mark.parametrize("text", ["mobileclip-s0", "mobileclip-s1", "mobileclip2-l"])
def test_every_weight_of_sam3_litetext_has_one_place(text: str) -> None:
    expected = of_detector(learned(released_keys("sam3", text, 77)))
    assert renamed(detector_keys(text)) == expected


# Numbers -------------------------------------------------------------------------------------

TINY = tiny_config(
    text=TextConfig("clip", 32, 2, 2, vocabulary=64),
    width=32,
    heads=4,
    hidden=64,
    memory=MemoryConfig(depth=2),
    point_exemplars=False,
)
LITE = dataclasses.replace(
    TINY, text=TextConfig("mobileclip-mixer", 32, 1, 2, vocabulary=64), parts=("geometry", "masks")
)


def load_tiny(config: ModelConfig, keys: Keys, folder: Path) -> Detector:
    path = folder / "model.safetensors"
    save_file(values(keys), path)
    return assemble(config, Contents.read(path).renamed(), str(path))


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    """What transformers computes with the same weights; see tests/parity/README.md."""
    with np.load(HERE / "transformers_tiny.npz") as file:
        return {k: torch.from_numpy(v) for k, v in file.items()}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return load_tiny(TINY, groups()["tiny"], tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    """Inputs in the order in which they were drawn for the file."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"pixels": (1, 3, 112, 112), "low": (1, 1, 32, 32), "mask": (1, 1, 128, 128)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


PHRASE = torch.tensor([[62, 5, 17, 33, 63, *[0] * 11]])
BOXES = Exemplars(
    torch.zeros(1, 0, 2),
    torch.zeros(1, 0, dtype=torch.long),
    torch.zeros(1, 0, dtype=torch.bool),
    torch.tensor([[[0.3, 0.4, 0.2, 0.5], [0.7, 0.6, 0.3, 0.2]]]),
    torch.tensor([[1, 0]]),
    torch.ones(1, 2, dtype=torch.bool),
)


@torch.inference_mode()
def test_encoders(net: Detector, inputs: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    encoded = net.trunk(inputs["pixels"])
    assert_close(encoded.flatten(2).transpose(1, 2), theirs["trunk"])
    for i, level in enumerate(net.neck(encoded, range(4))):
        assert_close(level[:, ::4, ::2, ::2], theirs[f"neck_{i}"])
    assert_close(net.read_text(PHRASE)[0][:, :5], theirs["text"])
    image = net.read_image(inputs["pixels"])
    assert_close(net.read_exemplars(image, BOXES)[0], theirs["geometry"])


@torch.inference_mode()
@pytest.mark.parametrize("name", ["text_only", "boxes"])
def test_detections(
    net: Detector, inputs: dict[str, Tensor], theirs: dict[str, Tensor], name: str
) -> None:
    image, text = net.read_image(inputs["pixels"]), net.read_text(PHRASE)
    # transformers has no class token in prompts without boxes.
    prompt = text if name == "text_only" else net.read_prompt(image, text, BOXES)
    answer = net.answer(image, *prompt)
    assert_close(answer.logits, theirs[f"{name}_logits"])
    assert_close(answer.presence.view(1, 1), theirs[f"{name}_presence"])
    assert_close(cxcywh_to_xyxy(answer.boxes), theirs[f"{name}_boxes"])
    masks = net.masks_of(image, answer, 0, torch.arange(0, 12, 2))
    assert_close(masks[None, :, ::2, ::2], theirs[f"{name}_masks"])


@torch.inference_mode()
def test_sam3_litetext(
    inputs: dict[str, Tensor], theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    net = load_tiny(LITE, detector_keys("any", tiny=True), tmp_path)
    image = net.read_image(inputs["pixels"])
    text = net.read_text(torch.tensor([[62, *range(1, 15), 63]]))
    assert_close(text[0], theirs["lite_text"])
    answer = net.answer(image, *text)
    assert_close(answer.logits, theirs["lite_logits"])
    masks = net.masks_of(image, answer, 0, torch.arange(0, 12, 2))
    assert_close(masks[None, :, ::2, ::2], theirs["lite_masks"])


@torch.inference_mode()
def test_clicks_and_memory(
    net: Detector, inputs: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    head, memory = net.part("interactive"), net.part("memory")
    frame = net.read_frame(net.trunk(inputs["pixels"]))
    still = head.without_memory(frame)
    xy, kinds = torch.tensor([[[20.0, 40.0], [90.0, 30.0]]]) / 112, torch.tensor([[1, 0]])
    for name, low in (("clicks", None), ("mask", inputs["low"])):
        found = head(still, xy, kinds, low, multimask=True)
        assert_close(found.logits[..., ::2, ::2], theirs[f"{name}_masks"])
        assert_close(found.quality, theirs[f"{name}_quality"])
        assert_close(found.presence[:, None], theirs[f"{name}_presence"])
        assert_close(memory.pointer(found.tokens), theirs[f"{name}_pointers"])
    corners = torch.tensor([[[10.0, 20.0], [60.0, 100.0]]]) / 112
    sparse, dense = (
        head.prompts.points(corners, torch.tensor([[2, 3]])),
        head.prompts.masks(None, 1),
    )
    found = head.masks.decode(still, head.prompts.encode_grid(8, 8), sparse, dense)
    assert_close(found.logits[:, :1, ::2, ::2], theirs["box_mask"])
    assert_close(found.tokens[:, :1], theirs["box_tokens"])

    projected = memory.encoder.project(frame.coarse)
    tokens = []
    for i, present in enumerate((True, False)):
        mask = (inputs["mask"] * (i + 1)).sigmoid()
        tokens.append(memory.tokens(projected, mask, torch.tensor([present])))
        assert_close(tokens[i].transpose(1, 2).unflatten(2, (8, 8)), theirs[f"memory_{i}"])
    pointers = torch.stack([theirs["clicks_pointers"][:, 0], memory.no_object_pointer], 1)
    ages = torch.tensor([[4.0, 1.0]]) / 15
    read = memory.gather(torch.stack(tokens, 1), torch.tensor([[0, 1]]), pointers, ages)
    seen = memory.recall(memory.look(frame.coarse), read)
    assert_close(seen.flatten(2).transpose(1, 2), theirs["attention"])


# Whole files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """A complete file at full size: each tensor is one number repeated."""
    state = placeholders(groups()["video"])
    state[transformers_layout.FREQUENCIES_COPY] = state[transformers_layout.FREQUENCIES]
    return state


@pytest.mark.slow
def test_a_whole_file_becomes_a_model(whole: dict[str, Tensor], tmp_path: Path) -> None:
    config, net = load(write(tmp_path / "model.pt", whole, None))
    assert (config.vision, config.text, config.context) == ("sam3", "sam3", 32)
    assert config.abilities == {"concepts", "exemplars", "masks", "interactive", "video"}
    assert not config.point_exemplars
    state = net.state_dict()
    layer = "detector_model.vision_encoder.backbone.layers.31.attention."
    parts = [whole[f"{layer}{p}_proj.bias"] for p in "qkv"]
    assert torch.equal(state["trunk.blocks.31.attn.qkv.bias"], torch.cat(parts))
    points = whole["tracker_model.prompt_encoder.point_embed.weight"]
    assert torch.equal(state["interactive.prompts.point_embeddings.3.weight"], points[3:])
    assert not state["geometry.points_pool_project.weight"].any()


def test_a_prefix_that_is_written_twice_is_read_once(tmp_path: Path) -> None:
    """As by ``Sam3VideoModel.save_pretrained`` of transformers 5.23.0."""
    twice = {
        f"tracker_model.{k}" if k.startswith("tracker_") else k: v
        for k, v in values(groups()["tiny"]).items()
    }
    save_file(twice, tmp_path / "twice.safetensors")
    found = Contents.read(tmp_path / "twice.safetensors").renamed()
    save_file(values(groups()["tiny"]), tmp_path / "once.safetensors")
    expected = Contents.read(tmp_path / "once.safetensors").renamed()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.slow
def test_a_port_of_sam3_litetext_becomes_a_model(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt", placeholders(detector_keys("mobileclip-s0")), None)
    config, _ = load(path)
    assert (config.vision, config.text, config.context) == ("sam3", "mobileclip-s0", 77)
    assert config.abilities == {"concepts", "exemplars", "masks"}


@pytest.mark.slow
def test_parts_come_from_files_of_either_layout(
    whole: dict[str, Tensor], tmp_path: Path, plain: Path
) -> None:
    """The geometry encoder of the file that has it says whether points are exemplars."""
    path = write(tmp_path / "model.pt", whole, None)
    config, _ = load(plain, base=path)
    assert (config.vision, config.point_exemplars) == (VISION, True)
    bare = {k: v for k, v in whole.items() if "geometry_encoder." not in k}
    config, _ = load(write(tmp_path / "bare.pt", bare, None), base=plain)
    assert (config.vision, config.point_exemplars) == ("sam3", True)


def refused(state: dict[str, Tensor], folder: Path) -> str:
    with pytest.raises(es3.CheckpointError) as caught:
        load(write(folder / "model.pt", state, None))
    assert str(folder / "model.pt") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "detector_model.vision_encoder.backbone.layers.0.attention.r_proj.weight",
        "detector_model.detr_decoder.layers.0.norm4.weight",
        "tracker_model.something_new",
        "optimizer_step",
    ],
)
def test_an_unknown_weight_is_named(whole: dict[str, Tensor], tmp_path: Path, key: str) -> None:
    message = refused(whole | {key: torch.zeros(1)}, tmp_path)
    assert "layout of Hugging Face transformers, and 1 of its weights are unknown" in message
    assert key.removeprefix("detector_model.") in message


def test_two_tables_where_there_is_one_are_an_error(
    whole: dict[str, Tensor], tmp_path: Path
) -> None:
    other = whole[transformers_layout.FREQUENCIES] + 1
    message = refused(whole | {transformers_layout.FREQUENCIES_COPY: other}, tmp_path)
    assert "shared_image_embedding.positional_embedding differ" in message


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("detector_model.detr_encoder.layers.1.cross_attn.k_proj.weight", "fusion.layers.1.cross"),
        ("detector_model.text_projection.bias", "text.projector.bias"),
        ("tracker_model.memory_attention.layer_norm.weight", "memory.attention.norm.weight"),
        ("tracker_model.prompt_encoder.point_embed.weight", "prompts.point_embeddings.0.weight"),
    ],
)
def test_a_missing_weight_is_named(tmp_path: Path, lost: str, named: str) -> None:
    keys = {k: v for k, v in groups()["tiny"].items() if k != lost}
    with pytest.raises(es3.CheckpointError, match="only part of the") as caught:
        load_tiny(TINY, keys, tmp_path)
    assert named in str(caught.value)


@pytest.mark.parametrize("shape", [(), (3,), (7, 5)])
@pytest.mark.parametrize(
    "key",
    [
        "detector_model.detr_encoder.layers.2.cross_attn.k_proj.weight",
        "detector_model.vision_encoder.backbone.embeddings.position_embeddings",
        "detector_model.geometry_encoder.label_embed.weight",
    ],
)
def test_a_misshapen_weight_is_an_error(
    whole: dict[str, Tensor], tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    few = {k: v for k, v in whole.items() if k.split(".")[:3] == key.split(".")[:3]}
    refused(few | {key: torch.zeros(shape)}, tmp_path)


def test_a_folder_of_transformers_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "5.23.0"}))
    with pytest.raises(es3.CheckpointError, match=r"checkpoint='.*model\.safetensors'"):
        es3.load(tmp_path)


# Points as exemplars -------------------------------------------------------------------------


@pytest.mark.slow
def test_points_are_no_exemplars_of_such_weights(tmp_path: Path) -> None:
    config = tiny_config(point_exemplars=False)
    es3.ImageModel.from_config(config, "tiny").save(tmp_path)
    model = es3.load(tmp_path, device="cpu", dtype="float32")
    image = np.zeros((40, 60, 3), np.uint8)
    ask: list[Any] = [
        lambda: model.segment(image, ["bus"], points=[[3, 4]]),
        lambda: model.exemplar(image, boxes=[[1, 1, 20, 20]], points=[[3, 4]]),
        lambda: model.ground(model.preprocess(image), ["bus"], points=[[[0.5, 0.5]]]),
    ]
    for question in ask:
        with pytest.raises(es3.MissingAbilityError, match=r"points as exemplars.*Draw boxes"):
            question()
    assert model.exemplar(image, boxes=[[1, 1, 20, 20]]).count == 1
    assert len(model.segment(image, points=[[3, 4]])) == 1
