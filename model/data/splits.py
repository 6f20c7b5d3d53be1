"""Splits by user: no user is in two parts, and a split depends on ids and seed alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peterrec.model.errors import SplitEmpty

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UserSplit:
    """Indices of the users in each part, ascending."""

    train: Indices
    validation: Indices
    test: Indices


def split_users(
    users: Sequence[str], validation_share: float, test_share: float, seed: int
) -> UserSplit:
    """Rank the users by a keyed hash of their ids, and cut the ranking into three parts.

    A user's rank depends on the id and the seed alone, not on the file or its order. So a user is
    in the same part in every task, except near the cuts, which move with the number of users. A
    part is empty only if its share is 0; a positive share of too few users is refused.
    """
    ranked = np.argsort([rank_of(user, seed) for user in users], kind="stable")
    validation = _size(len(users), validation_share)
    test = _size(len(users), test_share)
    if len(users) - validation - test < 1:
        one = f"one user, {users[0]!r}, leaves" if len(users) == 1 else ""
        found = one or f"{len(users)} users leave"
        raise SplitEmpty(
            f"{found} none to train on after {validation} for validation and {test} for the test.",
            hint="Give more users or smaller shares, and check the user column.",
        )
    cuts = (validation, validation + test)
    parts = (np.sort(part).astype(np.int64) for part in np.split(ranked, cuts))
    validation_part, test_part, train_part = parts
    return UserSplit(train_part, validation_part, test_part)


def _size(users: int, share: float) -> int:
    if not 0 <= share < 1:
        raise SplitEmpty(f"a share of {share} users is impossible.", hint="Give 0 <= share < 1.")
    return max(1, round(users * share)) if share > 0 else 0


def rank_of(user: str, seed: int) -> int:
    """A number that depends on the user's id and the seed alone."""
    digest = hashlib.blake2b(user.encode(), key=str(seed).encode(), digest_size=7).digest()
    return int.from_bytes(digest)
