"""The report of a task with one label of several: confusion, calibration, metrics by class."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peterrec.model.training.calibration import Samples
from peterrec.model.training.intervals import (
    Estimate,
    Floats,
    Ints,
    Metric,
    auc_of,
    estimates,
    macro_f1_of,
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
from peterrec.service.pages.page import Section, Table, matrix, table

MOST_CLASSES = 25
"""Classes of a confusion matrix; of more, the largest ones stand alone and the rest together."""

OTHERS = "all others"

SHOWN_CLASSES = 3
"""Likeliest classes of a sample user."""


def targets_of(tested: MeasuredTask) -> Ints:
    """The right class [N] of each measured user."""
    place = {label: at for at, label in enumerate(tested.outputs)}
    return np.array([place[answer[0]] for answer in tested.answers], dtype=np.int64)


def _metrics(tested: MeasuredTask, predictions: Tensor) -> Metrics:
    targets, logits = targets_of(tested), predictions.double().numpy()
    best = predictions.argmax(1).numpy()
    found = {
        "accuracy": mean_of((best == targets).astype(np.float64)),
        "macro_f1": macro_f1_of(best, targets, len(tested.outputs)),
    }
    if len(tested.outputs) == 2:
        found["auc"] = auc_of(logits[:, 1] - logits[:, 0], targets == 1)
    return found


def confusion_of(tested: MeasuredTask, group: Ints | None = None) -> Ints:
    """How many users of each class (rows) are answered with each class (columns), [K, K].

    With ``group`` [K], classes of one group are counted together.
    """
    own = np.arange(len(tested.outputs)) if group is None else group
    groups, best = int(own.max()) + 1, tested.predictions.argmax(1).numpy()
    cells = np.bincount(own[targets_of(tested)] * groups + own[best], minlength=groups**2)
    return cells.reshape(groups, groups).astype(np.int64)


def _sections(tested: MeasuredTask) -> Sequence[Section]:
    samples = Samples(tested.predictions, torch.from_numpy(targets_of(tested)))
    return [
        Section("Which classes are mistaken for which", [_confusion(tested)]),
        Section("By class", [_classes(tested)]),
        calibration_section(tested, samples, "the likeliest class"),
    ]


def _confusion(tested: MeasuredTask) -> Table:
    labels, group = list(tested.outputs), np.arange(len(tested.outputs))
    if len(labels) > MOST_CLASSES:
        users = np.bincount(targets_of(tested), minlength=len(labels))
        largest = np.sort(np.argsort(-users, kind="stable")[: MOST_CLASSES - 1])
        group = np.full(len(labels), len(largest))
        group[largest] = np.arange(len(largest))
        labels = [*(labels[at] for at in largest.tolist()), OTHERS]
    caption = (
        "Users of each class (rows) by the answer (columns); darker is a larger share of a row"
    )
    return matrix(caption, labels, confusion_of(tested, group).tolist())


def _classes(tested: MeasuredTask) -> Table:
    """Every class with its training users, largest first."""
    targets, best = targets_of(tested), tested.predictions.argmax(1).numpy()
    trained, classes = tested.train_counts(), len(tested.outputs)
    present, chosen = (np.bincount(each, minlength=classes) for each in (targets, best))
    hits = np.bincount(targets[targets == best], minlength=classes)
    order = sorted(range(classes), key=lambda at: -trained.get(tested.outputs[at], 0))
    recalls = _recalls(tested, order[:MOST_ROWS])
    rows = [
        (
            tested.outputs[at],
            trained.get(tested.outputs[at], 0),
            int(present[at]),
            _share(hits[at], chosen[at]),
            in_words(recalls[at]) if present[at] else "–",
            _share(2 * hits[at], present[at] + chosen[at]),
        )
        for at in order[:MOST_ROWS]
    ]
    header = ("class", "training users", "measured users", "precision", "recall", "F1")
    left_out = len(order) - len(rows)
    note = f"{left_out} smaller classes are left out." if left_out else ""
    return table("Classes, the most frequent first", header, rows, note)


def _recalls(tested: MeasuredTask, classes: list[int]) -> dict[int, Estimate]:
    targets, best = targets_of(tested), tested.predictions.argmax(1).numpy()
    metrics: dict[str, Metric] = {}
    for at in classes:
        own: Floats = (targets == at).astype(np.float64)
        metrics[str(at)] = mean_of(own * (best == at), own)
    found = estimates(metrics, len(targets))
    return {at: found[str(at)] for at in classes}


def _share(part: int, whole: int) -> str:
    return number(part / whole) if whole else "–"


def _answer(tested: MeasuredTask, at: int) -> SampleAnswer:
    shares = torch.softmax(tested.scores[at], 0)
    best = torch.topk(shares, min(SHOWN_CLASSES, len(shares)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    given = ", ".join(f"{tested.outputs[place]} {share:.0%}" for place, share in pairs)
    return SampleAnswer(tested.answers[at][0], given)


KIND = KindReport(_metrics, _sections, _answer)
