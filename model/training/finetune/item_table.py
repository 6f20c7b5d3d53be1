"""Training of an item table, alone or added to the logits that blocks and reader give.

The loss is convex in the weights: L-BFGS finds its minimum from zeros, for a falling ridge, each
time from the weights before. The ridge with the lowest validation loss is taken. A table for logits
that are there already learns with them one factor of these logits and a bias, so that the head
stays one and its temperature is fitted afterwards as ever.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from peterrec.model.data.splits import UserSplit
from peterrec.model.network.item_table import ItemTable, counted_items, normalization
from peterrec.model.spec import FIRST_ITEM, TableSpec
from peterrec.model.training.objectives import LogitObjective

RIDGES = tuple(2.0**-power for power in range(5, 21))
"""Strengths of the ridge, in units of the mean squared size of a user's input. Profiles of
MovieLens chose 2^-12 to 2^-14."""

WORSE_RIDGES = 2
"""Number of ridges in a row without a lower validation loss after which the search ends."""

MOST_STEPS = 200
"""Most steps of L-BFGS for one ridge."""

TOLERANCE = 1e-7
"""L-BFGS ends when the loss falls by less in a step, or no derivative is larger."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RidgeTrial:
    """The losses of the weights that one ridge gives."""

    ridge: float
    train_loss: float
    validation_loss: float


@dataclass(frozen=True, slots=True)
class FittedTable:
    """A quantised table, and what it was trained with.

    Logits are ``factor · base + bias`` and what the table adds; ``bias`` is float32 [K].
    ``validation_loss`` is that of the quantised table, ``base_loss`` the validation loss with
    factor and bias alone: the difference is what the table earns.
    """

    table: ItemTable
    factor: float
    bias: Tensor
    ridge: float
    validation_loss: float
    base_loss: float
    trials: tuple[RidgeTrial, ...]


def fit_table(
    histories: Sequence[Rows],
    objective: LogitObjective,
    split: UserSplit,
    spec: TableSpec,
    base: Tensor | None = None,
) -> FittedTable:
    """Train a table on the training users' whole histories in tokens, item by item.

    ``spec.items`` is the number of the vocabulary's items. ``base`` [N, K] are logits of all users
    that stay as they are but for one factor; None are zeros. Takes seconds for thousands of users.
    """
    logits = torch.zeros(len(histories), objective.head_spec.outputs) if base is None else base
    parts = _Parts(
        _Part.of(histories, objective, split.train, spec, logits),
        _Part.of(histories, objective, split.validation, spec, logits),
        _inverse_frequencies(histories, split.train, spec),
    )
    start = parts.start(has_base=base is not None)
    base_weights = parts.fitted(start, math.inf)
    trials: list[RidgeTrial] = []
    best, weights = base_weights, base_weights
    for ridge in RIDGES:
        weights = parts.fitted(weights, ridge)
        trial = RidgeTrial(ridge, parts.train.loss(weights), parts.validation.loss(weights))
        lowest = min(trials, key=_validation_loss, default=None)
        trials.append(trial)
        if lowest is None or trial.validation_loss < lowest.validation_loss:
            best = weights
        elif trials.index(lowest) < len(trials) - WORSE_RIDGES:
            break
    table = ItemTable.quantized(best.items.float(), spec)
    quantized = best.with_items(table)
    return FittedTable(
        table=table,
        factor=float(best.factor),
        bias=best.bias.float(),
        ridge=min(trials, key=_validation_loss).ridge,
        validation_loss=parts.validation.loss(quantized),
        base_loss=parts.validation.loss(base_weights),
        trials=tuple(trials),
    )


def _validation_loss(trial: RidgeTrial) -> float:
    return trial.validation_loss


@dataclass(frozen=True, slots=True)
class _Weights:
    """What is learned, in float64: items [V, K], bias [K], factor []."""

    items: Tensor
    bias: Tensor
    factor: Tensor
    has_base: bool

    def with_items(self, table: ItemTable) -> "_Weights":
        """Replace the items' weights by a table's rounded ones."""
        items = torch.zeros_like(self.items)
        items[table.items - FIRST_ITEM] = table.weights().double()
        return _Weights(items, self.bias, self.factor, self.has_base)


@dataclass(frozen=True, slots=True)
class _Part:
    """Users' inputs, ``n^-p`` times each item's count [B, V], and their other logits [B, K]."""

    objective: LogitObjective
    rows: Tensor
    inputs: "_SparseMatrix"
    base: Tensor

    @classmethod
    def of(
        cls,
        histories: Sequence[Rows],
        objective: LogitObjective,
        rows: Rows,
        spec: TableSpec,
        base: Tensor,
    ) -> "_Part":
        found = [counted_items(histories[row], spec) - FIRST_ITEM for row in rows.tolist()]
        norms = normalization(torch.tensor([len(items) for items in found]), spec.exponent)
        return cls(
            objective=objective,
            rows=torch.from_numpy(rows),
            inputs=_SparseMatrix.of(found, norms.double(), spec.items),
            base=base[torch.from_numpy(rows)].double(),
        )

    def logits(self, weights: _Weights) -> Tensor:
        """Logits float64 [B, K]."""
        return weights.factor * self.base + weights.bias + self.inputs.times(weights.items)

    def loss(self, weights: _Weights) -> float:
        return float(self.objective.logit_loss(self.logits(weights), self.rows))

    def squared_size(self, frequencies: Tensor) -> float:
        """Mean squared Euclidean size of a user's input, weighted by ``frequencies`` [V, 1]."""
        return float(self.inputs.squared().times(frequencies.square()).mean())


@dataclass(frozen=True, slots=True)
class _SparseMatrix:
    """A matrix [B, V] and its transpose, both as compressed rows; products with both are fast."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, columns: list[Tensor], factors: Tensor, width: int) -> "_SparseMatrix":
        """Row b has ``factors[b]`` at each of ``columns[b]``, as often as it is named there."""
        at, counts = zip(*(torch.unique(each, return_counts=True) for each in columns), strict=True)
        lengths = torch.tensor([len(each) for each in at])
        row_of = torch.arange(len(at)).repeat_interleave(lengths)  # [values]
        column_of = torch.cat(at)
        values = torch.cat(counts) * factors[row_of]
        order = column_of.argsort(stable=True)
        width_of = torch.bincount(column_of, minlength=width)
        return cls(
            _compressed(lengths, column_of, values, width),
            _compressed(width_of, row_of[order], values[order], len(at)),
        )

    def squared(self) -> "_SparseMatrix":
        """Square each value."""
        return _SparseMatrix(_squared(self.rows), _squared(self.columns))

    def times(self, dense: Tensor) -> Tensor:
        """The product [B, K] with a matrix [V, K], which may need a gradient."""
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch's
            dense, self.rows, self.columns
        )
        return product


class _Product(Function):
    """A sparse product whose gradient is a product with the transpose, which torch would sort."""

    @staticmethod
    def forward(ctx: FunctionCtx, dense: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.columns = columns  # type: ignore[attr-defined]  # needs no gradient
        return rows @ dense

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.columns @ gradient, None, None  # type: ignore[attr-defined]  # set above


def _compressed(lengths: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(
            starts, columns, values, (len(lengths), width), check_invariants=True
        )


def _squared(matrix: Tensor) -> Tensor:
    lengths = matrix.crow_indices().diff()
    squares = matrix.values().square()
    return _compressed(lengths, matrix.col_indices(), squares, matrix.shape[1])


@dataclass(frozen=True, slots=True)
class _Parts:
    """Training and validation users, and the inverse frequencies of items [V, 1]."""

    train: _Part
    validation: _Part
    frequencies: Tensor

    def start(self, *, has_base: bool) -> _Weights:
        outputs = self.train.base.shape[1]
        items = torch.zeros(len(self.frequencies), outputs, dtype=torch.float64)
        bias, factor = (
            torch.zeros(outputs, dtype=torch.float64),
            torch.ones((), dtype=torch.float64),
        )
        return _Weights(items, bias, factor, has_base)

    def fitted(self, start: _Weights, ridge: float) -> _Weights:
        """The minimum of the training loss for a ridge, from given weights; infinite: no items.

        The ridge is on the weights divided by the items' inverse frequencies: rare items may have
        larger weights. This is the IDF of the model.
        """
        is_free = math.isfinite(ridge)
        scaled = (start.items / self.frequencies).requires_grad_(is_free)
        bias = start.bias.clone().requires_grad_()
        factor = start.factor.clone().requires_grad_(start.has_base)
        strength = ridge * self.train.squared_size(self.frequencies) if is_free else 0.0

        def found() -> _Weights:
            return _Weights(scaled * self.frequencies, bias, factor, start.has_base)

        def loss() -> Tensor:
            fit = self.train.objective.logit_loss(self.train.logits(found()), self.train.rows)
            return fit + strength / 2 * scaled.square().sum()

        _minimize([each for each in (scaled, bias, factor) if each.requires_grad], loss)
        kept = found()
        return _Weights(
            kept.items.detach(), kept.bias.detach(), kept.factor.detach(), start.has_base
        )


def _minimize(parameters: list[Tensor], loss: Callable[[], Tensor]) -> None:
    """Move parameters to the minimum of a smooth convex loss."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch's
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's


def _inverse_frequencies(histories: Sequence[Rows], train: Rows, spec: TableSpec) -> Tensor:
    """``log((1 + users) / (1 + users with the item)) + 1`` of all items, float64 [V, 1]."""
    users = torch.zeros(spec.items, dtype=torch.float64)
    for row in train.tolist():
        users[torch.from_numpy(np.unique(histories[row])) - FIRST_ITEM] += 1
    return (((1 + len(train)) / (1 + users)).log() + 1).unsqueeze(1)
