"""How the values of a column become texts: ids, labels and tags, exact, whatever carries them.

A value's text is what a text file would have: integers and decimals digit by digit, truths as
``true`` and ``false``, dates and times in ISO's form. Numbers that their type has rounded, or
cannot be ids, are refused. NaN, null, the empty text and blanks are the same: no value. A text such
as ``NULL`` is refused, unless somebody has said that it means no value.

What a single value cannot tell is settled for a column as a whole (see ``settled``). Decision 0084
has the rules and their reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TablePart, one_array
from peterrec.model.errors import MissingText, ValueMissing, ValueTypeInvalid

MISSING_TEXTS = (
    *("NaN", "nan", "NULL", "Null", "null", "NA", "<NA>", "N/A", "n/a", "#N/A"),
    *("None", "NaT", "\\N", "<null>"),
)
"""How programs write that there is no value. In a text file, they may also be values."""

EXACT_BELOW = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}
"""Whole numbers below this are exact in a type; larger ones may stand for several integers."""

WHOLE = r"^-?(0|[1-9][0-9]*)(\.0+)?$"
"""An integer, perhaps as a program writes it that had turned the column into floats."""


def texts_of(part: TablePart, column: str, has_fractions: bool = False) -> pa.DictionaryArray:
    """A column as texts, each distinct one once; a missing value is null.

    Blanks around a text are still there. ``has_fractions`` admits numbers such as 2.5, which may be
    labels but no ids. Errors name the place of the first bad value.
    """
    encoded = _encoded(part, column)
    texts, bad = _texts(encoded.dictionary, has_fractions)
    if (row := _first_row(encoded, bad)) is not None:
        raise _inexact(part, column, row)
    trimmed = pc.utf8_trim_whitespace(texts)
    is_missing = pc.or_kleene(pc.equal(trimmed, ""), _is_one_of(trimmed, part.missing))
    doubtful = pc.and_not_kleene(_is_one_of(trimmed, MISSING_TEXTS), is_missing)
    if (row := _first_row(encoded, doubtful)) is not None:
        raise MissingText(
            f"{part.place(row, column)}: the text {part.table[column][row].as_py()!r}.",
            hint="If it means that there is no value, say so with `missing`, or empty the field.",
        )
    texts = pc.if_else(is_missing, pa.scalar(None, pa.string()), texts)
    return pa.DictionaryArray.from_arrays(encoded.indices, texts)


def require_values(part: TablePart, column: str, texts: pa.DictionaryArray) -> None:
    """Refuse texts of a column with a missing one; the error names the place of the first."""
    missing = pc.is_null(texts.dictionary)
    row = _first_row(texts, missing)
    if texts.indices.null_count:
        first = pc.index(pc.is_null(texts.indices), True).as_py()
        row = first if row is None else min(row, first)
    if row is not None:
        raise ValueMissing(
            f"{part.place(row, column)}: the value is missing.", hint="Fill it or remove the row."
        )


def read_texts(
    parts: Sequence[TablePart],
    column: str,
    observer: ReadingObserver = SILENT,
    *,
    allows_missing: bool = False,
    has_fractions: bool = False,
) -> list[list[str | None]]:
    """A column of all parts of a table as settled texts; None is missing, if that is allowed."""
    found = [texts_of(part, column, has_fractions) for part in parts]
    if not allows_missing:
        for part, texts in zip(parts, found, strict=True):
            require_values(part, column, texts)
    chunks = [texts.dictionary for texts in found]
    raw = pc.drop_null(pa.chunked_array(chunks, pa.string()).unique())
    known = settled(raw, column, parts[0].source if parts else "")
    for notice in known.notices:
        observer.notice(notice)
    return [
        known.texts.take(pc.index_in(texts.dictionary, raw)).take(texts.indices).to_pylist()
        for texts in found
    ]


@dataclass(frozen=True, slots=True)
class Settled:
    """The texts of a column, one for each text that was given, and what a person should know."""

    texts: pa.StringArray
    notices: tuple[str, ...]


def settled(texts: pa.Array, column: str, source: str) -> Settled:
    """Decide what only a whole column can tell; ``texts`` are its distinct texts, without nulls.

    Blanks around texts are removed. If all are integers, some written like ``1.0``, the zeros are
    removed; ``007`` and ``1.10`` are no such integers. If all say true or false, they are written
    small.
    """
    place = f"{source}, column {column!r}"
    notices: list[str] = []
    trimmed = pc.utf8_trim_whitespace(texts)
    merged = len(texts) - pc.count_distinct(trimmed).as_py()
    if merged:
        changed = pc.filter(texts, pc.not_equal(texts, trimmed))
        notices.append(
            f"{place}: without the blanks around them, {merged} of the values equal others, such "
            f"as {changed[0].as_py()!r}."
        )
    texts = trimmed
    has_zeros = pc.match_substring(texts, ".0")
    if pc.any(has_zeros).as_py() and pc.all(pc.match_substring_regex(texts, WHOLE)).as_py():
        example = pc.filter(texts, has_zeros)[0].as_py()
        texts = pc.replace_substring_regex(texts, r"\.0+$", "")
        notices.append(
            f"{place}: all values are integers, some written like {example}; they are taken as "
            f"{example.partition('.')[0]}."
        )
    small = pc.utf8_lower(texts)
    is_truth = pc.is_in(small, pa.array(["true", "false"]))
    if len(texts) and pc.all(is_truth).as_py():
        texts = small
    return Settled(texts, tuple(notices))


def _encoded(part: TablePart, column: str) -> pa.DictionaryArray:
    """Each distinct value of a column once, as its own type has it."""
    values = part.table[column]
    kind = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_extension(part, column, values).dictionary_encode()
    if not any(is_kind(kind) for is_kind in (*TEXTS, *BYTES, *PLAIN, *NUMBERS)):
        raise _bad_type(part, column, kind)
    return one_array(values).dictionary_encode()


TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    pa.types.is_fixed_size_binary,
)
PLAIN = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer),
    *(pa.types.is_date, pa.types.is_timestamp, pa.types.is_time),
)
NUMBERS = (pa.types.is_decimal, pa.types.is_float32, pa.types.is_float64)


def _plain_extension(part: TablePart, column: str, values: pa.ChunkedArray) -> pa.Array:
    """The texts of an extension type that is a text in other words; others are refused."""
    kind = values.type
    if kind.extension_name == "arrow.uuid":
        return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())
    if kind.extension_name in ("arrow.json", "arrow.bool8"):
        plain = pa.bool_() if kind.extension_name == "arrow.bool8" else pa.string()
        return one_array(pa.chunked_array([chunk.storage for chunk in values.chunks])).cast(plain)
    raise _bad_type(part, column, kind)


def _texts(values: pa.Array, has_fractions: bool) -> tuple[pa.Array, pa.Array]:
    """Texts of distinct values, and which of the values cannot be written exactly."""
    kind = values.type
    if any(is_kind(kind) for is_kind in BYTES):
        return _texts_of_bytes(values)
    if pa.types.is_decimal(kind):
        return _texts_of_decimals(values, has_fractions)
    if kind in EXACT_BELOW:
        return _texts_of_floats(values, has_fractions)
    return values.cast(pa.string()), pa.array(np.zeros(len(values), dtype=np.bool_))


def _texts_of_bytes(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Bytes that are UTF-8 are the text that they write."""
    texts: list[str | None] = []
    bad: list[bool] = []
    for value in values.to_pylist():
        try:
            texts.append(None if value is None else value.decode())
            bad.append(False)
        except UnicodeDecodeError:
            texts.append(None)
            bad.append(True)
    return pa.array(texts, pa.string()), pa.array(bad, pa.bool_())


def _texts_of_decimals(values: pa.Array, has_fractions: bool) -> tuple[pa.Array, pa.Array]:
    """Decimals digit by digit; a fraction of zeros is left out."""
    written = [None if value is None else f"{value:f}" for value in values.to_pylist()]
    texts = pc.replace_substring_regex(
        pc.replace_substring_regex(pa.array(written, pa.string()), r"(\.[0-9]*?)0+$", r"\1"),
        r"\.$",
        "",
    )
    has_fraction = pc.match_substring(texts, ".")
    return texts, pc.and_(has_fraction, not has_fractions)


def _texts_of_floats(values: pa.Array, has_fractions: bool) -> tuple[pa.Array, pa.Array]:
    """Floats as text files have them: ``1.0``, so that a whole column settles both alike."""
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    whole = pc.equal(values, pc.round(values))
    is_exact = pc.less(pc.abs(values), EXACT_BELOW[values.type])
    integers = pc.if_else(pc.and_(whole, is_exact), values, pa.scalar(0.0, values.type))
    digits = pc.binary_join_element_wise(integers.cast(pa.int64()).cast(pa.string()), ".0", "")
    texts = pc.if_else(whole, digits, values.cast(pa.string()))
    bad = (
        pc.and_(whole, pc.invert(is_exact))
        if has_fractions
        else (pc.invert(pc.and_(whole, is_exact)))
    )
    return texts, bad


def _is_one_of(texts: pa.Array, wanted: Sequence[str]) -> pa.Array:
    return pc.is_in(texts, pa.array(wanted, pa.string()))


def _first_row(encoded: pa.DictionaryArray, flags: pa.Array) -> int | None:
    """The first row whose value is flagged among the distinct values."""
    flagged = np.flatnonzero(flags.fill_null(False).to_numpy(zero_copy_only=False))
    if not len(flagged):
        return None
    codes = encoded.indices.fill_null(-1).to_numpy()
    rows = np.flatnonzero(np.isin(codes, flagged))
    return int(rows[0]) if len(rows) else None


def _bad_type(part: TablePart, column: str, kind: pa.DataType) -> ValueTypeInvalid:
    return ValueTypeInvalid(
        f"{part.place(0, column)}: values of type {kind} can be neither ids nor labels.",
        hint="Write the column as texts or integers.",
    )


def _inexact(part: TablePart, column: str, row: int) -> ValueTypeInvalid:
    value = part.table[column][row].as_py()
    kind = part.table[column].type
    if isinstance(value, bytes):
        reason, hint = "is no text in UTF-8", "Write the column as texts, or bytes as hexadecimals."
    elif value == int(value) if value not in (float("inf"), float("-inf")) else False:
        reason = "is beyond the integers that the type tells apart"
        hint = "Write the column as integers or texts, from data that were never floats."
    else:
        reason, hint = "is no integer", "Write the column as texts or integers."
    return ValueTypeInvalid(
        f"{part.place(row, column)}: {value!r} of type {kind} {reason}.", hint=hint
    )
