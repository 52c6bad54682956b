"""Which phrases are true of which concepts, for learning from all phrases at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..concepts import Concept

TRUE, FALSE, DOUBTFUL = 1, 0, -1


def list_phrases(concepts: Iterable[Concept]) -> list[str]:
    """Names, synonyms and category words of concepts, each once, the names first.

    Args:
        concepts: The concepts.
    """
    concepts = list(concepts)
    names = [c.name for c in concepts]
    others = [p for c in concepts for p in (*c.synonyms, *c.categories)]
    return list(dict.fromkeys([*names, *others]))


def phrase_truth(concepts: Sequence[Concept], phrases: Sequence[str]) -> Tensor:
    """Whether each phrase is true of each concept.

    A phrase is doubtful where a person might accept it: a name of something that looks alike, or
    words that are a part of the concept's own names.

    Args:
        concepts: N concepts.
        phrases: V phrases.

    Returns:
        (N, V) int8: ``TRUE``, ``FALSE`` or ``DOUBTFUL``.
    """
    index = {phrase: i for i, phrase in enumerate(phrases)}
    words = [frozenset(phrase.split()) for phrase in phrases]
    by_word: dict[str, list[int]] = {}
    for i, group in enumerate(words):
        for word in group:
            by_word.setdefault(word, []).append(i)
    truth = np.zeros((len(concepts), len(phrases)), np.int8)
    for row, concept in enumerate(concepts):
        for own in (concept.name, *concept.synonyms):
            parts = frozenset(own.split())
            near = {i for word in parts for i in by_word.get(word, ())}
            truth[row, [i for i in near if words[i] <= parts]] = DOUBTFUL
        twins = [index[name] for name in concept.twins if name in index]
        truth[row, twins] = DOUBTFUL
        own_phrases = (concept.name, *concept.synonyms, *concept.categories)
        truth[row, [index[p] for p in own_phrases if p in index]] = TRUE
    return torch.from_numpy(truth)
