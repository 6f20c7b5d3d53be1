"""The command that compares methods: the paper's table on one's own data."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from peterrec.model.spec import CONVS_PER_BLOCK

if TYPE_CHECKING:
    from peterrec.model.documents import Document
    from peterrec.model.spec import Insertion
    from peterrec.model.study.settings import Axes, Depth, Extras
    from peterrec.service.jobs.compare import DomainEvents

PIPE_WIDTH = 240
"""Columns of a table that goes into a file or a pipe, where nothing need be wrapped."""

DATA, METHOD, MODEL, RUN = "Data", "Methods", "Backbone", "Runs"


class PretrainUsers(StrEnum):
    """Whose histories pretraining may read."""

    TRAIN = "train"
    ALL = "all"


class Device(StrEnum):
    """What to compute on."""

    CPU = "cpu"
    CUDA = "cuda"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(compare)


def compare(
    out: Annotated[Path, typer.Option(help="Folder of results; finished runs are reused.")],
    movielens: Annotated[
        Path | None, typer.Option(help="MovieLens folder.", rich_help_panel=DATA)
    ] = None,
    movielens_domain: Annotated[
        str,
        typer.Option(help="Films to recommend: genre:NAME or year:FIRST.", rich_help_panel=DATA),
    ] = "genre:Comedy",
    events: Annotated[
        Path | None, typer.Option(help="Events of two domains in one table.", rich_help_panel=DATA)
    ] = None,
    domain_column: Annotated[str, typer.Option(rich_help_panel=DATA)] = "domain",
    domains: Annotated[
        str | None, typer.Option(help="ONE,OTHER: both directions.", rich_help_panel=DATA)
    ] = None,
    task_list: Annotated[
        Path | None, typer.Option(help="TOML file of data sets and tasks.", rich_help_panel=DATA)
    ] = None,
    interactions: Annotated[
        Path | None, typer.Option(help="CSV or Parquet events, or a folder.", rich_help_panel=DATA)
    ] = None,
    user_column: Annotated[str, typer.Option(rich_help_panel=DATA)] = "user_id",
    item_column: Annotated[str, typer.Option(rich_help_panel=DATA)] = "item_id",
    order_column: Annotated[
        str | None, typer.Option(help="Time of events.", rich_help_panel=DATA)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels.", rich_help_panel=DATA)
    ] = None,
    label_column: Annotated[
        list[str] | None, typer.Option(help="A task each; repeatable.", rich_help_panel=DATA)
    ] = None,
    targets: Annotated[
        Path | None, typer.Option(help="Events to recommend.", rich_help_panel=DATA)
    ] = None,
    target_column: Annotated[str, typer.Option(rich_help_panel=DATA)] = "item_id",
    target_order_column: Annotated[str | None, typer.Option(rich_help_panel=DATA)] = None,
    drop_future: Annotated[
        bool,
        typer.Option(
            "--drop-future", help="Cut histories at the first target.", rich_help_panel=DATA
        ),
    ] = False,
    prepared: Annotated[
        Path | None, typer.Option(help="A folder prepared before.", rich_help_panel=DATA)
    ] = None,
    validation_share: Annotated[float, typer.Option(min=0.01, max=0.5, rich_help_panel=DATA)] = 0.1,
    test_share: Annotated[float, typer.Option(min=0.01, max=0.5, rich_help_panel=DATA)] = 0.2,
    split_seed: Annotated[int, typer.Option(min=0, rich_help_panel=DATA)] = 0,
    most_targets: Annotated[
        int, typer.Option(min=1, help="First targets of a user.", rich_help_panel=DATA)
    ] = 5,
    min_history: Annotated[
        int,
        typer.Option(
            min=0, help="Between domains: inputs before the first target.", rich_help_panel=DATA
        ),
    ] = 0,
    min_label_count: Annotated[
        int, typer.Option(min=1, help="Of training users, for a class.", rich_help_panel=DATA)
    ] = 5,
    methods: Annotated[
        str | None, typer.Option(help="a,b; default the paper's.", rich_help_panel=METHOD)
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="a,b; default all.", rich_help_panel=METHOD)
    ] = None,
    insertions: Annotated[str, typer.Option(rich_help_panel=METHOD)] = "serial2,serial1,parallel2",
    bottlenecks: Annotated[
        str, typer.Option(help="Widths, summed over branches.", rich_help_panel=METHOD)
    ] = "8",
    cardinalities: Annotated[str, typer.Option(rich_help_panel=METHOD)] = "1",
    depths: Annotated[
        str, typer.Option(help="Patched top blocks: 1,2,all,side.", rich_help_panel=METHOD)
    ] = "all",
    extras: Annotated[
        str,
        typer.Option(
            help="What patches train besides: auto,none,norms,cls,both.", rich_help_panel=METHOD
        ),
    ] = "auto",
    queries: Annotated[
        str,
        typer.Option(
            help="Of a patch's reader: 0,8; 0 is a patch without.", rich_help_panel=METHOD
        ),
    ] = "0",
    label_share: Annotated[
        str, typer.Option(help="Of training users: 0.05,0.25,1.", rich_help_panel=METHOD)
    ] = "1",
    pretrain_on: Annotated[
        PretrainUsers, typer.Option(help="all: test users' histories too.", rich_help_panel=MODEL)
    ] = PretrainUsers.TRAIN,
    channels: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL)] = 64,
    dilations: Annotated[str, typer.Option(rich_help_panel=MODEL)] = "1,4,1,4,1,4,1,4",
    max_len: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL)] = 100,
    pretrain_epochs: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL)] = 4,
    seeds: Annotated[int, typer.Option(min=1, rich_help_panel=RUN)] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The first one.", rich_help_panel=RUN)] = 0,
    lr_trials: Annotated[
        int, typer.Option(min=1, max=5, help="Learning rates tried.", rich_help_panel=RUN)
    ] = 3,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=RUN)] = 12,
    patience: Annotated[int, typer.Option(min=1, rich_help_panel=RUN)] = 3,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=RUN)] = 128,
    item_dropout: Annotated[
        float, typer.Option(min=0, max=1, help="Of profile tasks.", rich_help_panel=RUN)
    ] = 0.5,
    device: Annotated[Device, typer.Option(rich_help_panel=RUN)] = Device.CPU,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes of one thread.", rich_help_panel=RUN)
    ] = 1,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds after which nothing starts.", rich_help_panel=RUN),
    ] = None,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Only write OUT/prepared.", rich_help_panel=RUN)
    ] = False,
    shuffle_labels: Annotated[
        bool,
        typer.Option("--shuffle-labels", help="A leak test: all must fall to the prior."),
    ] = False,
    plots: Annotated[bool, typer.Option(help="Needs matplotlib.", rich_help_panel=RUN)] = True,
) -> None:
    """Train and judge the paper's methods side by side, with mean and spread over seeds."""
    from peterrec.model.study.schedule import Effort
    from peterrec.model.study.settings import DEFAULT_METHODS, ComparisonSettings
    from peterrec.model.study.sources import Cut
    from peterrec.model.training.pretrain.pretrain import PretrainSettings
    from peterrec.service.jobs.compare import (
        CompareJob,
        Sources,
        prepare,
        rich_tables,
        run_comparison,
    )
    from peterrec.service.jobs.options import parse_dilations
    from peterrec.service.jobs.progress_bar import ProgressBars

    settings = ComparisonSettings(
        methods=_texts(methods) or DEFAULT_METHODS,
        tasks=_texts(tasks),
        axes=_axes(insertions, bottlenecks, cardinalities, depths, extras, queries),
        label_shares=tuple(float(share) for share in _texts(label_share)),
        seeds=seeds,
        first_seed=seed,
        rate_trials=lr_trials,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        item_dropout=item_dropout,
        min_label_count=min_label_count,
        pretrain_on=pretrain_on.value,
        pretraining=PretrainSettings(
            channels=channels,
            dilations=parse_dilations(dilations),
            max_len=max_len,
            epochs=pretrain_epochs,
        ),
    )
    columns = (user_column, item_column, order_column)
    job = CompareJob(
        sources=Sources(
            movielens=movielens,
            movielens_domain=movielens_domain,
            events=_domain_events(events, columns, domain_column, domains),
            task_list=task_list,
            files=_files(
                interactions,
                columns,
                (labels, label_column or []),
                (targets, target_column, target_order_column),
                drop_future,
            ),
            prepared=prepared,
        ),
        cut=Cut(validation_share, test_share, split_seed, most_targets, min_history),
        settings=settings,
        out=out,
        device=device.value,
        effort=Effort(jobs, math.inf if time_limit is None else time_limit),
        has_plots=plots,
        shuffles_labels=shuffle_labels,
    )
    if prepare_only:
        print(f"Wrote {prepare(job)}")
        return
    with ProgressBars() as bars:
        document, pictures = run_comparison(job, bars)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for table in rich_tables(document):
        console.print(table)
    print(f"Wrote {out}/comparison.md, comparison.json and {len(pictures)} pictures.")
    if document["unfinished"]:
        print(f"{document['unfinished']} runs are missing; repeat the command to go on.")


def _axes(
    insertions: str, bottlenecks: str, cardinalities: str, depths: str, extras: str, queries: str
) -> "Axes":
    from peterrec.model.study.settings import Axes

    return Axes(
        insertions=tuple(_insertion(text) for text in _texts(insertions)),
        bottlenecks=tuple(_number(text, "--bottlenecks") for text in _texts(bottlenecks)),
        cardinalities=tuple(_number(text, "--cardinalities") for text in _texts(cardinalities)),
        depths=tuple(_depth(text) for text in _texts(depths)),
        extras=tuple(_extras(text) for text in _texts(extras)),
        queries=tuple(_number(text, "--queries") for text in _texts(queries)),
    )


def _insertion(text: str) -> "Insertion":
    for name in CONVS_PER_BLOCK:
        if text == name:
            return name
    raise typer.BadParameter(f"--insertions {text!r} is none of {', '.join(CONVS_PER_BLOCK)}")


def _depth(text: str) -> "Depth":
    words: tuple[Depth, ...] = ("all", "side")
    return next((word for word in words if word == text), None) or _number(text, "--depths")


def _extras(text: str) -> "Extras":
    known: tuple[Extras, ...] = ("auto", "none", "norms", "cls", "both")
    for word in known:
        if word == text:
            return word
    raise typer.BadParameter(f"--extras {text!r} is none of {', '.join(known)}")


def _number(text: str, option: str) -> int:
    if not text.isdigit():
        raise typer.BadParameter(f"{option} {text!r} is no number")
    return int(text)


def _texts(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


Columns = tuple[str, str, str | None]


def _domain_events(
    events: Path | None, columns: Columns, domain_column: str, domains: str | None
) -> "DomainEvents | None":
    from peterrec.model.data.interactions import InteractionSource
    from peterrec.model.data.tables import TableSource
    from peterrec.service.jobs.compare import DomainEvents

    if events is None:
        return None
    user_column, item_column, order_column = columns
    names = _texts(domains)
    if len(names) != 2 or order_column is None:
        raise typer.BadParameter("--events needs --domains ONE,OTHER and --order-column")
    source = InteractionSource(TableSource(events), user_column, item_column, order_column)
    return DomainEvents(source, domain_column, (names[0], names[1]))


def _files(
    interactions: Path | None,
    columns: Columns,
    labels: tuple[Path | None, list[str]],
    targets: tuple[Path | None, str, str | None],
    drop_future: bool,
) -> "Document | None":
    """The options as the task list that says the same."""
    if interactions is None:
        return None
    user_column, item_column, order_column = columns
    label_file, label_columns = labels
    target_file, target_column, target_order_column = targets
    tasks: list[Document] = [
        {"name": column, "labels": str(label_file), "label_column": column}
        for column in label_columns
    ]
    if target_file is not None:
        tasks.append(
            {
                "name": "targets",
                "targets": str(target_file),
                "target_column": target_column,
                "target_order_column": target_order_column,
            }
        )
    if not tasks or (label_columns and label_file is None):
        raise typer.BadParameter("--interactions needs --labels with --label-column, or --targets")
    corpus = {
        "interactions": str(interactions),
        "user_column": user_column,
        "item_column": item_column,
        "order_column": order_column,
        "drop_future": drop_future,
        "tasks": tasks,
    }
    return {"corpora": {"own": corpus}}
