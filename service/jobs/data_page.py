"""The data as an HTML page to send to a colleague, and as a picture."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peterrec.model.data.statistics import AnswersInfo, DataInfo, Frequent, Spread, Times
from peterrec.model.disk import file_in_one_step
from peterrec.model.errors import PictureUnwritable
from peterrec.service.jobs.data_info import DataReport
from peterrec.service.jobs.progress_bar import size_text
from peterrec.service.pages.charts import (
    bar_chart,
    draw_histogram,
    drawing,
    histogram,
    short_label,
)
from peterrec.service.pages.page import Cell, Figure, Part, Section, Text, page, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
"""Endings of pictures."""

MOST_SAMPLE_EVENTS = 50
"""Events of the sample history on the page."""

PERSONAL = (
    "This page has ids of items and, with a sample history, the id and the events of one person: "
    "share it only with people who may see the data. `--no-sample` leaves that person out."
)


def page_of(report: DataReport) -> str:
    """A self-contained page of everything that is known of the data."""
    sections = [
        Section("Files", list(_files(report))),
        Section("Summary", [summary_table(report.events), *_bounds(report)]),
        Section("Users and items", list(charts_of(report.events))),
    ]
    if report.events.times is not None:
        sections.append(Section("Time", list(time_parts(report.order_column, report.events.times))))
    if report.answers is not None:
        sections.append(Section("Answers", list(_answers(report.answers))))
    if report.events.sample is not None:
        sections.append(Section("One history", list(_sample(report.events))))
    note = PERSONAL if report.events.sample is not None else PERSONAL.partition(" `")[0]
    return page(f"Data of {report.title}", sections, [Text(note, is_notice=True)])


def _files(report: DataReport) -> Iterator[Part]:
    rows = [(read.source, read.files, size_text(read.size)) for read in report.files]
    yield table("Files read", ("source", "files", "size"), rows)
    left_out = [(read.source, name) for read in report.files for name in read.left_out]
    if left_out:
        yield table("Files left out", ("source", "file"), left_out)
    for notice in report.notices:
        yield Text(notice, is_notice=True)
    for profile in report.tables:
        counts: list[tuple[Cell, ...]] = [
            (column, count, f"{count / profile.rows:.2%}")
            for column, count in profile.missing.items()
        ]
        yield table(
            f"Missing values in the {profile.rows:,} rows of {profile.name}",
            ("column", "missing", "share"),
            counts,
        )


def _bounds(report: DataReport) -> Iterator[Part]:
    if report.bounds:
        yield Text(f"Of the table's events, {report.bounds}.")


def summary_table(info: DataInfo) -> Part:
    """How many events, users and items there are, and how they are distributed."""
    rows: list[tuple[Cell, ...]] = [
        ("events", info.events),
        ("users", info.users),
        ("items", info.items),
        ("pairs of user and item that never occur", f"{info.sparsity:.4%}"),
        ("events of a user", _spread(info.length_spread)),
        ("users with one event", info.single_event_users),
        ("events of an item", _spread(info.popularity_spread)),
        ("items with one event", info.single_event_items),
        *(
            (f"events on the top {name} of items", f"{share:.1%}")
            for name, share in info.top_shares.items()
        ),
        ("events that repeat an item of their user", f"{info.repeated_share:.2%}"),
    ]
    if info.duplicate_share is not None:
        name = "events that repeat user, item and time"
        rows.append((name, f"{info.duplicate_events:,} ({info.duplicate_share:.2%})"))
    return table("What a training reads", ("quantity", "value"), rows)


def _spread(spread: Spread) -> str:
    quantiles = ", ".join(f"{name} {value:g}" for name, value in spread.quantiles.items())
    return f"{quantiles}, max {spread.largest:,}, mean {spread.mean:.1f}"


def charts_of(info: DataInfo) -> Iterator[Part]:
    """The distributions of history lengths and popularity, and the most frequent items."""
    yield histogram("Lengths of histories", info.lengths, "events of a user", "", True)
    yield histogram("Popularity of items", info.popularity, "events of an item", "", True)
    names, counts = _names_and_counts(info.top_items)
    yield bar_chart("Most frequent items", names, counts, unit="events")


def _names_and_counts(values: Sequence[Frequent]) -> tuple[list[str], list[int]]:
    return [value.value for value in values], [value.count for value in values]


def time_parts(column: str | None, times: Times) -> Iterator[Part]:
    """The range of the order column, and the events over time."""
    zone = times.zone or "none"
    rows: list[tuple[Cell, ...]] = [
        ("column", column),
        ("unit", times.unit),
        ("zone", zone),
        ("first", times.first),
        ("last", times.last),
        ("days", times.days),
        ("tied events", f"{times.tied_events:,} ({times.tied_share:.2%})"),
    ]
    note = "Tied events have the time of another event of their user; a hash orders them."
    yield table("Order of events", ("", "value"), rows, note)
    yield _time_chart(times)


def _time_chart(times: Times) -> Figure:
    counts = times.counts
    description = (
        f"Events in {len(counts)} equal parts of the time from {times.first} to {times.last}: "
        f"{', '.join(f'{count:,}' for count in counts)}."
    )
    return drawing("Events over time", description, lambda axes: draw_times(axes, times))


def draw_times(axes: "Axes", times: Times) -> None:
    """Draw the events in equal parts of the time, with the first and last time below."""
    axes.bar(range(len(times.counts)), times.counts, width=1.0)
    axes.set_xticks([0, len(times.counts) - 1], [times.first, times.last])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.set_ylabel("events")


def _answers(info: AnswersInfo) -> Iterator[Part]:
    rows: list[tuple[Cell, ...]] = [
        ("users with an answer", info.users),
        ("of them with a history", info.with_history),
        ("of them without a history", info.without_history),
        ("users without an answer", info.without_value),
        ("users with several answers", info.several),
        ("different answers", info.values),
    ]
    yield table(info.name, ("quantity", "value"), rows)
    if info.numbers is not None:
        yield table("Numbers", ("quantile", "value"), list(info.numbers.items()))
        return
    names, counts = _names_and_counts(info.frequent)
    yield bar_chart("Users by answer", names, counts, unit="users")
    shares = [(value.value, value.count, f"{value.share:.2%}") for value in info.frequent]
    yield table("Most frequent answers", ("answer", "users", "share of users"), shares)


def _sample(info: DataInfo) -> Iterator[Part]:
    assert info.sample is not None
    events = info.sample.events
    rows: list[tuple[Cell, ...]] = [
        (str(place), event.item, event.time)
        for place, event in enumerate(events[:MOST_SAMPLE_EVENTS], 1)
    ]
    more = len(events) - len(rows)
    yield table(
        f"The events of user {info.sample.user}, oldest first",
        ("place", "item", "time"),
        rows,
        f"{more:,} later events are not shown." if more else "",
    )


def require_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before the data are read."""
    if path.suffix not in SUFFIXES:
        raise PictureUnwritable(
            f"{path} ends neither in {' nor in '.join(SUFFIXES)}.",
            hint="Give the file one of these endings.",
        )


def draw_data(report: DataReport, path: Path) -> None:
    """Draw lengths of histories, popularity, events over time and frequent items, as PNG or SVG."""
    require_picture(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    info = report.events
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that matplotlib's font lacks
        canvas = Canvas(figsize=(10, 7.5), layout="constrained")
        FigureCanvasAgg(canvas)
        canvas.suptitle(report.title)
        (lengths, popularity), (times, items) = canvas.subplots(2, 2)
        draw_histogram(lengths, info.lengths, "events of a user", is_logarithmic=True)
        lengths.set_title(f"{info.users:,} users")
        draw_histogram(popularity, info.popularity, "events of an item", is_logarithmic=True)
        popularity.set_title(f"{info.items:,} items")
        if info.times is None:
            times.set_axis_off()
        else:
            draw_times(times, info.times)
            times.set_title(f"{info.events:,} events over time")
        names, counts = _names_and_counts(info.top_items)
        items.barh(range(len(names)), counts)
        items.set_yticks(range(len(names)), map(short_label, names))
        items.invert_yaxis()
        items.set_title("most frequent items")
        dateless = {"Date": None} if path.suffix == ".svg" else {}
        with file_in_one_step(path) as partial:
            canvas.savefig(partial, format=path.suffix[1:], dpi=150, metadata=dateless)
