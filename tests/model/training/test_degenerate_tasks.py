"""Answers from which nothing can be learned are refused; doubtful ones are told before training.

None of them is called a matter of the learning rate.
"""

from dataclasses import replace

import numpy as np
import pytest

from peterrec.model.data.examples import Examples, join_answers, keep_frequent
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.splits import UserSplit, split_users
from peterrec.model.data.vocabulary import TokenHistories
from peterrec.model.errors import (
    DataError,
    HistoriesMissing,
    LabelsContinuous,
    LabelSeenOnce,
    LabelsTooRare,
    LabelTooLong,
    SplitEmpty,
    TooFewClasses,
    ValuesUnresolved,
)
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.finetune.doubts import doubts_of_task
from peterrec.model.training.finetune.finetune import FinetunedTask, FinetuneSettings, finetune
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.model.training.objectives.summary import SMALL_CLASS, AnswerSummary
from tests.model.small_shop import groups, shop_histories

SETTINGS = FinetuneSettings(kind="value", bottleneck=4, epochs=2, batch_size=16)
USERS = 120


def examples_of(answers: list[tuple[str, ...]], rows: list[list[int]] | None = None) -> Examples:
    histories = rows or [[0, 1]] * len(answers)
    return Examples(
        users=tuple(f"u{i}" for i in range(len(answers))),
        rows=[np.array(row, dtype=np.int64) + FIRST_ITEM for row in histories],
        answers=answers,
        items=("a", "b", "c", "d"),
        source="labels.csv, column 'x'",
    )


def singles(texts) -> Examples:
    return examples_of([(str(text),) for text in texts])


def learn(kind: str, examples: Examples) -> tuple[str, ...]:
    return OBJECTIVES[kind].learn_outputs(examples, np.arange(len(examples.users)))


def summary(kind: str, examples: Examples) -> AnswerSummary:
    return OBJECTIVES[kind].summary(examples, np.arange(len(examples.users)))


def doubts(kind: str, examples: Examples) -> str:
    return " ".join(summary(kind, examples).doubts)


def values(numbers) -> UserLabels:
    texts = [repr(float(number)) for number in numbers]
    return UserLabels({f"user-{i:03d}": (text,) for i, text in enumerate(texts)}, "values.csv")


def train(loaded: LoadedBackbone, labels: UserLabels, **changes) -> tuple[FinetunedTask, list[str]]:
    told: list[str] = []
    settings = replace(SETTINGS, **changes)
    return finetune(loaded, shop_histories(), labels, settings, notice=told.append), told


def refusal(loaded: LoadedBackbone, labels: UserLabels, error: type[DataError], **changes) -> str:
    with pytest.raises(error) as refused:
        train(loaded, labels, **changes)
    assert "learning rate" not in str(refused.value)
    assert refused.value.hint
    return refused.value.message


def test_the_classes_are_told_with_their_counts_before_training(loaded):
    by_user = dict(groups().by_user)
    by_user |= dict.fromkeys(list(by_user)[:18], ("rare",))
    task, told = train(loaded, UserLabels(by_user, "users.csv"), kind="classification")
    assert told[0] == (
        "users.csv: 120 users in 3 classes: 'even' 51 (42.5%), 'odd' 51 (42.5%), 'rare' 18 (15.0%)."
    )
    assert "Fewer than 20 users have the class 'rare' (18)" in told[1]
    assert task.record["data"]["answers"] == told[0]
    assert task.record["data"]["warnings"] == told[1:]


def test_of_many_classes_the_most_frequent_and_the_rarest_are_told():
    texts = [f"c{i:02d}" for i in range(30) for _ in range(60 - i)]
    text = summary("classification", singles(texts)).text
    assert "30 classes: 'c00' 60 (" in text
    assert "'c11' 49 (" in text
    assert text.endswith("and 18 more, down to 'c29' with 31.")


@pytest.mark.parametrize(("count", "is_told"), [(SMALL_CLASS - 1, True), (SMALL_CLASS, False)])
def test_a_class_below_the_stated_size_is_warned_of(count, is_told):
    examples = singles(["x"] * 60 + ["small"] * count)
    assert ("'small'" in doubts("classification", examples)) == is_told


@pytest.mark.parametrize(
    ("one", "other", "is_told"),
    [
        ("Male", "male", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("a\u200b", "a", True),
        ("new york", "newyork", True),
        ("1e0", "1", True),
        ("1.50", "1.5", True),
        ("1.5", "15", False),
        ("male", "female", False),
        ("cafe", "caf\u00e9", False),
    ],
)
@pytest.mark.parametrize("kind", ["classification", "tags"])
def test_answers_that_look_like_one_are_told_of(kind, one, other, is_told):
    told = doubts(kind, singles([one] * 30 + [other] * 30))
    assert ("that look like one" in told) == is_told
    assert (f"{min(one, other)!a} and {max(one, other)!a}" in told) == is_told


def test_a_constant_label_is_refused_with_the_label_and_the_table(loaded):
    constant = UserLabels(dict.fromkeys(groups().by_user, ("m",)), "users.csv, column 'sex'")
    message = refusal(loaded, constant, TooFewClasses, kind="classification")
    assert message == "users.csv, column 'sex': all users with a history have the label 'm'."


def test_one_class_after_the_filter_is_refused_with_what_was_left_out():
    kept = keep_frequent(singles(["m"] * 30 + ["f"] * 3), 5)
    with pytest.raises(TooFewClasses, match="label 'm'; left out, with too few users, are 'f' 3"):
        learn("classification", kept)


def test_a_smallest_count_that_leaves_no_label_is_refused_with_the_most_frequent(loaded):
    message = refusal(loaded, groups(), LabelsTooRare, kind="classification", min_label_count=99)
    assert "no answer has 99 users with a history; the most frequent is 'even' with 60" in message


def test_a_smallest_count_does_not_drop_values(loaded):
    task, _ = train(loaded, values(range(USERS)), min_label_count=5)
    assert len(task.examples.users) == USERS


def test_a_continuous_column_as_classes_is_refused_as_a_matter_for_a_value_task():
    with pytest.raises(LabelsContinuous, match="50 users have 50 different labels") as refused:
        learn("classification", singles(i / 7 for i in range(50)))
    assert "value task" in refused.value.hint


def test_a_label_that_no_bundle_can_carry_is_refused_before_training():
    with pytest.raises(LabelTooLong, match="has 300 characters; 256 is the limit"):
        learn("classification", singles(["x" * 300, "y"] * 20))


def test_a_column_of_ids_as_classes_is_refused():
    with pytest.raises(LabelsContinuous) as refused:
        learn("classification", singles(f"id-{i}" for i in range(50)))
    assert "ids or free text" in refused.value.hint


def test_numbers_as_classes_are_warned_of_if_they_have_fractions_or_are_many():
    assert "such as '0.5'" in doubts("classification", singles(["0.5", "1"] * 30))
    assert "All 60 classes are numbers" in doubts("classification", singles([*range(60)] * 30))
    assert not doubts("classification", singles(["0", "1", "2"] * 30))


def test_a_label_of_a_single_user_names_the_table():
    with pytest.raises(LabelSeenOnce, match=r"labels\.csv, column 'x': label 'z' is seen with a"):
        learn("classification", singles(["x", "y"] * 5 + ["z"]))


def test_equal_tags_of_all_users_are_refused():
    with pytest.raises(TooFewClasses, match="all 40 users with a history have the same tags: 'a'"):
        learn("tags", examples_of([("a", "b")] * 40))


def test_tags_are_told_with_their_users_and_a_tag_of_everybody_is_warned_of():
    found = summary("tags", examples_of([("a",), ("b", "a")] * 30))
    assert found.text == (
        "labels.csv, column 'x': 60 users with 2 tags, 1.5 each, 0 without any: "
        "'a' 60 (100.0%), 'b' 30 (50.0%)."
    )
    assert found.doubts == ("Every user has the tags 'a'.",)


def test_one_target_item_is_refused():
    with pytest.raises(TooFewClasses, match="one target item, 'a'"):
        learn("ranking", examples_of([("a",)] * 30))


def test_targets_are_told_and_those_outside_the_backbones_items_are_warned_of():
    found = summary("ranking", examples_of([("x1", "x2"), ("x1",)] * 20))
    assert (
        "40 users with 60 targets, 1.5 each in the median and at most 2, of 2 items" in found.text
    )
    assert (
        "None of the target items, such as 'x1', is among the backbone's items" in found.doubts[0]
    )


def test_targets_within_the_own_history_are_warned_of():
    found = doubts("ranking", examples_of([("a",), ("b",), ("c",)] * 10, [[0], [1], [3]] * 10))
    assert "67% of the targets are in the same user's history" in found


def test_large_values_with_small_differences_are_learned_and_recorded_exactly(loaded):
    group = np.array([answer[0] == "odd" for answer in groups().by_user.values()])
    task, told = train(loaded, values(20240000000 + 4 * group), epochs=12, learning_rate=0.03)
    assert told[0] == (
        "values.csv: 120 users with 2 different values from 20240000000 to 20240000004, mean "
        "20240000002, standard deviation 2.00839."
    )
    assert -0.5 < task.metrics["r2"] <= 1
    assert task.metrics["rmse"] < 3
    assert task.scale.shift == pytest.approx(20240000002, abs=0.5)


@pytest.mark.parametrize("outlier", [1e39, 1e308, -1e300])
@pytest.mark.parametrize("user", range(0, 120, 17))
def test_an_outlier_beside_which_float32_sees_nothing_is_refused_in_any_part(loaded, outlier, user):
    numbers = np.arange(float(USERS))
    numbers[user] = outlier
    message = refusal(loaded, values(numbers), ValuesUnresolved)
    assert f"user 'user-{user:03d}' has the value {outlier!r}" in message


def test_values_that_are_huge_alike_are_learned(loaded):
    task, _ = train(loaded, values(1e39 * np.arange(1.0, USERS + 1)))
    assert task.metrics["rmse"] > 1e38
    assert task.metrics["r2"] > -2


def test_an_outlier_that_outweighs_all_others_is_warned_of():
    numbers = np.linspace(20, 40, 60)
    numbers[7] = 1e6
    found = doubts("value", singles(map(repr, numbers.tolist())))
    assert "user 'u7' has 1000000.0, the others have 20 to 40" in found


def test_equal_values_are_refused_with_the_value(loaded):
    message = refusal(loaded, values([7] * USERS), TooFewClasses)
    assert "training users have the value 7" in message


def test_values_that_are_one_float64_are_refused_as_such():
    with pytest.raises(ValuesUnresolved, match="are one number in float64, 9007199254740992"):
        learn("value", singles(["9007199254740992", "9007199254740993"] * 10))


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (range(1_700_000_000, 1_700_400_000, 10_007), "times in seconds, from 2023-11-14"),
        (range(1_700_000_000_000, 1_700_400_000_000, 10_000_007), "times in milliseconds"),
        ([20240101 + i for i in range(28)], "dates written as one number, from 2024-01-01"),
        (range(50), "row numbers or ids"),
        (range(9_107_431, 9_999_999, 31_007), "ids: whole, all different and equally long"),
        ([2**53 + 2 * i for i in range(40)], "2^53"),
        (["0", "1"] * 30, "only two values, 0 and 1"),
    ],
)
def test_numbers_that_are_no_quantities_are_warned_of(numbers, told):
    assert told in doubts("value", singles(numbers))


def test_values_that_equal_the_user_ids_are_warned_of():
    examples = replace(singles(range(1000, 1060)), users=tuple(map(str, range(1000, 1060))))
    assert "equal the user ids" in doubts("value", examples)


@pytest.mark.parametrize(
    "numbers", [[18 + i % 60 for i in range(100)], [1.5 * i for i in range(60)]]
)
def test_ordinary_numbers_are_not_warned_of(numbers):
    assert not summary("value", singles(numbers)).doubts


def test_users_without_a_common_id_are_refused_with_ids_of_both_tables(loaded):
    labels = UserLabels({str(i): (str(i % 2),) for i in range(USERS)}, "users.csv")
    message = refusal(loaded, labels, HistoriesMissing)
    assert "none of the 120 users has a history. Its users are '0', '1', '2', …" in message
    assert "those of the histories 'user-000', 'user-001'" in message
    with pytest.raises(HistoriesMissing, match="'user-000' and '0' may be one user"):
        train(loaded, labels)


def test_users_whose_items_are_all_unknown_are_refused():
    histories = TokenHistories(("a", "b"), [np.array([], dtype=np.int64)] * 2, 2, 2)
    with pytest.raises(HistoriesMissing, match="none of the 2 users has a known item"):
        join_answers(histories, UserLabels({"a": ("x",), "b": ("y",)}, "users.csv"), ("i",))


def test_one_user_is_refused_by_name(loaded):
    one = UserLabels({"user-003": ("5",)}, "values.csv")
    assert "one user, 'user-003', leaves none to train on" in refusal(loaded, one, SplitEmpty)


def test_few_users_constant_parts_and_poor_histories_are_warned_of():
    examples = replace(singles(["x", "y"] * 20), rows=[np.array([FIRST_ITEM])] * 40)
    examples = replace(examples, without_history=60)
    split = UserSplit(np.arange(30), np.arange(30, 40, 2), np.arange(31, 40, 2))
    told = list(doubts_of_task(examples, split))
    assert "60 of 100 users have no known history" in told[0]
    assert "All histories consist of one item" in told[1]
    assert "Only 30 users to train on" in told[2]
    assert "Only 5 test users" in told[3]
    assert "All 5 validation users have the same answer, 'x'" in told[4]
    assert "All 5 test users have the same answer, 'y'" in told[5]


def test_histories_of_one_item_each_are_warned_of():
    rows = [np.array([FIRST_ITEM + i % 2]) for i in range(80)]
    examples = replace(singles(["x", "y"] * 40), rows=rows)
    split = split_users(examples.users, 0.1, 0.1, 0)
    assert "Every history has only one item" in " ".join(doubts_of_task(examples, split))


def test_tasks_that_are_trained_together_tell_their_names(loaded):
    told: list[str] = []
    settings = replace(SETTINGS, parts="reader")
    numbers = [TaskToTrain(values(np.arange(USERS) % n), settings, f"n{n}") for n in (2, 3)]
    finetune_many(loaded, shop_histories(), numbers, notice=told.append)
    assert [text.partition(":")[0] for text in told if "different values" in text] == ["n2", "n3"]


def test_a_scaled_task_is_equal_alone_and_among_many(loaded):
    settings = replace(SETTINGS, parts="reader", item_dropout=0.0)
    labels = values(1e6 + np.arange(USERS) % 7)
    (together,) = finetune_many(loaded, shop_histories(), [TaskToTrain(labels, settings)])
    alone = finetune(loaded, shop_histories(), labels, settings)
    assert together.scale == alone.scale
    assert alone.scale.shift > 1e6


def test_histories_of_other_items_are_not_a_matter_of_ids(loaded):
    histories = shop_histories()
    other = Histories(
        histories.users, tuple(f"x{i}" for i in histories.items), histories.codes, histories.offsets
    )
    with pytest.raises(DataError, match="data_unknown_items"):
        finetune(loaded, other, values(range(USERS)), SETTINGS)
