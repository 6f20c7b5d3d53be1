"""Interactions, labels and targets are read in order; every bad input is named with its place."""

import gzip
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.filters import Condition
from peterrec.model.data.histories import Histories
from peterrec.model.data.interactions import (
    Events,
    InteractionSource,
    histories_of,
    read_histories,
    read_targets,
    targets_of,
)
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import (
    ColumnMissing,
    DataFileEmpty,
    DataFileMissing,
    DataFileUnreadable,
    FilterMatchesNothing,
    FilterUnreadable,
    OrderUnreadable,
    ValueMissing,
)
from tests.model.data.few_events import events


def csv_file(folder: Path, text: str, name: str = "events.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def by_user(histories: Histories) -> dict[str, tuple[str, ...]]:
    return {user: histories.items_of(i) for i, user in enumerate(histories.users)}


def read(
    path: Path,
    order: str | None = None,
    delimiter: str | None = None,
    where: tuple[Condition, ...] = (),
) -> dict[str, tuple[str, ...]]:
    source = TableSource(path, delimiter, where=where)
    return by_user(read_histories(InteractionSource(source, order_column=order)))


def test_events_without_an_order_column_keep_the_order_of_the_file(tmp_path):
    path = csv_file(tmp_path, "user_id,item_id\nu,b\nv,x\nu,a\nu,b\n")
    assert read(path) == {"u": ("b", "a", "b"), "v": ("x",)}


def test_events_are_ordered_by_position_and_ties_by_a_hash(tmp_path):
    rows = ["u,late,10", *(f"u,tie-{i:02d},2" for i in range(20)), "u,first,-1"]
    head = "user_id,item_id,pos\n"
    found = read(csv_file(tmp_path, head + "\n".join(rows)), "pos")["u"]
    again = read(csv_file(tmp_path, head + "\n".join(reversed(rows))), "pos")["u"]
    assert found == again
    assert (found[0], found[-1]) == ("first", "late")
    ties = list(found[1:-1])
    assert ties not in (sorted(ties), sorted(ties, reverse=True))


def order_of(given: Events, user: int = 0) -> tuple[str, ...]:
    return histories_of(given).items_of(user)


def test_events_of_one_day_come_in_an_order_that_neither_file_nor_id_decides():
    names = [f"item-{i:03d}" for i in range(40)]
    forward = order_of(events(*(("a", name, 5) for name in names)))
    backward = order_of(events(*(("a", name, 5) for name in reversed(names))))
    assert forward == backward
    assert list(forward) not in (sorted(names), sorted(names, reverse=True))
    other_user = order_of(events(*(("b", name, 5) for name in names)))
    assert other_user != forward


def test_days_come_in_their_order():
    given = events(("a", "z", 1), ("a", "y", 3), ("a", "x", 2), ("b", "z", 9))
    assert order_of(given) == ("z", "x", "y")


def test_first_targets_are_the_earliest_distinct_items():
    given = events(("a", "x", 3), ("a", "y", 1), ("a", "y", 2), ("a", "z", 4))
    assert targets_of(given, 2).by_user == {"a": ("y", "x")}


def test_only_tied_events_move_and_users_do_not_mix():
    given = events(("b", "y", 5), ("a", "z", 1), ("b", "x", 5), ("a", "x", 2), ("a", "y", 1))
    assert given.user[given.in_order()].tolist() == [0, 0, 1, 1, 1]
    assert given.time is not None
    assert given.time[given.in_order()].tolist() == [5, 5, 1, 1, 2]
    assert set(order_of(given, 1)[:2]) == {"z", "y"}
    assert order_of(given, 1)[2] == "x"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("1.5", "2"),
        ("2024-01-02", "2024-01-10"),
        ("2024-01-02 03:04:05", "2024-01-02 03:04:06"),
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:06Z"),
        ("9007199254740992", "9007199254740993"),
    ],
)
def test_an_order_column_may_hold_numbers_dates_or_times(tmp_path, earlier, later):
    path = csv_file(tmp_path, f"user_id,item_id,at\nu,second,{later}\nu,first,{earlier}\n")
    assert read(path, "at") == {"u": ("first", "second")}


def test_a_gzipped_file_with_another_delimiter_reads_the_same(tmp_path):
    path = tmp_path / "events.csv.gz"
    path.write_bytes(gzip.compress(b"user_id;item_id\nu;a\nu;b\n"))
    assert read(path, delimiter=";") == {"u": ("a", "b")}


def test_parquet_ids_of_any_type_become_strings(tmp_path):
    path = tmp_path / "events.parquet"
    columns = {
        "user_id": [7, 7],
        "item_id": [1.0, 2.0],
        "at": [datetime(2024, 1, 2), datetime(2024, 1, 1)],
    }
    pq.write_table(pa.table(columns), path)
    assert read(path, "at") == {"7": ("2", "1")}


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path):
    csv_file(tmp_path, "user_id,item_id\nu,second\n", "part-1.csv")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["first"]}), tmp_path / "part-0.parquet")
    csv_file(tmp_path, "not data", "_SUCCESS")
    assert read(tmp_path) == {"u": ("first", "second")}


def test_conditions_keep_the_rows_that_meet_all_of_them(tmp_path):
    path = csv_file(
        tmp_path,
        "user_id,item_id,domain,kind\nu,a,food,buy\nu,b,home,buy\nu,c,food,view\nu,d,food,buy\n",
    )
    where = (Condition.parse("domain=food"), Condition("kind", "buy"))
    assert read(path, where=where) == {"u": ("a", "d")}


def test_targets_are_ordered_and_counted_once(tmp_path):
    path = csv_file(tmp_path, "user_id,item_id,at\nu,b,2\nu,a,1\nu,b,3\n")
    source = InteractionSource(TableSource(path), order_column="at")
    assert read_targets(source).by_user == {"u": ("a", "b")}


def test_the_digest_depends_on_the_order_of_items(tmp_path):
    one = csv_file(tmp_path, "user_id,item_id\nu,a\nu,b\nu,a\n", "one.csv")
    other = csv_file(tmp_path, "user_id,item_id\nu,a\nu,a\nu,b\n", "other.csv")
    digests = {
        read_histories(InteractionSource(TableSource(p))).digest() for p in (one, other, one)
    }
    assert len(digests) == 2


def test_selected_users_keep_their_items(tmp_path):
    path = csv_file(tmp_path, "user_id,item_id\nu,a\nv,b\nw,c\nv,a\n")
    histories = read_histories(InteractionSource(TableSource(path)))
    chosen = histories.select(np.array([2, 1]))
    assert by_user(chosen) == {"w": ("c",), "v": ("b", "a")}


BAD_INTERACTIONS = [
    ("", DataFileEmpty, "is empty"),
    ("user_id,item_id,at\n", DataFileEmpty, "no rows"),
    ("user_id;item_id;at\nu;a;1\n", ColumnMissing, "no column 'user_id'"),
    ("user_id,item,at\nu,a,1\n", ColumnMissing, "'item_id', only user_id, item, at"),
    ("user_id,item_id,at\nu,a,1\n,b,2\n", ValueMissing, "line 3, column 'user_id'"),
    ("user_id,item_id,at\nu,,1\n", ValueMissing, "line 2, column 'item_id'"),
    ("user_id,item_id,at\nu,a,1\nu,b,\n", OrderUnreadable, "line 3, column 'at'"),
    ("user_id,item_id,at\nu,a,1\nu,b,soon\n", OrderUnreadable, "line 3, column 'at': 'soon'"),
    ("user_id,item_id,at\nu,a,now\nu,b,2\n", OrderUnreadable, "line 2, column 'at': 'now'"),
    ("user_id,item_id,at\nu,a,2024-01-01\nu,b,2\n", OrderUnreadable, "line 3, column 'at': '2'"),
    ("user_id,item_id,at\nu,a,nan\n", OrderUnreadable, "line 2, column 'at'"),
    ("user_id,item_id,at\nu,a,1\nu,b\n", DataFileUnreadable, "line 3: 2 fields, not 3"),
    ("user_id,item_id,at\nu,a,1\n\nu,b,2,c\n", DataFileUnreadable, "line 4: 4 fields, not 3"),
    ('user_id,item_id,at\n"u\nu",a,1\nu,,2\n', ValueMissing, "line 4, column 'item_id'"),
    ('user_id,item_id,at\n"u\nu",a,1\nu,2\n', DataFileUnreadable, "line 4: 2 fields, not 3"),
    ("user_id,item_id,at\n\nu,a,1\n\n\nu,b,soon\n", OrderUnreadable, "line 6, column 'at'"),
    ('user_id,item_id,at\nu,a,1\nu,"b,2\n', DataFileUnreadable, "the row after line 2"),
    ("user_id,item_id,at\nu,\udc00,1\n", DataFileUnreadable, "line 2, column 'item_id'"),
]


@pytest.mark.parametrize(("text", "error", "message"), BAD_INTERACTIONS)
def test_bad_interactions_are_refused_with_their_place(tmp_path, text, error, message):
    path = tmp_path / "events.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(error) as caught:
        read(path, "at")
    assert message in caught.value.message
    assert "events.csv" in caught.value.message
    assert caught.value.hint


def test_the_line_named_is_that_of_the_file_when_a_filter_removes_rows_before_it(tmp_path):
    path = csv_file(tmp_path, "user_id,item_id,domain\nu,a,home\nu,b,home\nu,,food\n")
    with pytest.raises(ValueMissing, match="line 4"):
        read(path, where=(Condition("domain", "food"),))


def test_a_broken_parquet_file_is_refused_by_name(tmp_path):
    path = csv_file(tmp_path, "not parquet", "events.parquet")
    with pytest.raises(DataFileUnreadable, match=r"events\.parquet"):
        read(path)


def test_an_empty_gzipped_file_is_refused_as_empty(tmp_path):
    path = tmp_path / "events.csv.gz"
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataFileEmpty):
        read(path)


def test_a_missing_file_and_a_folder_without_data_are_refused(tmp_path):
    with pytest.raises(DataFileMissing, match="does not exist"):
        read(tmp_path / "absent.csv")
    with pytest.raises(DataFileMissing, match="has no"):
        read(tmp_path)


def test_a_filter_that_matches_nothing_is_refused(tmp_path):
    path = csv_file(tmp_path, "user_id,item_id,domain\nu,a,home\n")
    with pytest.raises(FilterMatchesNothing, match="domain=food"):
        read(path, where=(Condition("domain", "food"),))


def test_a_filter_that_is_no_assignment_is_refused():
    with pytest.raises(FilterUnreadable):
        Condition.parse("food")


def test_numbers_in_one_file_and_times_in_another_are_refused(tmp_path):
    csv_file(tmp_path, "user_id,item_id,at\nu,a,1\n", "a.csv")
    csv_file(tmp_path, "user_id,item_id,at\nu,a,2024-01-01\n", "b.csv")
    with pytest.raises(OrderUnreadable, match=r"b\.csv, line 2, column .at.: .* is a timestamp"):
        read(tmp_path, "at")


def test_a_field_in_quotes_may_hold_a_line_break(tmp_path):
    path = csv_file(tmp_path, 'user_id,item_id\n"u\nu","a,b"\n"u\nu",c\n')
    assert read(path) == {"u\nu": ("a,b", "c")}


def test_files_of_many_batches_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.model.data.engine.TEXT_BATCH_ROWS", 7)
    monkeypatch.setattr("peterrec.model.data.tables.PARQUET_BATCH_ROWS", 3)
    monkeypatch.setattr("peterrec.model.data.event_store.BATCH_ROWS", 11)
    rows = [(f"u{i % 7}", f"i{i * i % 11}", 100 - i) for i in range(60)]
    text = "".join(f"{user},{item},{at}\n" for user, item, at in rows)
    one = csv_file(tmp_path, "user_id,item_id,at\n" + text)
    columns = zip(("user_id", "item_id", "at"), zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({n: list(v) for n, v in columns}), tmp_path / "same.parquet")
    wanted: dict[str, tuple[str, ...]] = {}
    for user, item, _ in reversed(rows):
        wanted[user] = (*wanted.get(user, ()), item)
    assert read(one, "at") == wanted
    assert read(tmp_path / "same.parquet", "at") == wanted


def test_a_fault_far_behind_the_first_batch_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.model.data.engine.TEXT_BATCH_ROWS", 7)
    path = csv_file(tmp_path, "user_id,item_id\n" + "u,a\n" * 50 + "u,\n")
    with pytest.raises(ValueMissing, match="line 52, column 'item_id'"):
        read(path)


@pytest.mark.parametrize(
    ("times", "bound"),
    [
        (("10", "20", "30"), "20"),
        (("1.5", "2.5", "3.5"), "2.5"),
        (("2024-01-01", "2024-01-02", "2024-01-03"), "2024-01-02"),
        (
            ("2024-01-01T10:00:00Z", "2024-01-01T11:00:00Z", "2024-01-02T00:00:00Z"),
            "2024-01-01 11:00:00",
        ),
    ],
)
def test_a_cut_off_parts_events_before_it_from_those_at_it_and_after(tmp_path, times, bound):
    rows = "".join(f"u,{item},{at}\n" for item, at in zip("abc", times, strict=True))
    source = InteractionSource(
        TableSource(csv_file(tmp_path, "user_id,item_id,at\n" + rows)), order_column="at"
    )
    past, future = replace(source, before=bound), replace(source, since=bound)
    assert by_user(read_histories(past)) == {"u": ("a",)}
    assert by_user(read_histories(future)) == {"u": ("b", "c")}


@pytest.mark.parametrize(
    ("order", "bound", "error", "message"),
    [
        (None, "2", OrderUnreadable, "needs an order column"),
        ("at", "2024-01-01", OrderUnreadable, "'2024-01-01' is a date, but the numbers"),
        ("at", "soon", OrderUnreadable, "'soon' is not a number"),
        ("at", "0", FilterMatchesNothing, "within the cut-off"),
    ],
)
def test_a_cut_off_that_cannot_be_applied_is_refused(tmp_path, order, bound, error, message):
    path = csv_file(tmp_path, "user_id,item_id,at\nu,a,1\n")
    source = InteractionSource(TableSource(path), order_column=order, before=bound)
    with pytest.raises(error, match=message):
        read_histories(source)


def test_recboles_atomic_files_are_read_as_they_are(tmp_path):
    text = 'user_id:token\titem_id:token\ttimestamp:float\nu\t"b\t2\nu\ta\t1.5\n'
    path = csv_file(tmp_path, text, "shop.inter")
    assert read(path, "timestamp") == {"u": ("a", '"b')}
    with pytest.raises(ColumnMissing, match="only user_id, item_id, timestamp"):
        read(path, "when")


def test_parquet_columns_that_are_encoded_otherwise_read_as_text(tmp_path):
    user = pa.array(["u", "v", "u"]).dictionary_encode()
    item = pa.array(["a", "b", "c"], pa.large_string())
    pq.write_table(pa.table({"user_id": user, "item_id": item}), tmp_path / "e.parquet")
    assert read(tmp_path / "e.parquet") == {"u": ("a", "c"), "v": ("b",)}


def test_an_id_that_is_no_number_among_numbers_is_missing(tmp_path):
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"user_id": [1.0, float("nan")], "item_id": ["a", "b"]}), path)
    with pytest.raises(ValueMissing, match="row 2, column 'user_id'"):
        read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"user_id,item_id,item_id\nu,a,b\n", "line 1: the column 'item_id' occurs twice"),
        (b"user_id,item_id,\xff\nu,a,b\n", "line 1, column .*: the text is not UTF-8"),
    ],
)
def test_a_broken_header_is_refused_with_its_place(tmp_path, data, message):
    (tmp_path / "events.csv").write_bytes(data)
    with pytest.raises(DataFileUnreadable, match=message):
        read(tmp_path / "events.csv")


def test_a_truncated_gzipped_file_is_refused_by_name(tmp_path):
    data = gzip.compress(b"user_id,item_id\n" + b"".join(b"u%d,a\n" % i for i in range(9999)))
    (tmp_path / "events.csv.gz").write_bytes(data[:-2000])
    with pytest.raises(DataFileUnreadable, match=r"events\.csv\.gz"):
        read(tmp_path / "events.csv.gz")
