"""How the values of a column become texts: ids, labels and tags, exact, whatever carries them.

A value's text is what a text file would have: integers and decimals digit by digit, truths as
``true`` and ``false``, dates and times in ISO's form. Numbers that their type has rounded, or
cannot be ids, are refused. NaN, null, the empty text and blanks are the same: no value. A text such
as ``NULL`` is refused, unless somebody has said what it means.

What a single value cannot tell is settled for a column as a whole (see ``settled``). Decision 0084
has the rules and their reasons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TablePart, one_array
from peterrec.model.errors import MissingText, ValueMissing, ValueTypeInvalid

MISSING_TEXTS = (
    *("NaN", "nan", "NULL", "Null", "null", "NA", "<NA>", "N/A", "n/a", "#N/A"),
    *("None", "NaT", "\\N", "<null>", "(null)", "[NULL]", "NAN", "-nan", "-NaN", "#NA"),
)
"""How programs write that there is no value. In a text file, they may also be values."""

EXACT_BELOW = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}
"""Whole numbers below this are exact in a type; larger ones may stand for several integers."""

WHOLE = r"^-?(0|[1-9][0-9]*)(\.0+)?$"
"""An integer, perhaps as a program writes it that had turned the column into floats."""

ROUNDED = r"^-?[1-9](\.[0-9]+)?[eE]\+?[0-9]+$"
"""A large integer as spreadsheets and floats write it."""


def texts_of(part: TablePart, column: str, has_fractions: bool = False) -> pa.Array:
    """A column as texts; a missing value is null, and blanks around a text are still there.

    ``has_fractions`` admits numbers such as 2.5, which may be labels but no ids. Errors name the
    place of the first bad value.
    """
    texts, bad = _texts(part, column, has_fractions)
    if (row := pc.index(bad, True).as_py()) >= 0:
        raise _inexact(part, column, row)
    trimmed = pc.utf8_trim_whitespace(texts)
    possible = doubtful_texts(part.missing)
    if not pc.any(_is_one_of(trimmed, ("", *possible, *part.missing))).as_py():
        return texts
    is_missing = _is_one_of(trimmed, ("", *part.missing))
    doubtful = pc.and_(_is_one_of(trimmed, possible), pc.invert(is_missing))
    if (row := pc.index(doubtful, True).as_py()) >= 0:
        raise missing_text(part.place(row, column), texts[row].as_py())
    return pc.if_else(is_missing, pa.scalar(None, texts.type), texts)


def doubtful_texts(missing: Sequence[str]) -> tuple[str, ...]:
    """Texts that may mean that there is no value; none if ``missing`` has the empty text.

    The empty text always is no value. Who names it says that ``missing`` is complete, and that all
    other texts are values, such as ``NA`` for Namibia.
    """
    return () if "" in missing else MISSING_TEXTS


def missing_text(place: str, text: str) -> MissingText:
    """The error of a text that may mean that there is no value."""
    return MissingText(
        f"{place}: the text {text!r} may mean that there is no value.",
        hint="If it does, name it with `missing`, or empty the field. If it is a value, name an "
        "empty text with `missing`: then only empty fields are without a value.",
    )


def require_values(part: TablePart, column: str, texts: pa.Array) -> None:
    """Refuse texts of a column with a missing one; the error names the place of the first."""
    if texts.null_count:
        row = pc.index(texts.is_null(), True).as_py()
        raise ValueMissing(
            f"{part.place(row, column)}: the value is missing.", hint="Fill it or remove the row."
        )


@dataclass(frozen=True, slots=True)
class CodedColumn:
    """A column of a table as settled texts, each once, and its rows as indices of them.

    ``codes`` has an array int64 for each part of the table; -1 is a missing value.
    """

    texts: tuple[str, ...]
    codes: list[npt.NDArray[np.int64]]


def read_codes(
    parts: Sequence[TablePart],
    column: str,
    observer: ReadingObserver = SILENT,
    *,
    allows_missing: bool = False,
    has_fractions: bool = False,
) -> CodedColumn:
    """A column of all parts of a table; what it was decided to mean is told to the observer."""
    found = [texts_of(part, column, has_fractions) for part in parts]
    if not allows_missing:
        for part, texts in zip(parts, found, strict=True):
            require_values(part, column, texts)
    raw = pc.drop_null(pa.chunked_array(found, pa.string()).unique())
    known = settled(raw, column, parts[0].source if parts else "")
    for notice in known.notices:
        observer.notice(notice)
    merged = known.texts.dictionary_encode()  # settled texts may be equal
    indices = (merged.indices.take(pc.index_in(texts, raw)).fill_null(-1) for texts in found)
    codes = [own.to_numpy(zero_copy_only=False).astype(np.int64) for own in indices]
    return CodedColumn(tuple(merged.dictionary.to_pylist()), codes)


def read_texts(parts: Sequence[TablePart], column: str) -> list[list[str]]:
    """A column of all parts of a table as settled texts; a missing value is refused."""
    found = read_codes(parts, column)
    texts = np.array(found.texts, dtype=np.object_)
    return [texts[codes].tolist() for codes in found.codes]


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
    rounded = pc.filter(texts, pc.match_substring_regex(texts, ROUNDED))
    if len(rounded):
        notices.append(
            f"{place}: values such as {rounded[0].as_py()} look like integers that a program has "
            "rounded; they are taken as they stand."
        )
    small = pc.utf8_lower(texts)
    is_truth = pc.is_in(small, pa.array(["true", "false"]))
    if len(texts) and pc.all(is_truth).as_py():
        texts = small
    return Settled(texts, tuple(notices))


TEXTS = (pa.types.is_string, pa.types.is_large_string)
PLAIN = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer),
    *(pa.types.is_date, pa.types.is_timestamp, pa.types.is_time),
)
FLOATS = (pa.types.is_float32, pa.types.is_float64)
BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    pa.types.is_fixed_size_binary,
)


def _texts(part: TablePart, column: str, has_fractions: bool) -> tuple[pa.Array, pa.Array]:
    """A column's texts, and which of its values cannot be written exactly."""
    values = one_array(part.table[column])
    kind = values.type
    if any(is_kind(kind) for is_kind in TEXTS):
        return values, NONE_BAD
    if any(is_kind(kind) for is_kind in PLAIN):
        return values.cast(pa.string()), NONE_BAD
    if any(is_kind(kind) for is_kind in FLOATS):
        return _texts_of_floats(values, has_fractions)
    if pa.types.is_decimal(kind):
        return _of_distinct(values, lambda distinct: _texts_of_decimals(distinct, has_fractions))
    if any(is_kind(kind) for is_kind in BYTES):
        return _of_distinct(values, _texts_of_bytes)
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name in EXTENSIONS:
        return EXTENSIONS[kind.extension_name](values), NONE_BAD
    raise ValueTypeInvalid(
        f"{part.place(0, column)}: values of type {kind} can be neither ids nor labels.",
        hint="Write the column as texts or integers.",
    )


NONE_BAD = pa.array([], pa.bool_())
"""No value is bad."""

EXTENSIONS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "arrow.uuid": lambda values: pa.array(
        [None if value is None else str(value) for value in values.to_pylist()], pa.string()
    ),
    "arrow.json": lambda values: values.storage.cast(pa.string()),
    "arrow.bool8": lambda values: values.storage.cast(pa.bool_()).cast(pa.string()),
}
"""Types in other words that can be texts."""


def _of_distinct(
    values: pa.Array, texts_of_values: Callable[[pa.Array], tuple[pa.Array, pa.Array]]
) -> tuple[pa.Array, pa.Array]:
    """What a slow function says of each distinct value, for all values."""
    encoded = values.dictionary_encode()
    texts, bad = texts_of_values(encoded.dictionary)
    return texts.take(encoded.indices), bad.take(encoded.indices)


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
    return pc.is_in(texts, pa.array(wanted, texts.type))


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
