"""Each kind of task turns answers into outputs, a loss and metrics, and refuses bad answers.

Losses and metrics are compared with numbers worked out by hand.
"""

import math

import numpy as np
import pytest
import torch

from peterrec.model.data.examples import Examples, keep_frequent
from peterrec.model.errors import LabelSeenOnce, LabelUnknown, SplitEmpty, TooFewClasses
from peterrec.model.network.heads import Head
from peterrec.model.spec import FIRST_ITEM, HeadSpec
from peterrec.model.training.batches import seeded
from peterrec.model.training.finetune.objective_of_head import HeadObjective
from peterrec.model.training.metrics import ranks_of
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.model.training.objectives.classification import ClassificationObjective
from peterrec.model.training.objectives.ranking import (
    HEAD_RATE_SHARE,
    HEAD_RIDGE,
    RankingObjective,
)
from peterrec.model.training.objectives.tags import TagsObjective
from peterrec.model.training.objectives.value import ValueObjective

ALL_BUT_LAST_TWO = -2
LOG2 = math.log(2)


def make_examples(*answers: tuple[str, ...], rows: list[list[int]] | None = None) -> Examples:
    histories = rows or [[0]] * len(answers)
    return Examples(
        users=tuple(f"u{i}" for i in range(len(answers))),
        rows=[np.array(row, dtype=np.int64) + FIRST_ITEM for row in histories],
        answers=list(answers),
        items=("a", "b", "c", "d"),
    )


def everyone(examples: Examples) -> np.ndarray:
    return np.arange(len(examples.users))


def objective_of(kind, examples: Examples):
    outputs = OBJECTIVES[kind].learn_outputs(examples, everyone(examples))
    return outputs, OBJECTIVES[kind].of(outputs, examples)


def at_prior(objective, examples: Examples) -> HeadObjective:
    trained = HeadObjective(objective, 3, seeded(0))
    trained.prepare(torch.from_numpy(everyone(examples)))
    return trained


def loss_of(objective, logits: torch.Tensor) -> torch.Tensor:
    """The loss of logits [B, K] for the first B rows: a head that passes its input on."""
    count = logits.shape[1]
    head = Head(HeadSpec(objective.head_spec.kind, count), count)
    with torch.no_grad():
        head.weight.copy_(torch.eye(count))
    return objective.loss(head, logits, torch.arange(len(logits)), seeded(0))


def metrics_of(objective, logits: torch.Tensor) -> dict[str, float]:
    """Metrics of logits [B, K] for the first B rows."""
    rows = torch.arange(len(logits))
    return objective.metrics(objective.predictions(logits, rows), rows)


def of_classes(targets: list[int], count: int) -> ClassificationObjective:
    return ClassificationObjective(HeadSpec("classification", count), torch.tensor(targets))


def of_tags(targets: torch.Tensor) -> TagsObjective:
    return TagsObjective(HeadSpec("tags", targets.shape[1]), targets)


def test_labels_are_ordered_by_name_and_the_prior_is_their_frequency():
    examples = make_examples(("x",), ("b",), ("x",), ("x",), ("b",), ("x",))
    outputs, objective = objective_of("classification", examples)
    prior = objective.prior(torch.arange(6)).exp()
    assert outputs == ("b", "x")
    torch.testing.assert_close(prior, torch.tensor([2.5, 4.5]) / 7)


def test_tags_of_users_without_any_are_all_absent():
    examples = make_examples(("a", "b"), (), ("a",), ("b",))
    outputs, objective = objective_of("tags", examples)
    assert outputs == ("a", "b")
    assert objective.targets.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]


def test_a_label_of_a_single_user_is_refused_by_name():
    examples = make_examples(("x",), ("x",), ("rare",))
    with pytest.raises(LabelSeenOnce, match="label 'rare' is seen with a single user"):
        OBJECTIVES["classification"].learn_outputs(examples, everyone(examples))
    kept = keep_frequent(examples, 2)
    assert kept.users == ("u0", "u1")


def test_users_without_a_tag_stay_when_rare_tags_are_left_out():
    kept = keep_frequent(make_examples(("a", "rare"), (), ("a",), ("rare2",)), 2)
    assert kept.answers == [("a",), (), ("a",)]


def test_a_single_class_is_refused():
    examples = make_examples(("x",), ("x",))
    with pytest.raises(TooFewClasses, match="all users with a history have the label 'x'"):
        OBJECTIVES["classification"].learn_outputs(examples, everyone(examples))


def test_a_label_without_a_training_user_is_refused():
    examples = make_examples(("x",), ("x",), ("y",), ("y",))
    with pytest.raises(SplitEmpty, match="label 'y' is not seen with any user of the training"):
        OBJECTIVES["classification"].learn_outputs(examples, everyone(examples)[:ALL_BUT_LAST_TWO])


def test_a_label_that_the_trained_task_lacks_is_refused():
    with pytest.raises(LabelUnknown, match="label 'new' is not among the task's 2 labels"):
        OBJECTIVES["classification"].of(("x", "y"), make_examples(("x",), ("new",)))


def test_a_value_head_of_zeros_answers_the_mean_in_the_values_own_scale():
    examples = make_examples(("100",), ("300",), ("200",))
    _, objective = objective_of("value", examples)
    trained = at_prior(objective, examples)
    with torch.no_grad():
        trained.head.weight.zero_()
    found = trained.predictions(torch.ones(3, 3), torch.arange(3)).detach()
    assert found.flatten().tolist() == [200, 200, 200]
    assert objective.metrics(found, torch.arange(3))["mae"] == pytest.approx(200 / 3)


def test_large_values_with_small_differences_are_standardised_and_measured_exactly():
    numbers = 20240000000 + np.arange(-3.0, 4.0) / 1024
    examples = make_examples(*((repr(number),) for number in numbers.tolist()))
    _, objective = objective_of("value", examples)
    at_prior(objective, examples)
    rows = torch.arange(7)
    assert objective.scale.shift == 20240000000
    assert objective.scale.scale == pytest.approx(np.arange(7).std(ddof=1) / 1024, rel=1e-12)
    right = torch.arange(-3.0, 4.0).unsqueeze(1) / 1024 / objective.scale.scale
    assert objective.metrics(objective.predictions(right.float(), rows), rows)["r2"] > 1 - 1e-9
    mean = objective.metrics(objective.predictions(torch.zeros(7, 1), rows), rows)
    assert mean == pytest.approx({"rmse": 2 / 1024, "mae": 12 / 7 / 1024, "r2": 0}, rel=1e-6)


@pytest.mark.parametrize("numbers", [[1e308, -1e308, 5e307], [1e-300, 3e-300, 2e-300]])
def test_the_scale_and_the_metrics_of_huge_and_tiny_values_are_finite(numbers):
    objective = ValueObjective(torch.tensor(numbers, dtype=torch.float64).unsqueeze(1))
    objective.learn_scale(torch.arange(3))
    line = objective.scale
    unit = max(map(abs, numbers))
    assert line.scale / unit == pytest.approx(np.std(np.array(numbers) / unit, ddof=1))
    metrics = metrics_of(objective, torch.zeros(3, 1))
    assert metrics["rmse"] / unit == pytest.approx(np.std(np.array(numbers) / unit))
    assert metrics["r2"] == pytest.approx(0)


def test_the_share_of_variance_explained_is_undefined_for_equal_values():
    metrics = metrics_of(ValueObjective(torch.full((3, 1), 7.0).double()), torch.zeros(3, 1))
    assert (metrics["rmse"], metrics["mae"]) == (7, 7)
    assert math.isnan(metrics["r2"])


def test_the_catalog_is_what_training_users_took_by_popularity():
    examples = make_examples(("b", "c"), ("c",), ("a", "c"), ("d",))
    assert OBJECTIVES["ranking"].learn_outputs(examples, np.array([0, 1, 2])) == ("c", "a", "b")


def test_a_target_competes_with_neither_seen_items_nor_the_users_other_targets():
    examples = make_examples(("b", "c"), ("a", "b", "c", "d"), rows=[[0], [0]])
    outputs, objective = objective_of("ranking", examples)
    logits = torch.tensor([[float("abcd".index(item)) for item in outputs]])
    # 'd' outranks 'b' and 'c'; 'a' was seen; 'b' and 'c' do not count against each other.
    assert objective.predictions(logits, torch.tensor([0])).tolist() == [1, 1]


def test_a_target_outside_the_catalog_is_never_found():
    examples = make_examples(("a", "new"), ("a",))
    objective = OBJECTIVES["ranking"].of(("a",), examples)
    ranks = objective.predictions(torch.zeros(1, 1), torch.tensor([0]))
    assert ranks.tolist() == [0, 1]
    assert objective.metrics(torch.tensor([0, 99]), torch.tensor([0]))["hr@5"] == 0.5


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("classification", [("x",), ("y",), ("x",), ("y",)]),
        ("tags", [("x", "y"), ("y",), ("x",), ()]),
        ("ranking", [("a", "b"), ("b",), ("a",), ("c",)]),
        ("value", [("1",), ("2",), ("3",), ("4",)]),
    ],
)
def test_training_starts_at_the_prior_with_finite_gradients(kind, answers):
    examples = make_examples(*answers)
    _, objective = objective_of(kind, examples)
    trained = at_prior(objective, examples)
    head, rows = trained.head, torch.arange(4)
    loss = trained.loss(torch.zeros(4, 3), rows, seeded(0))
    other = trained.loss(torch.ones(4, 3), rows, seeded(0))
    other.backward()
    assert torch.isfinite(loss)
    assert head.bias is not None
    assert head.bias.grad is not None
    assert torch.isfinite(head.bias.grad).all()


def test_classification_learns_by_full_cross_entropy():
    logits = torch.tensor([[0.0, LOG2], [0.0, 0.0]])
    loss = loss_of(of_classes([1, 0], 2), logits)
    assert loss.item() == pytest.approx((math.log(3 / 2) + LOG2) / 2)


def test_classification_metrics():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    metrics = metrics_of(of_classes([0, 1, 1, 1], 3), logits)
    assert metrics == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 4 / 5) / 2})


def test_two_classes_have_an_area_under_the_curve():
    logits = torch.tensor([[0.0, 1], [0, 3], [0, 2], [5, 0]])
    assert metrics_of(of_classes([0, 1, 0, 1], 2), logits)["auc"] == pytest.approx(0.5)


def test_tags_learn_by_binary_cross_entropy():
    logits = torch.tensor([[0.0, math.log(3)]])
    loss = loss_of(of_tags(torch.tensor([[1.0, 1.0]])), logits)
    assert loss.item() == pytest.approx((LOG2 + math.log(4 / 3)) / 2)


def test_the_loss_of_tags_does_not_saturate():
    logits = torch.tensor([[200.0]], requires_grad=True)
    loss = loss_of(of_tags(torch.zeros(1, 1)), logits)
    torch.autograd.backward(loss)
    assert loss.item() == 200
    assert logits.grad is not None
    assert logits.grad.item() == 1


def test_tags_metrics_count_every_pair():
    logits = torch.tensor([[1.0, -1.0, 2.0], [3.0, -2.0, -3.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert metrics_of(of_tags(targets), logits) == pytest.approx(
        {
            "micro_precision": 2 / 3,
            "micro_recall": 2 / 3,
            "micro_f1": 2 / 3,
            "micro_auc": (3 + 2 + 2) / 9,
        }
    )


def test_tags_metrics_without_any_tag_are_zero_and_the_area_undefined():
    metrics = metrics_of(of_tags(torch.zeros(2, 2)), -torch.ones(2, 2))
    assert (metrics["micro_precision"], metrics["micro_recall"], metrics["micro_f1"]) == (0, 0, 0)
    assert math.isnan(metrics["micro_auc"])


def test_ranking_learns_over_the_whole_catalog():
    objective = RankingObjective(HeadSpec("ranking", 3), [torch.tensor([1])], [torch.tensor([])])
    loss = loss_of(objective, torch.tensor([[0.0, LOG2, 0.0]]))
    assert loss.item() == pytest.approx(LOG2)


def test_the_head_of_a_ranking_learns_slowly_and_its_ridge_falls_with_the_number_of_targets():
    examples = make_examples(("a", "b"), ("b",), ("a", "new"))
    trained = HeadObjective(RankingObjective.of(("a", "b"), examples), 3, seeded(0))
    with torch.no_grad():
        trained.head.weight.fill_(2)
    penalties = []
    for users in (3, 1):
        trained.prepare(torch.arange(users))
        penalties.append(trained.penalty().item())
    (group,) = trained.groups(0.5)
    assert group["lr"] == pytest.approx(HEAD_RATE_SHARE * 0.5)
    squares = 2 * 3 * 2**2
    assert penalties == pytest.approx([HEAD_RIDGE / 2 * squares / 4, HEAD_RIDGE / 2 * squares / 2])


@pytest.mark.parametrize(
    ("kind", "answers"),
    [("classification", ("x", "y")), ("tags", ("x", "y")), ("value", ("1", "2"))],
)
def test_heads_of_few_outputs_learn_at_the_full_rate_without_a_ridge(kind, answers):
    examples = make_examples(*((answer,) for answer in answers * 2))
    trained = at_prior(objective_of(kind, examples)[1], examples)
    (group,) = trained.groups(0.5)
    assert group["lr"] == 0.5
    assert trained.penalty().item() == 0


def test_the_ridge_holds_the_weights_and_not_the_biases():
    _, objective = objective_of("ranking", make_examples(("a",), ("b",), ("a",), ("c",)))
    trained = HeadObjective(objective, 3, seeded(0))
    trained.prepare(torch.arange(4))
    torch.autograd.backward(trained.penalty())
    assert trained.head.weight.grad is not None
    torch.testing.assert_close(
        trained.head.weight.grad, trained.head.weight.detach() * HEAD_RIDGE / 4
    )
    assert trained.head.bias is not None
    assert trained.head.bias.grad is None


def test_ranking_metrics_at_5_and_20():
    objective = RankingObjective(HeadSpec("ranking", 30), [], [])
    ranks = ranks_of(-torch.arange(30.0).expand(3, -1), torch.tensor([0, 7, 29]))
    assert objective.metrics(ranks, torch.arange(3)) == pytest.approx(
        {
            "mrr@5": 1 / 3,
            "hr@5": 1 / 3,
            "ndcg@5": 1 / 3,
            "mrr@20": (1 + 1 / 8) / 3,
            "hr@20": 2 / 3,
            "ndcg@20": (1 + 1 / math.log2(9)) / 3,
        }
    )


def test_values_learn_by_the_squared_error():
    objective = ValueObjective(torch.tensor([[1.0], [4.0]]).double())
    logits = torch.tensor([[1.0], [2.0]])
    assert loss_of(objective, logits).item() == 2
    metrics = metrics_of(objective, logits)
    assert metrics == pytest.approx({"rmse": math.sqrt(2), "mae": 1, "r2": 1 - 2 / 2.25})


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_kind_names_the_metric_by_which_methods_are_compared(kind):
    answers = {"ranking": ("a",), "value": ("1",)}.get(kind, ("x",))
    others = {"ranking": ("b",), "value": ("2",)}.get(kind, ("y",))
    examples = make_examples(answers, others, answers, others, rows=[[3]] * 4)
    outputs, objective = objective_of(kind, examples)
    metrics = metrics_of(objective, torch.zeros(4, max(1, len(outputs))))
    assert objective.primary_metric in metrics
