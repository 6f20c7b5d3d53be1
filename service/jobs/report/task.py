"""The sections of the report of a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.evaluation import defined
from peterrec.model.training.finetune.finetune import BASELINE_PREFIX
from peterrec.model.training.intervals import Estimate, Ints, difference, estimates
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.model.training.training_file import (
    TrainingLog,
    read_training_file,
    training_file_of,
)
from peterrec.patches.bundle.bundle import Manifest, format_digest
from peterrec.patches.identity import Digest
from peterrec.service.jobs.report.curves import settings_table, training_section, value_text
from peterrec.service.jobs.report.kinds import REPORTS
from peterrec.service.jobs.report.kinds.descriptor import KindReport, in_words, number, within
from peterrec.service.jobs.report.measured import (
    PRIOR,
    MeasuredTask,
    RecordedTraining,
    recorded_training,
)
from peterrec.service.pages.charts import bar_chart, histogram
from peterrec.service.pages.page import Cell, Part, Section, Table, Text, table

LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Lower ends of the groups of users by the items in their history."""

SAMPLES = 10
"""Users whose answers are shown."""

NEWEST = 5
"""Items of a sample user's history that are shown."""

LONGEST_ITEM = 40
"""Characters of an id that are shown."""


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A bundle to report on, and what stands beside it about its training."""

    path: Path
    manifest: Manifest
    digest: Digest

    @property
    def recorded(self) -> RecordedTraining:
        """What the manifest's notes say."""
        return recorded_training(self.manifest)

    def log(self) -> tuple[TrainingLog | None, str]:
        """The lines of its training, and why there are none.

        Lines of another run, such as one that failed when it was to replace this bundle, differ in
        data, time or best epoch from what the manifest has recorded.
        """
        path = training_file_of(self.path)
        log = read_training_file(path)
        if log is None:
            return None, f"There is no {path.name} beside the bundle, so no learning curves."
        if not _tells_of(log, self.recorded):
            return None, f"{path.name} is that of another training, so no learning curves."
        return log, ""


def _tells_of(log: TrainingLog, recorded: RecordedTraining) -> bool:
    if log.ended is None:
        return False
    found = (log.ended.get("best_epoch"), log.ended.get("seconds"), dict(log.started["data"]))
    best = None if recorded.best_epoch is None else recorded.best_epoch + 1
    return found == (best, recorded.seconds, dict(recorded.data))


def about_section(file: BundleFile) -> Section:
    """What the bundle is."""
    manifest = file.manifest
    head, provenance = manifest.head, manifest.provenance
    rows: list[tuple[Cell, ...]] = [
        ("name", manifest.name),
        ("kind", f"{head.kind}, {head.outputs:,} output{'s' if head.outputs != 1 else ''}"),
        *([("labels", value_text(head.labels))] if head.labels else []),
        *([("unit", head.unit)] if head.unit else []),
        ("version", format_digest(file.digest)),
        ("backbone", manifest.backbone),
        ("patch", _patch_text(manifest)),
        *([("item table", f"{manifest.table.items:,} items")] if manifest.table else []),
        (
            "trained",
            f"{provenance.created_at.isoformat(timespec='seconds')}, {provenance.software}",
        ),
    ]
    return Section("What it is", [table("The bundle", ("", ""), rows)])


def _patch_text(manifest: Manifest) -> str:
    patch = manifest.patch
    blocks = ", ".join(map(str, patch.blocks)) or "none"
    return f"{patch.insertion}, width {patch.bottleneck}, blocks {blocks}, {patch.queries} queries"


def recorded_section(file: BundleFile) -> Section:
    """The metrics and data that were recorded when the bundle was made."""
    metrics = file.manifest.metrics
    names = [name for name in metrics if not name.startswith(BASELINE_PREFIX)]
    rows = [
        (name, number(metrics[name]), _number_or_dash(metrics.get(BASELINE_PREFIX + name)))
        for name in names
    ]
    users = file.recorded.data.get("test_users")
    note = f"Measured on {users:,} users." if isinstance(users, int) else ""
    parts: list[Part] = [table("Recorded metrics", ("metric", "this task", PRIOR), rows, note)]
    if file.recorded.data:
        parts.append(settings_table(file.recorded.data, "Data of the training"))
    if file.recorded.settings:
        parts.append(settings_table(file.recorded.settings))
    return Section("What was recorded when it was made", parts)


def _number_or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def history_section(file: BundleFile) -> Section:
    """How the training went, or why that is not known."""
    log, reason = file.log()
    if log is None:
        return Section("How it was trained", [Text(reason, is_notice=True)])
    objective = OBJECTIVES.get(file.manifest.kind)
    return training_section(log, None if objective is None else objective.primary_metric)


def measured_sections(tested: MeasuredTask, shows_samples: bool) -> list[Section]:
    """Everything that is measured on users of the given data."""
    report = REPORTS.get(tested.kind)
    if report is None:
        return [Section("How good it is", [_plain_metrics(tested)])]
    return [
        Section("How good it is", [_metrics(tested, report)]),
        Section("By length of the history", [_by_length(tested, report)]),
        *report.sections(tested),
        Section("The users", list(_users(tested))),
        *([_samples(tested, report)] if shows_samples else []),
    ]


def _plain_metrics(tested: MeasuredTask) -> Table:
    rows = torch.from_numpy(tested.rows)
    found = defined(tested.objective.metrics(tested.predictions, rows))
    prior = defined(tested.objective.metrics(tested.baselines[PRIOR], rows))
    shown = [
        (name, number(value), _number_or_dash(prior.get(name))) for name, value in found.items()
    ]
    return table("Metrics", ("metric", "this task", PRIOR), shown)


def metric_estimates(tested: MeasuredTask, report: KindReport) -> dict[str, dict[str, Estimate]]:
    """Every metric with its interval, of the task, of each baseline, and of the task's gain.

    The gain is the difference from the answer that ignores the history, on the same resamples.
    """
    own = report.metrics(tested, tested.predictions)
    others = {name: report.metrics(tested, found) for name, found in tested.baselines.items()}
    gains = {name: difference(metric, others[PRIOR][name]) for name, metric in own.items()}
    by_name = {"this task": own, **others, "gain": gains}
    flat = {(who, name): metric for who, found in by_name.items() for name, metric in found.items()}
    keys = {f"{who}/{name}": metric for (who, name), metric in flat.items()}
    found = estimates(keys, len(tested.rows))
    return {
        who: {name: found[f"{who}/{name}"] for name in metrics} for who, metrics in by_name.items()
    }


def _metrics(tested: MeasuredTask, report: KindReport) -> Table:
    found = metric_estimates(tested, report)
    rows = [
        (
            f"{name} (less is better)" if name in report.less_is_better else name,
            *(in_words(found[who][name]) for who in found),
        )
        for name in found["this task"]
    ]
    header = ("metric", "this task", *tested.baselines, f"gain over {PRIOR}")
    note = (
        f"{len(tested.rows):,} users. In brackets: the interval that contains 95 % of the values "
        f"for resamples of the users (bootstrap). {PRIOR.capitalize()}: the best answer that "
        "ignores the history, learned on the training users."
    )
    if "linear" in tested.baselines:
        note += " Linear: a linear model of the items that a user has, weighted by TF-IDF."
    return table("Metrics", header, rows, note)


def _by_length(tested: MeasuredTask, report: KindReport) -> Table:
    own = report.metrics(tested, tested.predictions)
    name = report.of_groups or next(iter(own))
    prior = report.metrics(tested, tested.baselines[PRIOR])[name]
    groups = length_groups(tested.lengths)
    present: list[int] = np.unique(groups).tolist()
    metrics = {}
    for group in present:
        metrics[f"own{group}"] = within(own[name], groups == group)
        metrics[f"prior{group}"] = within(prior, groups == group)
    found = estimates(metrics, len(tested.rows))
    rows = [
        (
            length_text(group),
            int((groups == group).sum()),
            in_words(found[f"own{group}"]),
            in_words(found[f"prior{group}"]),
        )
        for group in present
    ]
    caption = f"{name} by number of items in the history"
    return table(caption, ("items", "users", "this task", PRIOR), rows)


def length_groups(lengths: Ints) -> Ints:
    """The group of each number of items; see ``length_text``."""
    return np.searchsorted(LENGTHS, lengths, side="right")


def length_text(group: int) -> str:
    """The numbers of items in a group."""
    low = LENGTHS[group - 1]
    if group == len(LENGTHS):
        return f"{low} or more"
    high = LENGTHS[group] - 1
    return f"{low}" if low == high else f"{low} to {high}"


def _users(tested: MeasuredTask) -> Sequence[Part]:
    sizes = {
        "training": tested.split.train,
        "validation": tested.split.validation,
        "test": tested.split.test,
    }
    users = [(name, len(rows)) for name, rows in sizes.items()]
    parts: list[Part] = [
        table("Users by part", ("part", "users"), [*users, ("measured", len(tested.rows))])
    ]
    parts.append(histogram("Length of the histories", tested.lengths, "items", is_logarithmic=True))
    counts = sorted(tested.train_counts().items(), key=lambda pair: (-pair[1], pair[0]))[:25]
    if counts and tested.kind != "value":
        labels, values = zip(*counts, strict=True)
        parts.append(bar_chart("Most frequent answers of the training users", labels, values))
    return parts


def _samples(tested: MeasuredTask, report: KindReport) -> Section:
    """Some measured users, from the shortest to the longest history."""
    order: Ints = np.argsort(tested.lengths, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, SAMPLES).astype(int))]
    rows = []
    for at in chosen.tolist():
        answer, row = report.answer(tested, at), int(tested.rows[at])
        rows.append(
            (
                _id(tested.examples.users[row]),
                int(tested.lengths[at]),
                _newest(tested, row),
                answer.right,
                answer.given,
            )
        )
    header = (
        "user",
        "items",
        "newest items, the newest last",
        "right answer",
        "this task's answer",
    )
    return Section(
        f"{len(rows)} users", [table("From the shortest history to the longest", header, rows)]
    )


def _newest(tested: MeasuredTask, row: int) -> str:
    items = tested.examples.items
    tokens = tested.examples.rows[row][-NEWEST:].tolist()
    return ", ".join(
        _id(items[token - FIRST_ITEM]) if token >= FIRST_ITEM else "?" for token in tokens
    )


def _id(text: str) -> str:
    return text if len(text) <= LONGEST_ITEM else text[: LONGEST_ITEM - 1] + "…"
