"""Titles and attributes for a bundle: read from tables, and brought into its outputs' order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.service.errors import ArgumentInvalid, DescriptionUnmatched

if TYPE_CHECKING:
    from peterrec.model.data.item_columns import ColumnType, ItemColumn
    from peterrec.patches.bundle.attributes import Attributes, Column
    from peterrec.service.jobs.options import TextOptions

DESCRIPTIONS = "Titles and attributes"
"""Title of the options in ``--help``."""

TYPES = ("text", "number", "time", "list")


@dataclass(frozen=True, slots=True)
class DescribeOptions:
    """Where the display names of outputs are, and the attributes of a ranking's items."""

    titles: Annotated[
        Path | None,
        typer.Option(
            help="Table of display names of the items or labels.", rich_help_panel=DESCRIPTIONS
        ),
    ] = None
    attributes: Annotated[
        Path | None,
        typer.Option(
            help="Table of items by whose columns requests may filter a ranking.",
            rich_help_panel=DESCRIPTIONS,
        ),
    ] = None
    id_column: Annotated[
        str,
        typer.Option(
            help="Column of the ids of items or labels in both tables.",
            rich_help_panel=DESCRIPTIONS,
        ),
    ] = "id"
    title_column: Annotated[
        str, typer.Option(help="Column of the display names.", rich_help_panel=DESCRIPTIONS)
    ] = "title"
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN[=TYPE]",
            help="Take only this column, as text, number, time or list; repeatable. Without it all "
            "columns are taken, as what their values look like.",
            rich_help_panel=DESCRIPTIONS,
        ),
    ] = None
    list_separator: Annotated[
        str,
        typer.Option(
            help="Text between several values in a field of a list.", rich_help_panel=DESCRIPTIONS
        ),
    ] = "|"

    @property
    def are_given(self) -> bool:
        """Whether there is anything to add to a bundle."""
        return self.titles is not None or self.attributes is not None


NOT_DESCRIBED = DescribeOptions()


def described(
    data: bytes, options: DescribeOptions, form: "TextOptions", observer: ReadingObserver = SILENT
) -> bytes:
    """Return a bundle with the titles and attributes of these tables; itself if none are given.

    Attributes replace those that it has, and titles its titles. DescriptionUnmatched if a table
    says nothing of any output.
    """
    from peterrec.model.data.item_columns import read_item_columns, read_titles
    from peterrec.patches.bundle.described import describe_bundle, outputs_named
    from peterrec.service.jobs.options import table_source

    if not options.are_given:
        return data
    names = outputs_named(data)
    titles: dict[str, str] | None = None
    columns: Attributes | None = None
    if options.titles is not None:
        source = table_source(options.titles, form, None, None)
        titles = read_titles(source, options.id_column, options.title_column, observer)
        _note_matches(source.name, names, titles, "titles", observer)
    if options.attributes is not None:
        source = table_source(options.attributes, form, None, None)
        types = _types_of(options.attribute or ())
        separator = options.list_separator
        found = read_item_columns(source, options.id_column, types, separator, observer)
        _note_matches(source.name, names, next(iter(found.values())).values, "attributes", observer)
        columns = {name: column_of(each, names) for name, each in found.items()}
        kinds = ", ".join(f"{name} ({each.type})" for name, each in found.items())
        observer.notice(f"{source.name}: items can be filtered by {kinds}.")
    return describe_bundle(data, titles, columns)


def column_of(column: "ItemColumn", names: Sequence[str]) -> "Column":
    """Bring a column into the order of a catalog's items."""
    import numpy as np

    from peterrec.model.spec import LONGEST_LABEL
    from peterrec.patches.bundle.attributes import (
        NO_TIME,
        list_column,
        number_column,
        text_column,
        time_column,
    )

    values = [column.values.get(name) for name in names]
    if column.type == "number":
        numbers = [float("nan") if value is None else value for value in values]
        return number_column(np.array(numbers, np.float64))
    if column.type == "time":
        times = [NO_TIME if value is None else value for value in values]
        return time_column(np.array(times, np.int64))
    if column.type == "list":
        return list_column(
            [[str(each)[:LONGEST_LABEL] for each in value or ()] for value in values]  # type: ignore[union-attr]  # tuples
        )
    return text_column([None if value is None else str(value)[:LONGEST_LABEL] for value in values])


def _types_of(written: Sequence[str]) -> "dict[str, ColumnType | None]":
    types: dict[str, ColumnType | None] = {}
    for text in written:
        name, has_type, kind = text.rpartition("=")
        if has_type and kind not in TYPES:
            raise ArgumentInvalid(
                f"attribute {text[:80]!r} has the type {kind[:40]!r}.",
                hint=f"Write COLUMN=TYPE with one of {', '.join(TYPES)}.",
            )
        types[name if has_type else text] = kind if has_type else None  # type: ignore[assignment]  # one of TYPES
    return types


def _note_matches(
    source: str,
    names: Sequence[str],
    found: Mapping[str, object],
    what: str,
    observer: ReadingObserver,
) -> None:
    known = sum(name in found for name in names)
    if not known:
        first = next(iter(found), None)
        raise DescriptionUnmatched(source, what, names[0] if names else None, first)
    if known < len(names):
        observer.notice(f"{source}: {len(names) - known:,} of {len(names):,} outputs have no row.")
