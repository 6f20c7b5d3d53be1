"""Commands that prepare data: convert, download, generate a sample, print statistics."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import AsJson, Out
from peterrec.service.jobs.options import EventOptions, TableOptions

if TYPE_CHECKING:
    from peterrec.model.data.statistics import DataInfo, Spread


class Format(StrEnum):
    """Data sets that can be converted."""

    MOVIELENS = "movielens"
    COLDREC = "coldrec"
    RECBOLE = "recbole"


class Download(StrEnum):
    """Data sets that can be downloaded from their publishers."""

    MOVIELENS_1M = "movielens-1m"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(takes_settings(convert))
    app.command()(download)
    app.command("sample-data")(sample_data)
    app.command("data-info")(takes_settings(data_info))


def convert(
    dataset: Annotated[Format, typer.Argument(help="Data set in the folder.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the published files, unpacked.")
    ],
    out: Out,
    table: TableOptions,
) -> None:
    """Turn a public data set into Parquet files that the other commands read.

    The options of the input are for RecBole's files, whose columns have names of your choice.
    """
    if dataset is not Format.RECBOLE and table != TableOptions():
        raise typer.BadParameter(f"the options of the input are for recbole, not for {dataset}")
    CONVERTERS[dataset](folder, out, table)


def _convert_movielens(folder: Path, out: Path, _: TableOptions) -> None:
    from peterrec.model.data.convert.movielens import convert_movielens

    done = convert_movielens(folder, out)
    print(f"{out}: {done.events} events of {done.users} users on {done.items} items")
    if not done.has_profiles:
        print("this form of the data set has no user attributes: no users.parquet is written")


def _convert_coldrec(folder: Path, out: Path, _: TableOptions) -> None:
    from peterrec.model.data.convert.coldrec import convert_coldrec

    for file in convert_coldrec(folder, out):
        answers = f", {file.answers} answers" if file.answers else ""
        print(f"{out / file.name}: {file.events} events of {file.users} users{answers}")


def _convert_recbole(folder: Path, out: Path, table: TableOptions) -> None:
    from peterrec.model.data.convert.recbole import convert_recbole

    done = convert_recbole(table.source_of(folder), out)
    print(f"{out}: {done.events} events of {done.users} users on {done.items} items")
    print(f"tables: {', '.join(done.tables)}, histories, targets")


CONVERTERS = {
    Format.MOVIELENS: _convert_movielens,
    Format.COLDREC: _convert_coldrec,
    Format.RECBOLE: _convert_recbole,
}


def download(
    dataset: Annotated[Download, typer.Argument(help="Data set to download.")],
    out: Out,
) -> None:
    """Download a public data set from its publisher; its licence applies to you."""
    from peterrec.service.jobs.download import download_movielens_1m
    from peterrec.service.jobs.progress_bar import ProgressBars

    with ProgressBars() as bars:
        download_movielens_1m(out, bars)
    print(f"{out}: MovieLens-1M, for research only; do not redistribute it, see its README")


def sample_data(
    out: Out,
    users: Annotated[int, typer.Option(min=20, help="Number of users to generate.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generator.")] = 0,
) -> None:
    """Generate the data of a small shop, to try every command with."""
    from peterrec.model.data.sample_data import write_sample_data

    write_sample_data(out, users, seed)
    print(f"{out}: a shop of {users} users")


def data_info(
    events: EventOptions,
    plot: Annotated[
        Path | None, typer.Option(help="Draw histograms into this .png or .svg file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print statistics of a table of interactions: read them before you train on it."""
    from peterrec.model.data.interactions import read_events
    from peterrec.model.data.statistics import describe_events, draw_data, require_picture

    if plot is not None:
        require_picture(plot)
    info = describe_events(read_events(events.source()))
    if plot is not None:
        draw_data(info, plot)
    if as_json:
        print(json.dumps(info.to_json()))
    else:
        _print_info(str(events.interactions), info)


def _print_info(title: str, info: "DataInfo") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=title, show_header=False)
    for name, value in _info_rows(info):
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _info_rows(info: "DataInfo") -> list[tuple[str, str]]:
    rows = [
        ("users", f"{info.users:,}"),
        ("items", f"{info.items:,}"),
        ("events", f"{info.events:,}"),
        ("sparsity", f"{info.sparsity:.4%} of all pairs never seen"),
        ("events of a user", _spread(info.length_spread)),
        ("users with one event", f"{info.single_event_users:,}"),
        ("events of an item", _spread(info.popularity_spread)),
        ("items with one event", f"{info.single_event_items:,}"),
        *((f"events on the top {name}", f"{share:.1%}") for name, share in info.top_shares.items()),
        ("repeats an earlier item", f"{info.repeated_share:.2%} of events"),
    ]
    if info.times is None or info.duplicate_share is None:
        return [*rows, ("order", "the file's; give the column of times with --order-column")]
    return [
        *rows,
        ("same item at the same time", f"{info.duplicate_share:.2%} of events"),
        ("tied with another event", f"{info.times.tied_share:.2%} of events, ordered by a hash"),
        ("first", info.times.first),
        ("last", info.times.last),
    ]


def _spread(spread: "Spread") -> str:
    quantiles = ", ".join(f"{name} {value:g}" for name, value in spread.quantiles.items())
    return f"{quantiles}, max {spread.largest:,}, mean {spread.mean:.1f}"
