"""Options that several commands take about their data, and how their texts are read.

Every command imports this module, so what reads tables (and takes long to load) is imported only
when a table is read.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind
from peterrec.service.errors import AnswersNotGiven

if TYPE_CHECKING:
    from peterrec.model.data.histories import UserLabels
    from peterrec.model.data.interactions import InteractionSource
    from peterrec.model.data.tables import TableSource


class TextOptions(Protocol):
    """What is common to the tables of a task: events, labels and targets."""

    @property
    def delimiter(self) -> str | None:
        """The delimiter as it was written."""

    @property
    def missing(self) -> list[str] | None:
        """Texts that stand for no value."""


INPUT = "Input"
"""Title of the options about data in ``--help``."""

UserColumn = Annotated[str, typer.Option(help="Column of user ids.", rich_help_panel=INPUT)]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids.", rich_help_panel=INPUT)]
TargetColumn = Annotated[
    str, typer.Option(help="Column of item ids in --targets.", rich_help_panel=INPUT)
]


Delimiter = Annotated[
    str | None,
    typer.Option(
        help="Character between the fields of a text file, or tab, comma, semicolon, pipe, "
        "space; default: by the file's name, a tab for .tsv, else a comma.",
        rich_help_panel=INPUT,
    ),
]
ColumnNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,…",
        help="Names of all columns in their order, for text files without a header.",
        rich_help_panel=INPUT,
    ),
]
Missing = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="A text that stands for no value, such as NULL; repeatable. An empty text says that "
        "all others are values, even NULL and NA.",
        rich_help_panel=INPUT,
    ),
]


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a table of events is read, wherever it is."""

    user_column: UserColumn = "user_id"
    item_column: ItemColumn = "item_id"
    order_column: Annotated[
        str | None,
        typer.Option(
            help="Column of times or positions; default: the file's order.", rich_help_panel=INPUT
        ),
    ] = None
    delimiter: Delimiter = None
    columns: ColumnNames = None
    missing: Missing = None
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Read only events with this value; repeatable, then all must hold.",
            rich_help_panel=INPUT,
        ),
    ] = None

    def source_of(self, path: Path, before: str | None = None) -> "InteractionSource":
        """The events at a path, without those at ``before`` and later."""
        from peterrec.model.data.interactions import InteractionSource

        return InteractionSource(
            table_source(path, self, self.columns, self.where),
            self.user_column,
            self.item_column,
            self.order_column,
            before=before,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions(TableOptions):
    """Where the events of users are, and how their table is read."""

    interactions: Annotated[
        Path,
        typer.Option(
            help="Events: a CSV or TSV (also .gz, .zst), Parquet or RecBole file, or a folder of "
            "them.",
            rich_help_panel=INPUT,
        ),
    ]

    def source(self, before: str | None = None) -> "InteractionSource":
        """The events, without those at ``before`` and later."""
        return self.source_of(self.interactions, before)


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Where a task's answers are; the kind of the task decides which fields are read."""

    labels: Annotated[
        Path | None,
        typer.Option(help="Table of labels, tags or values, by user.", rich_help_panel=INPUT),
    ] = None
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of the label, tag or value.", rich_help_panel=INPUT),
    ] = None
    tag_separator: Annotated[
        str | None,
        typer.Option(
            help="Text between several tags in one field; default: one row per tag.",
            rich_help_panel=INPUT,
        ),
    ] = None
    targets: Annotated[
        Path | None,
        typer.Option(
            help="Events whose items a ranking task learns to recommend.", rich_help_panel=INPUT
        ),
    ] = None
    target_column: TargetColumn = "item_id"
    target_order_column: Annotated[
        str | None,
        typer.Option(help="Column of times or positions in --targets.", rich_help_panel=INPUT),
    ] = None
    answers_columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,…",
            help="Names of all columns of --labels or --targets, if these have no header.",
            rich_help_panel=INPUT,
        ),
    ] = None
    answers_where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Read only labels or targets with this value; repeatable, then all must hold.",
            rich_help_panel=INPUT,
        ),
    ] = None

    def within(self, folder: Path) -> "AnswerOptions":
        """The options with paths that were relative to ``folder``."""
        return replace(
            self,
            labels=None if self.labels is None else folder / self.labels,
            targets=None if self.targets is None else folder / self.targets,
        )


@dataclass(frozen=True, slots=True)
class TimeOptions:
    """How events are split in time."""

    cut_off: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Read histories before this time, and targets from it on.",
            rich_help_panel=INPUT,
        ),
    ] = None
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Read no event at this time or later.", rich_help_panel=INPUT
        ),
    ] = None

    @property
    def end_of_histories(self) -> str | None:
        """The time from which on histories are not read."""
        return self.until if self.cut_off is None else self.cut_off


@dataclass(frozen=True, slots=True)
class Answers:
    """A task's answers: where they are, for which users, and from what time to what time."""

    options: AnswerOptions
    user_column: str
    delimiter: str | None
    missing: list[str] | None = None
    since: str | None = None
    before: str | None = None

    def read(self, kind: HeadKind, observer: ReadingObserver = SILENT) -> "UserLabels":
        """The answers of a task of this kind; hints name the options of answers."""
        with hints_say(LABEL_SETTINGS if KINDS[kind].answers != "items" else TARGET_SETTINGS):
            return self._read(kind, observer)

    def _read(self, kind: HeadKind, observer: ReadingObserver) -> "UserLabels":
        from peterrec.model.data.interactions import read_targets
        from peterrec.model.data.labels import LabelSource, read_labels, read_tags, read_values

        form = KINDS[kind].answers
        unused = "labels" if form == "items" else "targets"
        if getattr(self.options, unused) is not None:
            observer.notice(f"a {kind} task does not learn from {unused}; they are not read.")
        if form == "items":
            return read_targets(self.targets(), observer)
        given = self.options
        if given.labels is None or given.label_column is None:
            raise AnswersNotGiven(
                f"a {kind} task needs a table of answers.",
                hint="Give `labels` and `label_column`.",
            )
        table = self.table(given.labels)
        source = LabelSource(table, given.label_column, self.user_column)
        if form == "tags":
            return read_tags(source, given.tag_separator, observer)
        read = read_values if form == "number" else read_labels
        return read(source, observer)

    def targets(self) -> "InteractionSource":
        from peterrec.model.data.interactions import InteractionSource

        given = self.options
        if given.targets is None:
            raise AnswersNotGiven(
                "a ranking task needs a table of targets.",
                hint="Give `targets`. A `cut_off` takes them from the interactions.",
            )
        return InteractionSource(
            self.table(given.targets),
            self.user_column,
            given.target_column,
            given.target_order_column,
            self.since,
            self.before,
        )

    def table(self, path: Path) -> "TableSource":
        """A table of answers at a path."""
        given = self.options
        return table_source(path, self, given.answers_columns, given.answers_where)


LABEL_SETTINGS = {"columns": "answers_columns", "where": "answers_where"}
TARGET_SETTINGS = {
    **LABEL_SETTINGS,
    "item_column": "target_column",
    "order_column": "target_order_column",
}
"""Settings of tables that have other names when the table is one of answers."""


@contextmanager
def hints_say(names: Mapping[str, str]) -> Iterator[None]:
    """Rename settings in the hint of an error that passes."""
    try:
        yield
    except PeterRecError as error:
        error.hint = re.sub(
            "`([a-z_]+)`", lambda found: f"`{names.get(found[1], found[1])}`", error.hint
        )
        raise


def answers_of(
    events: EventOptions, options: AnswerOptions, time: TimeOptions, delimiter: str | None = None
) -> Answers:
    """A task's answers for the users of these events.

    With a cut-off, targets without a file are the later events of the same table.
    """
    is_same_table = time.cut_off is not None and options.targets is None
    if is_same_table:
        options = replace(
            options,
            targets=events.interactions,
            target_column=events.item_column,
            target_order_column=events.order_column,
            answers_columns=options.answers_columns or events.columns,
            answers_where=options.answers_where or events.where,
        )
    return Answers(
        options,
        events.user_column,
        events.delimiter if delimiter is None else delimiter,
        events.missing,
        since=time.cut_off,
        before=time.until,
    )


def parse_blocks(text: str, count: int) -> tuple[int, ...]:
    """Read ``all``, ``top:2`` or ``0,1`` for a backbone of ``count`` blocks."""
    if text == "all":
        return tuple(range(count))
    if text.startswith("top:"):
        (top,) = _integers(text.removeprefix("top:"), "--blocks")[:1]
        return tuple(range(max(0, count - top), count))
    return tuple(sorted(set(_integers(text, "--blocks"))))


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r} is not a list of numbers") from error


def table_source(
    path: Path, form: TextOptions, columns: str | None, where: list[str] | None
) -> "TableSource":
    """A table at a path; ``columns`` and ``where`` are written as on the command line."""
    from peterrec.model.data.filters import Condition
    from peterrec.model.data.tables import TableSource

    return TableSource(
        path,
        form.delimiter,
        None if columns is None else tuple(columns.split(",")),
        tuple(Condition.parse(text) for text in where or ()),
        missing=tuple(form.missing or ()),
    )
