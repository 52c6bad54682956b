"""The grounding loss: its terms for every kind of batch, and which parts get gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam3.config import ModelConfig
from efficientsam3.data.types import PhraseQuery
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.features import Answer
from efficientsam3.nn.masks import MaskHead
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.losses.detection import (
    LossWeights,
    count_objects,
    label_loss,
    mask_losses,
)
from efficientsam3.train.losses.feature_distillation import FeatureDistillation
from efficientsam3.train.losses.grounding import (
    GroundingBatch,
    GroundingLoss,
    GroundingStep,
    QueryCounts,
    choose_matches,
)
from efficientsam3.train.losses.matcher import Matches, Targets
from efficientsam3.train.tasks.grounding_batches import GroundingCollator, PromptSettings
from efficientsam3.train.teachers import ImageTeacher, PyramidTeacher

from ..conftest import Shapes, replace, tiny_net

ALL = LossWeights(denoising=1.0)


@pytest.fixture(scope="module")
def tiny() -> tuple[ModelConfig, Detector]:
    return tiny_net()


def batch_of(config: ModelConfig, samples: list[Any], **settings: Any) -> GroundingBatch:
    chosen = PromptSettings(**{"prompts": 3, "box_only": 0.0, "text_and_box": 0.0, **settings})
    return GroundingCollator(config, chosen)(samples, np.random.default_rng(0))


def gradients(net: Detector, loss: Tensor) -> dict[str, float]:
    """The largest gradient of each part."""
    net.zero_grad()
    loss.backward()
    out: dict[str, float] = {}
    for name, weight in net.named_parameters():
        if weight.grad is not None:
            assert bool(weight.grad.isfinite().all()), name
            part = name.split(".")[0]
            out[part] = max(out.get(part, 0.0), float(weight.grad.abs().max()))
    return out


def sample_with(*queries: PhraseQuery) -> Any:
    return replace(Shapes()[0], queries=queries)


BATCHES = {
    "usual": (sample_with(*Shapes()[0].queries), {}),
    "no positive": (sample_with(PhraseQuery("dog"), PhraseQuery("cat")), {}),
    "one prompt": (sample_with(PhraseQuery("rectangle", (0, 1))), {}),
    "one absent prompt": (sample_with(PhraseQuery("dog")), {}),
    "exemplars only": (sample_with(PhraseQuery("rectangle", (0, 1))), {"box_only": 1.0}),
    "text and exemplars": (sample_with(PhraseQuery("rectangle", (0, 1))), {"text_and_box": 1.0}),
    "not exhaustive": (sample_with(PhraseQuery("rectangle", (0,), exhaustive=False)), {}),
    "nothing sure": (sample_with(PhraseQuery("dog", exhaustive=False)), {}),
}


@pytest.mark.parametrize("weights", [LossWeights(), ALL], ids=["upstream", "all"])
@pytest.mark.parametrize("kind", BATCHES)
def test_every_kind_of_batch_has_a_finite_loss(
    tiny: tuple[ModelConfig, Detector], kind: str, weights: LossWeights
) -> None:
    config, net = tiny
    sample, settings = BATCHES[kind]
    batch = batch_of(config, [sample], **settings)
    terms = GroundingLoss(weights)(net, batch)
    assert all(bool(t.isfinite()) for t in terms.values()), terms
    reached = gradients(net, terms["loss"])
    present = bool(batch.targets.present.any())
    if kind == "nothing sure":
        assert float(terms["loss"].detach()) == 0
        return
    assert reached["trunk"] > 0
    assert reached["text"] > 0 or kind == "exemplars only"
    assert (reached.get("masks", 0) > 0) == present
    assert float(terms["presence"]) > 0
    for name in ("label", "box", "giou", "mask", "dice"):
        assert (float(terms[name]) > 0) == present, name


def test_an_image_without_objects(tiny: tuple[ModelConfig, Detector]) -> None:
    config, net = tiny
    empty = replace(
        Shapes()[0], boxes=np.zeros((0, 4), np.float32), masks=(), queries=(PhraseQuery("dog"),)
    )
    batch = batch_of(config, [empty])
    assert batch.targets.boxes.shape == (1, 0, 4)
    terms = GroundingLoss(ALL)(net, batch)
    assert all(bool(t.isfinite()) for t in terms.values())
    assert gradients(net, terms["loss"])["decoder"] > 0


def test_the_sum_is_weighted(tiny: tuple[ModelConfig, Detector]) -> None:
    config, net = tiny
    batch = batch_of(config, [Shapes()[0], Shapes()[1]])
    w = LossWeights(one_to_many=0)
    terms = GroundingLoss(w)(net, batch)
    assert not any("many" in t or "noised" in t for t in terms)
    by_hand = sum(
        getattr(w, part) * terms[part + end]
        for part in ("label", "presence", "box", "giou")
        for end in ("", "_aux")
    )
    by_hand = by_hand + w.mask * terms["mask"] + w.dice * terms["dice"]
    torch.testing.assert_close(terms["loss"], torch.as_tensor(by_hand))


def test_one_to_many_of_the_last_layer_or_of_all(tiny: tuple[ModelConfig, Detector]) -> None:
    config, net = tiny
    batch = batch_of(config, [Shapes()[0]])
    last = GroundingLoss()(net, batch)
    every = GroundingLoss(one_to_many_on_aux=True)(net, batch)
    assert float(every["label_many"]) > float(last["label_many"]) > 0
    torch.testing.assert_close(every["label"], last["label"])


def test_extra_queries_do_not_change_the_other_terms(tiny: tuple[ModelConfig, Detector]) -> None:
    config, net = tiny
    batch = batch_of(config, [Shapes()[0]])
    bare = GroundingLoss(LossWeights(one_to_many=0))(net, batch)
    full = GroundingLoss(LossWeights(denoising=1.0))(net, batch)
    for name in bare.keys() - {"loss"}:
        torch.testing.assert_close(bare[name], full[name], atol=1e-4, rtol=1e-4)


# Denoising ------------------------------------------------------------------------------------


def targets(*counts: int) -> Targets:
    torch.manual_seed(0)
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    boxes = torch.rand(*valid.shape, 4) * 0.2 + 0.4
    boxes = boxes * valid[..., None]
    return Targets(boxes, valid, None, torch.ones(len(counts), dtype=torch.bool))


def test_noised_boxes_are_near_their_objects(tiny: tuple[ModelConfig, Detector]) -> None:
    _, net = tiny
    wanted = targets(2, 1)
    criterion = GroundingLoss(LossWeights(denoising=1.0), box_noise=0.3, noise_groups=3)
    alone, kinds = criterion._extra_queries(net, wanted)
    assert kinds == QueryCounts(12, 12, 6)
    assert alone is not None
    assert alone[0].shape[:2] == alone[1].shape[:2] == (2, 18)
    noised = alone[1][:, 12:].detach()
    matches = criterion._noised_matches(wanted)
    assert len(matches.rows) == 3 * 3  # padding has no match
    got, true = noised[matches.rows, matches.queries], wanted.boxes[matches.rows, matches.objects]
    moved, grown = (got - true)[:, :2].abs(), got[:, 2:] / true[:, 2:]
    assert bool((moved <= 0.3 * true[:, 2:] + 1e-6).all())
    assert 0.7 <= float(grown.min()) < float(grown.max()) <= 1.3
    assert float(moved.max()) > 0.03


def test_padded_noised_boxes_are_not_penalised() -> None:
    wanted = targets(2, 1)
    logits, boxes = torch.full((2, 2), 3.0), wanted.boxes.clone()
    known = GroundingLoss(noise_groups=1)._noised_matches(wanted)
    blamed = label_loss(logits, boxes, wanted, known, LossWeights())
    fair = label_loss(logits, boxes, wanted, known, LossWeights(), wanted.valid)
    # One padded query of logit 3, among 2 rows that count as 128 queries each.
    p = 1 / (1 + math.exp(-3))
    miss = -math.log(1 - p) * p**2 / (2 * 128)
    assert float(blamed - fair) == pytest.approx(miss, rel=1e-3)


# Masks ----------------------------------------------------------------------------------------


def test_masks_of_matched_queries_only(
    tiny: tuple[ModelConfig, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, net = tiny
    samples = [
        sample_with(PhraseQuery("dog"), PhraseQuery("rectangle", (0, 1)), PhraseQuery("a", (1,)))
    ]
    batch = batch_of(config, samples)
    shapes = []
    plain = MaskHead.read_rows

    def watched(self: MaskHead, *args: Any) -> Tensor:
        out = plain(self, *args)
        shapes.append((tuple(out.shape), args[-1].tolist()))
        return out

    monkeypatch.setattr(MaskHead, "read_rows", watched)
    GroundingLoss()(net, batch)
    assert shapes == [((2, 2, 32, 32), [0, 0])]  # two prompts of three, at most two objects
    shapes.clear()
    GroundingLoss(max_masks=1)(net, batch)
    assert shapes == [((2, 1, 32, 32), [0, 0])]


def test_masks_equal_those_of_the_model_in_use(tiny: tuple[ModelConfig, Detector]) -> None:
    """Each prompt is read from its own image, each object from the query that matches it."""
    config, net = tiny
    batch = batch_of(config, [Shapes()[0], Shapes()[1]])
    terms = GroundingLoss()(net, batch)
    image = net.read_image(batch.pixels)
    shown = image.take(batch.images)
    answer = net.answer(shown, *net.read_prompt(shown, net.read_text(batch.tokens)))
    matches = GroundingLoss().matcher(answer.logits, answer.boxes, batch.targets)
    logits, wanted = [], []
    assert batch.targets.masks is not None
    for row, query, one in zip(*(m.tolist() for m in matches), strict=True):
        own = int(batch.images[row])
        alone = net.read_image(batch.pixels[own : own + 1])
        narrow = Answer(
            *(t[row : row + 1] for t in (answer.logits, answer.presence, answer.boxes)),
            *(t[row : row + 1] for t in (answer.queries, answer.memory)),
            *(t[row : row + 1] for t in (answer.prompt, answer.mask)),
            [],
        )
        logits.append(net.masks_of(alone, narrow, 0, torch.tensor([query])))
        wanted.append(batch.targets.masks[row, one][None])
    assert len(logits) == 6
    focal, dice = mask_losses(torch.cat(logits), torch.cat(wanted), torch.tensor(6.0))
    torch.testing.assert_close(terms["mask"], focal.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(terms["dice"], dice.detach(), atol=1e-4, rtol=1e-3)


def test_noised_queries_predict_the_masks_of_their_objects(
    tiny: tuple[ModelConfig, Detector],
) -> None:
    config, net = tiny
    batch = batch_of(config, [Shapes()[0], Shapes()[1]])
    criterion = GroundingLoss(LossWeights(denoising=1.0))
    torch.manual_seed(0)
    terms = criterion(net, batch)
    torch.manual_seed(0)  # the same noise
    alone, kinds = criterion._extra_queries(net, batch.targets)
    image = net.read_image(batch.pixels)
    shown = image.take(batch.images)
    answer = net.answer(shown, *net.read_prompt(shown, net.read_text(batch.tokens)), alone)
    logits = net.part("masks")(
        answer.memory,
        image.grid,
        answer.prompt,
        answer.mask,
        answer.queries[:, kinds.learned + kinds.one_to_many :],
        [level[batch.images] for level in net.mask_features(image)],
    )
    rows, objects = batch.targets.valid.nonzero().unbind(1)
    assert batch.targets.masks is not None
    true = batch.targets.masks[rows, objects]
    focal, dice = mask_losses(logits[rows, objects], true, count_objects(batch.targets))
    torch.testing.assert_close(terms["mask_noised"], focal.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(terms["dice_noised"], dice.detach(), atol=1e-4, rtol=1e-3)


def test_boxed_masks_have_no_loss_outside_of_their_boxes() -> None:
    """A mask may show other objects of the concept, since it is cut to its box in use."""
    config, net = tiny_net(boxed_masks=True)
    batch = batch_of(config, [Shapes()[0]])
    criterion = GroundingLoss(LossWeights(one_to_many=0, label=0, presence=0, box=0, giou=0))
    seen: list[Tensor] = []
    head, read = net.part("masks"), MaskHead.read_rows

    def watched(*args: Any) -> Tensor:
        seen.append(read(head, *args))
        seen[-1].retain_grad()
        return seen[-1]

    head.read_rows = watched
    criterion(net, batch)["loss"].backward()
    gradient = seen[0].grad
    assert gradient is not None
    touched = (gradient != 0).any(0).any(0)
    masks = batch.targets.masks
    assert masks is not None
    assert bool(touched[(masks > 0).any(0).any(0)].any())
    assert 0.05 < float(touched.float().mean()) < 0.9


def test_matches_are_chosen_at_random_up_to_a_limit() -> None:
    rows = torch.tensor([0] * 5 + [3] * 2 + [4])
    matches = Matches(rows, torch.arange(8) * 10, torch.arange(8))
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        chosen, place = choose_matches(matches, 2)
        assert chosen.rows.tolist() == [0, 0, 3, 3, 4]
        assert place.tolist() == [0, 1, 0, 1, 0]
        assert (chosen.queries == chosen.objects * 10).all()
        assert len(set(chosen.objects.tolist())) == 5
        assert set(chosen.objects[2:4].tolist()) == {5, 6}
        seen |= set(chosen.objects[:2].tolist())
    assert seen == {0, 1, 2, 3, 4}


def test_the_mask_term_keeps_its_size_with_fewer_masks() -> None:
    """The term is scaled up by the share of masks that are compared."""
    config, net = tiny_net()
    crowded = [sample_with(PhraseQuery("rectangle", (0, 1)))]
    batch = batch_of(config, crowded)
    whole = GroundingLoss()(net, batch)
    some = [GroundingLoss(max_masks=1)(net, batch)["dice"] for _ in range(20)]
    assert float(torch.stack(some).mean()) == pytest.approx(float(whole["dice"]), rel=0.2)


def test_a_model_without_mask_head_has_no_mask_terms() -> None:
    config, net = tiny_net(parts=("geometry",))
    terms = GroundingLoss()(net, batch_of(config, [Shapes()[0]]))
    assert "mask" not in terms
    assert "giou" in terms


def test_data_without_masks_have_no_mask_terms(tiny: tuple[ModelConfig, Detector]) -> None:
    config, net = tiny
    batch = batch_of(config, [replace(Shapes()[0], masks=None)])
    assert batch.targets.masks is None
    assert "mask" not in GroundingLoss(ALL)(net, batch)


# Features of a teacher ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cosine", "l2"])
@pytest.mark.parametrize("level", ["map", "pyramid"])
def test_feature_distillation_adds_its_term(level: str, form: str) -> None:
    config, net = tiny_net()
    _, other = tiny_net()
    batch = batch_of(config, [Shapes()[0]])
    made = ImageTeacher.of(other, config) if level == "map" else PyramidTeacher.of(other)
    criterion = GroundingLoss(extra=(FeatureDistillation(made, form, 2.0),))
    same = criterion(net, batch)
    assert float(same["features"]) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for weight in net.part("trunk").parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    terms = criterion(net, batch)
    assert 0.001 < float(terms["features"]) < 2
    without = GroundingLoss()(net, batch)
    torch.testing.assert_close(terms["loss"] - without["loss"], 2.0 * terms["features"])
    reached = gradients(net, terms["features"] * 0 + terms["loss"])
    assert reached["trunk"] > 0
    assert all(w.grad is None and not w.requires_grad for w in made.parameters())


def test_training_lowers_the_feature_term() -> None:
    config, net = tiny_net()
    _, other = tiny_net()
    with torch.no_grad():
        for weight in other.part("trunk").parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    teacher = FeatureDistillation(PyramidTeacher.of(other))
    batch = batch_of(config, [Shapes()[0]])
    optimizer = torch.optim.Adam(net.part("trunk").parameters(), 2e-3)
    losses = []
    for _ in range(10):
        image: Any = net.read_image(batch.pixels)
        ((_, loss, _),) = teacher(net, GroundingStep(batch, image, image, image, image))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_a_teacher_of_another_width_is_an_error() -> None:
    config, net = tiny_net()
    _, other = tiny_net(width=24)
    teacher = FeatureDistillation(PyramidTeacher.of(other, "wide"))
    with pytest.raises(
        SettingsError, match=r"\(1, 16, 8, 8\), and those of the teacher 'wide' \(1, 24"
    ):
        GroundingLoss(extra=(teacher,))(net, batch_of(config, [Shapes()[0]]))
    with pytest.raises(SettingsError, match="distance is 'l1'; it must be one of cosine, l2"):
        FeatureDistillation(PyramidTeacher.of(other), "l1")


# Settings -----------------------------------------------------------------------------------------


def test_invalid_settings_are_errors() -> None:
    with pytest.raises(SettingsError, match=r"box_noise is 1\.5; it must be from 0 to below 1"):
        GroundingLoss(box_noise=1.5)
    with pytest.raises(SettingsError, match="max_masks is 0; it must be at least 1"):
        GroundingLoss(max_masks=0)
    with pytest.raises(SettingsError, match=r"loss weight dice is -1\.0; it must be 0 or more"):
        LossWeights(dice=-1.0)


def test_objects_are_counted() -> None:
    assert float(count_objects(targets(2, 1))) == 3
    assert float(count_objects(targets(2, 1)._replace(valid=torch.zeros(2, 2).bool()))) == 1
