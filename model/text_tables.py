"""Text files of rows: their forms, and where in a file a row or a fault stands.

Reading is pyarrow's work, and it knows no line numbers: fields in quotes may hold line breaks, and
empty lines are no rows. So where a refusal needs a line, the file is read again up to there.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

import pyarrow as pa

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ATOMIC_SUFFIXES = (".inter", ".user", ".item")
"""RecBole's atomic files: tabs, no quotes, and a header of ``name:type``."""

ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a text file's fields are told apart."""

    delimiter: str
    has_quotes: bool
    has_types: bool

    def name_of(self, header: str) -> str:
        """A column's name as the user says it: without the type, in a file that has them."""
        name, colon, kind = header.rpartition(":")
        return name if self.has_types and colon and kind in ATOMIC_TYPES else header


def text_form(path: Path, delimiter: str) -> TextForm:
    """The form that a file's name tells; a CSV file's fields lie between delimiters."""
    if path.name.endswith(ATOMIC_SUFFIXES):
        return TextForm("\t", has_quotes=False, has_types=True)
    return TextForm(delimiter, has_quotes=True, has_types=False)


def header_types(path: Path) -> dict[str, str]:
    """The columns of an atomic file with their types; ``token`` where a header tells none."""
    form = text_form(path, "\t")
    _, header = next(_records(path, form), (1, []))
    return {
        form.name_of(text): text.rpartition(":")[2] if form.name_of(text) != text else "token"
        for text in header
    }


def line_of_row(path: Path, form: TextForm, row: int) -> int:
    """The line, counted from 1, where a row begins; the first one below the header is row 0."""
    with suppress(csv.Error):  # a field too large for this reader
        for number, (line, _) in enumerate(_records(path, form)):
            if number == row + 1:
                return line
    return row + 2  # the line that it has unless fields hold breaks


def first_fault(path: Path, form: TextForm) -> str | None:
    """Why a file cannot be read: the first broken row with its line and column, in words."""
    names: Sequence[str] = ()
    line = 0
    try:
        for line, fields in _records(path, form):
            names = names or fields
            broken = next((i for i, field in enumerate(fields) if not _is_text(field)), None)
            if broken is not None:
                column = names[broken] if broken < len(names) else str(broken + 1)
                return f"line {line}, column {column!r}: the text is not UTF-8."
            if len(fields) != len(names):
                return f"line {line}: {len(fields)} fields, not {len(names)}."
    except csv.Error as error:
        return f"the row after line {line}: {error}."
    return None


def _records(path: Path, form: TextForm) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not empty, the header too, with the line where it begins."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if form.has_quotes else csv.QUOTE_NONE
    with (
        pa.input_stream(path) as stream,  # decompresses by the file's suffix
        TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        reader = csv.reader(lines, delimiter=form.delimiter, quoting=quoting, strict=True)
        line = 1
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1


def _is_text(field: str) -> bool:
    try:
        field.encode()
    except UnicodeEncodeError:
        return False
    return True
