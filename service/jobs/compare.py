"""The work of `peterrec compare`: prepare the data, run the methods, write tables and plots."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.disk import read_bytes
from peterrec.model.documents import Document
from peterrec.model.errors import ComparisonSettingsInvalid
from peterrec.model.progress import Progress
from peterrec.model.study.corpus import PreparedCorpus, shuffled, write_corpora
from peterrec.model.study.markdown import (
    cells_of,
    gaps_cells_of,
    gaps_header_of,
    header_of,
    left_out_of,
)
from peterrec.model.study.plots import draw_plots
from peterrec.model.study.report import report_of, write_report
from peterrec.model.study.results import Report
from peterrec.model.study.run import Workplace
from peterrec.model.study.schedule import Effort, compare
from peterrec.model.study.settings import ComparisonSettings
from peterrec.model.study.sources import Cut, domain_corpora, file_corpora, movielens_corpora
from peterrec.service.jobs.packing import pack_task

PREPARED, PLOTS = "prepared", "plots"


@dataclass(frozen=True, slots=True)
class DomainEvents:
    """One file with the events of two domains."""

    source: InteractionSource
    column: str
    domains: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the data are. Methods are compared on the tasks of all given sources."""

    movielens: Path | None
    movielens_domain: str
    events: DomainEvents | None
    task_list: Path | None
    files: Document | None
    prepared: Path | None


@dataclass(frozen=True, slots=True)
class CompareJob:
    """What to compare, where results go, and how much may be computed in this call."""

    sources: Sources
    cut: Cut
    settings: ComparisonSettings
    out: Path
    device: str
    effort: Effort
    has_plots: bool = True
    shuffles_labels: bool = False


def prepare(job: CompareJob, observer: ReadingObserver) -> Path:
    """Write the prepared folder, unless one was given; return its path."""
    if job.sources.prepared is not None:
        return job.sources.prepared
    corpora = list(_corpora(job.sources, job.cut, observer))
    observer.progress(Progress("writing the prepared data"))
    if job.shuffles_labels:
        corpora = [shuffled(corpus) for corpus in corpora]
    if not corpora:
        raise ComparisonSettingsInvalid(
            "there is nothing to compare on.",
            hint="Give `movielens`, `events`, `task_list`, `interactions` or `prepared`.",
        )
    folder = job.out / PREPARED
    write_corpora(folder, corpora)
    return folder


def run_comparison(job: CompareJob, observer: ReadingObserver) -> tuple[Report, list[Path]]:
    """Prepare the data, execute the runs that are missing, write tables and plots."""
    place = Workplace(prepare(job, observer), job.out, job.settings, job.device, pack_task)
    units = compare(place, job.effort, observer.progress, observer.notice)
    observer.progress(Progress("writing tables and plots"))
    write_report(place, units)
    document = report_of(place, units)
    return document, draw_plots(document, job.out / PLOTS) if job.has_plots else []


def rich_tables(document: Report) -> Iterator[Table]:
    """One table for each task."""
    for given in document["tables"]:
        left_out = "\n".join(left_out_of(given)) or None
        title = f"{given['data_set']}: {given['task']}"
        table = Table(*header_of(given), title=title, caption=left_out)
        for row in given["rows"]:
            table.add_row(*cells_of(given, row))
        yield table
        if given["gaps"]:
            gaps = Table(*gaps_header_of(given), title="differences, paired by user, with 95 %")
            for cells in gaps_cells_of(given):
                gaps.add_row(*cells)
            yield gaps


def _corpora(sources: Sources, cut: Cut, observer: ReadingObserver) -> Iterator[PreparedCorpus]:
    if sources.movielens is not None:
        yield from movielens_corpora(sources.movielens, sources.movielens_domain, cut, observer)
    if sources.events is not None:
        events = sources.events
        yield from domain_corpora(events.source, events.column, events.domains, cut, observer)
    if sources.task_list is not None:
        document = _read_task_list(sources.task_list)
        yield from file_corpora(document, sources.task_list.parent, cut, observer)
    if sources.files is not None:
        yield from file_corpora(sources.files, Path(), cut, observer)


def _read_task_list(path: Path) -> Document:
    try:
        return tomllib.loads(read_bytes(path).decode())
    except ValueError as error:
        raise ComparisonSettingsInvalid(
            f"{path} is not a readable TOML file: {error}.",
            hint="See docs/compare.md for the form.",
        ) from error
