"""The training commands' options, read into the model's terms. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.interactions import (
    InteractionSource,
    LabelSource,
    read_labels,
    read_tags,
    read_targets,
    read_values,
)
from peterrec.model.data.tables import Condition, TableSource
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Where a task's answers are; which fields are read depends on the kind."""

    kind: HeadKind
    user_column: str
    labels: Path | None = None
    label_column: str | None = None
    tag_separator: str | None = None
    targets: Path | None = None
    target_column: str = "item_id"
    target_order_column: str | None = None
    delimiter: str = ","
    where: tuple[Condition, ...] = ()
    since: str | None = None
    before: str | None = None


def table_source(path: Path, delimiter: str, where: Sequence[str]) -> TableSource:
    """A table with the conditions of ``--where``."""
    return TableSource(path, delimiter, tuple(Condition.parse(text) for text in where))


def cut_in_time(
    source: InteractionSource, answers: AnswerOptions, cut_off: str | None, until: str | None
) -> tuple[InteractionSource, AnswerOptions]:
    """Histories before the cut-off, targets from it on, nothing of either from ``until`` on.

    Targets that are not said to be elsewhere are the later events of the same table.
    """
    answers = replace(answers, since=cut_off, before=until)
    if cut_off is not None and answers.targets is None:
        answers = replace(
            answers,
            targets=source.table.path,
            target_column=source.item_column,
            target_order_column=source.order_column,
            where=answers.where or source.table.where,
        )
    return replace(source, before=until if cut_off is None else cut_off), answers


def read_answers(options: AnswerOptions) -> UserLabels:
    """The answers of a task, in the form that its kind of head is trained on."""
    form = KINDS[options.kind].answers
    if form == "items":
        return _read_ranking(options)
    if options.labels is None or options.label_column is None:
        raise typer.BadParameter(f"a {options.kind} task needs --labels and --label-column")
    table = TableSource(options.labels, options.delimiter, options.where)
    source = LabelSource(table, options.label_column, options.user_column)
    if form == "tags":
        return read_tags(source, options.tag_separator)
    return read_values(source) if form == "number" else read_labels(source)


def _read_ranking(options: AnswerOptions) -> UserLabels:
    if options.targets is None:
        raise typer.BadParameter(f"a {options.kind} task needs --targets")
    table = TableSource(options.targets, options.delimiter, options.where)
    return read_targets(
        InteractionSource(
            table,
            options.user_column,
            options.target_column,
            options.target_order_column,
            options.since,
            options.before,
        )
    )


def parse_dilations(text: str) -> tuple[int, ...]:
    """Read ``1,4,1,4``."""
    return _integers(text, "--dilations")


def parse_blocks(text: str, count: int) -> tuple[int, ...]:
    """Read ``all``, ``none``, ``top:2`` or ``0,1`` for a backbone of ``count`` blocks."""
    if text in ("all", "none"):
        return tuple(range(count if text == "all" else 0))
    if text.startswith("top:"):
        (top,) = _integers(text.removeprefix("top:"), "--blocks")[:1]
        return tuple(range(max(0, count - top), count))
    return tuple(sorted(set(_integers(text, "--blocks"))))


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r} is no list of numbers") from error
