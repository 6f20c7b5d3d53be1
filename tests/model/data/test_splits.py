"""Users are split by a keyed hash: disjoint, complete, and independent of the file's order."""

import pytest

from peterrec.model.data.splits import split_users
from peterrec.model.errors import SplitEmpty

USERS = [f"u{i}" for i in range(50)]


def test_every_user_is_in_exactly_one_part():
    split = split_users(USERS, 0.1, 0.2, seed=1)
    parts = [*split.train, *split.validation, *split.test]
    assert sorted(parts) == list(range(50))
    assert (len(split.train), len(split.validation), len(split.test)) == (35, 5, 10)


def test_a_user_keeps_the_part_when_the_file_has_another_order():
    forward = split_users(USERS, 0.1, 0.2, seed=1)
    backward = split_users(USERS[::-1], 0.1, 0.2, seed=1)
    assert {USERS[i] for i in forward.test} == {USERS[::-1][i] for i in backward.test}


def test_another_seed_gives_another_split():
    assert (
        split_users(USERS, 0.1, 0.2, 1).test.tolist()
        != split_users(USERS, 0.1, 0.2, 2).test.tolist()
    )


def test_a_positive_share_of_few_users_is_at_least_one_user():
    split = split_users(USERS[:3], 0.1, 0.1, seed=0)
    assert (len(split.train), len(split.validation), len(split.test)) == (1, 1, 1)


def test_too_few_users_to_train_on_are_refused():
    with pytest.raises(SplitEmpty, match="2 users leave none"):
        split_users(USERS[:2], 0.1, 0.1, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(SplitEmpty, match="impossible"):
        split_users(USERS, share, 0.1, seed=0)
