"""Two versions are compared on users whom neither training has seen, and on no others."""

from math import nan

import numpy as np
import pytest

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.splits import split_users
from peterrec.model.progress import no_progress
from peterrec.model.training.evaluation import evaluate_task
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.service.errors import NothingHeldOut
from peterrec.service.jobs.migrate.comparison import Comparison, Side, compare_sides
from peterrec.service.jobs.packing import unpack_task
from peterrec.service.jobs.report.measured import examples_of
from tests.service.random_bundles import SPEC, Workshop

OLD_ITEMS = [f"item-{n}" for n in range(200)]
NEW_ITEMS = [f"item-{n + 40}" for n in range(200)]
USERS = tuple(f"user-{n}" for n in range(240))
SETTINGS = FinetuneSettings(kind="classification", seed=5, test_share=0.4, max_unknown_share=1.0)
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def histories():
    """User n took the items n and n + 1; one backbone lacks the first of them, one the last."""
    items = tuple(f"item-{n}" for n in range(len(USERS) + 1))
    codes = np.array([[n, n + 1] for n in range(len(USERS))]).reshape(-1)
    return Histories(USERS, items, codes, np.arange(0, len(codes) + 1, 2))


@pytest.fixture(scope="module")
def labels():
    return UserLabels({user: (LABELS[n % 3],) for n, user in enumerate(USERS)}, "labels")


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    workshops = [
        Workshop(tmp_path_factory.mktemp(name), SPEC, items)
        for name, items in (("old", OLD_ITEMS), ("new", NEW_ITEMS))
    ]
    return [
        Side(each.loaded, each.bundle("classification", seed, names=LABELS), SETTINGS)
        for seed, each in enumerate(workshops)
    ]


def accuracy(side, histories, labels, users):
    """The accuracy among some users, by the evaluation of training."""
    examples = examples_of(side.loaded, histories, labels, SETTINGS)
    task = unpack_task(side.bundle, side.loaded)
    rows = np.array([examples.users.index(user) for user in users])
    return evaluate_task(task.model, task.objective(examples), examples, rows)["accuracy"]


def held_out(side, histories, labels):
    users = examples_of(side.loaded, histories, labels, SETTINGS).users
    split = split_users(users, SETTINGS.validation_share, SETTINGS.test_share, SETTINGS.seed)
    return {users[row] for row in split.test.tolist()}


def test_both_are_measured_on_the_users_that_both_kept_apart(sides, histories, labels):
    old, new = sides
    first, second = (held_out(side, histories, labels) for side in sides)
    both = sorted(first & second)
    assert 0 < len(both) < min(len(first), len(second))
    found = compare_sides(old, new, histories, labels, no_progress)
    assert (found.metric, found.users) == ("accuracy", len(both))
    assert found.old == pytest.approx(accuracy(old, histories, labels, both))
    assert found.new == pytest.approx(accuracy(new, histories, labels, both))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high


def test_a_version_differs_from_itself_by_nothing(sides, histories, labels):
    """The intervals are paired: users who are hard for both versions do not widen them."""
    old, _ = sides
    found = compare_sides(old, old, histories, labels, no_progress)
    assert found.difference == 0
    assert (found.low, found.high) == (None, None)


def test_versions_without_common_held_out_users_are_not_compared(sides, histories):
    by_user = {user: (LABELS[n % 3],) for n, user in enumerate(USERS) if n < 30 or n >= 210}
    labels = UserLabels(by_user, "users whom only one of the backbones knows")
    with pytest.raises(NothingHeldOut):
        compare_sides(sides[0], sides[1], histories, labels, no_progress)


@pytest.mark.parametrize(
    ("old", "new", "is_worse"),
    [
        (0.5, 0.46, False),
        (0.5, 0.44, True),
        (0.5, 0.6, False),
        (-0.5, -0.54, False),
        (-0.5, -0.56, True),
        (0.5, nan, True),
    ],
)
def test_a_version_is_worse_if_it_lost_more_than_is_tolerated(old, new, is_worse):
    assert Comparison("accuracy", 10, old, new).is_worse(0.1) is is_worse
