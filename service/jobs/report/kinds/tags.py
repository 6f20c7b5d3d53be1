"""The report of a task with any number of tags: metrics by tag, calibration."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peterrec.model.training.calibration import tag_samples
from peterrec.model.training.intervals import (
    Floats,
    auc_of,
    estimates,
    mean_of,
)
from peterrec.service.jobs.report.kinds.descriptor import (
    MOST_ROWS,
    KindReport,
    Metrics,
    SampleAnswer,
    calibration_section,
    in_words,
    number,
)
from peterrec.service.jobs.report.measured import MeasuredTask
from peterrec.service.pages.page import Section, Table, table


def present_of(tested: MeasuredTask) -> Floats:
    """1 where a measured user has a tag, else 0, [N, K]."""
    place = {label: at for at, label in enumerate(tested.outputs)}
    present = np.zeros((len(tested.rows), len(tested.outputs)))
    for own, answer in zip(present, tested.answers, strict=True):
        own[[place[tag] for tag in answer]] = 1
    return present


def _metrics(tested: MeasuredTask, predictions: Tensor) -> Metrics:
    present, chosen = present_of(tested), (predictions > 0).numpy().astype(np.float64)
    hits, given, right = (each.sum(1) for each in (present * chosen, chosen, present))
    users = np.repeat(np.arange(len(present)), present.shape[1])
    scores, is_positive = predictions.double().numpy().reshape(-1), present.reshape(-1) > 0
    return {
        "micro_f1": mean_of(2 * hits, given + right),
        "micro_precision": mean_of(hits, given),
        "micro_recall": mean_of(hits, right),
        "micro_auc": auc_of(scores, is_positive, users),
    }


def _sections(tested: MeasuredTask) -> Sequence[Section]:
    present = torch.from_numpy(present_of(tested))
    samples = tag_samples(tested.predictions, present)
    return [
        Section("By tag", [_tags(tested)]),
        calibration_section(tested, samples, "the likelier of having a tag and not having it"),
    ]


def _tags(tested: MeasuredTask) -> Table:
    """Every tag with its training users, the most frequent first."""
    present, chosen = present_of(tested), (tested.predictions > 0).numpy()
    scores, trained = tested.predictions.double().numpy(), tested.train_counts()
    order = sorted(range(len(tested.outputs)), key=lambda at: -trained.get(tested.outputs[at], 0))
    shown = order[:MOST_ROWS]
    areas = estimates(
        {str(at): auc_of(scores[:, at], present[:, at] > 0) for at in shown}, len(present)
    )
    rows = [
        (
            tested.outputs[at],
            trained.get(tested.outputs[at], 0),
            int(present[:, at].sum()),
            int(chosen[:, at].sum()),
            _share((present * chosen)[:, at].sum(), chosen[:, at].sum()),
            _share((present * chosen)[:, at].sum(), present[:, at].sum()),
            in_words(areas[str(at)]),
        )
        for at in shown
    ]
    header = ("tag", "training users", "users with it", "answered", "precision", "recall", "AUC")
    left_out = len(order) - len(rows)
    note = f"{left_out} rarer tags are left out." if left_out else ""
    return table("Tags, the most frequent first", header, rows, note)


def _share(part: float, whole: float) -> str:
    return number(part / whole) if whole else "–"


def _answer(tested: MeasuredTask, at: int) -> SampleAnswer:
    shares = torch.sigmoid(tested.scores[at])
    order = torch.argsort(shares, descending=True, stable=True).tolist()
    given = [
        f"{tested.outputs[place]} {shares[place]:.0%}"
        for place in order
        if shares[place] >= tested.threshold
    ]
    return SampleAnswer(", ".join(tested.answers[at]) or "none", ", ".join(given) or "none")


KIND = KindReport(_metrics, _sections, _answer)
