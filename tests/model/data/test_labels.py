"""Labels, values and tags are exact texts from any carrier; what is no value never is a class."""

import datetime
import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.filters import Condition
from peterrec.model.data.labels import (
    LabelSource,
    is_number,
    number_text,
    read_labels,
    read_tags,
    read_values,
)
from peterrec.model.data.observer import SilentObserver
from peterrec.model.data.tables import TableSource
from peterrec.model.data.values import MISSING_TEXTS
from peterrec.model.errors import (
    DataFileEmpty,
    LabelDuplicate,
    ListsInvalid,
    MissingText,
    NumberUnreadable,
    ValueMissing,
    ValueTypeInvalid,
)


class Listener(SilentObserver):
    """Keeps the notices."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, text: str) -> None:
        self.told.append(text)


def csv(folder: Path, text: str) -> Path:
    path = folder / "users.csv"
    path.write_text(text)
    return path


def parquet(folder: Path, values, users=None) -> Path:
    path = folder / "users.parquet"
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    ids = users or [f"u{i}" for i in range(len(column))]
    pq.write_table(pa.table({"user_id": ids, "label": column}), path)
    return path


def source(path: Path, **fields) -> LabelSource:
    return LabelSource(TableSource(path, **fields), "label")


def labels_in(path: Path, **fields) -> dict[str, str]:
    return {user: text for user, (text,) in read_labels(source(path, **fields)).by_user.items()}


def values_in(path: Path) -> list[str]:
    return [text for (text,) in read_values(source(path)).by_user.values()]


def told(path: Path, read=read_labels) -> str:
    listener = Listener()
    read(source(path), observer=listener)
    return " ".join(listener.told)


def test_labels_come_one_per_user_and_missing_ones_are_left_out_and_counted(tmp_path):
    path = csv(tmp_path, 'user_id,label\nu,yes\nv,\nw,no\nx," "\n')
    assert labels_in(path) == {"u": "yes", "w": "no"}
    assert f"{path}, column 'label': 2 of 4 users have no value and are left out." in told(path)


@pytest.mark.parametrize("text", MISSING_TEXTS)
def test_a_text_that_may_be_no_value_is_refused_with_its_place(tmp_path, text):
    path = csv(tmp_path, f"user_id,label\nu,yes\nv,no\nw, {text}\n")
    with pytest.raises(MissingText, match=r"users\.csv, line 4, column 'label'") as refused:
        labels_in(path)
    assert text in refused.value.message
    assert "`missing`" in refused.value.hint


def test_a_text_that_was_named_is_no_value(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,yes\nv,NULL\nw,unknown\n")
    assert labels_in(path, missing=("NULL", "unknown")) == {"u": "yes"}


def test_other_texts_are_refused_beside_a_named_one(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,yes\nv,NULL\nw,NaN\n")
    with pytest.raises(MissingText, match="line 4"):
        labels_in(path, missing=("NULL",))


def test_a_named_empty_text_keeps_all_others_as_values(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,NA\nv,DE\nw,\nx,None\ny,?\n")
    assert labels_in(path, missing=("", "?")) == {"u": "NA", "v": "DE", "x": "None"}


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1.0, None, 2.0, float("nan")]),
        pa.array(["1", None, "2", " "]),
        pa.array(["1", "", "2", None]).dictionary_encode(),
        pa.array([1, None, 2, None], pa.int64()),
        pa.array([1, None, 2, None], pa.uint8()),
        pa.array([decimal.Decimal(1), None, decimal.Decimal(2), None], pa.decimal128(5, 0)),
        pa.array([decimal.Decimal("1.00"), None, decimal.Decimal("2.00"), None]),
        pa.array(["1.0", None, "2.0", ""]),
    ],
)
def test_missing_values_and_whole_numbers_are_alike_in_every_type(tmp_path, values):
    assert labels_in(parquet(tmp_path, values)) == {"u0": "1", "u2": "2"}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([2**62 + 1, 2**62], [str(2**62 + 1), str(2**62)]),
        (pa.array([2**64 - 1, 1], pa.uint64()), [str(2**64 - 1), "1"]),
        (
            pa.array([decimal.Decimal(10**30 + 1), decimal.Decimal(7)], pa.decimal128(38, 0)),
            [str(10**30 + 1), "7"],
        ),
        ([True, False], ["true", "false"]),
        ([2.5, 1.0], ["2.5", "1.0"]),
        ([datetime.date(2024, 2, 29), datetime.date(1999, 1, 1)], ["2024-02-29", "1999-01-01"]),
        (["007", "7"], ["007", "7"]),
        (["True", "FALSE"], ["true", "false"]),
        (["1.10", "1.1"], ["1.10", "1.1"]),
        (pa.array([b"caf\xc3\xa9", b"x"]), ["café", "x"]),
    ],
)
def test_labels_are_exact_texts(tmp_path, values, texts):
    assert [*labels_in(parquet(tmp_path, values)).values()] == texts


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1, 2], [3]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"\xff", b"x"]),
        pa.array([2.0**53 + 2, 1.0]),
    ],
)
def test_types_and_values_that_are_no_exact_labels_are_refused(tmp_path, values):
    with pytest.raises(ValueTypeInvalid, match="column 'label'"):
        labels_in(parquet(tmp_path, values))


def test_labels_and_users_that_differ_in_blanks_are_one_and_it_is_told(tmp_path):
    path = csv(tmp_path, "user_id,label\nu, male\nv,male\n w,female \nx,female\nx ,female\n")
    assert labels_in(path) == {"u": "male", "v": "male", "w": "female", "x": "female"}
    said = told(path)
    assert "column 'label': without the blanks around them, 2 of the values equal others" in said
    assert "column 'user_id': without the blanks around them, 1 of the values" in said


def test_an_equal_second_label_is_no_contradiction(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,yes\nv,no\nu, yes\nv,\nu,yes\n")
    assert labels_in(path) == {"u": "yes", "v": "no"}


def test_a_label_may_stand_in_any_row_of_a_user(tmp_path):
    assert labels_in(csv(tmp_path, "user_id,label\nu,\nv,no\nu,yes\n")) == {"v": "no", "u": "yes"}


def test_a_different_second_label_is_refused_with_both_places(tmp_path):
    path = csv(tmp_path, 'user_id,label\nu,"yes"\nv,no\n\nu,yes\nu,no\nv,yes\n')
    with pytest.raises(LabelDuplicate) as refused:
        labels_in(path)
    assert refused.value.message == (
        f"{path}, line 6, column 'label': user 'u' has the label 'no', but 'yes' at {path}, line "
        "2, column 'label'."
    )


def test_the_places_of_a_contradiction_are_right_over_files_and_filters(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,label,kind\nu,yes,x\nv,no,y\nw,yes,y\n")
    (tmp_path / "b.csv").write_text("user_id,label,kind\nx,no,x\nw,no,y\n")
    table = TableSource(tmp_path, where=(Condition("kind", "y"),))
    with pytest.raises(LabelDuplicate) as refused:
        read_labels(LabelSource(table, "label"))
    assert "b.csv, line 3" in refused.value.message.partition(" but ")[0]
    assert "a.csv, line 4" in refused.value.message.partition(" but ")[2]


def test_labels_of_an_event_table_are_those_of_its_users(tmp_path):
    rows = "".join(f"u{i % 7},i{i},{'ab'[i % 7 % 2]}\n" for i in range(700))
    path = csv(tmp_path, "user_id,item_id,label\n" + rows)
    assert labels_in(path) == {f"u{i}": "ab"[i % 2] for i in range(7)}


def test_a_row_without_a_user_is_refused(tmp_path):
    with pytest.raises(ValueMissing, match="line 3, column 'user_id'"):
        labels_in(csv(tmp_path, "user_id,label\nu,yes\n,no\n"))


@pytest.mark.parametrize("read", [read_labels, read_values, read_tags])
def test_a_column_without_values_is_refused(tmp_path, read):
    path = csv(tmp_path, 'user_id,label\nu,\nv," "\n')
    with pytest.raises(DataFileEmpty, match="column 'label': no user has a value"):
        read(source(path))


def test_the_source_names_table_and_column(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,yes\n")
    assert read_labels(source(path)).source == f"{path}, column 'label'"


@pytest.mark.parametrize("text", ["many", "inf", "1_000", "0x10", "1e400", "true", "12 %", "--1"])
def test_a_value_that_is_no_finite_number_is_refused_with_its_place(tmp_path, text):
    path = csv(tmp_path, f"user_id,label\nu,1.5\nv,{text}\n")
    with pytest.raises(NumberUnreadable, match="line 3, column 'label'"):
        read_values(source(path))
    assert not is_number(text)


def test_a_decimal_comma_is_explained(tmp_path):
    path = csv(tmp_path, 'user_id,label\nu,"1,5"\n')
    with pytest.raises(NumberUnreadable) as refused:
        read_values(source(path))
    assert "point in place of the comma" in refused.value.hint


def test_an_infinite_float_is_refused_with_its_row(tmp_path):
    with pytest.raises(NumberUnreadable, match="row 2, column 'label': 'inf'"):
        values_in(parquet(tmp_path, [1.0, float("inf")]))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([5.0, 0.1, -2.5e-7, 1e39, float("nan")]),
        pa.array(["5", "0.10", "-2.50e-7", "1e+39", None]),
        pa.array(["+5.00", ".1", "-0.00000025", "1E39", " "]),
    ],
)
def test_values_are_the_same_numbers_from_every_carrier(tmp_path, values):
    assert values_in(parquet(tmp_path, values)) == ["5", "0.1", "-0.00000025", "1e+39"]


def test_floats_of_32_bits_are_the_numbers_that_they_were_written_as(tmp_path):
    assert values_in(parquet(tmp_path, pa.array([0.1, 7], pa.float32()))) == ["0.1", "7"]
    assert values_in(parquet(tmp_path, pa.array(np.array([0.5, 7], np.float16)))) == ["0.5", "7"]


def test_equal_values_in_two_spellings_are_no_contradiction(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,5\nu,5.00\nv,1e3\nv,1000\nw,-0\nw,0\n")
    assert values_in(path) == ["5", "1000", "0"]


def test_different_values_of_a_user_are_refused(tmp_path):
    with pytest.raises(LabelDuplicate, match=r"line 3.*'u' has the label '5\.1', but '5' at"):
        values_in(csv(tmp_path, "user_id,label\nu,5\nu,5.1\n"))


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("100", "100"),
        ("9007199254740993.0", "9007199254740993"),
        ("123456789012345678901234567890.5", "123456789012345678901234567890.5"),
        ("-0.0", "0"),
        ("1e308", "1e+308"),
        ("12.340e5", "1234000"),
    ],
)
def test_a_number_is_written_as_it_is_shortest(text, shortest):
    assert number_text(text) == shortest
    assert float(shortest) == float(text)


def test_tags_come_from_several_rows_or_from_one_field(tmp_path):
    rows = csv(tmp_path, "user_id,label\nu,a\nu,b\nu,a\nv,\n")
    assert read_tags(source(rows)).by_user == {"u": ("a", "b"), "v": ()}
    assert "1 tags repeat one of the same user" in told(rows, read_tags)
    field = csv(tmp_path, "user_id,label\nu,a| b |a\nv,\nw,|\n")
    assert read_tags(source(field), "|").by_user == {"u": ("a", "b"), "v": (), "w": ()}


def test_tags_that_differ_in_blanks_are_one(tmp_path):
    path = csv(tmp_path, "user_id,label\nu, a\nu,a\nv,a \n")
    assert read_tags(source(path)).by_user == {"u": ("a",), "v": ("a",)}


def test_a_tag_within_a_field_that_may_be_no_value_is_refused_or_left_out(tmp_path):
    path = csv(tmp_path, "user_id,label\nv,a\nu,a|NULL|b\n")
    with pytest.raises(MissingText, match="line 3, column 'label': the text 'NULL'"):
        read_tags(source(path), "|")
    assert read_tags(source(path, missing=("NULL",)), "|").by_user["u"] == ("a", "b")
    assert read_tags(source(path, missing=("",)), "|").by_user["u"] == ("a", "NULL", "b")


def test_tags_may_be_a_column_of_lists(tmp_path):
    path = parquet(tmp_path, pa.array([["a", "b", "a"], [], None, [" c", None]]))
    by_user = read_tags(source(path)).by_user
    assert by_user == {"u0": ("a", "b"), "u1": (), "u2": (), "u3": ("c",)}


def test_a_tables_own_id_column_may_be_its_label(tmp_path):
    path = csv(tmp_path, "user_id,label\nu,1\nv,2\n")
    assert read_labels(LabelSource(TableSource(path), "user_id")).by_user == {
        "u": ("u",),
        "v": ("v",),
    }


def test_labels_come_from_a_table_in_memory():
    table = pa.table({"user_id": [1, 2, 3], "label": [1.0, 0.0, None]})
    found = read_labels(LabelSource(TableSource(table), "label"))
    assert found.by_user == {"1": ("1",), "2": ("0",)}


@pytest.mark.parametrize(
    ("rows", "separator", "told"),
    [
        ("a,x;y\nb,x\nc,y;z\n", None, ["fields such as 'x;y' look like several tags"]),
        (
            "a,x;y\nb,x\nc,y;z\n",
            "|",
            ["no field has the separator '|'", "the separator would be ';'"],
        ),
        ("a,x;y\nb,x\nc,y;z\n", ";", []),
        ('a,"Food, drinks"\nb,"Toys, games"\nc,Books\n', None, []),
    ],
)
def test_fields_that_look_like_several_tags_are_told_of(tmp_path, rows, separator, told):
    listener = Listener()
    read_tags(source(csv(tmp_path, f"user_id,label\n{rows}")), separator, listener)
    assert len(listener.told) == len(told)
    assert all(text in notice for text, notice in zip(told, listener.told, strict=True))


def test_tags_that_are_written_as_lists_in_texts_are_refused(tmp_path):
    path = csv(tmp_path, "user_id,label\na,\"['x', 'y']\"\nb,['x']\n")
    with pytest.raises(ListsInvalid, match="line 2, column 'label'"):
        read_tags(source(path))
