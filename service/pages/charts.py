"""Drawings for pages: bars, lines and histograms, as SVG elements made with matplotlib.

Matplotlib takes half a second to import, so it is imported when the first figure is drawn. Its
colours are placeholders here, which become the page's CSS variables: a figure is then light or dark
with its page. Every figure has a description in words for readers who do not see it.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from peterrec.service.pages.page import Figure
from peterrec.service.system.texts import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Sequence[float] | npt.NDArray[np.int64] | npt.NDArray[np.float64]

INK, MUTED, LINE = "#010203", "#010204", "#010205"
"""Placeholders of the page's colours of text, of lesser text and of thin lines."""

SERIES = tuple(f"#01021{place}" for place in range(6))
"""Placeholders of the page's colours of data, which differ in brightness too."""

DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Styles of lines, so that no line is told from another by its colour alone."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    colour: f"--series-{place}" for place, colour in enumerate(SERIES)
}

_LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
"""Parts of matplotlib's SVG: dates and links, a style for the whole page, and comments."""

MOST_BINS = 40
LONGEST_LABEL = 32
"""Characters of a label beside a bar; the rest of a longer one is left out."""


@dataclass(frozen=True, slots=True)
class Line:
    """A named line through points; ``low`` and ``high``, if given, bound a band around it."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


def drawing(
    title: str,
    description: str,
    draw: "Callable[[Axes], None]",
    size: tuple[float, float] = (7.0, 3.2),
) -> Figure:
    """A figure that ``draw`` makes on one pair of axes with the colours of this module.

    ``size`` is in inches of 72 CSS points. Texts on the axes are never read as formulas.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(_style()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that matplotlib lacks and the reader has
        canvas = Canvas(figsize=size, layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        draw(axes)
        out = StringIO()
        canvas.savefig(out, format="svg", transparent=True)
    return Figure(title, description, _inline(out.getvalue(), title, description))


def bar_chart(
    title: str, labels: Sequence[str], values: Numbers, description: str = "", unit: str = ""
) -> Figure:
    """Horizontal bars from top to bottom, each with its label and its value.

    Without a description, the figure is described by its labels and values.
    """
    names = [short_label(label) for label in labels]
    texts = [f"{value:,.4g}" if value % 1 else f"{value:,.0f}" for value in values]

    def draw(axes: "Axes") -> None:
        bars = axes.barh(range(len(names)), values, color=SERIES[0])
        axes.bar_label(bars, texts, padding=3, color=INK)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.15, y=0.02)
        axes.set_xlabel(unit)

    pairs = (f"{name} {text}" for name, text in zip(names, texts, strict=True))
    return drawing(title, description or ", ".join(pairs), draw, (7.0, 0.6 + 0.26 * len(names)))


def line_chart(
    title: str, lines: Sequence[Line], x_label: str, y_label: str, description: str = ""
) -> Figure:
    """Lines over a common axis, told apart by dashes and colours.

    Without a description, the figure is described by the first, last and extreme values.
    """

    def draw(axes: "Axes") -> None:
        for place, line in enumerate(lines):
            colour, dash = SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]
            marker = "o" if len(line.x) < MOST_BINS else ""
            axes.plot(
                line.x,
                line.y,
                color=colour,
                linestyle=dash,
                marker=marker,
                label=short_label(line.name),
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            axes.legend(frameon=False)

    return drawing(title, description or "; ".join(map(_words_of, lines)), draw)


def histogram(
    title: str,
    values: Numbers,
    label: str,
    description: str = "",
    is_logarithmic: bool = False,
) -> Figure:
    """How many values fall into bins; counts above 0 may have bins that grow and a log scale."""
    numbers = np.asarray(values)

    def draw(axes: "Axes") -> None:
        draw_histogram(axes, numbers, label, is_logarithmic)

    ends = f"from {numbers.min():,.6g} to {numbers.max():,.6g}, median {np.median(numbers):,.6g}"
    return drawing(title, description or f"{len(numbers):,} values of {label}, {ends}.", draw)


def draw_histogram(
    axes: "Axes", numbers: npt.NDArray[Any], label: str, is_logarithmic: bool
) -> None:  # Any: a number's type
    """Draw bars and the median on axes, in the first colour of their style."""
    axes.hist(numbers, bins=[float(edge) for edge in bin_edges(numbers, is_logarithmic)])
    axes.axvline(float(np.median(numbers)), color=_ink(), linestyle=":", label="median")
    if is_logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_plain_number)
            axis.set_minor_formatter(_number_of_few)
    axes.set_xlabel(label)
    axes.set_ylabel("how many")
    axes.legend(frameon=False)


def _plain_number(value: float, _: float = 0) -> str:
    return f"{value:,.0f}" if value >= 1 else ""


def _number_of_few(value: float, _: float = 0) -> str:
    """A number between two powers of ten if it begins with 2 or 5, so that labels do not touch."""
    return _plain_number(value) if f"{value:.0e}"[0] in "25" else ""


def _ink() -> str:
    """The colour of texts in the current style."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def bin_edges(values: npt.NDArray[Any], is_logarithmic: bool) -> npt.NDArray[np.float64]:
    """Bins of equal width, or of equal ratio for counts; no bin of counts is narrower than 1."""
    low, high = float(values.min()), float(values.max())  # Any: a number's type
    if is_logarithmic:
        edges = np.unique(np.geomspace(1, high + 1, MOST_BINS).round())
        return edges if high > 1 else np.array([1.0, 2.0])
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    return np.linspace(low, high, MOST_BINS + 1)


def _words_of(line: Line) -> str:
    values = np.asarray(line.y, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return f"{line.name}: no values"
    ends = f"from {finite[0]:.4g} to {finite[-1]:.4g}"
    return f"{line.name}: {ends}, smallest {finite.min():.4g}, largest {finite.max():.4g}"


def short_label(label: str) -> str:
    """A label that fits beside a bar."""
    text = printable(label)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _style() -> dict[Any, Any]:  # Any: matplotlib lists the names of its settings
    """Matplotlib's settings: the page's colours, texts as texts, and equal files for equal data."""
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=SERIES),
        "svg.fonttype": "none",
        "svg.hashsalt": "peterrec",
        "text.parse_math": False,
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": LINE,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.labelcolor": INK,
    }


def _inline(svg: str, title: str, description: str) -> str:
    """An ``<svg>`` element for an HTML page: described, coloured by it, without links and dates."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', body)
    width = re.search(r'width="([\d.]+)pt"', body)
    assert view is not None
    assert width is not None
    body = _LEFT_OUT.sub("", body[body.index(">") + 1 :]).replace("xlink:href=", "href=")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    texts = f"{title}\n{description}\n{body}"
    key = sha256(texts.encode(errors="replace")).hexdigest()[:8]
    body = _own_ids(body, f"figure-{key}-")
    names = f"figure-{key}-title figure-{key}-words"
    return (
        f'<svg role="img" aria-labelledby="{names}" {view[0]} width="{width[1]}pt">'
        f'<title id="figure-{key}-title">{escape(printable(title))}</title>'
        f'<desc id="figure-{key}-words">{escape(printable(description))}</desc>{body.strip()}'
    )


def _own_ids(body: str, prefix: str) -> str:
    """The body with ids of its own on its page; ids that nothing names are left out."""
    named = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))

    def own(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in named else ""

    body = re.sub(r' id="([^"]*)"', own, body)
    return re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", body)
