"""Prompts of training: noised boxes, clicks, padded exemplars."""

from __future__ import annotations

import pytest
import torch

from efficientsam3.train.prompts import (
    jitter_boxes,
    pad_exemplars,
    sample_error_clicks,
)
from efficientsam3.types import NOT_A_POINT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_scaled_by_the_sides_and_limited() -> None:
    boxes = torch.tensor([[0.2, 0.4, 0.6, 0.5]])
    noise = torch.tensor([[1.0, 1.0, -1.0, 9.0]])
    moved = jitter_boxes(boxes, noise, deviation=0.1, limit=0.05)
    torch.testing.assert_close(moved, torch.tensor([[0.24, 0.41, 0.56, 0.55]]))


def test_noised_boxes_stay_in_the_image_with_corners_in_order() -> None:
    boxes = torch.tensor([[0.0, 0.9, 0.01, 1.0], [0.5, 0.5, 0.51, 0.51]])
    noise = torch.tensor([[-9.0, 9.0, -9.0, 9.0], [9.0, 9.0, -9.0, -9.0]])
    moved = jitter_boxes(boxes, noise, deviation=0.2, limit=1.0)
    assert bool(((moved >= 0) & (moved <= 1)).all())
    assert bool((moved[:, 2:] >= moved[:, :2]).all())


def test_clicks_lie_where_it_is_wrong() -> None:
    truth = torch.zeros(4, 6, 8, dtype=torch.bool)
    found = truth.clone()
    truth[0, 2, 3] = True  # missed
    found[1, 4, 5] = True  # added
    truth[2, 1, 1:3] = found[2, 1, 1:3] = True  # right
    xy, labels = sample_error_clicks(truth, found, generator())
    assert xy.shape == (4, 1, 2)
    assert labels[:, 0].tolist() == [1, 0, 1, NOT_A_POINT]
    assert xy[0, 0].tolist() == pytest.approx([3.5 / 8, 2.5 / 6])
    assert xy[1, 0].tolist() == pytest.approx([5.5 / 8, 4.5 / 6])
    places = {
        tuple(sample_error_clicks(truth, found, generator(s))[0][2, 0].tolist()) for s in range(20)
    }
    assert len(places) == 2


def test_exemplars_are_padded() -> None:
    boxes = [torch.zeros(0, 4), torch.full((2, 4), 0.3)]
    points = [torch.tensor([[0.1, 0.2]]), torch.zeros(0, 2)]
    padded = pad_exemplars(boxes, [[], [1, 0]], points, 3)
    assert padded.box_valid.tolist() == [[False, False], [True, True]]
    assert padded.box_labels.tolist() == [[0, 0], [1, 0]]
    assert padded.boxes[1].tolist() == [[pytest.approx(0.3)] * 4] * 2
    assert padded.points.shape == (2, 3, 2)
    assert padded.point_valid.tolist() == [[True, False, False], [False] * 3]
    assert padded.points[0, 0].tolist() == pytest.approx([0.1, 0.2])
    assert pad_exemplars(boxes, [[], [1, 0]]).points.shape == (2, 0, 2)
