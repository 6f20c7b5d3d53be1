"""What a table of interactions holds: sizes, lengths, popularity, repetitions, ties and times.

A picture of a table of interactions: how long histories are and how popular items.

Matplotlib is optional: the statistics need none.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from peterrec.model.data.interactions import Events
from peterrec.model.documents import Document
from peterrec.model.errors import PictureUnwritable, PlottingMissing

Counts = npt.NDArray[np.int64]

QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "p99": 99}
UNIX_SECONDS = (1e8, 1e10)
"""Order values in this range (from 1973) are also told as dates, in case they are seconds."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How counts are spread: quantiles by name, the mean and the largest."""

    quantiles: dict[str, float]
    mean: float
    largest: int


@dataclass(frozen=True, slots=True)
class Times:
    """The range of the order column and how far it orders.

    ``tied_share``: events at the same time as another one of the same user, so that only the file
    orders them. ``first`` and ``last`` are dates, or the plain numbers.
    """

    first: str
    last: str
    tied_share: float


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The statistics of one table. ``lengths`` and ``popularity`` count each user's, item's events.

    ``sparsity``: share of user–item pairs never seen. ``repeated_share``: events with an item that
    their user had before. ``duplicate_share``: events that repeat user, item and time (None without
    an order column). ``top_shares``: events on the most popular percents of the items.
    """

    users: int
    items: int
    events: int
    sparsity: float
    repeated_share: float
    duplicate_share: float | None
    single_event_users: int
    single_event_items: int
    top_shares: dict[str, float]
    length_spread: Spread
    popularity_spread: Spread
    times: Times | None
    lengths: Counts
    popularity: Counts

    def to_json(self) -> Document:
        """All but the counts of single users and items."""
        fields = asdict(self)
        del fields["lengths"], fields["popularity"]
        return fields


def describe_events(events: Events) -> DataInfo:
    """The statistics of events."""
    lengths = np.bincount(events.user, minlength=len(events.users))
    popularity = np.bincount(events.item, minlength=len(events.items))
    pair = events.user.astype(np.int64) * len(events.items) + events.item
    distinct = _distinct(pair)
    duplicates = None
    if events.time is not None:
        duplicates = 1 - _distinct_pairs(pair, events.time) / len(pair)
    return DataInfo(
        users=len(lengths),
        items=len(popularity),
        events=len(pair),
        sparsity=1 - distinct / (len(lengths) * len(popularity)),
        repeated_share=1 - distinct / len(pair),
        duplicate_share=duplicates,
        single_event_users=int((lengths == 1).sum()),
        single_event_items=int((popularity == 1).sum()),
        top_shares={f"{p} %": _top_share(popularity, p) for p in (1, 10)},
        length_spread=_spread(lengths),
        popularity_spread=_spread(popularity),
        times=_times(events),
        lengths=lengths,
        popularity=popularity,
    )


def _distinct(values: npt.NDArray[np.int64]) -> int:
    ordered = np.sort(values)
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _distinct_pairs(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> int:  # Any: a number's type
    """How many different pairs two columns hold."""
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    is_new = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return 1 + int(np.count_nonzero(is_new))


def _top_share(popularity: Counts, percent: int) -> float:
    top = max(1, round(len(popularity) * percent / 100))
    return float(np.sort(popularity)[-top:].sum() / popularity.sum())


def _spread(counts: Counts) -> Spread:
    values = np.percentile(counts, list(QUANTILES.values()))
    quantiles = dict(zip(QUANTILES, values.tolist(), strict=True))
    return Spread(quantiles, float(counts.mean()), int(counts.max()))


def _times(events: Events) -> Times | None:
    if events.time is None:
        return None
    order = np.lexsort((events.time, events.user))
    user, time = events.user[order], events.time[order]
    is_tied = np.append((user[1:] == user[:-1]) & (time[1:] == time[:-1]), False)
    is_tied[1:] |= is_tied[:-1].copy()
    ends = (float(events.time.min()), float(events.time.max()))
    first, last = (_when(end, ends, events.time_kind == "timestamp") for end in ends)
    return Times(first, last, float(is_tied.mean()))


def _when(value: float, ends: tuple[float, float], is_timestamp: bool) -> str:
    """A time in words; numbers that may be seconds since 1970 with their date."""
    if is_timestamp:
        return datetime.fromtimestamp(value / 1e6, UTC).isoformat(sep=" ").removesuffix("+00:00")
    low, high = UNIX_SECONDS
    if not (low <= ends[0] and ends[1] <= high):
        return f"{value:.15g}"
    day = datetime.fromtimestamp(value, UTC).date()
    return f"{value:.15g} ({day} if these are seconds since 1970)"


if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
BARS = 40


def require_picture(path: Path) -> None:
    """Refuse early, before the data are read, if the picture could not be drawn."""
    if path.suffix not in SUFFIXES:
        raise PictureUnwritable(
            f"{path} is neither {' nor '.join(SUFFIXES)}.", hint="Give the file such an ending."
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlottingMissing(
            "matplotlib is not installed.",
            hint="pip install 'peterrec-serving[compare]', or leave --plot out.",
        ) from error


def draw_data(info: DataInfo, path: Path) -> None:
    """Histograms of history lengths and item popularity side by side, as PNG or SVG."""
    require_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    lengths, popularity = figure.subplots(1, 2)
    _histogram(lengths, info.lengths, "events of a user", f"{info.users:,} users")
    _histogram(popularity, info.popularity, "events of an item", f"{info.items:,} items")
    path.parent.mkdir(parents=True, exist_ok=True)
    dateless = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, dpi=150, metadata=dateless)


def _histogram(axes: "Axes", counts: Counts, label: str, title: str) -> None:
    """Bars of equal width on a logarithmic scale; no bar is narrower than one event."""
    largest = int(counts.max())
    edges = np.unique(np.geomspace(1, largest + 1, BARS).round())
    axes.hist(counts, bins=[float(edge) for edge in edges] if largest > 1 else [1.0, 2.0])
    axes.axvline(float(np.median(counts)), color="black", linestyle=":", label="median")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("how many")
    axes.set_title(title)
    axes.legend()
