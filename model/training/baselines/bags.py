"""Histories as bags of items: which items a user has and how often, in no order.

scipy and scikit-learn compute with them; both are imported when they are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.intervals import Floats

Sparse = Any  # Any: scipy's sparse matrices are untyped

FLOAT_BYTES = 4
"""Bytes of a weight, or of the index of one, in the size that a model is given in tables."""


@dataclass(frozen=True, slots=True)
class BagModel:
    """A learned model of bags: ``scores`` gives float64 [N, K] of N histories in token ids.

    ``weights`` are the numbers that it must keep to answer. ``size_bytes`` is their size in
    float32, with the indices of those that are kept sparsely.
    """

    scores: Callable[[Sequence[TokenRow]], Floats]
    weights: int
    size_bytes: int


def item_bags(rows: Sequence[TokenRow], items: int) -> Sparse:
    """How often each user [N] has each item [V], as a sparse float64 matrix [N, V]."""
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *(len(row) for row in rows)])
    places = np.concatenate([np.empty(0, dtype=np.int64), *rows]) - FIRST_ITEM
    is_item = places >= 0
    counts = is_item.astype(np.float64)
    matrix = csr_matrix((counts, np.maximum(places, 0), ends), shape=(len(rows), items))
    matrix.sum_duplicates()
    return matrix
