"""Commands that prepare data: convert, download, generate a sample, print statistics."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peterrec.model.disk import require_writable_file, require_writable_folder
from peterrec.model.progress import Progress
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import AsJson, Out, Quiet
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TableOptions, TimeOptions

if TYPE_CHECKING:
    from peterrec.model.data.observer import ReadingObserver


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
    quiet: Quiet = False,
) -> None:
    """Turn a public data set into Parquet files that the other commands read.

    The options of the input are for RecBole's files, whose columns have names of your choice.
    """
    from peterrec.service.jobs.reading import observing

    if dataset is not Format.RECBOLE and table != TableOptions():
        raise typer.BadParameter(f"the options of the input are for recbole, not for {dataset}")
    require_writable_folder(out)
    with observing(quiet) as observer:
        said = CONVERTERS[dataset](folder, out, table, observer)
    print("\n".join(said))


def _convert_movielens(
    folder: Path, out: Path, _: TableOptions, observer: "ReadingObserver"
) -> list[str]:
    from peterrec.model.data.convert.movielens import convert_movielens

    done = convert_movielens(folder, out, observer)
    said = [f"{out}: {done.events} events of {done.users} users on {done.items} items"]
    if not done.has_profiles:
        said += ["this form of the data set has no user attributes: no users.parquet is written"]
    return said


def _convert_coldrec(
    folder: Path, out: Path, _: TableOptions, observer: "ReadingObserver"
) -> list[str]:
    from peterrec.model.data.convert.coldrec import convert_coldrec

    return [
        f"{out / file.name}: {file.events} events of {file.users} users"
        + (f", {file.answers} answers" if file.answers else "")
        for file in convert_coldrec(folder, out, observer)
    ]


def _convert_recbole(
    folder: Path, out: Path, table: TableOptions, observer: "ReadingObserver"
) -> list[str]:
    from peterrec.model.data.convert.recbole import convert_recbole

    done = convert_recbole(table.source_of(folder), out, observer)
    return [
        f"{out}: {done.events} events of {done.users} users on {done.items} items",
        f"tables: {', '.join(done.tables)}, histories, targets",
    ]


CONVERTERS = {
    Format.MOVIELENS: _convert_movielens,
    Format.COLDREC: _convert_coldrec,
    Format.RECBOLE: _convert_recbole,
}


def download(
    dataset: Annotated[Download, typer.Argument(help="Data set to download.")],
    out: Out,
    quiet: Quiet = False,
) -> None:
    """Download a public data set from its publisher; its licence applies to you."""
    from peterrec.service.jobs.download import UNPACKED_BYTES, download_movielens_1m
    from peterrec.service.jobs.progress_bar import ProgressBars

    require_writable_folder(out, UNPACKED_BYTES)
    with ProgressBars(quiet) as bars:
        download_movielens_1m(out, bars)
    print(f"{out}: MovieLens-1M, for research only; do not redistribute it, see its README")


def sample_data(
    out: Out,
    users: Annotated[int, typer.Option(min=20, help="Number of users to generate.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generator.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Generate the data of a small shop, to try every command with."""
    require_writable_folder(out)
    from peterrec.model.data.sample_data import write_sample_data
    from peterrec.service.jobs.progress_bar import ProgressBars

    with ProgressBars(quiet) as bars:
        write_sample_data(out, users, seed, bars)
    print(f"{out}: a shop of {users} users")


def data_info(
    events: EventOptions,
    answers: AnswerOptions,
    time: TimeOptions,
    plot: Annotated[
        Path | None, typer.Option(help="Draw histograms into this .png or .svg file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write everything as one HTML page into this file.")
    ] = None,
    sample: Annotated[
        bool, typer.Option(help="Show the history of one user, who may be a person.")
    ] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what would be trained on, by the options of `pretrain` and `finetune`.

    Read it before you train.
    """
    from peterrec.service.jobs.data_info import DataInfoJob, describe_data
    from peterrec.service.jobs.data_page import draw_data, page_of, require_picture
    from peterrec.service.jobs.data_text import screen_of
    from peterrec.service.jobs.reading import observing
    from peterrec.service.pages.page import write_page

    if plot is not None:
        require_picture(plot)
        require_writable_file(plot)
    if html is not None:
        require_writable_file(html)
    with observing(quiet) as observer:
        report = describe_data(DataInfoJob(events, answers, time, sample), observer)
        observer.progress(Progress("drawing"))
        if plot is not None:
            draw_data(report, plot)
        if html is not None:
            write_page(html, page_of(report))
    print(json.dumps(report.to_json()) if as_json else "\n".join(screen_of(report)))
