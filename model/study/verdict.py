"""Does the paper's finding hold here? Differences between methods on the same test users."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peterrec.model.kinds import KINDS
from peterrec.model.parity.npz import read_npz

Document = dict[str, Any]  # Any: a JSON document

POINTS, RELATIVE, SHARE = 0.005, 0.02, 0.1
"""PeterRec shall be within 0.5 points of FineAll's accuracy, or within 2 % of its MRR@5, training
at most a tenth of its parameters, and ahead of FineLast and FineCLS."""

PATCHED = ("peterrec", "reader", "side")
RIVALS = ("fineall", "finelast", "finecls")

CUTOFF = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean over seeds of one method minus another's, and the standard error over test users.

    Each user is compared with himself, so what makes a user hard for both does not count.
    """

    mean: float
    standard_error: float


def verdicts_of(table: Document, out: Path) -> list[Document]:
    """One for each patch with all labels, against each rival on the same backbone.

    A reader is also held against the patches without one.
    """
    rows = [row for row in table["rows"] if row["label_share"] == 1]
    found = []
    for row in (row for row in rows if row["family"] in PATCHED):
        for rival in rows:
            is_plain = rival["family"] == "peterrec" and not rival["queries"] and row["queries"]
            is_rival = rival["family"] in RIVALS or is_plain
            if is_rival and rival["is_causal"] == row["is_causal"]:
                found.append(_verdict(row, rival, table, out))
    return found


def _verdict(row: Document, rival: Document, table: Document, out: Path) -> Document:
    difference = paired_difference(row["keys"], rival["keys"], table["task"], out)
    base = rival["metrics"][table["primary"]]["mean"]
    verdict: Document = {
        "method": row["method"],
        "rival": rival["method"],
        "difference": difference.mean,
        "standard_error": difference.standard_error,
        "relative": difference.mean / base if base else math.nan,
    }
    if rival["family"] != "fineall":
        return verdict | {"holds": difference.mean > 0}
    share = row["trained_parameters"] / max(1, rival["trained_parameters"])
    is_close = (
        difference.mean >= -RELATIVE * base
        if KINDS[table["kind"]].has_catalog
        else difference.mean >= -POINTS
    )
    return verdict | {"share": share, "holds": is_close and share <= SHARE}


def paired_difference(ours: list[str], theirs: list[str], task: str, out: Path) -> Difference:
    """From the saved predictions of both methods' runs; entries are (user, answer) pairs."""
    gaps = _mean_gain(ours, task, out) - _mean_gain(theirs, task, out)  # [entries]
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else math.nan
    return Difference(float(gaps.mean()), error)


def _mean_gain(keys: list[str], task: str, out: Path) -> npt.NDArray[np.float64]:
    """What each entry adds to the primary metric, in the order of users; mean over seeds."""
    gains = [_gain(out / "predictions" / f"{key}-{task}.npz") for key in keys]
    mean: npt.NDArray[np.float64] = np.stack(gains).mean(0)  # [seeds, entries] -> [entries]
    return mean


def _gain(path: Path) -> npt.NDArray[np.float64]:
    run = read_npz(path)
    if "logits" in run:
        gain = (run["outputs"][run["logits"].argmax(1)] == run["targets"]).astype(np.float64)
    else:
        ranks = run["ranks"].astype(np.float64)
        gain = np.where(ranks < CUTOFF, 1 / (1 + ranks), 0.0)
    ordered: npt.NDArray[np.float64] = gain[np.lexsort((run["targets"], run["users"]))]
    return ordered
