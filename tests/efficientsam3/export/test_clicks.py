"""The ONNX files of the interactive head: their contract, and PyTorch's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import efficientsam3 as es3
from efficientsam3.export import clicks
from efficientsam3.export.clicks import DECODER, ENCODER, IMAGENET_MEAN, IMAGENET_STD, click_modules

from ...conftest import tiny_model

pytest.importorskip("onnxscript")
onnxruntime: Any = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow  # the exporter takes its time, whatever the size of the model


@pytest.fixture(scope="module")
def model() -> es3.ImageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def sessions(model: es3.ImageModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Both files as a runtime reads them: from bytes, as a browser does."""
    files = clicks.export_clicks(model, tmp_path_factory.mktemp("clicks"))
    assert [f.name for f in files] == [ENCODER, DECODER]
    assert sorted(p.name for p in files.encoder.parent.iterdir()) == sorted([ENCODER, DECODER])
    encoder, decoder = (onnxruntime.InferenceSession(f.read_bytes()) for f in files)
    return encoder, decoder


def stretched(photo: np.ndarray) -> np.ndarray:
    image = Image.fromarray(photo).resize((1024, 1024), Image.Resampling.BILINEAR)
    return np.asarray(image)


def browser_pixels(photo: np.ndarray) -> np.ndarray:
    """An image as FiftyOne's App feeds it: stretched to 1024, normalized as for ImageNet."""
    pixels = (stretched(photo).astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return pixels.astype(np.float32).transpose(2, 0, 1)[None]


def decode(session: Any, features: Any, points: Any, labels: Any, mask: Any = None) -> Any:
    given = mask is not None
    feeds = {
        **dict(zip(clicks.FEATURES, features, strict=True)),
        "point_coords": np.array([points], np.float32),
        "point_labels": np.array([labels], np.float32),
        "mask_input": mask if given else np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.array([float(given)], np.float32),
    }
    return session.run(["masks", "iou_predictions"], feeds)


def test_names_and_shapes_are_the_browser_s(sessions: tuple[Any, Any]) -> None:
    encoder, decoder = sessions
    assert [(i.name, i.shape, i.type) for i in encoder.get_inputs()] == [
        ("image", [1, 3, 1024, 1024], "tensor(float)")
    ]
    assert [o.name for o in encoder.get_outputs()] == list(clicks.FEATURES)
    inputs = {i.name: (i.shape, i.type) for i in decoder.get_inputs()}
    assert list(inputs) == [
        *clicks.FEATURES,
        "point_coords",
        "point_labels",
        "mask_input",
        "has_mask_input",
    ]
    assert all(kind == "tensor(float)" for _, kind in inputs.values())
    assert inputs["point_coords"][0][0] == 1 and isinstance(inputs["point_coords"][0][1], str)
    assert inputs["mask_input"][0] == [1, 1, 256, 256] and inputs["has_mask_input"][0] == [1]
    masks, quality = decoder.get_outputs()
    assert (masks.name, masks.shape[-2:]) == ("masks", [256, 256])
    assert quality.name == "iou_predictions"


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([[300, 700]], [1]),
        ([[300, 700], [10, 20]], [1, 0]),
        ([[100, 100], [900, 800]], [2, 3]),
        ([[100, 100], [900, 800], [500, 500]], [2, 3, 1]),
        ([[300, 700], [0, 0]], [1, -1]),
    ],
)
def test_the_numbers_are_pytorch_s(
    sessions: tuple[Any, Any],
    model: es3.ImageModel,
    photo: np.ndarray,
    points: Any,
    labels: Any,
) -> None:
    encoder, decoder = sessions
    pixels = browser_pixels(photo)
    features = encoder.run(None, {"image": pixels})
    modules = click_modules(model)
    with torch.no_grad():
        expected = modules[0](torch.from_numpy(pixels))
        said = modules[1](
            *expected,
            torch.tensor([points], dtype=torch.float32),
            torch.tensor([labels], dtype=torch.float32),
            torch.zeros(1, 1, 256, 256),
            torch.zeros(1),
        )
    for ours, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
    masks, quality = decode(decoder, features, points, labels)
    np.testing.assert_allclose(masks, said[0].numpy(), atol=2e-4)
    np.testing.assert_allclose(quality, said[1].numpy(), atol=1e-4)


def test_the_mask_is_the_model_s_own(
    sessions: tuple[Any, Any], model: es3.ImageModel, photo: np.ndarray
) -> None:
    """The whole way from pixels to a click's best mask."""
    encoder, decoder = sessions
    features = encoder.run(None, {"image": browser_pixels(photo)})
    masks, quality = decode(decoder, features, [[400, 600]], [1])
    assert quality.shape == (1, 4) and quality[0, 0] == -1
    own = model.segment_objects(stretched(photo), points=[[[400, 600]]], multimask=True)
    assert own.low_res is not None  # the masks themselves have their holes filled
    logits = torch.from_numpy(own.low_res[:1])
    theirs = torch.nn.functional.interpolate(logits, (256, 256), mode="bilinear")[0, 0].numpy()
    assert (theirs > 0).any() and (theirs <= 0).any()
    np.testing.assert_allclose(masks[0, quality[0].argmax()], theirs, atol=0.02)
    np.testing.assert_allclose(np.sort(quality[0, 1:]), np.sort(own.scores), atol=1e-3)


def test_an_earlier_mask_changes_the_answer(sessions: tuple[Any, Any], photo: np.ndarray) -> None:
    encoder, decoder = sessions
    features = encoder.run(None, {"image": browser_pixels(photo)})
    points, labels = [[300, 700], [600, 200]], [1, 0]
    without, _ = decode(decoder, features, points, labels)
    mask = np.full((1, 1, 256, 256), 8, np.float32)
    assert np.abs(decode(decoder, features, points, labels, mask)[0] - without).max() > 1e-3


def test_without_the_head_there_is_nothing_to_export(tmp_path: Path) -> None:
    from efficientsam3.config import tiny_config

    model = tiny_model(config=tiny_config(parts=("geometry", "masks")))
    with pytest.raises(es3.MissingAbilityError):
        clicks.export_clicks(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(
    model: es3.ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(clicks.ExportError, match=r"efficientsam3\[export\]"):
        clicks.export_clicks(model, tmp_path)
