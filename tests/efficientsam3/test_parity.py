"""Agreement with upstream's outputs, through the path of a checkpoint: file, load, prompts.

``../parity/README.md`` says where the outputs come from. They must agree within 3e-4; measured
differences are about 5e-5.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import efficientsam3 as es3
from efficientsam3.devices import best_dtype
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.segmenter import VISUAL

from ..parity.upstream import HERE, part, released_keys, values

TOLERANCE = 3e-4
CASES = sorted(p.stem for p in HERE.glob("*_ctx*.json"))

# Models of the released sizes: one worker runs them, since two at a time need 15 GiB of memory.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("full-size models")]

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)  # --log-cli-level=info shows how near the faster modes are


of_tinyvit = pytest.mark.parametrize("case", ["tinyvit-11m_mobileclip-s0_ctx16"], indirect=True)


class Case:
    """A golden case: what was asked of upstream, what it said, and our model to ask the same."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.spec = json.loads((HERE / f"{name}.json").read_text())
        self.golden = dict(np.load(HERE / f"{name}.npz"))
        self.photo = photo(self.spec["image"])
        with Image.open(self.photo) as image:
            self.size = image.size  # width, height
        self.path = folder / f"{name}.pt"
        vision = self.spec["vision"]
        self.vision = vision if isinstance(vision, str) else "-".join(vision)
        self.text = (self.spec["text"] or "sam3").lower()
        keys = released_keys(self.vision, self.text, self.spec["ctx"])
        if not self.spec.get("inst"):
            unasked = ("interactive", "interactive_neck", "memory")
            keys = {k: v for k, v in keys.items() if part(k) not in unasked}
        torch.save({"model": values(keys)}, self.path)
        self.model = self.load(dtype="float32")
        self.pixels = self.model.preprocess(self.photo)

    def load(self, **options: Any) -> es3.ImageModel:
        student = f"efficientsam3-{self.vision}"
        name = "sam3-litetext-s0-16" if self.vision == "sam3" else student
        context = self.spec["ctx"]
        chosen = {"checkpoint": self.path, "text": self.text, "context": context, **options}
        model = es3.load(name, device="cpu", **chosen)
        # Features of an image are shared by what is asked of it, as ``encode`` does.
        model.net.read_image = functools.lru_cache(1)(model.net.read_image)
        return model

    def prompts(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        return [(i, p) for i, p in enumerate(self.spec["prompts"]) if p["kind"] == kind]

    def ground(self, model: es3.ImageModel, prompt: dict[str, Any]) -> es3.Grounding:
        exemplars: dict[str, Tensor] = {}
        if "boxes" in prompt:
            exemplars["boxes"] = torch.tensor([prompt["boxes"]])
            exemplars["box_labels"] = torch.tensor([prompt["labels"]])
        if "points" in prompt:
            size = torch.tensor(self.size)
            exemplars["points"] = torch.tensor([prompt["points"]]) / size
            exemplars["point_labels"] = torch.tensor([prompt["point_labels"]])
        return model.ground(self.pixels, [prompt.get("text")], **exemplars)

    @functools.cached_property
    def answers(self) -> dict[int, es3.Grounding]:
        """Our float32 answers, by number of the prompt."""
        return {i: self.ground(self.model, p) for i, p in self.prompts("concept")}

    @functools.cached_property
    def encoded(self) -> es3.EncodedImage:
        return self.model.encode(self.photo)


def photo(path: str) -> Path:
    """A photograph in an installed package; the package itself is not imported."""
    package, _, rest = path.partition("/")
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None, f"{package} is not installed"
    return Path(found.origin).parent / rest


@pytest.fixture(
    scope="module",
    params=CASES,
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("parity")
    yield Case(request.param, folder)
    shutil.rmtree(folder)


def close(ours: Tensor | Array, theirs: Array) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE)


def scores(answer: es3.Grounding) -> Tensor:
    return (answer.logits.sigmoid() * answer.presence.sigmoid()[:, None])[0]


def test_pixels(case: Case) -> None:
    close(case.pixels[0, :, ::16, ::16], case.golden["pixels_sub"])


def test_text(case: Case) -> None:
    for i, prompt in case.prompts("concept"):
        tokens = tokenize([prompt.get("text", VISUAL)], case.spec["ctx"])
        with torch.inference_mode():
            features, mask = case.model.net.read_text(tokens)
        close(features[0], case.golden[f"p{i}_text"])
        assert torch.equal(mask, tokens != 0)


def test_pyramid(case: Case) -> None:
    with torch.inference_mode():
        encoded = case.model.net.part("trunk")(case.pixels)
        levels = case.model.learned().part("neck")(encoded)
    for i, level in enumerate(levels):
        step = level.shape[-1] // 18
        close(level[0, ::8, ::step, ::step], case.golden[f"fpn{i}_sub"])


def test_concepts_and_exemplars(case: Case) -> None:
    for i, answer in case.answers.items():
        assert answer.masks is not None
        for ours, theirs in [
            (answer.memory[0, ::36], "encoder_sub"),
            (answer.logits[0], "logits"),
            (answer.presence, "presence"),
            (answer.boxes[0], "boxes"),
            (scores(answer), "scores"),
            (answer.masks[0, ::4, ::16, ::16], "mask_sub"),
            (answer.masks[0].mean((1, 2)), "mask_mean"),
        ]:
            close(ours, case.golden[f"p{i}_{theirs}"])
        kept = case.golden[f"p{i}_scores"] > 0.5
        assert ((scores(answer) > 0.5).numpy() == kept).all()


@of_tinyvit
def test_results_in_pixels_are_upstreams_boxes_and_scores(case: Case) -> None:
    i, prompt = case.prompts("concept")[0]
    found = case.model.segment(case.encoded, prompt["text"], threshold=0.5)
    width, height = case.size
    assert found.size == (height, width)
    score, box = case.golden[f"p{i}_scores"], case.golden[f"p{i}_boxes"]
    order = np.argsort(-score, kind="stable")[: int((score > 0.5).sum())]
    close(found.scores, score[order])
    center, half = box[order, :2], box[order, 2:] / 2
    corners = np.concatenate([center - half, center + half], 1).clip(0, 1)
    # The order of equal scores is open to rounding: compare column by column.
    ours = found.boxes / [width, height, width, height]
    close(np.sort(ours, axis=0), np.sort(corners, axis=0))
    presence = case.golden[f"p{i}_presence"]
    close(np.array([found.concept_presence[prompt["text"]]]), 1 / (1 + np.exp(-presence)))


def test_single_objects(case: Case) -> None:
    for i, prompt in case.prompts("inst"):
        if "box" in prompt:
            found = case.model.segment_objects(
                case.encoded, boxes=[prompt["box"]], multimask=prompt["multimask"]
            )
        else:
            found = case.model.segment(
                case.encoded,
                points=prompt["point_coords"],
                point_labels=prompt["point_labels"],
                multimask=prompt["multimask"],
            )
        quality = case.golden[f"p{i}_iou"]
        order = np.argsort(-quality, kind="stable")  # ours come best first
        assert len(found) == len(order)
        assert found.low_res is not None
        close(found.scores, quality[order])
        close(found.low_res[:, 0, ::8, ::8], case.golden[f"p{i}_low_sub"][order])
        close(found.masks.mean((1, 2)), case.golden[f"p{i}_mask_mean"][order])


# Faster modes --------------------------------------------------------------------------------


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (K, h, w) masks, pair by pair; of two empty masks it is 1."""
    shared, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return torch.where(either > 0, shared / either.clamp(min=1), 1.0)


def mean_and_min(iou: Tensor) -> tuple[float, float]:
    return iou.mean().item(), iou.min().item()


def best(answer: es3.Grounding) -> Tensor:
    """The queries that are kept; the best twenty where fewer are."""
    found = scores(answer)
    return found.argsort(descending=True)[: max(20, int((found > 0.5).sum()))]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.startswith(("tinyvit-11m", "repvit"))], indirect=True
)
def test_the_default_precision_keeps_the_masks(case: Case) -> None:
    if best_dtype(torch.device("cpu")) == torch.float32:
        pytest.skip("this processor has no bfloat16: the default is float32")
    model = case.load()
    assert model.dtype == torch.bfloat16
    prompts = case.prompts("concept")
    for i, prompt in prompts[: max(1, len(prompts) // 2)]:
        exact, ours = case.answers[i], case.ground(model, prompt)
        chosen = best(exact)
        assert exact.masks is not None
        assert ours.masks is not None
        iou = overlap(exact.masks[0, chosen] > 0, ours.masks[0, chosen] > 0)
        log.info("%s p%d: IoU with float32 mean %.4f, min %.4f", case.name, i, *mean_and_min(iou))
        assert iou.mean() >= 0.98
        assert (scores(ours) - scores(exact)).abs().max() < 0.02


@of_tinyvit
def test_the_fast_mode_is_deterministic(case: Case) -> None:
    i, prompt = case.prompts("concept")[0]
    model = case.load(speed="fast")
    ours = case.ground(model, prompt)
    model.net.read_image.cache_clear()
    again = case.ground(model, prompt)
    for a, b in zip(ours, again, strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)
    exact = case.answers[i]
    assert exact.masks is not None
    assert ours.masks is not None
    chosen = best(exact)
    iou = overlap(exact.masks[0, chosen] > 0, ours.masks[0, chosen] > 0)
    log.info("%s p%d: IoU of fast with exact mean %.4f, min %.4f", case.name, i, *mean_and_min(iou))
    assert not torch.equal(ours.memory, exact.memory)
