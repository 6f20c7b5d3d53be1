"""An item table learns what items say of users, as a regression of a library does, and no more."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from peterrec.model.data.splits import UserSplit
from peterrec.model.kinds import KINDS
from peterrec.model.spec import FIRST_ITEM, HeadSpec, TableSpec
from peterrec.model.training.finetune.item_table import STRENGTHS, fit_table
from peterrec.model.training.objectives import OBJECTIVES, LogitObjective
from peterrec.model.training.objectives.classification import ClassificationObjective
from peterrec.model.training.objectives.tags import TagsObjective

ITEMS, USERS, CLASSES = 60, 300, 3
FORM = TableSpec(ITEMS)
SPLIT = UserSplit(np.arange(200), np.arange(200, 250), np.arange(250, USERS))


def histories(seed=0, lengths=(5, 40)):
    """Users of three classes; a class prefers a third of the items, but for the last ten."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, CLASSES, USERS)
    chance = np.ones((CLASSES, ITEMS - 10))
    for each in range(CLASSES):
        chance[each, each::CLASSES] = 2
    chance /= chance.sum(1, keepdims=True)
    rows = [
        FIRST_ITEM + random.choice(ITEMS - 10, random.integers(*lengths), p=chance[own])
        for own in classes
    ]
    return rows, torch.from_numpy(classes)


def classes_objective(targets):
    return ClassificationObjective(HeadSpec("classification", CLASSES), targets)


def inputs(rows, train):
    """The regression's inputs by hand: IDF over the root of the number of different items."""
    present = np.zeros((len(rows), ITEMS))
    for user, row in enumerate(rows):
        present[user, np.unique(row) - FIRST_ITEM] = 1
    idf = np.log((1 + len(train)) / (1 + present[train].sum(0))) + 1
    return present * idf / np.sqrt(present.sum(1, keepdims=True))


def test_the_weights_are_those_of_a_regression_of_scikit_learn():
    rows, targets = histories()
    fitted = fit_table(rows, classes_objective(targets), SPLIT, FORM)
    found = (fitted.bias + fitted.table.logits(rows)).softmax(1).numpy()
    x = inputs(rows, SPLIT.train)
    size = np.square(x[SPLIT.train]).sum(1).mean()
    theirs = LogisticRegression(C=1 / (fitted.strength * size), max_iter=5000, tol=1e-8)
    theirs.fit(x[SPLIT.train], targets[SPLIT.train].numpy())
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=0.01)  # int8


def test_a_table_is_right_more_often_than_the_majority():
    rows, targets = histories(lengths=(40, 80))
    fitted = fit_table(rows, classes_objective(targets), SPLIT, FORM)
    logits = fitted.bias + fitted.table.logits([rows[i] for i in SPLIT.test])
    assert (logits.argmax(1) == targets[SPLIT.test]).float().mean() > 0.6
    assert fitted.validation_loss < 0.9 * fitted.bias_loss


def test_the_ridge_is_that_with_the_lowest_loss_on_held_out_users_and_the_search_ends_behind_it():
    rows, targets = histories()
    fitted = fit_table(rows, classes_objective(targets), SPLIT, FORM)
    losses = [trial.held_out_loss for trial in fitted.trials]
    assert fitted.strength == fitted.trials[int(np.argmin(losses))].strength
    assert len(losses) < len(STRENGTHS)
    train_losses = [trial.train_loss for trial in fitted.trials]
    assert train_losses == sorted(train_losses, reverse=True)


def test_training_users_are_judged_by_a_table_that_has_not_seen_them():
    rows, _ = histories()
    targets = torch.from_numpy(np.random.default_rng(9).integers(0, CLASSES, USERS))
    objective, train = classes_objective(targets), torch.from_numpy(SPLIT.train)
    fitted = fit_table(rows, objective, SPLIT, FORM)
    logits = fitted.bias + fitted.table.logits([rows[i] for i in SPLIT.train])
    own = objective.logit_loss(logits, train)
    assert fitted.crossed is not None
    crossed = objective.logit_loss(fitted.crossed, train)
    assert own < crossed
    assert crossed > np.log(CLASSES) - 0.02  # noise can't be told


def test_too_few_users_judge_nothing_by_folds():
    rows, targets = histories()
    few = UserSplit(np.arange(40), SPLIT.validation, SPLIT.test)
    assert fit_table(rows, classes_objective(targets), few, FORM).crossed is None


def test_items_of_no_training_user_have_no_row():
    rows, targets = histories()
    rows[210] = np.array([FIRST_ITEM + ITEMS - 1])
    fitted = fit_table(rows, classes_objective(targets), SPLIT, FORM)
    assert fitted.table.items.max() < FIRST_ITEM + ITEMS - 10
    assert fitted.table.spec.items <= ITEMS - 10


def test_answers_that_no_item_tells_of_give_a_table_that_earns_nothing():
    rows, _ = histories()
    targets = torch.from_numpy(np.random.default_rng(9).integers(0, CLASSES, USERS))
    fitted = fit_table(rows, classes_objective(targets), SPLIT, FORM)
    assert fitted.validation_loss > fitted.bias_loss - 0.02
    assert fitted.strength >= STRENGTHS[8]


def test_the_same_users_give_the_same_table():
    rows, targets = histories()
    one, two = (fit_table(rows, classes_objective(targets), SPLIT, FORM) for _ in range(2))
    assert torch.equal(one.table.codes, two.table.codes)
    assert torch.equal(one.table.scale, two.table.scale)


def test_tags_and_repeated_items_are_learned_too():
    rows, targets = histories()
    objective = TagsObjective(HeadSpec("tags", CLASSES), torch.eye(CLASSES)[targets])
    fitted = fit_table(rows, objective, SPLIT, TableSpec(ITEMS, counting="count"))
    assert fitted.validation_loss < fitted.bias_loss


def test_every_kind_but_a_ranking_has_a_loss_of_logits():
    with_logits = {kind for kind, each in OBJECTIVES.items() if hasattr(each, "logit_loss")}
    assert with_logits == {kind for kind in KINDS if not KINDS[kind].has_catalog}
    assert isinstance(classes_objective(torch.zeros(1, dtype=torch.int64)), LogitObjective)
