"""Folds of training users: what is learned of some is judged by the others."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

FOLDS = 3
"""Folds of the training users. More would learn from more users, in more time."""


FEWEST_CROSSED = 60
"""Training users below which there are no folds."""


def folds_of(train: Rows) -> list[tuple[Rows, Rows]]:
    """Users to learn from and users to judge by, both ascending, in turn; none of too few users."""
    if len(train) < FEWEST_CROSSED:
        return []
    shuffled = np.random.default_rng(0).permutation(train)
    held = [np.sort(part) for part in np.array_split(shuffled, FOLDS)]
    return [(np.setdiff1d(train, each), each) for each in held]
