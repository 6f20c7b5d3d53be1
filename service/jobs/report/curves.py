"""The parts of a report that show how a training went, from the lines of its ``training.jsonl``."""

from collections.abc import Iterator, Mapping
from typing import Any

from peterrec.model.documents import Document
from peterrec.model.training.training_file import TrainingLog
from peterrec.service.pages.charts import Line, line_chart
from peterrec.service.pages.page import Figure, Part, Section, Table, Text, table

LONGEST_VALUE = 200
"""Characters of a setting; anybody may have written them."""


def training_section(log: TrainingLog, metric: str | None) -> Section:
    """Learning curves, times and memory; ``metric`` is drawn if it was measured in every epoch."""
    parts: list[Part] = [*_outcome(log), *_trials(log)]
    train, validation = log.of_part("train"), log.of_part("validation")
    if train:
        parts.append(_curve("Loss", "loss", {"training": train, "validation": validation}))
        if metric and all(metric in line.get("metrics", {}) for line in validation):
            values = [{**line, metric: line["metrics"][metric]} for line in validation]
            parts.append(_curve(f"Validation {metric}", metric, {metric: values}))
        parts.append(_epochs(train, validation))
    return Section("How it was trained", [*parts, *_warnings(log)])


def settings_table(settings: Mapping[str, Any], caption: str = "Settings") -> Table:  # Any: JSON
    """Names and values, as they were recorded."""
    rows = [(name, value_text(value)) for name, value in settings.items()]
    return table(caption, ("setting", "value"), rows)


def value_text(value: object) -> str:
    """A recorded value for people."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "not set" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _outcome(log: TrainingLog) -> Iterator[Text]:
    started, ended = log.started, log.ended
    machine = started.get("machine", {})
    where = ", ".join(
        f"{name} {machine[key]}"
        for key, name in (("device", "device"), ("threads", "threads"), ("processes", "processes"))
        if key in machine
    )
    when = f"Started {started['time']}. " if "time" in started else ""
    if ended is None:
        yield Text(f"{when}The training has not ended, or was stopped.", is_notice=True)
    else:
        yield Text(
            f"{when}{ended['epochs']} epochs in {ended['seconds']:,.1f} s; the best one is "
            f"{ended['best_epoch']}, whose weights were kept. {where.capitalize()}."
        )


def _trials(log: TrainingLog) -> Iterator[Table]:
    """Every combination of parts that was tried, if there were several."""
    if log.chosen is None or len(log.chosen.get("trials", [])) < 2:
        return
    rows = [
        (
            "+".join(trial["parts"]) or "head",
            f"{trial['users']:,}",
            trial["loss"],
            f"{trial['behind']:.4f} ± {trial['error']:.4f}",
            f"{trial['size_bytes']:,}",
        )
        for trial in log.chosen["trials"]
    ]
    kept = "+".join(log.chosen["parts"]) or "head"
    note = f"Taken: {kept}, the smallest of those within one standard error of the lowest loss."
    header = ("parts", "held-out users", "loss", "behind the best", "bytes")
    yield table("Parts that were tried", header, rows, note)


def _curve(title: str, field: str, parts: Mapping[str, list[Document]]) -> Figure:
    lines = [
        Line(
            name,
            [line["epoch"] for line in own if field in line],
            [line[field] for line in own if field in line],
        )
        for name, own in parts.items()
    ]
    return line_chart(title, [line for line in lines if len(line.x)], "epoch", field)


def _epochs(train: list[Document], validation: list[Document]) -> Table:
    by_epoch = {line["epoch"]: line for line in validation}
    rows = []
    for line in train:
        other = by_epoch.get(line["epoch"], {})
        memory = line.get("cuda_peak_bytes", line.get("peak_rss_bytes"))
        rows.append(
            (
                str(line["epoch"]),
                line.get("loss"),
                other.get("loss"),
                line.get("learning_rate"),
                line.get("seconds"),
                line.get("rows_per_second"),
                None if memory is None else f"{memory / 1e6:,.0f} MB",
            )
        )
    header = (
        "epoch",
        "training loss",
        "validation loss",
        "learning rate",
        "seconds",
        "rows/s",
        "memory",
    )
    return table("Epochs", header, rows)


def _warnings(log: TrainingLog) -> Iterator[Text]:
    for warning in log.started.get("warnings", []):
        yield Text(str(warning)[: 5 * LONGEST_VALUE], is_notice=True)
