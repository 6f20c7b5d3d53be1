"""Ranks and areas, against numbers worked out by hand."""

import math

import pytest
import torch

from peterrec.model.training.metrics import area_under_roc, rank_metrics, ranks_of


def test_among_equal_scores_the_target_comes_last() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 2.0, 0.0, 3.0]])
    assert ranks_of(logits, torch.tensor([1, 1])).tolist() == [2, 1]


def test_a_broken_row_ranks_its_target_last() -> None:
    logits = torch.tensor([[math.nan, math.nan, math.nan]])
    assert ranks_of(logits, torch.tensor([1])).tolist() == [2]


def test_a_rank_at_the_cutoff_is_no_hit() -> None:
    assert rank_metrics(torch.tensor([4, 5]), 5)["hr@5"] == 0.5


@pytest.mark.parametrize(
    ("scores", "is_positive", "area"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([1.0, 1.0], [0, 1], 0.5),
        ([1.0, 1.0, 2.0, 0.0], [1, 0, 1, 0], (0.5 + 1 + 1 + 1) / 4),
        ([3.0, 2.0, 1.0], [0, 0, 1], 0.0),
    ],
)
def test_the_area_counts_ties_half(
    scores: list[float], is_positive: list[int], area: float
) -> None:
    found = area_under_roc(torch.tensor(scores), torch.tensor(is_positive) == 1)
    assert found == pytest.approx(area)


def test_the_area_of_one_class_alone_is_undefined() -> None:
    assert math.isnan(area_under_roc(torch.ones(3), torch.ones(3) == 1))
