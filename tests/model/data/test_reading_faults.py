"""Files that are damaged, change or vanish, and disks without room, end in a code and a path."""

import gzip
import os
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from peterrec.model.data import engine
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.tables import TableSource, read_batches, read_parts
from peterrec.model.errors import (
    ColumnMissing,
    DataFileChanged,
    DataFileEmpty,
    DataFileUnreadable,
    ScratchFull,
    TableInvalid,
    ValueMissing,
    ValueTypeInvalid,
)
from peterrec.model.progress import Progress
from tests.model.data.recorder import Recorder

ROWS = b"".join(b"user-%d,item-%d\n" % (i, i * i % 97) for i in range(20_000))
TEXT = b"user_id,item_id\n" + ROWS


def put(path: Path, data: bytes = TEXT) -> InteractionSource:
    path.write_bytes(data)
    return InteractionSource(TableSource(path))


def put_parquet(path: Path) -> Path:
    users = [f"user-{i}" for i in range(20_000)]
    pq.write_table(pa.table({"user_id": users, "item_id": users}), path, row_group_size=1000)
    return path


def broken(data: bytes) -> bytes:
    """Data with zeros in their middle."""
    return data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :]


DAMAGED = {
    "a gzip file that ends early": ("e.csv.gz", gzip.compress(TEXT)[:-3000]),
    "a gzip file that is broken": ("e.csv.gz", broken(gzip.compress(TEXT))),
    "a gzip file whose sum is wrong": ("e.csv.gz", gzip.compress(TEXT)[:-6] + b"\0\0\0\0\0\0"),
    "a zstd file that ends early": ("e.csv.zst", zstandard.compress(TEXT)[:-3000]),
    "a zstd file that is broken": ("e.csv.zst", broken(zstandard.compress(TEXT))),
    "a quote that does not end": ("e.csv", TEXT + b'"u,a\n' + ROWS),
    "text behind a quote": ("e.csv", TEXT + b'"u"x,a\n'),
    "a long row": ("e.csv", TEXT + b"u," + b"a" * (engine.LONGEST_LINE_BYTES + 9) + b"\n"),
}


@pytest.mark.parametrize(("name", "data"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_texts_are_refused_by_name(tmp_path, name, data):
    with pytest.raises(DataFileUnreadable, match=name) as caught:
        read_histories(put(tmp_path / name, data))
    assert caught.value.hint
    assert "Error:" not in caught.value.message


def test_a_damaged_parquet_file_is_refused_by_name(tmp_path):
    path = put_parquet(tmp_path / "e.parquet")
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(DataFileUnreadable, match=r"e\.parquet"):
        read_histories(InteractionSource(TableSource(path)))


def test_a_parquet_file_that_ends_early_is_refused_by_name(tmp_path):
    path = put_parquet(tmp_path / "e.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataFileUnreadable, match=r"e\.parquet"):
        read_histories(InteractionSource(TableSource(path)))


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(engine, "TEXT_BATCH_ROWS", 500)
    monkeypatch.setattr("peterrec.model.data.tables.PARQUET_BATCH_ROWS", 500)


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.parquet"])
@pytest.mark.usefixtures("small_batches")
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, name):
    path = tmp_path / name
    put_parquet(path) if name.endswith("parquet") else put(
        path, gzip.compress(TEXT) if name.endswith("gz") else TEXT
    )
    batches = read_batches(TableSource(path), ["user_id"])
    next(batches)
    next(batches)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataFileChanged, match=f"{name} changed while"):
        list(batches)


@pytest.mark.parametrize("name", ["e.csv", "e.parquet"])
@pytest.mark.usefixtures("small_batches")
def test_a_file_that_vanishes_while_it_is_read_is_refused(tmp_path, name):
    path = tmp_path / name
    put_parquet(path) if name.endswith("parquet") else put(path)
    batches = read_batches(TableSource(path), ["user_id"])
    next(batches)
    next(batches)
    path.unlink()
    with pytest.raises(DataFileChanged, match=f"{name} vanished while"):
        list(batches)


@pytest.mark.usefixtures("small_batches")
def test_a_file_that_vanishes_before_its_turn_is_refused(tmp_path):
    for number in range(3):
        put(tmp_path / f"{number}.csv")
    batches = read_batches(TableSource(tmp_path), ["user_id"])
    next(batches)
    (tmp_path / "2.csv").unlink()
    with pytest.raises(DataFileChanged, match=r"2\.csv vanished"):
        list(batches)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path):
    source = put(tmp_path / "e.csv")
    (tmp_path / "e.csv").chmod(0)
    with pytest.raises(DataFileUnreadable, match=r"e\.csv"):
        read_histories(source)


def test_names_that_are_patterns_elsewhere_are_names(tmp_path):
    put(tmp_path / "e1.csv", b"user_id,item_id\nwrong,x\n")
    histories = read_histories(put(tmp_path / "e[1]*?.csv", b"user_id,item_id\nright,x\n"))
    assert histories.users == ("right",)


def test_a_folder_that_looks_like_a_partition_adds_no_column_to_a_file(tmp_path):
    (tmp_path / "user_id=7").mkdir()
    histories = read_histories(put(tmp_path / "user_id=7" / "e.csv", b"user_id,item_id\nu,x\n"))
    assert histories.users == ("u",)


def test_a_scratch_folder_that_cannot_be_made_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(ScratchFull, match="no folder for what does not fit") as caught:
        read_histories(put(tmp_path / "e.csv"))
    assert "TMPDIR" in caught.value.hint


def test_a_scratch_folder_without_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(engine.SETTINGS, "memory_limit", "40MB")
    monkeypatch.setitem(engine.SETTINGS, "max_temp_directory_size", "1MB")
    rows = b"".join(b"user-of-a-long-name-%d,item-%d\n" % (i, i) for i in range(400_000))
    with pytest.raises(ScratchFull, match="no room to put the events in order"):
        read_histories(put(tmp_path / "e.csv", b"user_id,item_id\n" + rows))


def test_the_scratch_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    read_histories(put(tmp_path / "e.csv"))
    with pytest.raises(ValueMissing):
        read_histories(put(tmp_path / "f.csv", b"user_id,item_id\nu,\n"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "f.csv"]


TABLES = {
    "an object column of two types": (
        pd.DataFrame({"user_id": [1, "a"], "item_id": ["x", "y"]}),
        TableInvalid,
        "as a table: Could not convert 'a' with type str: .* for column user_id",
    ),
    "a missing column": (
        pl.DataFrame({"user_id": ["u"], "item": ["x"]}),
        ColumnMissing,
        "the polars DataFrame: there is no column 'item_id', only user_id, item",
    ),
    "no rows": (
        pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())}),
        DataFileEmpty,
        "the pyarrow Table has no rows",
    ),
    "a value that is missing": (
        pd.DataFrame({"user_id": ["u", "u"], "item_id": ["x", None]}, index=[7, 9]),
        ValueMissing,
        "the pandas DataFrame, row 2, column 'item_id'",
    ),
    "a column twice": (
        pa.Table.from_arrays([pa.array(["u"])] * 2, ["user_id", "user_id"]),
        TableInvalid,
        "the column 'user_id' occurs twice",
    ),
    "integers of 128 bits in polars": (
        pl.DataFrame(
            {"user_id": [2**100], "item_id": ["x"]}, schema_overrides={"user_id": pl.Int128}
        ),
        TableInvalid,
        "the polars DataFrame cannot be read as a table",
    ),
    "Python objects in polars": (
        pl.DataFrame({"user_id": ["u"], "item_id": [Path("x")]}),
        TableInvalid,
        "the polars DataFrame, column 'item_id': its values are Python objects",
    ),
    "structs": (
        pl.DataFrame({"user_id": ["u"], "item_id": [{"a": 1}]}),
        ValueTypeInvalid,
        "column 'item_id': values of type struct",
    ),
}


@pytest.mark.parametrize(("table", "error", "message"), TABLES.values(), ids=TABLES.keys())
def test_tables_in_memory_are_refused_with_their_place(table, error, message):
    with pytest.raises(error, match=message):
        read_histories(InteractionSource(TableSource(table)))


def test_a_reader_of_batches_that_was_read_has_no_rows():
    reader = pa.table({"user_id": ["u"], "item_id": ["x"]}).to_reader()
    read_parts(TableSource(reader), ["user_id"])
    with pytest.raises(DataFileEmpty, match="can be read once"):
        read_parts(TableSource(reader), ["user_id"])


def test_an_error_of_a_reader_of_batches_names_the_table():
    def batches():
        yield pa.record_batch({"user_id": ["u"], "item_id": ["x"]})
        raise ValueError("the connection broke")

    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string())])
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    with pytest.raises(TableInvalid, match="the connection broke"):
        read_parts(TableSource(reader), ["user_id"])


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", ["e.csv", "e.parquet"])
def test_reading_reports_its_files_and_its_progress(tmp_path, name):
    path = tmp_path / name
    put_parquet(path) if name.endswith("parquet") else put(path)
    told = Recorder()
    read_histories(InteractionSource(TableSource(path)), told)
    (files,) = told.read
    size = path.stat().st_size
    assert (files.source, files.files, files.size, files.left_out) == (str(path), 1, size, ())
    reading = [step for step in told.steps if step.phase == "reading"]
    assert reading[-1] == Progress("reading", size, size, unit="bytes")
    done = [step.done for step in reading]
    assert done == sorted(done)
    assert told.steps[-1] == Progress("ordering", 20_000, 20_000, unit="events")


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a byte-order mark"])
def test_a_second_header_within_a_file_is_refused_with_its_line(tmp_path, mark):
    again = f"{mark}user_id,item_id\nu,b\n".encode()
    with pytest.raises(DataFileUnreadable, match="line 20002, column 'user_id': the row has the"):
        read_histories(put(tmp_path / "joined.csv", TEXT + again))
    only_one = TEXT + b"user_id,b\nu,item_id\n"
    histories = read_histories(put(tmp_path / "ids.csv", only_one))
    assert {"user_id", "u"} <= set(histories.users)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (b'u,"a,b\n', "a quote is not closed"),
        (b'u,"a \\"b\\" c"\n', "a quote within a quoted field must be written twice"),
        (b"u,a,b\n", "line 20003: 3 fields, not 2"),
    ],
)
def test_a_fault_behind_a_long_field_is_told_as_it_is(tmp_path, rows, reason):
    long = b"u," + b"x" * 200_000 + b"\n"
    with pytest.raises(DataFileUnreadable, match=reason):
        read_histories(put(tmp_path / "long.csv", TEXT + long + rows))
