"""Baselines that recommend items of a catalog from a bag of items: closed forms, nothing iterated.

Their training users have a history and target items. For neighbours and EASE both are one set of
items, as if the targets were taken like the rest; so a source and a target domain need not share an
item. The ridge regression keeps them apart, as inputs and outputs. All arithmetic is in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from peterrec.model.errors import BaselineTooLarge
from peterrec.model.training.baselines.bags import (
    FLOAT_BYTES,
    BagModel,
    Sparse,
    item_bags,
)
from peterrec.model.training.batches import TokenRow
from peterrec.model.training.intervals import Floats, Ints

MOST_EQUATIONS = 20_000
"""Most linear equations of a closed form; their matrix takes 3.2 GB in float64. There are as many
as items or as training users, whichever is less."""

MOST_WEIGHTS = MOST_EQUATIONS**2
"""Most weights of a closed form, items of histories times items of the catalog: 3.2 GB too."""

SHRINKAGE = 100.0
"""What is added to the size of a pair of items, in users. Of 0, 10, 30 and 100 it was the best or
within 2 % of it on MovieLens and on Amazon food and kitchen, if the neighbours are tuned."""

TIE = 1e-9
"""What the popularity of an item may add to its cosines, so that it decides between equal ones."""

CELLS = 20_000_000
"""Numbers of a product of sparse matrices that are dense at a time: 160 MB."""


@dataclass(frozen=True)
class Taken:
    """Training users' histories in token ids and their targets, indices into a catalog of K items.

    ``items`` is the size V of the vocabulary of histories. ``places`` int64 [K] is each catalog
    item's index in that vocabulary; an item outside it has an index of its own from V on.
    """

    rows: Sequence[TokenRow]
    targets: Sequence[Ints]
    items: int
    places: Ints

    @cached_property
    def histories(self) -> Sparse:
        """1 where a training user [N] has an item [V] in the history."""
        return _presence(self.rows, self.items)

    @cached_property
    def answers(self) -> Sparse:
        """1 where a training user [N] has a catalog item [K] as a target."""
        return _marked(self.targets, len(self.places))

    @cached_property
    def all_items(self) -> Sparse:
        """1 where a training user [N] has an item, in the history or as a target; [N, V + ...]."""
        count = max(self.items, int(self.places.max(initial=0)) + 1)
        histories = self.histories.copy()
        histories.resize((len(self.rows), count))
        joint = histories + _marked([self.places[own] for own in self.targets], count)
        joint.data = np.minimum(joint.data, 1.0)
        return joint.tocsr()


def item_knn(taken: Taken, neighbours: int, shrinkage: float = SHRINKAGE) -> BagModel:
    """Score a catalog item by the sum of its similarities to the history's items.

    The similarity of two items is the number of training users who have both, divided by the root
    of the product of the numbers of those who have each, plus ``shrinkage``: with 0 it is the
    cosine, which is 1 for two items that a single user has. Of each catalog item only the most
    similar ``neighbours`` count, of equal ones those that come first in the vocabulary. Items of
    equal scores, such as those without a neighbour in the history, are ordered by popularity.
    """
    from scipy.sparse import csc_matrix

    norms = np.sqrt(np.asarray(taken.all_items.sum(0)).ravel())  # [V + ...]
    everything = taken.all_items.tocsc()
    inputs = everything[:, : taken.items]
    data, indices, ends = [], [], [0]
    for start, stop in _blocks(len(taken.places), taken.items):
        places = taken.places[start:stop]
        both = (inputs.T @ everything[:, places]).toarray()  # [V, N] @ [N, k] -> [V, k]
        for column, place in zip(both.T, places.tolist(), strict=True):
            size = norms[: taken.items] * norms[place] + shrinkage
            np.divide(column, size, out=column, where=column > 0)
            column[place : place + 1] = 0  # an item is no neighbour of itself
            near = np.flatnonzero(column)
            best = np.sort(near[np.argsort(-column[near], kind="stable")[:neighbours]])
            data.append(column[best])
            indices.append(best)
            ends.append(ends[-1] + len(best))
    popular = TIE * np.asarray(taken.answers.mean(0)).ravel()  # [K]
    shape = (taken.items, len(taken.places))
    weights = csc_matrix((np.concatenate(data), np.concatenate(indices), ends), shape=shape)

    def scores(rows: Sequence[TokenRow]) -> Floats:
        found: Floats = (_presence(rows, taken.items) @ weights).toarray() + popular
        return found

    size_bytes = FLOAT_BYTES * (2 * weights.nnz + popular.size)
    return BagModel(scores, weights.nnz + popular.size, size_bytes)


def ease(taken: Taken, penalty: float) -> BagModel:
    """EASE (Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8).

    With ``P = (ZᵀZ + λI)⁻¹`` the weight from item i to another item j is ``-P_ij / P_jj``; Z says
    which items each training user has. Only the columns of catalog items are computed.
    """
    _require_room("ease", taken)
    everything, places = taken.all_items, taken.places
    inverse = np.empty((taken.items, len(places)))  # P, items of histories by items of the catalog
    diagonal = np.empty(len(places))
    solve = _Inverse(everything, penalty)
    for start, stop in _blocks(len(places), everything.shape[1]):
        units = np.zeros((everything.shape[1], stop - start))
        units[places[start:stop], np.arange(stop - start)] = 1
        columns = solve(units)  # [V + ..., k]
        diagonal[start:stop] = columns[places[start:stop], np.arange(stop - start)]
        inverse[:, start:stop] = columns[: taken.items]
    weights = -inverse / diagonal
    inside = np.flatnonzero(places < taken.items)
    weights[places[inside], inside] = 0  # no item predicts itself

    def scores(rows: Sequence[TokenRow]) -> Floats:
        found: Floats = _presence(rows, taken.items) @ weights
        return found

    return BagModel(scores, weights.size, FLOAT_BYTES * weights.size)


def linear_to_items(taken: Taken, penalty: float) -> BagModel:
    """Ridge regression from a history's items, weighted by TF-IDF, to each item of the catalog.

    It is scikit-learn's ``Ridge(alpha=penalty)`` with an intercept, in closed form: its solvers for
    sparse input take every output in turn.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    _require_room("linear", taken)
    transformer = TfidfTransformer(sublinear_tf=True)
    features = transformer.fit_transform(item_bags(taken.rows, taken.items))
    mean = np.asarray(features.mean(0)).ravel()  # [V]
    popular = np.asarray(taken.answers.mean(0)).ravel()  # [K]
    weights = np.empty((taken.items, len(popular)))
    solve = _Inverse(features, penalty, mean)
    for start, stop in _blocks(len(popular), taken.items):
        moment = (features.T @ taken.answers[:, start:stop]).toarray()  # [V, k]
        moment -= len(taken.rows) * np.outer(mean, popular[start:stop])
        weights[:, start:stop] = solve(moment)
    intercept = popular - mean @ weights

    def scores(rows: Sequence[TokenRow]) -> Floats:
        found: Floats = transformer.transform(item_bags(rows, taken.items)) @ weights + intercept
        return found

    count = weights.size + intercept.size + taken.items  # and the IDF of each item
    return BagModel(scores, count, FLOAT_BYTES * count)


class _Inverse:
    """Multiplies by ``(XᵀX + λI)⁻¹`` for X [N, V], of which a mean [V] may be subtracted first.

    A Cholesky factor of V or of N equations is kept, whichever are fewer: with more items than
    users the inverse is ``(I - Xᵀ (XXᵀ + λI)⁻¹ X) / λ`` (Woodbury).
    """

    def __init__(self, matrix: Sparse, penalty: float, mean: Floats | None = None) -> None:
        from scipy.linalg import cho_factor

        self._matrix, self._penalty = matrix.tocsr(), penalty
        rows, columns = matrix.shape
        self._mean = np.zeros(columns) if mean is None else mean
        self._is_dual = rows < columns
        gram = self._between_rows() if self._is_dual else self._between_columns()
        gram[np.diag_indices(len(gram))] += penalty
        self._factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)

    def __call__(self, given: Floats) -> Floats:
        """The product with ``given`` [V, k]."""
        from scipy.linalg import cho_solve

        if not self._is_dual:
            solved: Floats = cho_solve(self._factor, given, check_finite=False)
            return solved
        through = self._matrix @ given - self._mean @ given  # [N, V] @ [V, k] -> [N, k]
        inner = cho_solve(self._factor, through, check_finite=False)
        back = self._matrix.T @ inner - np.outer(self._mean, inner.sum(0))  # [V, k]
        found: Floats = (given - back) / self._penalty
        return found

    def _between_columns(self) -> Floats:
        gram = _products(self._matrix.T.tocsr(), self._matrix)
        gram -= self._matrix.shape[0] * np.outer(self._mean, self._mean)
        return gram

    def _between_rows(self) -> Floats:
        gram = _products(self._matrix, self._matrix.T)
        shift = self._matrix @ self._mean  # [N]
        gram -= shift[:, None]
        gram -= shift
        gram += self._mean @ self._mean
        return gram


def _products(left: Sparse, right: Sparse) -> Floats:
    """A dense product of sparse matrices, whose sparse form would take more memory."""
    right = right.tocsc()
    found = np.empty((left.shape[0], right.shape[1]))
    for start, stop in _blocks(right.shape[1], left.shape[0]):
        found[:, start:stop] = (left @ right[:, start:stop]).toarray()
    return found


def _blocks(columns: int, rows: int) -> Iterator[tuple[int, int]]:
    """Start and end of blocks of columns that hold at most ``CELLS`` numbers, or one column."""
    width = max(1, CELLS // max(1, rows))
    for start in range(0, columns, width):
        yield start, min(start + width, columns)


def _require_room(method: str, taken: Taken) -> None:
    equations = min(taken.all_items.shape)
    weights = taken.items * len(taken.places)
    if equations <= MOST_EQUATIONS and weights <= MOST_WEIGHTS:
        return
    raise BaselineTooLarge(
        f"the method {method} would solve {equations:,} equations for {weights:,} weights; "
        f"{MOST_EQUATIONS:,} and {MOST_WEIGHTS:,} are the limits.",
        hint="Leave it out of `methods`, or raise `min_count` of pretraining.",
    )


def _presence(rows: Sequence[TokenRow], items: int) -> Sparse:
    bags = item_bags(rows, items)
    bags.data = np.minimum(bags.data, 1.0)
    return bags


def _marked(targets: Sequence[npt.NDArray[np.int64]], columns: int) -> Sparse:
    """1 where a row has a column among its targets; repeated ones count once."""
    from scipy.sparse import csr_matrix

    distinct = [np.unique(own) for own in targets]
    ends = np.cumsum([0, *(len(own) for own in distinct)])
    places = np.concatenate([np.empty(0, dtype=np.int64), *distinct])
    return csr_matrix((np.ones(len(places)), places, ends), shape=(len(targets), columns))
