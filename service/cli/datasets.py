"""Commands that bring data: convert, download, make a sample, look at statistics."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peterrec.model.data.statistics import DataInfo, Spread


class Format(StrEnum):
    """Data sets that can be converted."""

    MOVIELENS = "movielens"
    COLDREC = "coldrec"
    RECBOLE = "recbole"


class Download(StrEnum):
    """Data sets that can be fetched from their publishers."""

    MOVIELENS_1M = "movielens-1m"


Out = Annotated[Path, typer.Option(help="Folder to write.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(convert)
    app.command()(download)
    app.command("sample-data")(sample_data)
    app.command("data-info")(data_info)


def convert(
    dataset: Annotated[Format, typer.Argument(help="What the folder holds.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="As published, unpacked.")],
    out: Out,
) -> None:
    """Turn a public data set into Parquet files that the other commands read."""
    CONVERTERS[dataset](folder, out)


def _convert_movielens(folder: Path, out: Path) -> None:
    from peterrec.model.data.convert.movielens import convert_movielens

    done = convert_movielens(folder, out)
    print(f"{out}: {done.events} events of {done.users} users on {done.items} items")
    if not done.has_profiles:
        print("this form tells nothing of its users: no users.parquet")


def _convert_coldrec(folder: Path, out: Path) -> None:
    from peterrec.model.data.convert.coldrec import convert_coldrec

    for file in convert_coldrec(folder, out):
        answers = f", {file.answers} answers" if file.answers else ""
        print(f"{out / file.name}: {file.events} events of {file.users} users{answers}")


def _convert_recbole(folder: Path, out: Path) -> None:
    from peterrec.model.data.convert.recbole import convert_recbole

    done = convert_recbole(folder, out)
    print(f"{out}: {done.events} events of {done.users} users on {done.items} items")
    print(f"tables: {', '.join(done.tables)}, histories, targets")


CONVERTERS = {
    Format.MOVIELENS: _convert_movielens,
    Format.COLDREC: _convert_coldrec,
    Format.RECBOLE: _convert_recbole,
}


def download(
    dataset: Annotated[Download, typer.Argument(help="What to fetch.")],
    out: Out,
) -> None:
    """Fetch a public data set; mind its licence."""
    from peterrec.service.jobs.download import download_movielens_1m
    from peterrec.service.jobs.progress_bar import ProgressBars

    with ProgressBars() as bars:
        download_movielens_1m(out, bars)
    print(f"{out}: MovieLens-1M, for research only and not to be passed on; see README")


def sample_data(
    out: Out,
    users: Annotated[int, typer.Option(min=20)] = 4000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a synthetic shop to try everything with."""
    from peterrec.model.data.sample_data import write_sample_data

    write_sample_data(out, users, seed)
    print(f"{out}: a shop of {users} users")


def data_info(
    interactions: Annotated[
        Path, typer.Option(help="File of events, or a folder of CSV or Parquet files.")
    ],
    user_column: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item_column: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    order_column: Annotated[str | None, typer.Option(help="Time or position.")] = None,
    delimiter: Annotated[str, typer.Option(help="Between CSV fields.")] = ",",
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep such events only.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw histograms there: a .png or .svg file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what a table of interactions holds, before anything is trained on it."""
    from peterrec.model.data.interactions import InteractionSource, read_events
    from peterrec.model.data.statistics import describe_events, draw_data, require_picture
    from peterrec.service.jobs.options import table_source

    if plot is not None:
        require_picture(plot)
    table = table_source(interactions, delimiter, where or ())
    info = describe_events(
        read_events(InteractionSource(table, user_column, item_column, order_column))
    )
    if plot is not None:
        draw_data(info, plot)
    if as_json:
        print(json.dumps(info.to_json()))
    else:
        _print_info(str(interactions), info)


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
        ("item had before", f"{info.repeated_share:.2%} of events"),
    ]
    if info.times is None or info.duplicate_share is None:
        return [*rows, ("order", "the file's; name times with --order-column")]
    return [
        *rows,
        ("item had at this time", f"{info.duplicate_share:.2%} of events"),
        ("tied with another event", f"{info.times.tied_share:.2%} of events, ordered by a hash"),
        ("first", info.times.first),
        ("last", info.times.last),
    ]


def _spread(spread: "Spread") -> str:
    quantiles = ", ".join(f"{name} {value:g}" for name, value in spread.quantiles.items())
    return f"{quantiles}, max {spread.largest:,}, mean {spread.mean:.1f}"
