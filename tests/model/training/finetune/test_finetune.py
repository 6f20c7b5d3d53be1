"""Fine-tuning learns each kind of task without touching the backbone, and repeats itself."""

from dataclasses import replace

import pytest
import torch

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.errors import (
    HistoriesMissing,
    InvalidSpec,
    LabelSeenOnce,
    SplitEmpty,
    TrainingDiverged,
    UnknownItems,
)
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.progress import Progress
from peterrec.model.training.finetune.finetune import FinetuneSettings, finetune
from tests.model.small_shop import groups, shop_histories, small_backbone

SETTINGS = FinetuneSettings(
    kind="classification",
    bottleneck=4,
    parts="blocks,reader",
    epochs=4,
    batch_size=16,
    learning_rate=0.03,
    seed=1,
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedBackbone:
    return small_backbone(tmp_path_factory.mktemp("backbone"))


def tags() -> UserLabels:
    by_user = {
        user: ((*answer, "all") if i % 3 else answer)
        for i, (user, answer) in enumerate(groups().by_user.items())
    }
    return UserLabels(by_user, "tags.csv")


def targets() -> UserLabels:
    by_user = {
        user: (f"target-{answer[0]}", f"target-{answer[0]}-{i % 3}")
        for i, (user, answer) in enumerate(groups().by_user.items())
    }
    return UserLabels(by_user, "targets.csv")


def values() -> UserLabels:
    by_user = {
        user: (str(1000 + 500 * (answer[0] == "odd") + i % 7),)
        for i, (user, answer) in enumerate(groups().by_user.items())
    }
    return UserLabels(by_user, "values.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "answers", "metric", "is_better_higher"),
    [
        ("classification", groups(), "auc", True),
        ("tags", tags(), "micro_auc", True),
        ("ranking", targets(), "mrr@5", True),
        ("value", values(), "rmse", False),
    ],
)
def test_every_kind_of_task_beats_its_prior(loaded, kind, answers, metric, is_better_higher):
    settings = replace(SETTINGS, kind=kind, epochs=8, item_dropout=0.0)
    task = finetune(loaded, shop_histories(), answers, settings)
    gain = task.metrics[metric] - task.metrics[f"baseline_{metric}"]
    assert gain > 0 if is_better_higher else gain < 0


@pytest.mark.parametrize(
    "changes",
    [
        {"insertion": "serial2", "cardinality": 2},
        {"insertion": "serial1"},
        {"insertion": "parallel2", "has_inner_skip": True},
        {"blocks": (1,)},
        {"has_norms": False, "has_cls": False},
        {"item_dropout": 0.0},
    ],
)
def test_the_same_seed_gives_the_same_weights_with_any_geometry(loaded, changes):
    settings = replace(SETTINGS, epochs=2, **changes)
    one, other = (finetune(loaded, shop_histories(), groups(), settings) for _ in range(2))
    assert one.patch.keys() == one.geometry.shapes(8).keys()
    assert all(torch.equal(tensor, other.patch[name]) for name, tensor in one.patch.items())
    assert torch.equal(one.head.weight, other.head.weight)


def test_the_backbone_is_left_as_it_was(loaded):
    before = {name: tensor.clone() for name, tensor in loaded.backbone.state_dict().items()}
    finetune(loaded, shop_histories(), groups(), SETTINGS)
    after = loaded.backbone.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_cls_is_trained_only_if_the_first_block_is_patched(loaded):
    top = finetune(loaded, shop_histories(), groups(), replace(SETTINGS, epochs=1, blocks=(1,)))
    every = finetune(loaded, shop_histories(), groups(), replace(SETTINGS, epochs=1))
    assert (top.geometry.has_cls, every.geometry.has_cls) == (False, True)


def test_training_stops_early_and_keeps_the_best_epoch(loaded):
    settings = replace(SETTINGS, epochs=40, learning_rate=0.3, patience=1)
    record = finetune(loaded, shop_histories(), groups(), settings).record
    losses = [epoch["validation_loss"] for epoch in record["epochs"]]
    assert len(losses) < 40
    assert record["best_epoch"] == losses.index(min(losses)) == len(losses) - 2


def test_the_record_counts_users_without_a_history(loaded):
    by_user = {**groups().by_user, "stranger": ("odd",)}
    answers = UserLabels(by_user, "users.csv")
    task = finetune(loaded, shop_histories(), answers, replace(SETTINGS, epochs=1))
    data = task.record["data"]
    assert data["without_history"] == 1
    assert data["train_users"] + data["validation_users"] + data["test_users"] == 120


def test_progress_is_reported_for_every_batch(loaded):
    seen: list[Progress] = []
    finetune(loaded, shop_histories(), groups(), replace(SETTINGS, epochs=1), seen.append)
    training = [progress for progress in seen if progress.phase == "fine-tuning"]
    assert [progress.done for progress in training] == list(range(training[0].total + 1))
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == [
        "joining histories and answers",
        "fine-tuning",
        "calibrating",
        "evaluating",
        "computing metrics",
    ]


def test_labels_of_strangers_are_refused(loaded):
    answers = UserLabels({"a": ("x",), "b": ("y",)}, "users.csv")
    with pytest.raises(HistoriesMissing, match=r"users\.csv: none of the 2 users has a hist"):
        finetune(loaded, shop_histories(), answers, SETTINGS)


def test_histories_of_unknown_items_are_refused(loaded):
    ours = shop_histories()
    foreign = Histories(
        ours.users, tuple(f"other-{item}" for item in ours.items), ours.codes, ours.offsets
    )
    with pytest.raises(UnknownItems, match="outside the backbone's vocabulary"):
        finetune(loaded, foreign, groups(), SETTINGS)


def test_a_few_unknown_items_are_left_out(loaded):
    ours = shop_histories()
    items = ("brand-new", *ours.items[1:])
    changed = Histories(ours.users, items, ours.codes, ours.offsets)
    task = finetune(loaded, changed, groups(), replace(SETTINGS, epochs=1))
    assert len(task.examples.users) > 100


def test_a_label_seen_once_is_refused(loaded):
    by_user = {**groups().by_user, "user-000": ("unique",)}
    with pytest.raises(LabelSeenOnce, match="'unique'"):
        finetune(loaded, shop_histories(), UserLabels(by_user, "users.csv"), SETTINGS)


def test_an_empty_part_is_refused(loaded):
    with pytest.raises(SplitEmpty, match="users to validate with"):
        finetune(loaded, shop_histories(), groups(), replace(SETTINGS, validation_share=0.0))


def test_a_diverging_run_names_step_and_learning_rate(loaded):
    with pytest.raises(TrainingDiverged, match=r"at step \d+ with learning rate"):
        finetune(loaded, shop_histories(), groups(), replace(SETTINGS, learning_rate=1e30))


def test_a_block_that_the_backbone_lacks_is_refused(loaded):
    with pytest.raises(InvalidSpec, match="blocks"):
        finetune(loaded, shop_histories(), groups(), replace(SETTINGS, blocks=(7,)))
