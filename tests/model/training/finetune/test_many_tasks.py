"""Tasks trained together end where each would have ended alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.errors import TasksDiffer
from peterrec.model.files.backbone_folder import load_backbone, save_backbone
from peterrec.model.progress import Progress
from peterrec.model.training.finetune.finetune import FinetuneSettings, finetune, prepare_task
from peterrec.model.training.finetune.many_tasks import TaskToTrain, finetune_many
from peterrec.model.training.finetune.task_rows import distinct_histories, variant_count
from peterrec.model.training.pretrain.pretrain import pretrain
from tests.model.small_shop import TINY, groups, shop_histories

SETTINGS = FinetuneSettings(
    kind="classification",
    bottleneck=4,
    parts="blocks,reader",
    blocks=(1,),
    epochs=3,
    batch_size=16,
    learning_rate=0.03,
    item_dropout=0.0,
    seed=1,
)


def equally_long_histories() -> Histories:
    """Then batches do not depend on lengths, so a task alone meets the same ones."""
    histories = shop_histories()
    starts = histories.offsets[:-1, None] + np.arange(4)
    return Histories(
        histories.users, histories.items, histories.codes[starts].ravel(), np.arange(121) * 4
    )


HISTORIES = equally_long_histories()


def values() -> UserLabels:
    numbers = {
        user: (str(100 + 50 * (answer[0] == "odd") + at % 7),)
        for at, (user, answer) in enumerate(groups().by_user.items())
    }
    return UserLabels(numbers, "values.csv")


def half_of_the_users() -> UserLabels:
    users = list(groups().by_user.items())[:60]
    return UserLabels({user: (answer[0] + "!",) for user, answer in users}, "half.csv")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return backbone_of(tmp_path_factory.mktemp("causal"), TINY)


def backbone_of(folder, settings):
    trained = pretrain(shop_histories(), settings)
    save_backbone(folder, trained.backbone, list(trained.vocabulary.items), trained.record)
    return load_backbone(folder)


def assert_same_task(together, alone):
    for name, tensor in {**together.patch, **together.head.named()}.items():
        other = {**alone.patch, **alone.head.named()}[name]
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-3)
    assert together.outputs == alone.outputs
    assert together.metrics == pytest.approx(alone.metrics, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(1,), None])
def test_tasks_of_any_kind_and_size_end_together_as_they_end_alone(loaded, blocks):
    settings = replace(SETTINGS, blocks=blocks)
    tasks = [
        TaskToTrain(groups(), settings),
        TaskToTrain(values(), replace(settings, kind="value", epochs=2, seed=2)),
        TaskToTrain(half_of_the_users(), replace(settings, learning_rate=0.01, batch_size=9)),
    ]
    together = finetune_many(loaded, HISTORIES, tasks)
    for task, found in zip(tasks, together, strict=True):
        assert_same_task(found, finetune(loaded, HISTORIES, task.labels, task.settings))


def test_a_task_that_runs_out_of_patience_stops_and_the_others_continue(loaded):
    hasty = replace(SETTINGS, learning_rate=1.0, head_learning_rate=1.0, patience=1, epochs=30)
    tasks = [TaskToTrain(groups(), hasty), TaskToTrain(groups(), replace(SETTINGS, epochs=6))]
    first, second = finetune_many(loaded, HISTORIES, tasks)
    assert len(first.record["epochs"]) < 30
    assert first.record["best_epoch"] == len(first.record["epochs"]) - 2
    assert len(second.record["epochs"]) == 6


def test_the_same_seed_gives_the_same_tasks_bit_for_bit(loaded):
    tasks = [
        TaskToTrain(groups(), replace(SETTINGS, item_dropout=0.3)),
        TaskToTrain(values(), replace(SETTINGS, kind="value")),
    ]
    for one, other in zip(
        *(finetune_many(loaded, shop_histories(), tasks) for _ in range(2)), strict=True
    ):
        for name, tensor in one.patch.items():
            assert torch.equal(tensor, other.patch[name])


def test_tasks_with_left_out_items_learn_what_one_alone_learns(loaded):
    settings = replace(SETTINGS, item_dropout=0.2, epochs=8)
    (together,) = finetune_many(loaded, shop_histories(), [TaskToTrain(groups(), settings)])
    alone = finetune(loaded, shop_histories(), groups(), settings)
    assert together.metrics["auc"] > 0.9
    assert together.metrics["auc"] == pytest.approx(alone.metrics["auc"], abs=0.1)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"item_dropout": 0.0}, 1),
        ({"trunk_variants": 2}, 2),
        ({"trunk_variants": 0}, 6),
        ({"trunk_variants": 9}, 6),
    ],
)
def test_histories_have_as_many_variants_as_are_trained_on(changes, count):
    settings = replace(SETTINGS, item_dropout=0.2, epochs=6)
    assert variant_count(replace(settings, **changes)) == count


def test_tasks_of_the_same_users_share_every_history(loaded):
    settings = replace(SETTINGS, item_dropout=0.2, epochs=6, trunk_variants=2)
    task = prepare_task(loaded, HISTORIES, groups(), settings)
    alone = distinct_histories([task.users], TINY.max_len)
    assert alone == 2 * 96 + 24
    assert distinct_histories([task.users] * 5, TINY.max_len) == alone


def test_tasks_that_patch_different_places_are_refused(loaded):
    tasks = [TaskToTrain(groups(), SETTINGS), TaskToTrain(groups(), replace(SETTINGS, blocks=None))]
    with pytest.raises(TasksDiffer, match="task 2 patches"):
        finetune_many(loaded, HISTORIES, tasks)


def test_a_non_causal_backbone_is_refused(tmp_path):
    loaded = backbone_of(tmp_path, replace(TINY, is_causal=False))
    with pytest.raises(TasksDiffer, match="non-causal"):
        finetune_many(loaded, HISTORIES, [TaskToTrain(groups(), SETTINGS)])


def test_progress_ends_at_the_total_even_if_tasks_stop_early(loaded):
    seen: list[Progress] = []
    finetune_many(loaded, HISTORIES, [TaskToTrain(groups(), SETTINGS)], on_progress=seen.append)
    assert seen[-1].done == seen[-1].total
