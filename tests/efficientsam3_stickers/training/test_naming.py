"""The task before stage 3 of training from scratch: image tokens learn names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.data.types import PhraseQuery
from efficientsam3.errors import DataError
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3_stickers.training.init import init_from_scratch
from efficientsam3_stickers.training.naming import NamingBatches, NamingTask
from efficientsam3_stickers.training.token_classification import IGNORED

from ...efficientsam3.train.conftest import (
    COLORS,
    Shapes,
    colored_sample,
    replace,
    tiny_net,
    train_steps,
)

NAMES = (*COLORS, "dog")


def batches(size: int = 2, max_names: int = 192) -> NamingBatches:
    return NamingBatches(tiny_net()[0], colored_sample, size, NAMES, max_names)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_batch_labels_the_image_tokens() -> None:
    batch = batches()(5, rng())
    assert batch.pixels.shape == (2, 3, 112, 112)
    assert batch.labels.names.shape == (2, 64)
    assert batch.labels.shares.shape == (2, 2, 64)
    torch.testing.assert_close(batch.labels.shares.sum(2), torch.ones(2, 2))
    assert sorted(map(tuple, batch.labels.tokens.tolist())) == sorted(
        map(tuple, tokenize(list(NAMES), 16).tolist())
    )
    for row in range(2):
        sample = colored_sample(10 + row)
        share = sample.masks_at(8).flatten(1)
        for cell in range(64):
            name = int(batch.labels.names[row, cell])
            best = int(share[:, cell].argmax())
            if share[best, cell] > 0.5:
                wanted = tokenize([sample.queries[best].phrase], 16)[0]
                assert torch.equal(batch.labels.tokens[name - 1], wanted)
            else:
                assert name == (IGNORED if share[:, cell].sum() > 0.1 else 0)


def test_names_that_are_shown_are_always_in_the_batch() -> None:
    batch = batches(max_names=1)(0, rng())
    shown = {q.phrase for n in range(2) for q in colored_sample(n).queries if q.objects}
    assert len(batch.labels.tokens) == len(shown)
    assert int(batch.labels.objects.max()) == len(shown)


def test_equal_numbers_give_equal_batches() -> None:
    one, same = (batches()(3, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one.pixels, same.pixels)
    assert all(torch.equal(a, b) for a, b in zip(one.labels, same.labels, strict=True))
    assert not torch.equal(one.pixels, batches()(4, rng()).pixels)


def test_an_image_without_objects() -> None:
    config, net = tiny_net()
    empty = replace(
        Shapes()[0], boxes=np.zeros((0, 4), np.float32), masks=(), queries=(PhraseQuery("dog"),)
    )
    make = NamingBatches(config, lambda n: empty if n == 0 else colored_sample(n), 2, NAMES)
    batch = make(0, rng())
    assert (batch.labels.names[0] == 0).all()
    assert (batch.labels.objects[0] == IGNORED).all()
    terms = NamingTask(net, make).loss(net, batch)
    assert bool(terms["loss"].isfinite())


@pytest.mark.slow
def test_tokens_learn_names() -> None:
    config, net = tiny_net()
    held_out = (NamingBatches(config, colored_sample, 4, NAMES)(1000, rng()),)
    task = NamingTask(init_from_scratch(net), batches(4), held_out=held_out, workers=0)
    with torch.no_grad():
        before = task.validate(net)
    first, last = train_steps(task, 40)
    with torch.no_grad():
        after = task.validate(net)
    assert last < 0.5 * first
    assert after["objects_right"] > 0.7 > before["objects_right"]
    assert after["named_right"] > 0.6
    assert after["unnamed_right"] > 0.6


def test_heads_do_not_learn() -> None:
    _, net = tiny_net()
    task = NamingTask(net, batches(), workers=0)
    task.loss(net, batches()(0, rng()))["loss"].backward()
    learned = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}
    assert learned == {"trunk", "neck", "text", "scoring"}


def test_without_held_out_batches_and_without_names() -> None:
    config, net = tiny_net()
    assert NamingTask(net, batches()).validate(net) == {}
    with pytest.raises(DataError, match="there is no name to learn"):
        NamingBatches(config, colored_sample, 2, ())
