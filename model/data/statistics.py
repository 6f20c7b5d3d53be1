"""Statistics and a picture of a table of interactions.

They show sizes, the lengths of histories, the popularity of items, repetitions, ties and times. The
picture needs matplotlib, which is optional; the statistics do not.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from peterrec.model.data.interactions import Events
from peterrec.model.disk import file_in_one_step
from peterrec.model.documents import Document
from peterrec.model.errors import PictureUnwritable, PlottingMissing

Counts = npt.NDArray[np.int64]

QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "p99": 99}
UNIX_SECONDS = (1e8, 1e10)
"""Numbers in this range (from 1973) are also shown as dates, in case they are seconds."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of counts: quantiles by name, the mean and the largest."""

    quantiles: dict[str, float]
    mean: float
    largest: int


@dataclass(frozen=True, slots=True)
class Times:
    """The range of the order column, and how many events it does not order.

    ``tied_share`` is the share of events at the time of another event of their user, which a hash
    orders. ``first`` and ``last`` are dates, or plain numbers.
    """

    first: str
    last: str
    tied_share: float


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The statistics of one table.

    ``lengths`` counts the events of each user, ``popularity`` those of each item. ``sparsity`` is
    the share of user–item pairs that never occur. ``repeated_share`` is the share of events whose
    item their user had before; ``duplicate_share`` of events that repeat user, item and time (None
    without an order column). ``top_shares`` are the shares of events on the most popular items.
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
        """All fields as JSON, except the counts of single users and items."""
        fields = asdict(self)
        del fields["lengths"], fields["popularity"]
        return fields


def describe_events(events: Events) -> DataInfo:
    """Compute the statistics of events."""
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
    """The number of distinct pairs in two columns."""
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
    """A time as text; a number that may be seconds since 1970 is shown with its date."""
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
"""Most bars of a histogram."""


def require_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before the data are read."""
    if path.suffix not in SUFFIXES:
        raise PictureUnwritable(
            f"{path} ends neither in {' nor in '.join(SUFFIXES)}.",
            hint="Give the file one of these endings.",
        )
    require_matplotlib("Or leave `plot` out.")


def require_matplotlib(instead: str) -> None:
    """Raise PlottingMissing without matplotlib; ``instead`` says what else can be done."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlottingMissing(
            "matplotlib is not installed.",
            hint=f"Install it: pip install 'peterrec-serving[compare]'. {instead}",
        ) from error


def draw_data(info: DataInfo, path: Path) -> None:
    """Draw histograms of history lengths and item popularity, as PNG or SVG."""
    require_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    lengths, popularity = figure.subplots(1, 2)
    _histogram(lengths, info.lengths, "events of a user", f"{info.users:,} users")
    _histogram(popularity, info.popularity, "events of an item", f"{info.items:,} items")
    dateless = {"Date": None} if path.suffix == ".svg" else {}
    with file_in_one_step(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=dateless)


def _histogram(axes: "Axes", counts: Counts, label: str, title: str) -> None:
    """Draw bars of equal width on a logarithmic scale; no bar is narrower than one event."""
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
