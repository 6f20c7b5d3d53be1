"""Each kind of task turns answers into outputs, a loss and metrics, and refuses bad answers."""

import numpy as np
import pytest
import torch

from peterrec.model.data.examples import Examples, keep_frequent
from peterrec.model.errors import LabelSeenOnce, LabelUnknown, SplitEmpty, TooFewClasses
from peterrec.model.network.heads import Head
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.batches import seeded
from peterrec.model.training.objectives import TASKS

ALL_BUT_LAST_TWO = -2


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
    outputs = TASKS[kind].outputs(examples, everyone(examples))
    return outputs, TASKS[kind].objective(outputs, examples)


def head_at_prior(objective, examples: Examples) -> Head:
    head = Head(objective.head_spec, 3, seeded(0))
    objective.prepare(head, torch.from_numpy(everyone(examples)))
    return head


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
        TASKS["classification"].outputs(examples, everyone(examples))
    kept = keep_frequent(examples, 2)
    assert kept.users == ("u0", "u1")


def test_users_without_a_tag_stay_when_rare_tags_are_left_out():
    kept = keep_frequent(make_examples(("a", "rare"), (), ("a",), ("rare2",)), 2)
    assert kept.answers == [("a",), (), ("a",)]


def test_a_single_class_is_refused():
    examples = make_examples(("x",), ("x",))
    with pytest.raises(TooFewClasses, match="all users have the label 'x'"):
        TASKS["classification"].outputs(examples, everyone(examples))


def test_a_label_without_a_training_user_is_refused():
    examples = make_examples(("x",), ("x",), ("y",), ("y",))
    with pytest.raises(SplitEmpty, match="label 'y' is not seen with any user of the training"):
        TASKS["classification"].outputs(examples, everyone(examples)[:ALL_BUT_LAST_TWO])


def test_a_label_that_the_trained_task_lacks_is_refused():
    with pytest.raises(LabelUnknown, match="label 'new' is not among the task's 2 labels"):
        TASKS["classification"].objective(("x", "y"), make_examples(("x",), ("new",)))


def test_equal_values_are_refused():
    examples = make_examples(("2",), ("2.0",))
    with pytest.raises(TooFewClasses, match="the value 2"):
        TASKS["value"].outputs(examples, everyone(examples))


def test_a_finished_value_head_speaks_in_the_values_own_scale():
    examples = make_examples(("100",), ("300",), ("200",))
    _, objective = objective_of("value", examples)
    head = head_at_prior(objective, examples)
    with torch.no_grad():
        head.weight.zero_()
    objective.finish(head)
    judged = objective.judge(head.logits(torch.ones(3, 3)), torch.arange(3)).detach()
    assert judged.flatten().tolist() == [200, 200, 200]
    assert objective.metrics(judged, torch.arange(3))["mae"] == pytest.approx(200 / 3)


def test_the_catalog_is_what_training_users_took_by_popularity():
    examples = make_examples(("b", "c"), ("c",), ("a", "c"), ("d",))
    assert TASKS["ranking"].outputs(examples, np.array([0, 1, 2])) == ("c", "a", "b")


def test_a_target_competes_with_neither_seen_items_nor_the_users_other_targets():
    examples = make_examples(("b", "c"), ("a", "b", "c", "d"), rows=[[0], [0]])
    outputs, objective = objective_of("ranking", examples)
    logits = torch.tensor([[float("abcd".index(item)) for item in outputs]])
    # 'd' outranks 'b' and 'c'; 'a' was seen; 'b' and 'c' do not count against each other.
    assert objective.judge(logits, torch.tensor([0])).tolist() == [1, 1]


def test_a_target_outside_the_catalog_is_never_found():
    examples = make_examples(("a", "new"), ("a",))
    objective = TASKS["ranking"].objective(("a",), examples)
    ranks = objective.judge(torch.zeros(1, 1), torch.tensor([0]))
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
    head = head_at_prior(objective, examples)
    rows = torch.arange(4)
    loss = objective.loss(head, torch.zeros(4, 3), rows, seeded(0))
    other = objective.loss(head, torch.ones(4, 3), rows, seeded(0))
    other.backward()
    assert torch.isfinite(loss)
    assert head.bias is not None
    assert torch.isfinite(head.bias.grad).all()
