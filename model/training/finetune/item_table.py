"""Training of an item table, alone; ``fusion.py`` adds it to the logits of blocks and reader.

The loss is convex in the weights: L-BFGS finds its minimum from zeros, for a falling ridge, each
time from the weights before. The ridge with the lowest validation loss is taken. Only items of
training users have weights, so that the size of the vocabulary costs nothing.
"""

import warnings
from collections.abc import Sequence
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
from peterrec.model.training.minimum import minimize
from peterrec.model.training.objectives import LogitObjective

RIDGES = tuple(2.0**-power for power in range(5, 21))
"""Strengths of the ridge, in units of the mean squared size of a user's input. Profiles of
MovieLens chose 2^-12 to 2^-14."""

WORSE_RIDGES = 2
"""Number of ridges in a row without a lower validation loss after which the search ends."""

MOST_WEIGHTS = 20_000_000
"""Most weights of a table: items of training users times outputs. L-BFGS keeps some 25 numbers in
float64 for each, 4 GB."""

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

    Logits are ``bias`` float32 [K] and what the table adds. ``validation_loss`` is that of the
    quantised table, ``bias_loss`` that of the best bias alone.
    """

    table: ItemTable
    bias: Tensor
    ridge: float
    validation_loss: float
    bias_loss: float
    trials: tuple[RidgeTrial, ...]

    def logits(self, histories: Sequence[Rows]) -> Tensor:
        """Logits [B, K] of whole histories in tokens."""
        return self.bias + self.table.logits(histories)


def table_weights(histories: Sequence[Rows], train: Rows, outputs: int) -> int:
    """Number of weights that a table learned from these users would have."""
    return len(_known_items(histories, train)) * outputs


def fit_table(
    histories: Sequence[Rows], objective: LogitObjective, split: UserSplit, spec: TableSpec
) -> FittedTable:
    """Train a table on the training users' whole histories in tokens, item by item.

    ``spec`` gives the form; its number of items is found here. Thousands of users take seconds.
    """
    parts = _Parts.of(histories, objective, split, spec)
    bias_only = parts.fitted(parts.start(), None)
    trials: list[RidgeTrial] = []
    best, weights = bias_only, bias_only
    for ridge in RIDGES:
        weights = parts.fitted(weights, ridge)
        trial = RidgeTrial(ridge, parts.train.loss(weights), parts.validation.loss(weights))
        lowest = min(trials, key=_validation_loss, default=None)
        trials.append(trial)
        if lowest is None or trial.validation_loss < lowest.validation_loss:
            best = weights
        elif trials.index(lowest) < len(trials) - WORSE_RIDGES:
            break
    table = ItemTable.quantized(best.items.float(), spec, parts.tokens)
    quantized = _Weights(parts.rows_of(table), best.bias)
    return FittedTable(
        table=table,
        bias=best.bias.float(),
        ridge=min(trials, key=_validation_loss).ridge,
        validation_loss=parts.validation.loss(quantized),
        bias_loss=parts.validation.loss(bias_only),
        trials=tuple(trials),
    )


def _validation_loss(trial: RidgeTrial) -> float:
    return trial.validation_loss


@dataclass(frozen=True, slots=True)
class _Weights:
    """What is learned, in float64: items [V, K] of the V items of training users, bias [K]."""

    items: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Part:
    """Users' inputs: ``n^-p`` times each item's count [B, V]."""

    objective: LogitObjective
    rows: Tensor
    inputs: "_SparseMatrix"

    @classmethod
    def of(
        cls,
        histories: Sequence[Rows],
        objective: LogitObjective,
        rows: Rows,
        spec: TableSpec,
        tokens: Tensor,
    ) -> "_Part":
        """Inputs of some users for the items ``tokens``; an item without a place counts in n."""
        found = [counted_items(histories[row], spec) for row in rows.tolist()]
        norms = normalization(torch.tensor([len(items) for items in found]), spec.exponent)
        places = [torch.searchsorted(tokens, items) for items in found]
        known = [
            at[tokens[at.clamp(max=len(tokens) - 1)] == items]
            for at, items in zip(places, found, strict=True)
        ]
        return cls(
            objective=objective,
            rows=torch.from_numpy(rows),
            inputs=_SparseMatrix.of(known, norms.double(), len(tokens)),
        )

    def logits(self, weights: _Weights) -> Tensor:
        """Logits float64 [B, K]."""
        return weights.bias + self.inputs.times(weights.items)

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

    def users_of_columns(self) -> Tensor:
        """Number of rows that have each column, int64 [V]."""
        return self.columns.crow_indices().diff()

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
    """Training and validation users, the items' tokens [V] and inverse frequencies [V, 1]."""

    train: _Part
    validation: _Part
    tokens: Tensor
    frequencies: Tensor

    @classmethod
    def of(
        cls,
        histories: Sequence[Rows],
        objective: LogitObjective,
        split: UserSplit,
        spec: TableSpec,
    ) -> "_Parts":
        tokens = _known_items(histories, split.train)
        train, validation = (
            _Part.of(histories, objective, rows, spec, tokens)
            for rows in (split.train, split.validation)
        )
        users = train.inputs.users_of_columns().double()  # [V]
        frequencies = ((1 + len(split.train)) / (1 + users)).log() + 1
        return cls(train, validation, tokens, frequencies.unsqueeze(1))

    def start(self) -> _Weights:
        outputs = self.train.objective.head_spec.outputs
        return _Weights(
            torch.zeros(len(self.tokens), outputs, dtype=torch.float64),
            torch.zeros(outputs, dtype=torch.float64),
        )

    def fitted(self, start: _Weights, ridge: float | None) -> _Weights:
        """The minimum of the training loss for a ridge, from given weights; None: bias alone.

        The ridge is on the weights divided by the items' inverse frequencies: rare items may have
        larger weights. This is the IDF of the model.
        """
        scaled = (start.items / self.frequencies).requires_grad_(ridge is not None)
        bias = start.bias.clone().requires_grad_()
        strength = (ridge or 0.0) * self.train.squared_size(self.frequencies)

        def loss() -> Tensor:
            logits = self.train.logits(_Weights(scaled * self.frequencies, bias))
            fit = self.train.objective.logit_loss(logits, self.train.rows)
            return fit + strength / 2 * scaled.square().sum()

        minimize([bias] if ridge is None else [scaled, bias], loss)
        return _Weights((scaled * self.frequencies).detach(), bias.detach())

    def rows_of(self, table: ItemTable) -> Tensor:
        """A table's rounded weights float64 [V, K]; 0 for items that it leaves out."""
        rows = torch.zeros(len(self.tokens), table.codes.shape[1], dtype=torch.float64)
        rows[torch.searchsorted(self.tokens, table.items)] = table.weights().double()
        return rows


def _known_items(histories: Sequence[Rows], train: Rows) -> Tensor:
    """Tokens int64 [V] of the items that training users have, ascending; at least one."""
    tokens = torch.unique(torch.from_numpy(np.concatenate([histories[i] for i in train])))
    known = tokens[tokens >= FIRST_ITEM]
    return known if len(known) else torch.tensor([FIRST_ITEM])
