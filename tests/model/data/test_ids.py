"""Ids are exact, whatever type carries them, and refused where their type has lost something."""

from decimal import Decimal
from pathlib import Path
from uuid import UUID

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.interactions import InteractionSource, read_events, read_histories
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import MissingText, ValueMissing, ValueTypeInvalid
from tests.model.data.recorder import Recorder

BEYOND = 2**53


def items_of(items: pa.Array, observer: Recorder | None = None, **options) -> tuple[str, ...]:
    """The vocabulary of one user's events on these items."""
    table = pa.table({"user_id": ["u"] * len(items), "item_id": items})
    source = InteractionSource(TableSource(table, **options))
    return read_events(source, observer or Recorder()).items


def texts_file(folder: Path, items: list[str]) -> InteractionSource:
    path = folder / "events.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u,{item}\n" for item in items))
    return InteractionSource(TableSource(path))


LARGE = [BEYOND + i for i in range(30)]
CARRIERS = {
    "int64": pa.array(LARGE, pa.int64()),
    "uint64": pa.array(LARGE, pa.uint64()),
    "decimal128": pa.array([Decimal(i) for i in LARGE], pa.decimal128(38, 0)),
    "decimal128 of 20 digits": pa.array([Decimal(i) for i in LARGE], pa.decimal128(20, 0)),
    "decimal256": pa.array([Decimal(i) for i in LARGE], pa.decimal256(60, 0)),
    "decimal with zeros": pa.array([Decimal(i) for i in LARGE], pa.decimal128(30, 4)),
    "dictionary": pa.array(LARGE, pa.int64()).dictionary_encode(),
    "dictionary of decimals": pa.array(
        [Decimal(i) for i in LARGE], pa.decimal128(38, 0)
    ).dictionary_encode(),
    "texts": pa.array([str(i) for i in LARGE]),
    "large texts": pa.array([str(i) for i in LARGE], pa.large_string()),
    "text views": pa.array([str(i) for i in LARGE], pa.string_view()),
    "bytes": pa.array([str(i).encode() for i in LARGE]),
    "bytes of one length": pa.array([str(i).encode() for i in LARGE], pa.binary(16)),
    "byte views": pa.array([str(i).encode() for i in LARGE], pa.binary_view()),
}


@pytest.mark.parametrize("items", CARRIERS.values(), ids=CARRIERS.keys())
def test_integers_beyond_2_to_the_53_stay_apart(items):
    assert items_of(items) == tuple(str(i) for i in LARGE)


WIDE = {
    "uint64": (pa.array([2**64 - 1, 2**64 - 2], pa.uint64()), ("18446744073709551615",)),
    "negative": (pa.array([-(2**63), 1]), ("-9223372036854775808",)),
    "38 digits": (pa.array([Decimal(10**37 + 1)], pa.decimal128(38, 0)), (str(10**37 + 1),)),
    "60 digits": (pa.array([Decimal(10**59 + 1)], pa.decimal256(60, 0)), (str(10**59 + 1),)),
    "negative scale": (pa.array([Decimal("1.2E+4")], pa.decimal128(5, -3)), ("12000",)),
    "truths": (pa.array([True, False]), ("true", "false")),
    "days": (pa.array([19000], pa.date32()), ("2022-01-08",)),
    "UUIDs": (
        pa.array([UUID(int=7).bytes], pa.uuid()),
        ("00000000-0000-0000-0000-000000000007",),
    ),
}


@pytest.mark.parametrize(("items", "first"), WIDE.values(), ids=WIDE.keys())
def test_ids_are_written_digit_by_digit(items, first):
    assert items_of(items)[: len(first)] == first


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_whole_floats_are_the_integers_that_they_once_were(kind):
    told = Recorder()
    assert items_of(pa.array([1.0, None, 3.0], kind).drop_null(), told) == ("1", "3")


FLOATS = {
    "a fraction": (pa.array([1.0, 2.5]), r"row 2, column 'item_id': 2\.5 of type double is no int"),
    "too large": (pa.array([1.0, 2.0**53]), "row 2, .* beyond the integers"),
    "too large for 32 bits": (pa.array([2.0**24], pa.float32()), "row 1, .* beyond the integers"),
    "infinite": (pa.array([float("inf")]), "row 1, .*inf of type double"),
    "a decimal's fraction": (
        pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
        r"row 1, .*Decimal\('1\.50'\)",
    ),
    "16 bits": (pa.array(np.array([1], np.float16)), "values of type halffloat can be neither"),
    "lists": (pa.array([{"a": 1}]), "values of type struct.* can be neither"),
    "durations": (pa.array([1], pa.duration("s")), "values of type duration.* can be neither"),
    "bytes that are no text": (pa.array([b"a", b"\xff"]), "row 2, .* is no text in UTF-8"),
}


@pytest.mark.parametrize(("items", "message"), FLOATS.values(), ids=FLOATS.keys())
def test_what_is_no_exact_id_is_refused_with_its_place(items, message):
    with pytest.raises(ValueTypeInvalid, match=message) as caught:
        items_of(items)
    assert caught.value.hint


MISSING = {
    "null": pa.array(["a", None]),
    "empty": pa.array(["a", ""]),
    "blanks": pa.array(["a", " \t"]),
    "NaN": pa.array([1.0, float("nan")]),
    "a null integer": pa.array([1, None]),
    "a null in a dictionary": pa.array(["a", None]).dictionary_encode(),
    "nothing but nulls": pa.nulls(2).slice(1),
}


@pytest.mark.parametrize("items", MISSING.values(), ids=MISSING.keys())
def test_an_id_without_a_value_is_refused_with_its_place(items):
    with pytest.raises(ValueMissing, match=rf"row {len(items)}, column 'item_id'"):
        items_of(items)


@pytest.mark.parametrize("text", ["NaN", "nan", "NULL", "null", "None", "NA", "<NA>", r"\N"])
def test_a_text_that_may_mean_no_value_is_named(tmp_path, text):
    with pytest.raises(MissingText, match=r"line 3, column 'item_id': the text "):
        read_events(texts_file(tmp_path, ["a", text]))
    with pytest.raises(ValueMissing, match="row 2"):
        items_of(pa.array(["a", f" {text}"]), missing=(text,))


def test_a_category_that_no_row_has_is_no_value():
    codes = pa.array([0, 0, 2], pa.int8())
    items = pa.DictionaryArray.from_arrays(codes, pa.array(["a", "NULL", "b"]))
    assert items_of(items) == ("a", "b")


def test_integers_written_with_a_zero_by_a_join_equal_their_twins(tmp_path):
    told = Recorder()
    joined = texts_file(tmp_path, ["7", "1.0", "1", "30.00"])
    assert read_events(joined, told).items == ("7", "1", "30")
    assert [text for text in told.notices if "1.0; they are taken as 1" in text]


@pytest.mark.parametrize(
    "items",
    [
        ["1.0", "1.10", "1.1"],
        ["007", "7.0"],
        ["1.0", "x"],
        ["1.5", "2.0"],
        ["1e3", "1.0"],
        ["0007", "7"],
    ],
)
def test_texts_that_are_not_all_integers_stay_as_they_are(tmp_path, items):
    assert read_events(texts_file(tmp_path, items)).items == tuple(items)


def test_ids_that_a_program_may_have_rounded_are_told(tmp_path):
    told = Recorder()
    assert read_events(texts_file(tmp_path, ["9.007e+15", "x"]), told).items == ("9.007e+15", "x")
    assert [text for text in told.notices if "9.007e+15 look like integers" in text]


def test_blanks_around_ids_are_no_part_of_them_and_merged_ones_are_told(tmp_path):
    told = Recorder()
    assert read_events(texts_file(tmp_path, [" a", "a", "b\u00a0", "c d"]), told).items == (
        "a",
        "b",
        "c d",
    )
    assert [text for text in told.notices if "1 of the values equal others, such as ' a'" in text]


def test_truths_are_written_small_in_every_form(tmp_path):
    assert read_events(texts_file(tmp_path, ["True", "false", "TRUE"])).items == ("true", "false")
    assert read_events(texts_file(tmp_path, ["True", "maybe"])).items == ("True", "maybe")


FRAMES = {
    "pandas": lambda items: pd.DataFrame({"user_id": "u", "item_id": items}),
    "nullable pandas": lambda items: pd.DataFrame(
        {"user_id": "u", "item_id": pd.array(items, "Int64")}
    ),
    "pandas categories": lambda items: pd.DataFrame(
        {"user_id": "u", "item_id": pd.Categorical(items)}
    ),
    "polars": lambda items: pl.DataFrame({"user_id": ["u"] * len(items), "item_id": items}),
    "Arrow": lambda items: pa.table({"user_id": ["u"] * len(items), "item_id": items}),
    "a reader": lambda items: pa.table({"user_id": ["u"] * len(items), "item_id": items}).to_reader(
        7
    ),
    "DuckDB": lambda items: duckdb.sql(
        f"SELECT 'u' AS user_id, i::HUGEINT AS item_id FROM (SELECT unnest({items}) AS i)"
    ),
}


@pytest.mark.parametrize("frame_of", FRAMES.values(), ids=FRAMES.keys())
def test_tables_in_memory_have_the_same_ids(frame_of):
    histories = read_histories(InteractionSource(TableSource(frame_of(LARGE))))
    assert histories.items == tuple(str(i) for i in LARGE)


def test_a_file_of_each_type_is_one_column(tmp_path):
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [5, 6]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": [1.0, 3.0], "item_id": ["5", "x"]}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("user_id,item_id\n2.0,6\n")
    events = read_events(InteractionSource(TableSource(tmp_path)))
    assert events.users == ("1", "2", "3")
    assert events.items == ("5", "6", "x")
    assert events.user.tolist() == [0, 1, 0, 2, 1]
