"""The choice of queries of a scene."""

from __future__ import annotations

import pytest

from efficientsam3_stickers.queries import Query, choose_queries


@pytest.mark.parametrize(
    ("positive", "negative", "count", "expected"),
    [(9, 9, 8, (4, 4)), (2, 9, 8, (2, 6)), (9, 1, 8, (7, 1)), (1, 1, 8, (1, 1)), (5, 5, 1, (1, 0))],
)
def test_half_of_the_phrases_are_negative(
    positive: int, negative: int, count: int, expected: tuple[int, int]
) -> None:
    queries = [Query(f"p{i}", (0,), "name") for i in range(positive)]
    queries += [Query(f"n{i}", (), "near") for i in range(negative)]
    chosen = choose_queries(queries, count, 5)
    assert (sum(bool(q.objects) for q in chosen), sum(not q.objects for q in chosen)) == expected
    assert chosen == choose_queries(queries, count, 5)
    assert len(set(chosen)) == len(chosen)
