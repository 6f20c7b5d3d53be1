"""Whether the paper's finding holds: differences between methods on the same test users."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peterrec.model.files.tensors import read_arrays
from peterrec.model.kinds import KINDS
from peterrec.model.study.baselines import BASELINES, POPULAR
from peterrec.model.study.results import Row, Table, Verdict

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

CUTOFF = 5
"""The k of the ranking's primary metric, MRR@k."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean over seeds of one method minus another, and the standard error over test users.

    Differences are taken within each user (paired), so users who are hard for both methods add no
    variance.
    """

    mean: float
    standard_error: float


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


def paired_difference(ours: list[str], theirs: list[str], task: str, out: Path) -> Difference:
    """The difference from the stored predictions of both methods' runs.

    Entries are (user, answer) pairs; ``ours`` and ``theirs`` are the keys of runs.
    """
    gaps = _mean_gain(ours, task, out) - _mean_gain(theirs, task, out)  # [entries]
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else math.nan
    return Difference(float(gaps.mean()), error)


def _mean_gain(keys: list[str], task: str, out: Path) -> npt.NDArray[np.float64]:
    """Each entry's contribution to the primary metric, in the order of users; mean over seeds."""
    gains = [_gain(out / "predictions" / f"{key}-{task}.safetensors") for key in keys]
    mean: npt.NDArray[np.float64] = np.stack(gains).mean(0)  # [seeds, entries] -> [entries]
    return mean


def _gain(path: Path) -> npt.NDArray[np.float64]:
    run = read_arrays(path)
    if "logits" in run:
        gain = (run["outputs"][run["logits"].argmax(1)] == run["targets"]).astype(np.float64)
    else:
        ranks = run["ranks"].astype(np.float64)
        gain = np.where(ranks < CUTOFF, 1 / (1 + ranks), 0.0)
    ordered: npt.NDArray[np.float64] = gain[np.lexsort((run["targets"], run["users"]))]
    return ordered
