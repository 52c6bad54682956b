"""Training of late fusion: batches of whole scenes, their truth, and the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from efficientsam3.build import build
from efficientsam3.config import LateConfig, tiny_late_config
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.segmenter import VISUAL
from efficientsam3.train.errors import SettingsError
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.scenes import SceneGenerator
from efficientsam3_stickers.training.feature_teacher import (
    HEADS,
    FeatureTeacher,
    TeacherHeads,
)
from efficientsam3_stickers.training.object_batches import (
    ObjectBatch,
    ObjectBatches,
    PromptShares,
    mirror,
    shrink,
)
from efficientsam3_stickers.training.object_loss import (
    ObjectLoss,
    ObjectLossWeights,
    name_loss,
    read_exemplars,
    token_targets,
)
from efficientsam3_stickers.training.object_matching import Assignment as Pairs
from efficientsam3_stickers.training.object_matching import at_random, one_of_each
from efficientsam3_stickers.training.object_task import ObjectTask
from efficientsam3_stickers.training.phrase_table import PhraseTable
from efficientsam3_stickers.training.phrase_truth import (
    DOUBTFUL,
    FALSE,
    TRUE,
    list_phrases,
    phrase_truth,
)
from efficientsam3_stickers.training.sticker_teacher import WIDTH, StickerTeacher
from efficientsam3_stickers.training.teacher_files import ImageNetEncoder

CONFIG = tiny_late_config(parts=("geometry", "masks"), late=LateConfig(1, 1, 1, (8, 16), 16))
"""As in the recipe, there is no rescorer yet, which learns when everything else is trained."""


def batches(generator: SceneGenerator, **changes: object) -> ObjectBatches:
    return ObjectBatches(CONFIG, [generator], 4, generator.names, **changes)  # type: ignore[arg-type]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def net() -> LateDetector:
    torch.manual_seed(0)
    made = build(CONFIG)
    assert isinstance(made, LateDetector)
    made.part("text").requires_grad_(False)
    return made


def table(stickers: StickerArt, generator: SceneGenerator) -> PhraseTable:
    concepts = [stickers.concepts[name] for name in generator.names]
    phrases = list_phrases(concepts)
    return PhraseTable(phrases, len(concepts), phrase_truth(concepts, phrases), CONFIG.context)


# Batches --------------------------------------------------------------------------------------


def test_a_batch_holds_every_object_of_its_scenes(generator: SceneGenerator) -> None:
    batch = batches(generator)(3, rng())
    for row in range(4):
        scene = generator.scene(12 + row)
        count = len(scene.objects)
        assert int(batch.valid[row].sum()) == count
        for i, found in enumerate(scene.objects):
            assert generator.names[int(batch.concepts[row, i])] == found.concept.name
            x0, y0, x1, y1 = found.box / 96
            wanted = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            torch.testing.assert_close(batch.boxes[row, i], wanted)
            cells = torch.from_numpy(found.mask.reshape(24, 4, 24, 4).mean((1, 3)))
            torch.testing.assert_close(batch.masks[row, i] / 255, cells.float(), atol=0.01, rtol=0)
            share = batch.shares[row, i].view(6, 6)
            whole = torch.from_numpy(found.mask.reshape(6, 16, 6, 16).mean((1, 3)))
            torch.testing.assert_close(share, whole.float(), atol=0.01, rtol=0)


def test_prompts_mean_what_their_phrases_name(generator: SceneGenerator) -> None:
    whole = batches(generator, shares=PromptShares(box_only=0.0))
    batch = whole(5, rng())
    assert len(batch.phrases) == len(batch.images) == len(batch.meant)
    for phrase, row, meant in zip(batch.phrases, batch.images.tolist(), batch.meant, strict=True):
        queries = {q.phrase: q.objects for q in generator.scene(20 + row).queries}
        assert tuple(meant.nonzero().flatten().tolist()) == queries[phrase]


def test_boxes_stand_for_phrases(generator: SceneGenerator) -> None:
    shares = PromptShares(box_only=1.0, negative_box=1.0)
    batch = batches(generator, shares=shares)(0, rng())
    assert batch.exemplars is not None
    shown = batch.exemplars
    for p, phrase in enumerate(batch.phrases):
        positive = shown.box_valid[p] & (shown.box_labels[p] == 1)
        if phrase == VISUAL:
            assert 1 <= int(positive.sum()) <= 3 and batch.meant[p].any()
        else:
            assert not positive.any()
        near = torch.cdist(shown.boxes[p][positive], batch.boxes[batch.images[p]][batch.meant[p]])
        assert not positive.any() or float(near.amin(1).max()) < 0.2


def test_scenes_are_used_twice_the_second_time_mirrored(generator: SceneGenerator) -> None:
    twice = batches(generator, uses=2)
    first, later = twice(0, rng()), twice(64, rng())
    torch.testing.assert_close(later.pixels[2:], first.pixels[:2].flip(3))
    alone = batches(generator, uses=2)(64, rng())  # a resumed run makes them again
    torch.testing.assert_close(alone.pixels, later.pixels)
    with pytest.raises(SettingsError, match="uses is 3"):
        batches(generator, uses=3)


def test_a_mirrored_scene_has_mirrored_boxes(generator: SceneGenerator) -> None:
    scene = mirror(generator.scene(2))
    for found in scene.objects:
        columns = np.flatnonzero(found.mask.any(0))
        assert found.box[0] == columns[0] and found.box[2] == columns[-1] + 1


def test_shrinking_a_mask() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4, :2] = True
    assert shrink(mask, 2).tolist() == [[127, 0], [0, 0]]


# Truth ----------------------------------------------------------------------------------------


def test_truth_of_phrases(stickers: StickerArt) -> None:
    concepts = [stickers.concepts[n] for n in ("red apple", "dog", "dog face", "guitar")]
    phrases = list_phrases(concepts)
    assert phrases[:4] == ["red apple", "dog", "dog face", "guitar"]
    truth = phrase_truth(concepts, phrases)
    at = {phrase: i for i, phrase in enumerate(phrases)}
    assert truth[0, at["red apple"]] == truth[0, at["fruit"]] == TRUE
    assert truth[3, at["fruit"]] == truth[0, at["guitar"]] == FALSE
    assert truth[2, at["dog"]] in (DOUBTFUL, TRUE)  # a dog face may be called a dog


def test_tokens_of_an_object_lie_on_it(generator: SceneGenerator) -> None:
    batch = batches(generator)(1, rng())
    which, counted, _ = token_targets(batch)
    for row in range(4):
        for token in (which[row] >= 0).nonzero().flatten():
            assert batch.shares[row, which[row, token], token] > 0
            assert counted[row, token]
        shown = set(which[row][which[row] >= 0].tolist())
        large = (batch.boxes[row, :, 2:].amin(-1) > 0.3) & batch.valid[row]
        assert set(large.nonzero().flatten().tolist()) <= shown


def test_names_that_are_true_too_do_not_count_as_errors() -> None:
    logits = torch.tensor([[2.0, 5.0, 0.0]])
    truth = torch.tensor([[1, -1, 0]], dtype=torch.int8)
    wanted = torch.nn.functional.cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(name_loss(logits, torch.tensor([0]), truth, 3), wanted)


def test_one_query_of_each_object() -> None:
    known = Pairs(torch.tensor([0, 0, 1]), torch.tensor([8, 9, 8]), torch.tensor([0, 1, 0]))
    matched = Pairs(torch.tensor([0, 1]), torch.tensor([3, 5]), torch.tensor([1, 0]))
    seen = {tuple(one_of_each(matched, known).queries.tolist()) for _ in range(50)}
    assert seen == {(8, 9, 8), (8, 3, 8), (8, 9, 5), (8, 3, 5)}


def test_some_objects_of_each_image_at_random() -> None:
    pairs = Pairs(
        torch.tensor([0, 0, 0, 2, 3, 3]), torch.arange(6), torch.tensor([0, 1, 2, 0, 0, 1])
    )
    drawn = [at_random(pairs, 2) for _ in range(100)]
    assert all(part.images.tolist() == [0, 0, 2, 3, 3] for part in drawn)
    assert {tuple(part.queries.tolist()) for part in drawn} == {
        (0, 1, 3, 4, 5),
        (0, 2, 3, 4, 5),
        (1, 2, 3, 4, 5),
    }
    assert at_random(pairs, 0) is pairs


# Loss -----------------------------------------------------------------------------------------


def test_prompts_without_exemplars_share_the_token_of_their_image(
    net: LateDetector, stickers: StickerArt, generator: SceneGenerator
) -> None:
    batch = batches(generator)(0, rng())
    assert batch.exemplars is not None
    phrases = table(stickers, generator)
    with torch.no_grad():
        image = net.eval().encode_image(batch.pixels)
        words = phrases.read(net, batch.phrases)
        each = net.read_prompt(image.take(batch.images), words, batch.exemplars)
        shown, keep = read_exemplars(net, image, batch)
        queries = torch.randn(4, 8, net.part("geometry").norm.weight.numel())
        decoder = net.part("decoder")
        wanted = decoder(queries, *each, batch.images)
        prompt, mask = torch.cat([words[0], shown], 1), torch.cat([words[1], keep], 1)
        found = decoder(queries, prompt, mask, batch.images)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_all_parts_learn_from_one_batch(
    net: LateDetector, stickers: StickerArt, generator: SceneGenerator
) -> None:
    batch = batches(generator)(0, rng())
    # The names of so few concepts would outweigh the rest with the recipe's weights.
    weights = ObjectLossWeights(name=1.0, pooled_name=0.5)
    loss = ObjectLoss(table(stickers, generator), weights)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    values = []
    torch.manual_seed(0)
    for _ in range(20):
        terms = loss(net.train(), batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        values.append({k: v.item() for k, v in terms.items()})
    for name in ("token", "box", "dice", "name", "meant", "loss"):
        assert values[-1][name] < 0.9 * values[0][name], name
    unused = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert [n for n in unused if "points_" not in n] == []


class SmallTeacher(nn.Module):
    """Maps of the teacher's shapes, which depend on the image alone."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        middle, last = ImageNetEncoder.WIDTHS
        small = F.adaptive_avg_pool2d(pixels, 6)
        return small.repeat(1, middle // 3 + 1, 1, 1)[:, :middle], F.avg_pool2d(small, 2).repeat(
            1, last // 3 + 1, 1, 1
        )[:, :last]


def test_a_teacher_sees_some_images(
    net: LateDetector, stickers: StickerArt, generator: SceneGenerator
) -> None:
    net.add_module(HEADS, TeacherHeads(CONFIG.trunk_width, CONFIG.width))
    teacher = FeatureTeacher([1, 3], 2.0, SmallTeacher())
    styles = generator.split.styles
    vectors = np.random.default_rng(0).normal(size=(len(generator.names), len(styles), WIDTH))
    seen_stickers = StickerTeacher(vectors.astype(np.float32), 2.0)
    loss = ObjectLoss(table(stickers, generator), teacher=teacher, stickers=seen_stickers)
    terms = loss(net.train(), batches(generator)(0, rng()))
    terms["loss"].backward()
    assert 0 < float(terms["teacher"]) < 2
    assert float(terms["sticker"]) > 0 and float(terms["pooled_sticker"]) > 0
    assert all(p.grad is not None for p in net.part(HEADS).parameters())


@pytest.mark.parametrize("side", [160, 176])
def test_maps_have_the_size_of_the_teacher_s_for_every_multiple_of_16(side: int) -> None:
    """The teacher's last map has a stride of 32, and its size is rounded up."""
    heads = TeacherHeads(8, 8)
    middle, last = heads(torch.zeros(1, 8, side // 16, side // 16))
    assert middle.shape[2:] == (side // 16,) * 2
    assert last.shape[2:] == (-(-side // 32),) * 2


def test_a_scene_without_objects_has_a_finite_loss(
    net: LateDetector, stickers: StickerArt, generator: SceneGenerator
) -> None:
    whole = batches(generator)
    empty = [replace(generator.scene(i), objects=(), queries=()) for i in range(4)]
    batch: ObjectBatch = whole.collate(empty, rng())
    terms = ObjectLoss(table(stickers, generator))(net.train(), batch)
    terms["loss"].backward()
    assert all(torch.isfinite(v) for v in terms.values())


def test_validation_names_and_draws_objects(
    net: LateDetector, stickers: StickerArt, generator: SceneGenerator
) -> None:
    whole = batches(generator)
    probe = [whole(100, rng())]
    task = ObjectTask(
        net,
        CONFIG,
        whole,
        ObjectLoss(table(stickers, generator)),
        probes={"seen": (probe, generator.names)},
    )
    with torch.no_grad():
        figures = task.validate(net.eval())
    assert set(figures) == {
        f"seen/{n}" for n in ("named", "iou", "iou large", "recall", "found iou large")
    }
    assert 0 <= figures["seen/named"] <= 1 and 0 <= figures["seen/iou"] <= 1
