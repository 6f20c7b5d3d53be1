"""Evaluation repeats what training measured, in any order of users, without the undefined."""

import numpy as np
import pytest

from peterrec.model.training.evaluation import TaskModel, evaluate_prior, evaluate_task
from peterrec.model.training.finetune.finetune import FinetuneSettings, finetune
from peterrec.model.training.objectives.classification import ClassificationObjective
from tests.model.small_shop import groups, shop_histories

SETTINGS = FinetuneSettings(kind="classification", bottleneck=4, epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def task(loaded):
    return finetune(loaded, shop_histories(), groups(), SETTINGS)


def test_a_finished_task_is_judged_as_in_training_in_any_order_of_users(loaded, task):
    objective = ClassificationObjective.of(task.outputs, task.examples)
    model = TaskModel(loaded.backbone, task.patch_weights, task.head, task.table)
    for rows in (task.split.test, task.split.test[::-1].copy()):
        metrics = evaluate_task(model, objective, task.examples, rows, task.temperature)
        assert metrics == pytest.approx({name: task.metrics[name] for name in metrics})


def test_the_prior_of_two_classes_is_the_majority_class(task):
    objective = ClassificationObjective.of(task.outputs, task.examples)
    test = task.split.test
    counts = np.bincount(objective.targets[test].numpy())
    train_majority = np.bincount(objective.targets[task.split.train].numpy()).argmax()
    prior = evaluate_prior(objective, task.split.train, test)
    assert prior["accuracy"] == pytest.approx(counts[train_majority] / len(test))
    assert prior["auc"] == 0.5


def test_an_undefined_metric_is_left_out(loaded, task):
    objective = ClassificationObjective.of(task.outputs, task.examples)
    model = TaskModel(loaded.backbone, task.patch_weights, task.head, task.table)
    metrics = evaluate_task(model, objective, task.examples, task.split.test[:1])
    assert "auc" not in metrics
    assert "accuracy" in metrics
