"""The data in one screen of text: 80 columns, about 40 lines."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
from rich.cells import cell_len, set_cell_size

from peterrec.model.data.statistics import AnswersInfo, Counts, DataInfo, Frequent, Times
from peterrec.service.jobs.data_info import DataReport, missing_text
from peterrec.service.jobs.reading import files_line, left_out_text
from peterrec.service.system.texts import printable

WIDTH = 80
HALF = 39
"""Columns of each of two blocks that stand side by side, with two columns between them."""

NAME_WIDTH = 13
SHOWN = 8
"""Lines of each block: ranges of lengths, items, classes or events."""

MOST_NOTICES = 6


def screen_of(report: DataReport) -> list[str]:
    """The lines of the screen."""
    info = report.events
    blocks = [_lengths(info), _top("most frequent items", info.top_items)]
    if report.answers is not None:
        blocks.append(_answers(report.answers))
    if info.sample is not None:
        blocks.append(_sample(info))
    lines = [*_summary(report), ""]
    nothing: list[str] = []
    for left, right in zip_longest(blocks[::2], blocks[1::2], fillvalue=nothing):
        lines += [*_side_by_side(left, right), ""]
    lines += [f"note: {printable(notice)}" for notice in report.notices[:MOST_NOTICES]]
    if len(report.notices) > MOST_NOTICES:
        lines.append(f"and {len(report.notices) - MOST_NOTICES} other notes, printed above")
    return lines if lines[-1] else lines[:-1]


def _summary(report: DataReport) -> Iterator[str]:
    info = report.events
    for read in report.files:
        yield _row("files", files_line(read).removeprefix("read "))
        if read.left_out:
            yield _row("left out", left_out_text(read.left_out))
    used = f", {info.events:,} events used" if info.events != report.tables[0].rows else ""
    bounds = f" ({report.bounds})" if report.bounds else ""
    yield _row("rows", f"{report.tables[0].rows:,}{used}{bounds}")
    yield _row("users", f"{info.users:,}, {info.single_event_users:,} of them with one event")
    yield _row("items", f"{info.items:,}, {info.single_event_items:,} of them with one event")
    yield _row("pairs", f"{info.sparsity:.4%} of all pairs of user and item never occur")
    tops = [f"top {name} have {share:.1%} of events" for name, share in info.top_shares.items()]
    yield _row("", ", ".join(tops))
    yield from _order(report.order_column, info.times)
    if info.duplicate_events is not None:
        yield _row(
            "duplicates",
            f"{info.duplicate_events:,} events ({info.duplicate_share:.2%}) repeat user, item and "
            "time",
        )
    yield _row("repetitions", f"{info.repeated_share:.2%} of events repeat an item of their user")
    for table in report.tables:
        where = f" in {table.name}" if len(report.tables) > 1 else ""
        yield _row("missing", missing_text(table) + where)


def _order(column: str | None, times: Times | None) -> Iterator[str]:
    if times is None:
        yield _row("order", "that of the rows; name a column of times with --order-column")
        return
    zone = f", {times.zone}" if times.zone else ""
    days = f", {times.days:,.1f} days" if times.days is not None else ""
    yield _row("time", f"{times.first} to {times.last}{days}")
    is_number = times.zone is not None and times.unit.startswith("epoch")
    raw = f", {times.first_value} to {times.last_value}" if is_number else ""
    yield _row("", f"column {column}: {times.unit}{zone}{raw}")
    yield _row(
        "ties",
        f"{times.tied_events:,} events ({times.tied_share:.2%}) at the time of another of their "
        "user",
    )


def _row(name: str, text: str) -> str:
    return f"{name:<{NAME_WIDTH}}{_cut(text, WIDTH - NAME_WIDTH)}"


def _lengths(info: DataInfo) -> list[str]:
    """How many users have a history of each length, in ranges that double."""
    spread = info.length_spread
    ranges = length_ranges(info.lengths, SHOWN)
    most = max(count for _, count in ranges)
    middle = f"median {spread.quantiles['median']:g}, mean {spread.mean:.1f}"
    return [
        f"history lengths: {middle}",
        *(_bar(name, count, most) for name, count in ranges),
        f"from {spread.quantiles['min']:g} to {spread.largest:,}",
    ]


def length_ranges(lengths: Counts, most: int) -> list[tuple[str, int]]:
    """Ranges of lengths, each twice as wide as the one before, with their numbers of users.

    If there are more than ``most``, the last one takes all that are longer.
    """
    powers = np.floor(np.log2(lengths)).astype(np.int64)
    first = int(powers.min())
    powers = np.minimum(powers - first, most - 1)
    counts = np.bincount(powers)
    named = []
    for at, count in enumerate(counts.tolist()):
        low, high = 1 << (first + at), (1 << (first + at + 1)) - 1
        is_rest = at == most - 1 and int(lengths.max()) > high
        name = f"{low:,} or more" if is_rest else f"{low:,}" if low == high else f"{low:,}–{high:,}"
        named.append((name, count))
    return named


def _top(title: str, values: Sequence[Frequent]) -> list[str]:
    shown = values[:SHOWN]
    most = max((value.count for value in shown), default=1)
    return [title, *(_bar(value.value, value.count, most) for value in shown)]


def _answers(info: AnswersInfo) -> list[str]:
    lines = [
        f"answers: {info.name}",
        f"{info.users:,} users, {info.values:,} different answers",
        f"{info.without_history:,} of them without a history",
    ]
    if info.without_value:
        lines.append(f"{info.without_value:,} users without an answer")
    if info.several:
        lines.append(f"{info.several:,} users with several answers")
    if info.numbers is not None:
        pairs = [f"{name} {value:.6g}" for name, value in info.numbers.items()]
        halves = [pairs[at : at + 2] for at in range(0, len(pairs), 2)]
        return [*lines, *("  " + ", ".join(pair) for pair in halves)]
    return [*lines, *_top("", info.frequent)[1:]]


def _sample(info: DataInfo) -> list[str]:
    assert info.sample is not None
    events = info.sample.events
    shown = SHOWN if len(events) <= SHOWN else SHOWN - 1
    lines = [f"user {info.sample.user}, oldest first"]
    for event in events[:shown]:
        lines.append(f"  {event.item}" if event.time is None else f"  {event.time}  {event.item}")
    if len(events) > shown:
        lines.append(f"  … and {len(events) - shown:,} later events")
    return lines


def _bar(name: str, count: int, most: int) -> str:
    """A name, a number and a bar, in half of the screen."""
    bar = "█" * round(8 * count / most)
    return f"  {_padded(name, 17)} {count:>10,} {bar}"


def _side_by_side(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    for one, other in zip_longest(left, right, fillvalue=""):
        yield f"{_padded(one, HALF)}  {_cut(other, HALF)}".rstrip()


def _padded(text: str, width: int) -> str:
    return set_cell_size(_cut(text, width), width)


def _cut(text: str, width: int) -> str:
    text = printable(text)
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
