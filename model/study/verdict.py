"""Whether the paper's finding holds: differences between methods on the same test users."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peterrec.model.files.tensors import NumpyArray, read_arrays
from peterrec.model.kinds import KINDS
from peterrec.model.study.baselines import BASELINES, POPULAR
from peterrec.model.study.predictions import LOG_LOSS, log_losses
from peterrec.model.study.results import Gap, Row, Table, Verdict
from peterrec.model.training.intervals import Floats

POINTS, RELATIVE, SHARE = 0.005, 0.02, 0.1
"""Bounds of the finding, from the paper's Table 3.

PeterRec is as good as FineAll if its accuracy is at most 0.5 points lower, or its MRR@5 at most 2 %
lower, while it trains at most a tenth of the parameters. It must be better than FineLast and
FineCLS.
"""

PATCHED = ("peterrec", "reader", "side")
"""Families of methods that the finding is about."""

RIVALS = ("fineall", "finelast", "finecls")
"""Families that they are compared with."""

WITHOUT_BACKBONE = (POPULAR, *BASELINES)
"""Families that they are compared with whatever backbone they have."""

ACCURACY = "accuracy"

CUTOFF = 5
"""The k of the ranking's primary metric, MRR@k."""


REFERENCES = ("linear", "fineall")
"""Families that every other row of a table is compared with."""

NORMAL = 1.96
"""Standard errors on either side of the mean that make an interval of 95 %."""

Keys = Mapping[str, Sequence[str]]
"""The keys of a method's runs, by the corpora of the splits."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of one method minus another, and the standard error over test users.

    Differences are taken within each user (paired), so users who are hard for both methods add no
    variance. All answers and splits of one user count as one observation, since they are alike.
    """

    mean: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval of 95 %."""
        return self.mean - NORMAL * self.standard_error, self.mean + NORMAL * self.standard_error


def gaps_of(table: Table, out: Path) -> list[Gap]:
    """Every row with all labels, and without a non-causal backbone, against each reference."""
    rows = [row for row in table["rows"] if row["label_share"] == 1 and row["is_causal"]]
    metrics = (table["primary"],) if KINDS[table["kind"]].has_catalog else (ACCURACY, LOG_LOSS)
    return [
        _gap(row, rival, metric, table, out)
        for rival in rows
        if rival["family"] in REFERENCES
        for row in rows
        if row is not rival
        for metric in metrics
    ]


def _gap(row: Row, rival: Row, metric: str, table: Table, out: Path) -> Gap:
    difference = paired_difference(row["keys"], rival["keys"], table["task"], out, metric)
    low, high = difference.interval
    return {
        "method": row["method"],
        "rival": rival["method"],
        "metric": metric,
        "mean": difference.mean,
        "standard_error": difference.standard_error,
        "low": low,
        "high": high,
    }


def verdicts_of(table: Table, out: Path) -> list[Verdict]:
    """Compare each patch that has all labels with each baseline, and each rival on its backbone.

    A patch with a history reader is also compared with the patches without one.
    """
    rows = [row for row in table["rows"] if row["label_share"] == 1]
    found = []
    for row in (row for row in rows if row["family"] in PATCHED):
        for rival in rows:
            is_plain = rival["family"] == "peterrec" and not rival["queries"] and row["queries"]
            is_rival = rival["family"] in RIVALS or is_plain
            is_rival = is_rival and rival["is_causal"] == row["is_causal"]
            if is_rival or rival["family"] in WITHOUT_BACKBONE:
                found.append(_verdict(row, rival, table, out))
    return found


def _verdict(row: Row, rival: Row, table: Table, out: Path) -> Verdict:
    difference = paired_difference(row["keys"], rival["keys"], table["task"], out)
    base = rival["metrics"][table["primary"]]["mean"]
    verdict: Verdict = {
        "method": row["method"],
        "rival": rival["method"],
        "difference": difference.mean,
        "standard_error": difference.standard_error,
        "relative": difference.mean / base if base else math.nan,
        "holds": difference.mean > 0,
    }
    if rival["family"] != "fineall":
        return verdict
    share = row["trained_parameters"] / max(1, rival["trained_parameters"])
    is_close = (
        difference.mean >= -RELATIVE * base
        if KINDS[table["kind"]].has_catalog
        else difference.mean >= -POINTS
    )
    return {**verdict, "share": share, "holds": is_close and share <= SHARE}


def paired_difference(
    ours: Keys, theirs: Keys, task: str, out: Path, metric: str | None = None
) -> Difference:
    """The difference from the stored predictions of both methods' runs, on splits that both have.

    The metric is the kind's primary one if none is given. Each split counts by its entries, which
    are (user, answer) pairs.
    """
    users, gaps = [], []
    for corpus in (name for name in ours if name in theirs):
        own = [_entries(out, key, task, metric) for key in ours[corpus]]
        others = [_entries(out, key, task, metric) for key in theirs[corpus]]
        users.append(own[0].users)
        gaps.append(_mean_of(own) - _mean_of(others))
    return _clustered(np.concatenate(users), np.concatenate(gaps))


@dataclass(frozen=True, slots=True)
class _Entries:
    """A run's (user, answer) pairs [M], ordered by user: what each adds to the metric's mean."""

    users: NumpyArray
    values: Floats


def _mean_of(runs: list[_Entries]) -> Floats:
    mean: Floats = np.stack([run.values for run in runs]).mean(0)  # [seeds, M] -> [M]
    return mean


def _clustered(users: NumpyArray, gaps: Floats) -> Difference:
    """The mean of gaps [M], and its standard error if users, not entries, were drawn."""
    distinct, at = np.unique(users, return_inverse=True)
    mean, count = float(gaps.mean()), len(distinct)
    if count < 2:
        return Difference(mean, math.nan)
    sums = np.bincount(at, gaps - mean)  # [M] -> [U]
    variance = float(sums @ sums) * count / (count - 1)
    return Difference(mean, math.sqrt(variance) / len(gaps))


def _entries(out: Path, key: str, task: str, metric: str | None) -> _Entries:
    run = read_arrays(out / "predictions" / f"{key}-{task}.safetensors")
    if metric == LOG_LOSS:
        values = log_losses(run)
    elif "logits" in run:
        values = (run["outputs"][run["logits"].argmax(1)] == run["targets"]).astype(np.float64)
    else:
        ranks = run["ranks"].astype(np.float64)
        values = np.where(ranks < CUTOFF, 1 / (1 + ranks), 0.0)
    order = np.lexsort((run["targets"], run["users"]))
    return _Entries(run["users"][order], values[order])
