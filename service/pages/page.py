"""One HTML page, or a fragment of one for a notebook, made of sections.

A page is a single file without scripts and without anything fetched from elsewhere, so it can be
sent by mail. It follows the reader's light or dark setting and prints on white. Every text is
escaped by the template, whatever ids and labels contain.

    table = Table("Users by class", ("class", "users"), [("f", 12), ("m", 9)])
    figure = bar_chart("Users by class", ["f", "m"], [12, 9])      # peterrec.service.pages.charts
    html = page("A report", [Section("Classes", [table, figure, Text("Two classes.")])])
    part = fragment([table])                                       # for _repr_html_
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from peterrec.model.disk import write_text
from peterrec.service.system.texts import printable

if TYPE_CHECKING:
    from jinja2 import Template

Cell = str | int | float | None
"""A value in a table. Whole numbers get thousands' separators, floats four significant digits, and
None an empty cell; give a text where another form is wanted."""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; a notice stands out from the others."""

    text: str
    is_notice: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The first column names its rows.

    ``shades`` has a number from 0 to 1 for each cell after the first column, by row; a cell with a
    larger number is darker, as in a confusion matrix. ``note`` stands below the table.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    shades: Sequence[Sequence[float]] = ()

    def shade(self, row: int, column: int) -> int | None:
        """How much of a cell's background is the accent colour, in percent; None for no shade."""
        if not self.shades or column == 0:
            return None
        return round(MOST_SHADE * self.shades[row][column - 1])


MOST_SHADE = 35
"""Percent of the accent colour behind a number; the contrast of the number stays above 4.5."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing: an ``<svg>`` element made by ``charts``, with what it shows in words."""

    title: str
    description: str
    svg: str


Part = Text | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = ""
) -> Table:
    """A plain table; rows are as long as the header."""
    return Table(caption, header, rows, note)


def matrix(caption: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    """A table of counts with one row and one column per label, shaded by its row's share."""
    sums = [max(1, sum(row)) for row in counts]
    shades = [[count / of for count in row] for row, of in zip(counts, sums, strict=True)]
    rows: list[tuple[Cell, ...]] = [
        (label, *row) for label, row in zip(labels, counts, strict=True)
    ]
    return Table(caption, ("", *labels), rows, shades=shades)


def page(title: str, sections: Sequence[Section], lead: Sequence[Text] = ()) -> str:
    """A complete HTML document. ``lead`` stands below the title, before the first section."""
    return _template("page.html").render(title=title, sections=sections, lead=lead)


def write_page(path: Path, html: str) -> None:
    """Write a page into a file, and create its folder."""
    write_text(path, html)


def fragment(parts: Sequence[Part], title: str = "") -> str:
    """A ``<div>`` with its own style, to be shown within another page such as a notebook."""
    return _template("fragment.html").render(parts=parts, title=title)


def shown(cell: Cell) -> str:
    """A cell's value as text."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else printable(cell)


@cache
def _template(name: str) -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["shown"] = shown
    templates.filters["kind"] = lambda part: type(part).__name__
    templates.filters["drawing"] = Markup  # made by charts, which escapes every text
    templates.globals["version"] = version("peterrec-serving")
    return templates.get_template(name)
