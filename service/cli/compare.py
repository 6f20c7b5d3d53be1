"""The command that compares methods: the paper's table on one's own data."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from peterrec.model.disk import require_writable_folder
from peterrec.model.study.settings import DEFAULT_METHODS, Axes, ComparisonSettings, CutSettings
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.cli.failures import interruption_keeps
from peterrec.service.cli.settings_options import FieldsOf, comma_separated, takes_settings
from peterrec.service.cli.shared_options import Quiet
from peterrec.service.jobs.options import (
    INPUT,
    ColumnNames,
    Delimiter,
    ItemColumn,
    Missing,
    TargetColumn,
    UserColumn,
    table_source,
)

if TYPE_CHECKING:
    from peterrec.model.documents import Document
    from peterrec.service.jobs.compare import DomainEvents, Sources

PIPE_WIDTH = 240
"""Columns of a table that is written to a file or a pipe, wide enough that no cell is wrapped."""

TRAINING = "Training"
"""Title of the options about runs in ``--help``."""

SETTINGS = FieldsOf(ComparisonSettings, base=ComparisonSettings())

PRETRAINING = FieldsOf(
    PretrainSettings,
    only=frozenset(
        {"channels", "dilations", "max_len", "dropout", "contrast_weight"}
        | {"epochs", "batch_size", "patience", "item_dropout"}
    ),
    names={
        "epochs": "pretrain_epochs",
        "batch_size": "pretrain_batch_size",
        "patience": "pretrain_patience",
        "item_dropout": "pretrain_item_dropout",
    },
    title="Pretraining",
    base=ComparisonSettings().pretraining,
)
"""The options of pretraining that a comparison has; the other fields keep their defaults."""


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Where the data are. Methods are compared on the tasks of all given sources."""

    movielens: Annotated[
        Path | None, typer.Option(help="Folder of MovieLens, unpacked.", rich_help_panel=INPUT)
    ] = None
    movielens_domain: Annotated[
        str,
        typer.Option(
            help="Films of MovieLens to recommend: genre:NAME or year:FIRST.", rich_help_panel=INPUT
        ),
    ] = "genre:Comedy"
    events: Annotated[
        Path | None,
        typer.Option(help="Table with the events of two domains.", rich_help_panel=INPUT),
    ] = None
    domain_column: Annotated[
        str, typer.Option(help="Column of the domain in --events.", rich_help_panel=INPUT)
    ] = "domain"
    domains: Annotated[
        str | None,
        typer.Option(
            help="The two domains of --events, ONE,OTHER; both directions are compared.",
            rich_help_panel=INPUT,
        ),
    ] = None
    task_list: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of data sets and tasks (docs/compare.md).", rich_help_panel=INPUT
        ),
    ] = None
    interactions: Annotated[
        Path | None,
        typer.Option(
            help="Events: a CSV or Parquet file, or a folder of such files.", rich_help_panel=INPUT
        ),
    ] = None
    user_column: UserColumn = "user_id"
    item_column: ItemColumn = "item_id"
    order_column: Annotated[
        str | None, typer.Option(help="Column of times of events.", rich_help_panel=INPUT)
    ] = None
    delimiter: Delimiter = None
    columns: ColumnNames = None
    missing: Missing = None
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels, by user.", rich_help_panel=INPUT)
    ] = None
    label_column: Annotated[
        list[str] | None,
        typer.Option(help="Column of labels; each is a task. Repeatable.", rich_help_panel=INPUT),
    ] = None
    targets: Annotated[
        Path | None,
        typer.Option(
            help="Events whose items the task named targets recommends.", rich_help_panel=INPUT
        ),
    ] = None
    target_column: TargetColumn = "item_id"
    target_order_column: Annotated[
        str | None, typer.Option(help="Column of times in --targets.", rich_help_panel=INPUT)
    ] = None
    drop_future: Annotated[
        bool,
        typer.Option(
            "--drop-future",
            help="Cut each history at the user's first target instead of failing.",
            rich_help_panel=INPUT,
        ),
    ] = False
    prepared: Annotated[
        Path | None,
        typer.Option(help="Folder written by --prepare-only.", rich_help_panel=INPUT),
    ] = None

    def sources(self) -> "Sources":
        """The sources that were given; BadParameter if one lacks an option."""
        from peterrec.service.jobs.compare import Sources

        return Sources(
            movielens=self.movielens,
            movielens_domain=self.movielens_domain,
            events=self._domain_events(),
            task_list=self.task_list,
            files=self._files(),
            prepared=self.prepared,
        )

    def _domain_events(self) -> "DomainEvents | None":
        from peterrec.model.data.interactions import InteractionSource
        from peterrec.service.jobs.compare import DomainEvents

        if self.events is None:
            return None
        names: tuple[str, ...] = comma_separated(self.domains or "", tuple[str, ...], "domains")
        if len(names) != 2 or self.order_column is None:
            raise typer.BadParameter("--events needs --domains ONE,OTHER and --order-column")
        source = InteractionSource(
            table_source(self.events, self, self.columns, None),
            self.user_column,
            self.item_column,
            self.order_column,
        )
        return DomainEvents(source, self.domain_column, (names[0], names[1]))

    def _files(self) -> "Document | None":
        """The given files in the form of a task list with one data set."""
        if self.interactions is None:
            return None
        tasks = self._tasks()
        if not tasks or (self.label_column and self.labels is None):
            raise typer.BadParameter(
                "--interactions needs --labels with --label-column, or --targets"
            )
        corpus = {
            "interactions": str(self.interactions),
            "user_column": self.user_column,
            "item_column": self.item_column,
            "order_column": self.order_column,
            "drop_future": self.drop_future,
            "columns": None if self.columns is None else self.columns.split(","),
            **self._text(),
            "tasks": [{**task, **self._text()} for task in tasks],
        }
        return {"corpora": {"own": corpus}}

    def _text(self) -> "Document":
        return {"delimiter": self.delimiter, "missing": self.missing or ()}

    def _tasks(self) -> "list[Document]":
        tasks: list[Document] = [
            {"name": column, "labels": str(self.labels), "label_column": column}
            for column in self.label_column or ()
        ]
        if self.targets is not None:
            tasks.append(
                {
                    "name": "targets",
                    "targets": str(self.targets),
                    "target_column": self.target_column,
                    "target_order_column": self.target_order_column,
                }
            )
        return tasks


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where the runs are computed, how many there are, and what is written."""

    device: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="Device to compute on.", rich_help_panel=TRAINING),
    ] = "cpu"
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Runs at the same time, each in a process with one thread.",
            rich_help_panel=TRAINING,
        ),
    ] = 1
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds after which no further run is started.", rich_help_panel=TRAINING
        ),
    ] = None
    prepare_only: Annotated[
        bool,
        typer.Option(
            "--prepare-only",
            help="Only write the data and settings to OUT/prepared.",
            rich_help_panel=TRAINING,
        ),
    ] = False
    shuffle_labels: Annotated[
        bool,
        typer.Option(
            "--shuffle-labels",
            help="Give users each other's answers: a test for leaks, in which no method may beat "
            "the prior.",
        ),
    ] = False
    plots: Annotated[bool, typer.Option(help="Draw plots.", rich_help_panel=TRAINING)] = True


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(takes_settings(compare))


def compare(
    out: Annotated[Path, typer.Option(help="Folder of results; finished runs in it are reused.")],
    data: DataOptions,
    cut: CutSettings,
    settings: Annotated[ComparisonSettings, SETTINGS],
    axes: Axes,
    pretraining: Annotated[PretrainSettings, PRETRAINING],
    run: RunOptions,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate the paper's methods on the same users, with mean and spread over seeds."""
    require_writable_folder(out)
    from peterrec.model.study.schedule import Effort
    from peterrec.model.study.sources import Cut
    from peterrec.service.jobs.compare import CompareJob, prepare, rich_tables, run_comparison
    from peterrec.service.jobs.reading import observing

    job = CompareJob(
        sources=data.sources(),
        cut=Cut(**asdict(cut)),
        settings=replace(
            settings,
            methods=settings.methods or DEFAULT_METHODS,
            axes=axes,
            pretraining=pretraining,
        ),
        out=out,
        device=run.device,
        effort=Effort(run.jobs, math.inf if run.time_limit is None else run.time_limit),
        has_plots=run.plots,
        shuffles_labels=run.shuffle_labels,
    )
    if run.prepare_only:
        with observing(quiet) as observer:
            folder = prepare(job, observer)
        print(f"Wrote {folder}")
        return
    kept = f"Finished runs are kept in {out}: repeat the command to go on."
    with interruption_keeps(lambda: kept), observing(quiet) as observer:
        document, pictures = run_comparison(job, observer)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for table in rich_tables(document):
        console.print(table)
    print(f"Wrote {out}/comparison.md, comparison.json and {len(pictures)} pictures.")
    if document["unfinished"]:
        print(f"{document['unfinished']} runs are missing; repeat the command to continue.")
