"""The warm-up from scratch: image tokens learn the names of what they lie on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.distill.align import AlignBatches, AlignTask
from efficientsam3.distill.data.sample import PhraseQuery
from efficientsam3.distill.errors import DataError
from efficientsam3.distill.naming import UNSURE
from efficientsam3.distill.scratch import prepare
from efficientsam3.nn.tokenizer import tokenize

from .conftest import COLOURS, Shapes, coloured, descend, replace, tiny_net

NAMES = (*COLOURS, "dog")


def batches(size: int = 2, most: int = 192) -> AlignBatches:
    return AlignBatches(tiny_net()[0], coloured, size, NAMES, most)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_batch() -> None:
    batch = batches()(5, rng())
    assert batch.pixels.shape == (2, 3, 112, 112)
    assert batch.naming.names.shape == (2, 64)
    assert batch.naming.shares.shape == (2, 2, 64)
    torch.testing.assert_close(batch.naming.shares.sum(2), torch.ones(2, 2))
    assert sorted(map(tuple, batch.naming.tokens.tolist())) == sorted(
        map(tuple, tokenize(list(NAMES), 16).tolist())
    )
    for row in range(2):
        sample = coloured(10 + row)
        share = sample.masks_at(8).flatten(1)
        for cell in range(64):
            name = int(batch.naming.names[row, cell])
            best = int(share[:, cell].argmax())
            if share[best, cell] > 0.5:
                wanted = tokenize([sample.queries[best].phrase], 16)[0]
                assert torch.equal(batch.naming.tokens[name - 1], wanted)
            else:
                assert name == (UNSURE if share[:, cell].sum() > 0.1 else 0)


def test_what_is_shown_is_always_offered() -> None:
    batch = batches(most=1)(0, rng())
    shown = {q.phrase for n in range(2) for q in coloured(n).queries if q.objects}
    assert len(batch.naming.tokens) == len(shown)
    assert int(batch.naming.objects.max()) == len(shown)


def test_the_same_number_gives_the_same_batch() -> None:
    one, same = (batches()(3, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(one.pixels, same.pixels)
    assert all(torch.equal(a, b) for a, b in zip(one.naming, same.naming, strict=True))
    assert not torch.equal(one.pixels, batches()(4, rng()).pixels)


def test_an_image_of_nothing() -> None:
    config, net = tiny_net()
    empty = replace(
        Shapes()[0], boxes=np.zeros((0, 4), np.float32), masks=(), queries=(PhraseQuery("dog"),)
    )
    make = AlignBatches(config, lambda n: empty if n == 0 else coloured(n), 2, NAMES)
    batch = make(0, rng())
    assert (batch.naming.names[0] == 0).all()
    assert (batch.naming.objects[0] == UNSURE).all()
    terms = AlignTask(net, make).loss(net, batch)
    assert bool(terms["loss"].isfinite())


def test_tokens_learn_names() -> None:
    config, net = tiny_net()
    held_out = (AlignBatches(config, coloured, 4, NAMES)(1000, rng()),)
    task = AlignTask(prepare(net), batches(4), held_out=held_out, workers=0)
    with torch.no_grad():
        before = task.validate(net)
    first, last = descend(task, 40)
    with torch.no_grad():
        after = task.validate(net)
    assert last < 0.5 * first
    assert after["objects_right"] > 0.7 > before["objects_right"]
    assert after["things_right"] > 0.6
    assert after["nothing_right"] > 0.6


def test_heads_stay_as_they_are() -> None:
    _, net = tiny_net()
    task = AlignTask(net, batches(), workers=0)
    task.loss(net, batches()(0, rng()))["loss"].backward()
    learned = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}
    assert learned == {"trunk", "neck", "text", "scoring"}


def test_nothing_held_out_and_no_names() -> None:
    config, net = tiny_net()
    assert AlignTask(net, batches()).validate(net) == {}
    with pytest.raises(DataError, match="there is no name to learn"):
        AlignBatches(config, coloured, 2, ())
