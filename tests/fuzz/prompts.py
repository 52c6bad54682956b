"""Kinds of values that users pass: prompts with their limits, and run lengths."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import efficientsam3 as es3
from efficientsam3.io import rle
from efficientsam3.prompts import check_segment_arguments

from ..conftest import tiny_model
from .mutate import VALUES
from .runner import Case, Kind
from .samples import HEIGHT, WIDTH, run_lengths

numbers = st.one_of(
    st.floats(-10, 80),
    st.integers(-3, 80),
    st.sampled_from(
        [
            0,
            1,
            47,
            48,
            63,
            64,
            1e9,
            -1e9,
            1e38,
            10**400,
            float("nan"),
            float("inf"),
            None,
            "1",
            True,
        ]
    ),
)
coordinates = st.floats(0, 60, width=16)
texts = st.one_of(
    st.sampled_from(
        [
            "person",
            "red car",
            "",
            " ",
            "\x00",
            "\ud800",
            "a" * 5000,
            "person, car",
            "é\u0301",
            "\u202e",
            "a.b",
            "\n",
        ]
    ),
    st.text(max_size=12),
)
strange = st.sampled_from(VALUES)
SHOWN = "exemplars of another image"
"""Stands for ``Prompts.shown``, which needs a model."""


def boxes() -> st.SearchStrategy[Any]:
    """(K, 4), mostly sound."""
    corner = st.tuples(coordinates, coordinates, st.floats(0.5, 30), st.floats(0.5, 30))
    sound = corner.map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
    wrong = st.lists(numbers, max_size=6)
    rows = st.lists(st.one_of(sound, sound, wrong), max_size=4)
    shaped = rows.filter(lambda r: all(len(b) == 4 for b in r))
    return st.one_of(rows, shaped.map(lambda r: np.array(r, object)), strange, _arrays())


def points(*, nested: bool = False) -> st.SearchStrategy[Any]:
    """(K, 2) or (N, K, 2), mostly sound."""
    sound = st.tuples(coordinates, st.floats(0, 47)).map(list)
    rows = st.lists(st.one_of(sound, sound, sound, st.lists(numbers, max_size=3)), max_size=4)
    return st.one_of(st.lists(rows, max_size=3) if nested else rows, strange, _arrays())


def drawn() -> st.SearchStrategy[Any]:
    """Masks, run lengths and polygons, mostly sound."""
    corner = st.tuples(coordinates, st.floats(0, 47)).map(list)
    polygon = st.lists(st.one_of(corner, corner, st.lists(numbers, max_size=3)), max_size=5)
    whole = st.sampled_from([np.ones((48, 64), bool), np.eye(48, 64), np.zeros((48, 64))])
    run_lengths = st.just({"size": [48, 64], "counts": [99, 5, 48 * 64 - 104]})
    one = st.one_of(polygon, whole, run_lengths, strange, _arrays())
    return st.one_of(st.lists(one, max_size=3), one)


def _arrays() -> st.SearchStrategy[Any]:
    shapes = st.sampled_from(
        [(), (0,), (4,), (0, 4), (1, 4), (2, 2), (1, 2, 2), (1, 1, 32, 32), (2, 32, 32)]
    )
    dtypes = st.sampled_from(
        [np.float32, np.float64, np.int64, np.uint8, bool, complex, "U3", object]
    )
    made = st.builds(lambda s, d: np.ones(s, d), shapes, dtypes)
    tensors = shapes.map(lambda s: torch.ones(s, requires_grad=True))
    return st.one_of(made, tensors)


labels = st.one_of(
    st.none(), st.lists(st.sampled_from([0, 1, -1, 2, True, 0.5, "1", None]), max_size=4), strange
)
limits = st.one_of(st.just(0.5), st.floats(-0.5, 1.5), strange)
counts = st.one_of(st.none(), st.integers(-2, 5), strange)
concepts = st.one_of(
    st.none(), texts, st.lists(texts, max_size=3), st.just(["person"]), st.just(["person"]), strange
)


class Prompts(Kind):
    name = "prompt"
    about = "concepts, boxes, points, labels, masks and limits of segment and segment_objects"
    slow = True

    def prepare(self, folder: Path) -> None:
        torch.set_num_threads(1)
        pixels = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
        self.model = tiny_model()
        self.image = self.model.encode(pixels)
        self.shown = self.model.exemplar(pixels[::-1].copy(), boxes=[[5, 5, 30, 30]])

    def strategy(self) -> st.SearchStrategy[Any]:
        def some(**values: Any) -> st.SearchStrategy[Any]:
            return st.fixed_dictionaries({}, optional=values)

        segment = some(
            concepts=concepts,
            boxes=boxes(),
            box_labels=labels,
            points=points(),
            point_labels=labels,
            masks=drawn(),
            mask_labels=labels,
            exemplars=st.one_of(st.none(), st.just(SHOWN), strange),
            presence=st.sampled_from(["multiply", "multiply", "separate", "both", None]),
            threshold=limits,
            max_instances=counts,
            nms=st.one_of(st.none(), limits),
        )
        masks = st.one_of(st.none(), _arrays(), strange)
        objects = some(
            boxes=boxes(),
            points=points(nested=True),
            point_labels=st.one_of(labels, st.lists(labels, max_size=3)),
            masks=masks,
        )
        return st.one_of(
            st.tuples(st.just("segment"), segment), st.tuples(st.just("objects"), objects)
        )

    def check(self, value: tuple[str, dict[str, Any]], case: Case) -> None:
        name, arguments = value
        if isinstance(arguments.get("exemplars"), str) and arguments["exemplars"] == SHOWN:
            arguments = {**arguments, "exemplars": self.shown}
        if name == "segment":
            check_segment_arguments(**arguments)
            found = self.model.segment(self.image, **arguments)
        else:
            found = self.model.segment_objects(self.image, **arguments)
        self.check_instances(found, arguments)

    def check_instances(self, found: es3.Instances, arguments: dict[str, Any]) -> None:
        assert found.size == (48, 64)
        assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
        assert ((found.boxes >= 0) & (found.boxes <= [64, 48, 64, 48])).all()
        assert found.masks is None or found.masks.shape == (len(found), 48, 64)
        limit = arguments.get("max_instances")
        assert limit is None or len(found) <= int(limit)


class Rle(Kind):
    name = "rle"
    about = "run lengths: compressed text, lists of numbers, sizes and polygons"

    def strategy(self) -> st.SearchStrategy[Any]:
        area = HEIGHT * WIDTH
        size = st.one_of(
            st.just([HEIGHT, WIDTH]),
            st.lists(st.one_of(st.integers(-1, 20), strange), max_size=3),
            strange,
        )
        parts = st.lists(st.integers(0, area), max_size=6).map(
            lambda cuts: np.diff([0, *sorted(cuts), area]).tolist()
        )
        text = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)
        sound = st.integers(0, 30).map(lambda n: run_lengths(n)["counts"])
        changed = st.builds(
            lambda t, at, c: t[: at % len(t)] + c + t[at % len(t) + 1 :],
            sound,
            st.integers(0, 99),
            text,
        )
        counts = st.one_of(
            sound,
            changed,
            parts,
            text,
            text.map(str.encode),
            strange,
            st.lists(numbers, max_size=5),
        )
        lengths = st.fixed_dictionaries({"size": size, "counts": counts})
        polygons = st.lists(st.lists(numbers, max_size=8), max_size=3)
        return st.one_of(lengths, lengths, polygons, strange)

    def check(self, value: Any, case: Case) -> None:
        errors = []
        for use in (self.decode, self.crop, self.read):
            try:
                use(value)
            except es3.EfficientSam3Error as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def decode(self, value: Any) -> None:
        if isinstance(value, dict) and isinstance(value.get("counts"), bytes):
            return  # bytes are this package's own, and are not checked again
        mask = rle.decode(value)
        assert mask.shape == rle.mask_size(value) and mask.dtype == bool
        assert int(mask.sum()) == rle.area_of(value)
        again = rle.decode(rle.encode(mask)[0])
        assert (again == mask).all()

    def crop(self, value: Any) -> None:
        height, width = rle.mask_size(value)
        box = (width // 3, height // 3, width, height)
        if isinstance(value.get("counts"), bytes) or box[0] == box[2] or box[1] == box[3]:
            return
        cut = rle.decode(rle.crop(value, box, flip=True))
        assert (cut == rle.decode(value)[box[1] :, box[0] :][:, ::-1]).all()

    def read(self, value: Any) -> None:
        if isinstance(value, dict) and isinstance(value.get("counts"), bytes):
            return
        read = rle.from_segmentation(value, (HEIGHT, WIDTH))
        assert rle.decode(read).shape == (HEIGHT, WIDTH)
        assert np.isfinite(rle.box_of(read)).all()


class Encoded(Kind):
    name = "rle-text"
    about = "bytes of compressed run lengths"

    def make(self, random: Random) -> dict[str, Any]:
        size = [random.choice((1, 3, HEIGHT, 300)), random.choice((1, 2, WIDTH, 300))]
        alphabet = [chr(c) for c in range(48, 112)]
        text = "".join(random.choice(alphabet) for _ in range(random.randrange(30)))
        if random.randrange(2):
            mask = np.frombuffer(random.randbytes(size[0] * size[1]), np.uint8).reshape(size) > 200
            text = rle.encode_cut(mask, (0, 0, size[1], size[0]), (size[0], size[1]))["counts"]
            if random.randrange(2) and text:
                at = random.randrange(len(text))
                text = text[:at] + random.choice(alphabet) + text[at + random.randrange(3) :]
        return {"size": size, "counts": text}

    def check(self, value: dict[str, Any], case: Case) -> None:
        mask = rle.decode(value)
        assert mask.shape == tuple(value["size"])
        counts = rle.encode(mask)[0]["counts"].decode()
        assert (rle.decode({**value, "counts": counts}) == mask).all()
        x0, y0, x1, y1 = rle.box_of(value)
        assert rle.area_of(value) == mask.sum() == mask[int(y0) : int(y1), int(x0) : int(x1)].sum()


KINDS = (Prompts, Rle, Encoded)
