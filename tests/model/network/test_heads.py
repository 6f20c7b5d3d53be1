"""Losses, scores and metrics of each kind of head, against numbers worked out by hand."""

import math

import pytest
import torch

from peterrec.model.network.heads import HEAD_KINDS, Head
from peterrec.model.network.heads.ranking import top_items
from peterrec.model.network.heads.ranks import area_under_roc, rank_metrics, ranks_of
from peterrec.model.spec import HeadSpec

LOG2 = math.log(2)


def test_logits_are_linear_in_the_user_vector() -> None:
    head = Head(HeadSpec("tags", 2), channels=3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2, 3], [0, 0, -1]]))
        head.get_parameter("bias").copy_(torch.tensor([10.0, 0]))
    assert head.logits(torch.tensor([[1.0, 1, 1]])).tolist() == [[16.0, -1.0]]


def test_a_head_names_its_tensors_as_its_spec_does() -> None:
    for spec in (HeadSpec("tags", 2), HeadSpec("ranking", 5, has_bias=False)):
        named = Head(spec, channels=3).named()
        assert {name: tuple(t.shape) for name, t in named.items()} == spec.shapes(3)


def test_the_same_seed_starts_the_same_head() -> None:
    spec = HeadSpec("tags", 4)
    one, two = (Head(spec, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)


def test_classification_is_softmax_with_full_cross_entropy() -> None:
    kind = HEAD_KINDS["classification"]
    logits = torch.tensor([[0.0, LOG2], [0.0, 0.0]])
    assert kind.loss(logits, torch.tensor([1, 0])).item() == pytest.approx(
        (math.log(3 / 2) + LOG2) / 2
    )
    torch.testing.assert_close(kind.scores(logits)[0], torch.tensor([1 / 3, 2 / 3]))
    torch.testing.assert_close(kind.scores(2 * logits, 2.0), kind.scores(logits))


def test_classification_metrics() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    metrics = HEAD_KINDS["classification"].metrics(logits, torch.tensor([0, 1, 1, 1]))
    assert metrics == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 4 / 5) / 2})


def test_two_classes_have_an_area_under_the_curve() -> None:
    logits = torch.tensor([[0.0, 1], [0, 3], [0, 2], [5, 0]])
    metrics = HEAD_KINDS["classification"].metrics(logits, torch.tensor([0, 1, 0, 1]))
    assert metrics["auc"] == pytest.approx(0.5)


def test_tags_are_independent_sigmoids() -> None:
    kind = HEAD_KINDS["tags"]
    logits, targets = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 1.0]])
    assert kind.loss(logits, targets).item() == pytest.approx((LOG2 + math.log(4 / 3)) / 2)
    torch.testing.assert_close(kind.scores(logits), torch.tensor([[0.5, 0.75]]))


def test_the_loss_of_tags_does_not_saturate() -> None:
    logits = torch.tensor([[200.0]], requires_grad=True)
    loss = HEAD_KINDS["tags"].loss(logits, torch.zeros(1, 1))
    torch.autograd.backward(loss)
    assert loss.item() == 200
    assert logits.grad is not None
    assert logits.grad.item() == 1


def test_tags_metrics_count_every_pair() -> None:
    logits = torch.tensor([[1.0, -1.0, 2.0], [3.0, -2.0, -3.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    metrics = HEAD_KINDS["tags"].metrics(logits, targets)
    assert metrics == pytest.approx(
        {
            "micro_precision": 2 / 3,
            "micro_recall": 2 / 3,
            "micro_f1": 2 / 3,
            "micro_auc": (3 + 2 + 2) / 9,
        }
    )


def test_tags_metrics_without_any_tag_are_zero_and_the_area_undefined() -> None:
    metrics = HEAD_KINDS["tags"].metrics(-torch.ones(2, 2), torch.zeros(2, 2))
    assert (metrics["micro_precision"], metrics["micro_recall"], metrics["micro_f1"]) == (0, 0, 0)
    assert math.isnan(metrics["micro_auc"])


def test_ranking_is_scored_over_the_whole_catalog() -> None:
    kind = HEAD_KINDS["ranking"]
    logits = torch.tensor([[0.0, LOG2, 0.0]])
    assert kind.loss(logits, torch.tensor([1])).item() == pytest.approx(LOG2)
    assert torch.equal(kind.scores(logits), logits)


def test_ranking_metrics_at_5_and_20() -> None:
    logits = -torch.arange(30.0).expand(3, -1)
    metrics = HEAD_KINDS["ranking"].metrics(logits, torch.tensor([0, 7, 29]))
    assert metrics == pytest.approx(
        {
            "mrr@5": 1 / 3,
            "hr@5": 1 / 3,
            "ndcg@5": 1 / 3,
            "mrr@20": (1 + 1 / 8) / 3,
            "hr@20": 2 / 3,
            "ndcg@20": (1 + 1 / math.log2(9)) / 3,
        }
    )


def test_among_equal_scores_the_target_comes_last() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 2.0, 0.0, 3.0]])
    assert ranks_of(logits, torch.tensor([1, 1])).tolist() == [2, 1]


def test_a_broken_row_ranks_its_target_last() -> None:
    logits = torch.tensor([[math.nan, math.nan, math.nan]])
    assert ranks_of(logits, torch.tensor([1])).tolist() == [2]


def test_a_rank_at_the_cutoff_is_no_hit() -> None:
    assert rank_metrics(torch.tensor([4, 5]), 5)["hr@5"] == 0.5


def test_the_best_items_come_first_and_equals_in_catalog_order() -> None:
    scores, items = top_items(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), 3)
    assert items.tolist() == [[1, 3, 2]]
    assert scores.tolist() == [[3.0, 3.0, 2.0]]


def test_a_catalog_smaller_than_the_wish_is_returned_whole() -> None:
    assert top_items(torch.tensor([[1.0, 2.0]]), 10)[1].tolist() == [[1, 0]]


def test_a_value_is_the_number_itself() -> None:
    kind = HEAD_KINDS["value"]
    logits, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert kind.loss(logits, targets).item() == 2
    assert torch.equal(kind.scores(logits), logits)
    metrics = kind.metrics(logits, targets)
    assert metrics == pytest.approx({"rmse": math.sqrt(2), "mae": 1, "r2": 1 - 2 / 2.25})


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
