"""Several sources of logits joined under one head: a factor for each, learned on held-out users.

The network's part of the logits and an item table are trained alone, so that neither learns to
explain only what the other leaves of the *training* users. They are then added, each times one
factor: a product of experts with powers. Breiman 1996 calls it stacking, and shows why factors
should not be negative. A factor is a scale of the head's weights or of the table's rows, so what is
served has the same form and size. A prior with the weight of one user draws the factors towards an
even share; it matters for a handful of users only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peterrec.model.training.minimum import minimize
from peterrec.model.training.objectives import LogitObjective

FOLDS = 10
"""Parts of the held-out users; the logits of each come from factors learned on the others."""


def fit_factors(sources: Sequence[Tensor], rows: Tensor, objective: LogitObjective) -> Tensor:
    """Factors float64 [S], none negative, for some users' logits [B, K] from each of S sources."""
    active = list(range(len(sources)))
    while True:
        found = _fitted([sources[at] for at in active], rows, objective)
        lowest = int(found.argmin())
        if found[lowest] >= 0 or len(active) == 1:
            factors = torch.zeros(len(sources), dtype=torch.float64)
            factors[active] = found.clamp(min=0)
            return factors
        active.pop(lowest)


def joined(sources: Sequence[Tensor], factors: Tensor) -> Tensor:
    """The sum of logits [B, K], each times its factor; float64."""
    scaled = [factor * z.double() for factor, z in zip(factors, sources, strict=True)]
    return torch.stack(scaled).sum(0)


def cross_joined(sources: Sequence[Tensor], rows: Tensor, objective: LogitObjective) -> Tensor:
    """Joined logits [B, K] of users whose factors were learned on the others.

    So a combination is not judged by the users that its factors were fitted to.
    """
    found = torch.empty_like(sources[0], dtype=torch.float64)
    fold_of = torch.arange(len(rows)) % FOLDS
    for fold in range(min(FOLDS, len(rows))):
        held, kept = fold_of == fold, fold_of != fold
        if not kept.any():
            kept = held
        factors = fit_factors([z[kept] for z in sources], rows[kept], objective)
        found[held] = joined([z[held] for z in sources], factors)
    return found


def _fitted(sources: list[Tensor], rows: Tensor, objective: LogitObjective) -> Tensor:
    even = 1 / len(sources)
    factors = torch.full((len(sources),), even, dtype=torch.float64, requires_grad=True)
    logits = [z.double() for z in sources]

    def loss() -> Tensor:
        prior = (factors - even).square().sum() / len(rows)
        return objective.logit_loss(joined(logits, factors), rows) + prior

    minimize([factors], loss)
    return factors.detach()
