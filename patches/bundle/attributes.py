"""Attributes of a catalog's items, in columns: what a request may filter a ranking by.

A column of numbers has NaN, and one of times NO_TIME, where an item has no value. A column of texts
has each different text once, ascending, and the items have codes: one each, NO_TEXT for no value,
or in a list any number of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from peterrec.model.spec import LONGEST_LABEL
from peterrec.patches.bundle.header import Array, Tensors
from peterrec.patches.bundle.manifest import AttributeType, Manifest, ManifestAttribute
from peterrec.patches.bundle.texts import PackedTexts, text_problem

NO_TEXT = -1
"""Code of an item without a text."""

NO_TIME = np.iinfo(np.int64).min
"""Microseconds of an item without a time."""

EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""Microseconds since 1970 of the first and the last moment of the years 1 to 9999, in UTC."""

MAX_LIST_VALUES = 64
"""Most values of one item in a list, on the average over the catalog."""

Form = tuple[str, tuple[int | None, ...]]
"""A tensor's dtype and shape; None allows any size."""


@dataclass(frozen=True, eq=False)
class Column:
    """One attribute of K items. Which arrays there are depends on its form.

    ``numbers`` float64 [K]; ``times`` int64 [K], microseconds since 1970 in UTC; ``codes`` int32
    [K] of ``texts``, or [M] if each item has a list, item i codes ``rows[i]`` to ``rows[i + 1]``.
    """

    form: ManifestAttribute
    numbers: NDArray[np.float64] | None = None
    times: NDArray[np.int64] | None = None
    codes: NDArray[np.int32] | None = None
    rows: NDArray[np.int64] | None = None
    texts: PackedTexts | None = None

    @property
    def type(self) -> AttributeType:
        """What the values are."""
        return self.form.type

    @cached_property
    def has_value(self) -> NDArray[np.bool_]:
        """Which items have a value [K]."""
        if self.numbers is not None:
            return ~np.isnan(self.numbers)
        if self.times is not None:
            return np.asarray(self.times != NO_TIME)
        assert self.codes is not None
        if self.rows is not None:
            return np.asarray(self.rows[1:] > self.rows[:-1])
        return np.asarray(self.codes != NO_TEXT)

    def tensors_named(self, name: str) -> dict[str, Array]:
        """Return the tensors that a bundle stores."""
        arrays = {
            "numbers": self.numbers,
            "times": self.times,
            "codes": self.codes,
            "rows": self.rows,
        }
        found: dict[str, Array] = {
            f"{name}.{part}": array for part, array in arrays.items() if array is not None
        }
        return found if self.texts is None else found | self.texts.tensors_named(name)


Attributes = Mapping[str, Column]
"""The columns of a catalog by name."""


def attributes_of(manifest: Manifest, tensors: Tensors) -> Attributes:
    """Take the columns from a bundle's tensors, without a copy."""
    return {
        name: _column(form, stored, tensors)
        for (name, form), stored in zip(_listed(manifest), _names(manifest), strict=True)
    }


def attribute_tensors(attributes: Attributes) -> dict[str, Array]:
    """Return the tensors that a bundle stores of these columns."""
    return {
        name: array
        for number, (_, column) in enumerate(sorted(attributes.items()))
        for name, array in column.tensors_named(f"attribute.{number}").items()
    }


def text_column(values: Sequence[str | None]) -> Column:
    """A column of one text per item, or None for no value."""
    texts = sorted({value for value in values if value is not None})
    code_of = {text: code for code, text in enumerate(texts)}
    codes = [NO_TEXT if value is None else code_of[value] for value in values]
    form = ManifestAttribute(type="text")
    return Column(form, codes=np.array(codes, np.int32), texts=PackedTexts.pack(texts))


def list_column(values: Sequence[Sequence[str]]) -> Column:
    """A column of any number of texts per item."""
    texts = sorted({text for each in values for text in each})
    code_of = {text: code for code, text in enumerate(texts)}
    lists = [sorted({code_of[text] for text in each}) for each in values]
    rows = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(each) for each in lists], out=rows[1:])
    codes = np.array([code for each in lists for code in each], np.int32)
    form = ManifestAttribute(type="text", is_list=True)
    return Column(form, codes=codes, rows=rows, texts=PackedTexts.pack(texts))


def number_column(values: NDArray[np.float64]) -> Column:
    """A column of numbers float64 [K], NaN for no value."""
    return Column(ManifestAttribute(type="number"), numbers=values)


def time_column(values: NDArray[np.int64]) -> Column:
    """A column of times int64 [K] in microseconds since 1970 in UTC, NO_TIME for no value."""
    return Column(ManifestAttribute(type="time"), times=values)


def column_at(column: Column, places: Sequence[int | None]) -> Column:
    """The column of other items: each has the value at its place, and none where that is None."""
    if column.numbers is not None:
        numbers = column.numbers
        return number_column(
            np.array([np.nan if at is None else numbers[at] for at in places], np.float64)
        )
    if column.times is not None:
        times = column.times
        return time_column(
            np.array([NO_TIME if at is None else times[at] for at in places], np.int64)
        )
    assert column.codes is not None
    assert column.texts is not None
    codes, texts = column.codes, list(column.texts)
    if column.rows is not None:
        rows = column.rows
        lists = [() if at is None else codes[rows[at] : rows[at + 1]].tolist() for at in places]
        return list_column([[texts[code] for code in each] for each in lists])
    found = [NO_TEXT if at is None else int(codes[at]) for at in places]
    return text_column([None if code == NO_TEXT else texts[code] for code in found])


def attribute_forms(manifest: Manifest) -> Iterator[tuple[str, Form]]:
    """The tensors of a manifest's attributes, with dtype and shape."""
    items = manifest.head.outputs
    for (_, form), name in zip(_listed(manifest), _names(manifest), strict=True):
        if form.type == "number":
            yield f"{name}.numbers", ("F64", (items,))
        elif form.type == "time":
            yield f"{name}.times", ("I64", (items,))
        else:
            yield f"{name}.codes", ("I32", (None if form.is_list else items,))
            yield f"{name}.bytes", ("U8", (None,))
            yield f"{name}.offsets", ("I64", (None,))
            if form.is_list:
                yield f"{name}.rows", ("I64", (items + 1,))


def attribute_problems(manifest: Manifest, tensors: Tensors) -> Iterator[str]:
    """Every rule that the attributes break; a column with a part missing is not looked at."""
    forms = dict(attribute_forms(manifest))
    for (name, form), stored in zip(_listed(manifest), _names(manifest), strict=True):
        needed = {each for each in forms if each.startswith(f"{stored}.")}
        if not needed <= set(tensors):
            continue
        for problem in _problems(form, stored, tensors):
            yield f"attribute {name!r}: {problem}"


def _listed(manifest: Manifest) -> list[tuple[str, ManifestAttribute]]:
    return sorted(manifest.attributes.items())


def _names(manifest: Manifest) -> list[str]:
    """The names of the columns' tensors: columns are numbered in the order of their names."""
    return [f"attribute.{number}" for number in range(len(manifest.attributes))]


def _column(form: ManifestAttribute, name: str, tensors: Tensors) -> Column:
    if form.type == "number":
        return Column(form, numbers=tensors[f"{name}.numbers"])
    if form.type == "time":
        return Column(form, times=tensors[f"{name}.times"])
    return Column(
        form,
        codes=tensors[f"{name}.codes"],
        rows=tensors[f"{name}.rows"] if form.is_list else None,
        texts=PackedTexts.named(tensors, name),
    )


def _problems(form: ManifestAttribute, name: str, tensors: Tensors) -> Iterator[str]:
    if form.type == "number":
        if np.isinf(tensors[f"{name}.numbers"]).any():
            yield "has a number that is infinite"
    elif form.type == "time":
        times = tensors[f"{name}.times"]
        if ((times != NO_TIME) & ((times < EARLIEST) | (times > LATEST))).any():
            yield "has a time outside the years 1 to 9999"
    else:
        yield from _text_problems(form, name, tensors)


def _text_problems(form: ManifestAttribute, name: str, tensors: Tensors) -> Iterator[str]:
    packed, offsets = tensors[f"{name}.bytes"], tensors[f"{name}.offsets"]
    if not offsets.size:
        yield "has no offsets"
        return
    problem = text_problem(packed, offsets, "a text", longest=LONGEST_LABEL)
    if problem:
        yield problem
    elif not all(one < other for one, other in pairwise(PackedTexts(packed, offsets).encoded())):
        yield "has texts that do not ascend"
    codes = tensors[f"{name}.codes"]
    lowest = 0 if form.is_list else NO_TEXT
    if ((codes < lowest) | (codes >= offsets.size - 1)).any():
        yield f"has codes outside {lowest}..{offsets.size - 2}"
    if form.is_list:
        rows = tensors[f"{name}.rows"]
        if rows[0] != 0 or rows[-1] != codes.size or (rows[:-1] > rows[1:]).any():
            yield f"has rows that do not divide its {codes.size} codes among the items"
        elif codes.size > MAX_LIST_VALUES * (rows.size - 1):
            yield f"has more than {MAX_LIST_VALUES} values per item"
