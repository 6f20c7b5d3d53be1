"""Training of an item table, alone; ``fusion.py`` adds it to the logits of blocks and reader.

The loss is convex in the weights: L-BFGS finds its minimum from zeros, for a falling ridge, each
time from the weights before. Only items of training users have weights, so that the size of the
vocabulary costs nothing.

A tenth of the users say too little about the ridge: on five splits of MovieLens they took one that
was twice too strong. So the training users judge it too, each by a table of the others
(``folds.py``), and the logits of that table are kept for what else is joined with the table.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from peterrec.model.data.splits import UserSplit
from peterrec.model.network.item_table import ItemTable, counted_items, normalization
from peterrec.model.spec import FIRST_ITEM, TableSpec
from peterrec.model.training.finetune.folds import folds_of
from peterrec.model.training.minimum import minimize
from peterrec.model.training.objectives import LogitObjective

STRENGTHS = tuple(2.0 ** (power / 2) for power in range(10, -16, -1))
"""Strengths of the ridge: the whole penalty in units of one user's loss, for inputs of mean squared
size 1. scikit-learn's ``C`` is one over it. Profiles of MovieLens choose 1 to 1/8, whatever the
number of users, so that a strength found on a part of them holds for all."""

WORSE_STRENGTHS = 3
"""Number of strengths in a row without a lower loss after which the search ends."""

MOST_WEIGHTS = 20_000_000
"""Most weights of a table: items of training users times outputs. L-BFGS keeps some 25 numbers in
float64 for each, 4 GB."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RidgeTrial:
    """The losses of the weights of one strength: of the training users in their own table, of the
    validation users, and of ``held_out`` users, which are both, the former in tables of others."""

    strength: float
    train_loss: float
    validation_loss: float
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class FittedTable:
    """A quantised table, and what it was trained with.

    Logits are ``bias`` float32 [K] and what the table adds. ``validation_loss`` is that of the
    quantised table, ``bias_loss`` that of the best bias alone. ``held_out`` float32 [V, K] are
    the validation users' logits. ``crossed`` float64 [N, K] are those of the training users in
    tables of the others; None if there are too few.
    """

    table: ItemTable
    bias: Tensor
    strength: float
    validation_loss: float
    bias_loss: float
    trials: tuple[RidgeTrial, ...]
    held_out: Tensor
    crossed: Tensor | None


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
    path = _Path(parts, [parts.fold(*each) for each in folds_of(split.train)])
    bias_only = parts.fitted(parts.start(), None)
    trials: list[RidgeTrial] = []
    best, crossed = bias_only, None
    for strength in STRENGTHS:
        path.step(strength)
        trials.append(path.trial(strength))
        lowest = min(range(len(trials)), key=lambda at: trials[at].held_out_loss)
        if lowest == len(trials) - 1:
            best, crossed = path.weights, path.crossed
        elif lowest < len(trials) - WORSE_STRENGTHS:
            break
    table = ItemTable.quantized(best.items.float(), spec, parts.tokens)
    quantized = _Weights(parts.rows_of(table), best.bias)
    bias = best.bias.float()
    return FittedTable(
        table=table,
        bias=bias,
        strength=min(trials, key=lambda each: each.held_out_loss).strength,
        validation_loss=parts.validation.loss(quantized),
        bias_loss=parts.validation.loss(bias_only),
        trials=tuple(trials),
        held_out=bias + table.logits([histories[row] for row in split.validation.tolist()]),
        crossed=crossed,
    )


class _Path:
    """The weights of all users, and those of each fold, along falling strengths."""

    def __init__(self, parts: "_Parts", folds: list["_Parts"]) -> None:
        self._parts, self._folds = parts, folds
        self.weights = parts.start()
        self._of_folds = [fold.start() for fold in folds]

    def step(self, strength: float) -> None:
        """Go to the minima of the next strength."""
        self.weights = self._parts.fitted(self.weights, strength)
        self._of_folds = [
            fold.fitted(weights, strength)
            for fold, weights in zip(self._folds, self._of_folds, strict=True)
        ]

    @property
    def crossed(self) -> Tensor | None:
        """Logits float64 [N, K] of the training users from tables of the others."""
        if not self._folds:
            return None
        parts = [
            fold.validation.logits(weights)
            for fold, weights in zip(self._folds, self._of_folds, strict=True)
        ]
        order = torch.cat([fold.validation.rows for fold in self._folds]).argsort()
        return torch.cat(parts)[order]

    def trial(self, strength: float) -> RidgeTrial:
        train, validation = self._parts.train, self._parts.validation
        held_out = [(len(validation.rows), validation.loss(self.weights))]
        for fold, weights in zip(self._folds, self._of_folds, strict=True):
            held_out.append((len(fold.validation.rows), fold.validation.loss(weights)))
        users = sum(count for count, _ in held_out)
        mean = sum(count * loss for count, loss in held_out) / users
        return RidgeTrial(strength, train.loss(self.weights), held_out[0][1], mean)


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
        return float((_squared(self.inputs.rows) @ frequencies.square()).mean())


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
    """Training and validation users, the items' tokens [V] and inverse frequencies [V, 1].

    ``size`` is the mean squared size of a training user's input, weighted by the frequencies.
    """

    histories: Sequence[Rows]
    spec: TableSpec
    train: _Part
    validation: _Part
    tokens: Tensor
    frequencies: Tensor
    size: float

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
        frequencies = (((1 + len(split.train)) / (1 + users)).log() + 1).unsqueeze(1)
        size = train.squared_size(frequencies)
        return cls(histories, spec, train, validation, tokens, frequencies, size)

    def fold(self, kept: Rows, held: Rows) -> "_Parts":
        """Parts with equal items, learned from some of the training users, judged by others."""
        objective = self.train.objective
        train, validation = (
            _Part.of(self.histories, objective, rows, self.spec, self.tokens)
            for rows in (kept, held)
        )
        size = train.squared_size(self.frequencies)
        return replace(self, train=train, validation=validation, size=size)

    def start(self) -> _Weights:
        outputs = self.train.objective.head_spec.outputs
        return _Weights(
            torch.zeros(len(self.tokens), outputs, dtype=torch.float64),
            torch.zeros(outputs, dtype=torch.float64),
        )

    def fitted(self, start: _Weights, strength: float | None) -> _Weights:
        """The minimum of the training loss for a ridge, from given weights; None: bias alone.

        The ridge is on the weights divided by the items' inverse frequencies: rare items may have
        larger weights. This is the IDF of the model.
        """
        scaled = (start.items / self.frequencies).requires_grad_(strength is not None)
        bias = start.bias.clone().requires_grad_()
        ridge = (strength or 0.0) * self.size / len(self.train.rows)

        def loss() -> Tensor:
            logits = self.train.logits(_Weights(scaled * self.frequencies, bias))
            fit = self.train.objective.logit_loss(logits, self.train.rows)
            return fit + ridge / 2 * scaled.square().sum()

        minimize([bias] if strength is None else [scaled, bias], loss)
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
