"""Keyword arguments about data, as the options that the commands' jobs take."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peterrec.model.kinds import KINDS
from peterrec.service.jobs.options import (
    AnswerOptions,
    Answers,
    EventOptions,
    TimeOptions,
    answers_of,
)
from peterrec.service.library.inputs import (
    LABEL,
    POSITION,
    Histories,
    Listed,
    answers_table,
    as_source,
    is_table,
    listed,
    targets_listed,
)
from peterrec.service.library.keywords import taken

Given = Mapping[str, object]
"""Keyword arguments of a function of the library."""


def event_options(interactions: Histories | Listed, given: Given) -> EventOptions:
    """Where the events are, in a table or in lists."""
    options = _as_written(taken(EventOptions, given))
    if is_table(interactions):
        return EventOptions(interactions=as_source(interactions), **options)
    events = EventOptions(interactions=Path(), **options)  # the table is set below
    table = listed(interactions).table(events.user_column, events.item_column, "interactions")
    return replace(events, interactions=table, order_column=POSITION)  # type: ignore[arg-type]  # as good as a path


def time_options(given: Given) -> TimeOptions:
    """How events are split in time; dates and numbers are written as texts."""
    return TimeOptions(
        **{k: v if v is None else str(v) for k, v in taken(TimeOptions, given).items()}
    )


def task_answers(
    interactions: Histories | Listed, events: EventOptions, kind: str, given: Given
) -> Answers:
    """A task's answers, in a table, in the order of the histories, or by user."""
    histories = None if is_table(interactions) else listed(interactions)
    options = answer_options(histories, events.user_column, kind, given)
    return answers_of(events, options, time_options(given))


def answer_options(
    histories: Listed | None, user_column: str, kind: str, given: Given
) -> AnswerOptions:
    """Where a task's answers are; lists become tables."""
    options = AnswerOptions(**_as_written(taken(AnswerOptions, given)))
    labels, targets, form = given.get("labels"), given.get("targets"), KINDS[kind].answers
    if labels is not None:
        if is_table(labels):
            options = replace(options, labels=as_source(labels))
        else:
            column = options.label_column or LABEL
            is_many = form == "tags" and options.tag_separator is None
            table = answers_table(labels, histories, (user_column, column), is_many)
            options = replace(options, labels=table, label_column=column)  # type: ignore[arg-type]  # as good as a path
    if targets is not None:
        if is_table(targets):
            options = replace(options, targets=as_source(targets))
        else:
            own = targets_listed(targets, histories).table(
                user_column, options.target_column, "targets"
            )
            options = replace(options, targets=own, target_order_column=POSITION)  # type: ignore[arg-type]  # as good as a path
    return options


def _as_written(options: Mapping[str, Any]) -> dict[str, Any]:  # Any: their values
    """Options in the forms of the command line: filters in a list, columns in one text."""
    written = dict(options)
    for name, value in options.items():
        if name in LISTS and isinstance(value, str):
            written[name] = [value]
        if name in TEXTS and isinstance(value, list):
            written[name] = ",".join(value)
    return written


LISTS = ("where", "answers_where", "missing")
TEXTS = ("columns", "answers_columns")
