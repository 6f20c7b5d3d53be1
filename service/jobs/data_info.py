"""The work of ``peterrec data-info``: read what a training would read, and describe it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peterrec.model.data.interactions import InteractionSource, read_events
from peterrec.model.data.missing import TableProfile, profile_table
from peterrec.model.data.observer import FilesRead
from peterrec.model.data.statistics import (
    AnswersInfo,
    DataInfo,
    describe_answers,
    describe_events,
)
from peterrec.model.documents import Document
from peterrec.model.errors import PeterRecError
from peterrec.model.progress import Progress
from peterrec.service.jobs.options import (
    AnswerOptions,
    Answers,
    EventOptions,
    TimeOptions,
    answers_of,
)
from peterrec.service.jobs.reading import ConsoleObserver


@dataclass(frozen=True, slots=True)
class DataInfoJob:
    """What to describe, by the options of a training."""

    events: EventOptions
    answers: AnswerOptions
    time: TimeOptions
    has_sample: bool = True


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a training would read: the files, their tables, the events, and a task's answers.

    ``order_column`` and ``label_column`` are the columns' names, for people.
    """

    title: str
    files: Sequence[FilesRead]
    notices: Sequence[str]
    tables: Sequence[TableProfile]
    events: DataInfo
    answers: AnswersInfo | None
    order_column: str | None
    bounds: str

    def to_json(self) -> Document:
        """The statistics of the events, with everything else beside them."""
        return {
            **self.events.to_json(),
            "files": [
                {
                    "source": read.source,
                    "files": read.files,
                    "size_bytes": read.size,
                    "left_out": list(read.left_out),
                }
                for read in self.files
            ],
            "tables": [
                {"source": table.name, "rows": table.rows, "missing": table.missing}
                for table in self.tables
            ],
            "answers": None if self.answers is None else self.answers.to_json(),
            "notices": list(self.notices),
        }


def describe_data(job: DataInfoJob, observer: ConsoleObserver) -> DataReport:
    """Read and describe the data. If a training would refuse them, the missing values are told."""
    source = job.events.source(job.time.end_of_histories)
    tables = [_profile(source, observer)]
    answers = answers_of(job.events, job.answers, job.time)
    is_task = job.answers.labels is not None or answers.options.targets is not None
    if job.answers.labels is not None:
        tables.append(_label_profile(job, answers, observer))
    try:
        events = read_events(source, observer)
        info = describe_events(events, observer.progress)
        found = _describe_answers(answers, events.users, observer) if is_task else None
    except PeterRecError:
        for table in tables:
            observer.line(f"missing values: {missing_text(table)}")
        raise
    if not job.has_sample:
        info = replace(info, sample=None)
    return DataReport(
        title=source.table.name,
        files=observer.files_read,
        notices=observer.notices,
        tables=tables,
        events=info,
        answers=found,
        order_column=source.order_column,
        bounds=_bounds(job.time),
    )


def missing_text(table: TableProfile) -> str:
    """The columns of a table that lack values, in a line."""
    lacking = [
        f"{name} {count:,} ({count / table.rows:.1%})"
        for name, count in table.missing.items()
        if count
    ]
    return ", ".join(lacking) if lacking else f"none in {', '.join(table.missing)}"


def _profile(source: InteractionSource, observer: ConsoleObserver) -> TableProfile:
    columns = [source.user_column, source.item_column]
    if source.order_column is not None:
        columns.append(source.order_column)
    return profile_table(source.table, columns, observer)


def _label_profile(job: DataInfoJob, answers: Answers, observer: ConsoleObserver) -> TableProfile:
    assert job.answers.labels is not None
    columns = [answers.user_column]
    if job.answers.label_column is not None:
        columns.append(job.answers.label_column)
    return profile_table(answers.table(job.answers.labels), columns, observer)


def _describe_answers(
    answers: Answers, users: Sequence[str], observer: ConsoleObserver
) -> AnswersInfo:
    """Labels are read as tags are, which refuses nothing: their kind is not known here."""
    given = answers.options
    if given.labels is not None:
        name = f"{given.label_column} of {given.labels}"
        found = answers.read("tags", observer)
    else:
        name = f"targets, {given.target_column} of {given.targets}"
        found = answers.read("ranking", observer)
    observer.progress(Progress("counting answers"))
    return describe_answers(name, found, users)


def _bounds(time: TimeOptions) -> str:
    """Which events are histories, in words; empty for all of them."""
    if time.end_of_histories is None:
        return ""
    return f"histories end before {time.end_of_histories}"
