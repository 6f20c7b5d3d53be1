"""A task gets the parts that earn something on users who have not trained them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.errors import InvalidSpec
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import HeadSpec
from peterrec.model.training.evaluation import evaluate_task
from peterrec.model.training.events import PartMeasured, PartsChosen, TrainingEvent
from peterrec.model.training.finetune.finetune import FinetuneSettings, finetune
from peterrec.model.training.finetune.folds import FOLDS, folds_of
from peterrec.model.training.finetune.fusion import cross_joined, fit_factors, joined
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.model.training.objectives.classification import ClassificationObjective
from peterrec.service.jobs.packing import pack_task, unpack_task
from tests.model.small_shop import TINY, groups, shop_histories, small_backbone

SETTINGS = FinetuneSettings(
    kind="classification", bottleneck=4, queries=2, epochs=2, batch_size=32, learning_rate=0.03
)

USERS, CLASSES = 400, 3


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return small_backbone(tmp_path_factory.mktemp("backbone"))


def values() -> UserLabels:
    numbers = {
        user: (str(1e6 + 50 * (answer[0] == "odd") + at % 7),)
        for at, (user, answer) in enumerate(groups().by_user.items())
    }
    return UserLabels(numbers, "values.csv")


def coins() -> UserLabels:
    drawn = np.random.default_rng(3).integers(0, 2, len(groups().by_user))
    by_user = zip(groups().by_user, drawn.tolist(), strict=True)
    return UserLabels({user: (str(coin),) for user, coin in by_user}, "coins.csv")


def sources(noise_of_second):
    """Logits that tell the classes, twice: with little noise, and with some; and the answers."""
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES, (USERS,), generator=random)
    found = [
        torch.eye(CLASSES)[targets] + noise * torch.randn(USERS, CLASSES, generator=random)
        for noise in (1.0, noise_of_second)
    ]
    return found, ClassificationObjective(HeadSpec("classification", CLASSES), targets)


def test_two_sources_with_noise_of_their_own_are_better_together_than_each():
    found, objective = sources(1.0)
    rows = torch.arange(USERS)
    losses = [
        float(objective.logit_loss(cross_joined(own, rows, objective), rows))
        for own in (found, found[:1], found[1:])
    ]
    assert losses[0] < 0.95 * min(losses[1:])


def test_a_source_that_knows_nothing_gets_a_factor_near_nothing():
    found, objective = sources(100.0)
    rows = torch.arange(USERS)
    factors = fit_factors(found, rows, objective)
    assert (factors >= 0).all()
    assert factors[0] > 0.5
    assert abs(factors[1]) * 100 < 0.2 * factors[0]


def test_no_factor_is_negative_even_if_a_source_says_the_opposite():
    found, objective = sources(1.0)
    factors = fit_factors([found[0], -found[1]], torch.arange(USERS), objective)
    assert factors[1] == 0
    assert factors[0] > 0


def test_factors_of_one_user_stay_near_an_even_share():
    found, objective = sources(1.0)
    factors = fit_factors([z[:1] for z in found], torch.arange(1), objective)
    assert (factors < 2).all()


def test_joined_logits_are_those_of_the_factors():
    found, _ = sources(1.0)
    z = joined(found, torch.tensor([2.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(z, (2 * found[0] + 0.5 * found[1]).double())


def test_every_training_user_is_held_out_once():
    train = np.arange(0, 300, 3)
    folds = folds_of(train)
    assert len(folds) == FOLDS
    assert np.array_equal(np.sort(np.concatenate([held for _, held in folds])), train)
    for kept, held in folds:
        assert not set(kept) & set(held)
        assert len(kept) + len(held) == len(train)
    assert folds_of(np.arange(10)) == []


def test_answers_that_the_items_tell_give_a_table_and_what_it_adds_is_served(loaded):
    task = finetune(loaded, shop_histories(), groups(), SETTINGS)
    assert "table" in task.record["parts"]
    assert task.table is not None
    assert task.metrics["auc"] > 0.9
    tried = {tuple(trial["parts"]) for trial in task.record["trials"]}
    assert {(), ("table",), ("reader",), ("blocks", "reader", "table")} <= tried


def test_answers_that_nothing_tells_give_a_head_alone(loaded):
    task = finetune(loaded, shop_histories(), coins(), SETTINGS)
    assert task.record["parts"] == []
    assert (task.table, task.geometry.blocks, task.geometry.queries) == (None, (), 0)


@pytest.mark.parametrize(
    ("parts", "blocks", "queries", "has_table"),
    [
        ("none", (), 0, False),
        ("table", (), 0, True),
        ("reader", (), 2, False),
        ("blocks,table", (0, 1), 0, True),
        ("table, blocks,reader", (0, 1), 2, True),
    ],
)
def test_parts_that_are_asked_for_are_there_and_no_others(
    parts, blocks, queries, has_table, loaded
):
    settings = replace(SETTINGS, parts=parts, epochs=1)
    task = finetune(loaded, shop_histories(), groups(), settings)
    assert (task.geometry.blocks, task.geometry.queries) == (blocks, queries)
    assert (task.table is not None) == has_table


def targets() -> UserLabels:
    by_user = {user: (f"target-{answer[0]}",) for user, answer in groups().by_user.items()}
    return UserLabels(by_user, "targets.csv")


def test_a_ranking_chooses_among_networks_each_with_a_table_of_its_own_and_without(loaded):
    settings = replace(SETTINGS, kind="ranking", epochs=1)
    task = finetune(loaded, shop_histories(), targets(), settings)
    assert (task.table is not None) == ("table" in task.record["parts"])
    tried = {tuple(trial["parts"]) for trial in task.record["trials"]}
    assert len(tried) == len(task.record["trials"]) == 8
    assert {(), ("table",), ("blocks", "reader"), ("blocks", "reader", "table")} <= tried


def test_the_table_of_a_ranking_that_is_asked_for_is_in_the_bundle_and_moves_the_user_vector(
    loaded,
):
    settings = replace(SETTINGS, kind="ranking", parts="reader,table", epochs=4)
    task = finetune(loaded, shop_histories(), targets(), settings)
    assert task.table is not None
    assert task.table.codes.shape[1] == loaded.backbone.spec.channels
    unpacked = unpack_task(pack_task(task, loaded, "shop"), loaded)
    model = unpacked.model
    assert model.table is not None
    histories = [task.examples.rows[i] for i in task.split.test]
    tokens = frame_histories(histories, loaded.backbone.spec)
    users = loaded.backbone.user_vectors(tokens, task.patch_weights)
    expected = (users + task.table.logits(histories)) @ task.head.weight.T + task.head.bias
    torch.testing.assert_close(model.logits(histories), expected)
    found = evaluate_task(model, unpacked.objective(task.examples), task.examples, task.split.test)
    assert found["mrr@5"] == pytest.approx(task.metrics["mrr@5"])


@pytest.mark.parametrize("parts", ["", "everything", "auto,table", "reader,,table", "none,reader"])
def test_parts_that_do_not_exist_are_refused_with_those_that_do(parts):
    with pytest.raises(InvalidSpec, match="is no part") as refusal:
        replace(SETTINGS, parts=parts)
    assert "blocks, reader, table" in refusal.value.hint


def test_a_value_keeps_the_scale_of_all_its_users_whatever_the_folds_have(loaded):
    settings = replace(SETTINGS, kind="value", parts="reader,table")
    task = finetune(loaded, shop_histories(), values(), settings)
    numbers = np.array([float(task.examples.answers[i][0]) for i in task.split.train])
    assert task.scale.shift == pytest.approx(numbers.mean())
    assert task.metrics["r2"] > 0.5


def test_a_listener_hears_of_each_network_and_then_of_the_choice(loaded):
    heard: list[TrainingEvent] = []
    task = finetune(loaded, shop_histories(), groups(), SETTINGS, listener=heard.append)
    epochs = [each for each in heard if isinstance(each, PartMeasured) and each.part == "train"]
    assert [each.network for each in epochs[::2]] == ["head", "reader", "blocks", "blocks+reader"]
    (chosen,) = (each for each in heard if isinstance(each, PartsChosen))
    assert list(chosen.parts) == task.record["parts"]
    assert heard.index(chosen) == len(heard) - 3  # then come the test and the end


def test_tasks_together_choose_for_themselves(loaded):
    tasks = [TaskToTrain(groups(), SETTINGS), TaskToTrain(coins(), replace(SETTINGS, parts="none"))]
    first, second = finetune_many(loaded, shop_histories(), tasks)
    assert "table" in first.record["parts"]
    assert first.metrics["auc"] > 0.9
    assert second.record["parts"] == []


def test_histories_longer_than_the_network_reads_reach_the_table(loaded):
    ours = shop_histories()
    rows = [ours.codes[a:b] for a, b in zip(ours.offsets[:-1], ours.offsets[1:], strict=True)]
    doubled = [np.concatenate([row, np.resize(row, 2 * TINY.max_len)]) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in doubled])])
    histories = Histories(ours.users, ours.items, np.concatenate(doubled), offsets)
    task = finetune(loaded, histories, groups(), replace(SETTINGS, parts="table"))
    assert task.metrics["auc"] > 0.9
