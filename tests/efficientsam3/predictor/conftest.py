"""What the tests of the predictor share."""

from __future__ import annotations

import numpy as np

import efficientsam3 as es3

CONCEPTS = ["bus", "a person in black", "dog", "tree", "red car", "zebra"]  # more than one chunk
BOXES = [[5, 5, 30, 30], [20.5, 10, 64, 48]]


def same(a: es3.Instances, b: es3.Instances, tolerance: float = 0.0) -> None:
    """Check that two results are equal.

    With a tolerance, scores and boxes may differ by it, and masks by a few pixels.
    """
    assert a.labels == b.labels
    assert (a.size, a.concepts) == (b.size, b.concepts)
    np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=tolerance * max(a.size))
    if not tolerance:
        assert a.rles == b.rles
    elif len(a):
        assert (a.masks == b.masks).mean() > 0.999
