"""Commands that bring data: convert, download, make a sample."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """Data sets that can be converted."""

    MOVIELENS = "movielens"


class Download(StrEnum):
    """Data sets that can be fetched from their publishers."""

    MOVIELENS_1M = "movielens-1m"


Out = Annotated[Path, typer.Option(help="Folder to write.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(convert)
    app.command()(download)
    app.command("sample-data")(sample_data)


def convert(
    dataset: Annotated[Format, typer.Argument(help="What the folder holds.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="As published, unpacked.")],
    out: Out,
) -> None:
    """Turn a public data set into Parquet files that the other commands read."""
    from model.movielens import convert_movielens

    done = convert_movielens(folder, out)
    print(f"{out}: {done.events} events of {done.users} users on {done.items} items")
    if not done.has_profiles:
        print("this form tells nothing of its users: no users.parquet")


def download(
    dataset: Annotated[Download, typer.Argument(help="What to fetch.")],
    out: Out,
) -> None:
    """Fetch a public data set; mind its licence."""
    from service.training.download import download_movielens_1m
    from service.training.progress_bar import ProgressBars

    with ProgressBars() as bars:
        download_movielens_1m(out, bars)
    print(f"{out}: MovieLens-1M, for research only and not to be passed on; see README")


def sample_data(
    out: Out,
    users: Annotated[int, typer.Option(min=20)] = 4000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a synthetic shop to try everything with."""
    from model.sample_data import write_sample_data

    write_sample_data(out, users, seed)
    print(f"{out}: a shop of {users} users")
