"""A picture of a table of interactions: how long histories are and how popular items.

Matplotlib is optional: the statistics need none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.comparison.errors import PlottingMissing
from model.data_errors import PictureUnwritable
from model.data_info import Counts, DataInfo

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
