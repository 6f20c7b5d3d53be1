"""Twins of one small data set in many forms of files and tables read bit for bit the same."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.histories import Histories
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.labels import LabelSource, read_labels, read_values
from peterrec.model.data.tables import TableSource
from peterrec.model.data.vocabulary import build_vocabulary

BIG = 2**53
FIRST_DAY = datetime(2024, 1, 1)


@dataclass(frozen=True, slots=True)
class Row:
    user: int
    item: int
    day: int
    label: str
    value: float


def rows_of(base: int) -> tuple[Row, ...]:
    """Three events of each of four users, mixed, with days that differ within a user."""
    labels = {0: "yes", 1: "no", 2: "ja, é", 3: "no"}
    values = {0: 1.5, 1: -2.25, 2: 0.0, 3: 100.0}
    order = [(2, 5), (0, 7), (1, 2), (2, 1), (3, 4), (0, 3), (0, 12), (3, 11), (1, 10)]
    order += [(2, 9), (1, 6), (3, 8)]
    return tuple(
        Row(base + user, base + day * 7 % 5, day, labels[user], values[user]) for user, day in order
    )


LARGE, SMALL = rows_of(BIG + 1), rows_of(3)
"""Ids beyond the integers that floats hold exactly, and ids that fit into a byte."""


@dataclass(frozen=True, slots=True)
class Given:
    """A twin's table, and the options with which it is read."""

    data: object
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    user: str = "user_id"
    item: str = "item_id"
    order: str | None = "at"

    def table(self) -> TableSource:
        return TableSource(self.data, self.delimiter, columns=self.columns)  # type: ignore[arg-type]  # frames, too

    def histories(self) -> Histories:
        return read_histories(InteractionSource(self.table(), self.user, self.item, self.order))

    def answers(self, column: str) -> LabelSource:
        return LabelSource(self.table(), column, self.user)


Make = Callable[[Path, tuple[Row, ...]], Given]
NAMES = ("user_id", "item_id", "at", "label", "value")


def moment(row: Row) -> datetime:
    return FIRST_DAY + timedelta(days=row.day)


def seconds(row: Row) -> int:
    return int(moment(row).replace(tzinfo=UTC).timestamp())


def fields(row: Row, quoted: bool, delimiter: str) -> list[str]:
    found = [str(row.user), str(row.item), moment(row).isoformat(), row.label, str(row.value)]
    return [f'"{text}"' if quoted or delimiter in text else text for text in found]


def text_of(
    rows: tuple[Row, ...],
    delimiter: str = ",",
    header: str | None = None,
    *,
    quoted: bool = False,
    end: str = "\n",
    tail: str = "",
) -> str:
    names = delimiter.join(NAMES) + tail if header is None else header
    lines = [delimiter.join(fields(row, quoted, delimiter)) + tail for row in rows]
    return end.join([*([names] if names else []), *lines, ""])


def written(
    name: str,
    delimiter: str = ",",
    given: str | None = None,
    columns: tuple[str, ...] | None = None,
    encode: Callable[[bytes], bytes] = bytes,
    **how: object,
) -> Make:
    """A text file of this name."""

    def make(folder: Path, rows: tuple[Row, ...]) -> Given:
        text = text_of(rows, delimiter, "" if columns else None, **how)  # type: ignore[arg-type]  # as given
        (folder / name).write_bytes(encode(text.encode()))
        return Given(folder / name, given, columns)

    return make


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


def marked(data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


def blank_lines(data: bytes) -> bytes:
    return b"\n" + data.replace(b"\n", b"\n\n")


def mixed_ends(data: bytes) -> bytes:
    """Lines that end in CRLF, LF and CR in turn, as files that were put together have them."""
    ends = cycle([b"\r\n", b"\n", b"\r"])
    return b"".join(line + next(ends) for line in data.splitlines())


def in_a_folder(make: Make) -> Make:
    """The same file, found by its folder."""

    def outer(folder: Path, rows: tuple[Row, ...]) -> Given:
        given = make(folder, rows)
        return Given(folder, given.delimiter, given.columns, given.user, given.item, given.order)

    return outer


TEXTS: dict[str, Make] = {
    "csv": written("e.csv"),
    "csv, all fields quoted": written("e.csv", quoted=True),
    "csv with CRLF": written("e.csv", end="\r\n"),
    "csv with CR": written("e.csv", end="\r"),
    "csv with several kinds of line ends": written("e.csv", encode=mixed_ends),
    "csv.gz with several kinds of line ends": written(
        "e.csv.gz", encode=lambda data: gzip.compress(mixed_ends(data))
    ),
    "csv with a byte-order mark": written("e.csv", encode=marked),
    "csv with trailing commas": written("e.csv", tail=","),
    "csv with blank lines": written("e.csv", encode=blank_lines),
    "csv of another name": written("events"),
    "txt": written("e.txt"),
    "tsv": written("e.tsv", "\t"),
    "tab": written("e.tab", "\t"),
    "psv": written("e.psv", "|"),
    "csv with tabs": written("e.csv", "\t", "tab"),
    "csv with semicolons": written("e.csv", ";", ";"),
    "csv with named semicolons": written("e.csv", ";", "semicolon"),
    "csv with pipes": written("e.csv", "|", "pipe"),
    "csv with spaces": written("e.csv", " ", "space"),
    "csv without a header": written("e.csv", columns=NAMES),
    "tsv without a header": written("e.tsv", "\t", columns=NAMES),
    "csv without a header, with a byte-order mark": written("e.csv", columns=NAMES, encode=marked),
    "csv.gz with a byte-order mark": written(
        "e.csv.gz", encode=lambda data: gzip.compress(marked(data))
    ),
    "csv.gz": written("e.csv.gz", encode=gzip.compress),
    "csv.zst": in_a_folder(written("e.csv.zst", encode=zstd)),
    "tsv.gz": in_a_folder(written("e.tsv.gz", "\t", encode=gzip.compress)),
    "TSV.ZST": written("E.TSV.ZST", "\t", encode=zstd),
    "CSV": in_a_folder(written("E.CSV")),
    "csv that is packed with gzip": written("e.csv", encode=gzip.compress),
    "csv that is packed with zstd": written("e.csv", encode=zstd),
    "csv.gz that is not packed": written("e.csv.gz"),
    "csv of two gzip members": written(
        "e.csv.gz", encode=lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])
    ),
}

INTER = "user_id:token\titem_id:token\tat:token\tlabel:token\tvalue:float"


def inter(folder: Path, rows: tuple[Row, ...]) -> Given:
    (folder / "x.inter").write_text(text_of(rows, "\t", INTER))
    return Given(folder / "x.inter")


def split_inter(folder: Path, rows: tuple[Row, ...]) -> Given:
    for part, name in enumerate(("train", "valid", "test")):
        text = text_of(rows[part * 4 : part * 4 + 4], "\t", INTER)
        (folder / f"x.{name}.inter").write_text(text)
    (folder / "x.user").write_text("user_id:token\nu\n")
    return Given(folder)


def by_users(rows: tuple[Row, ...]) -> dict[int, list[Row]]:
    users: dict[int, list[Row]] = {}
    for row in rows:
        users.setdefault(row.user, []).append(row)
    return users


def token_seq(folder: Path, rows: tuple[Row, ...]) -> Given:
    header = "user_id:token\titem_id_list:token_seq\tat_list:float_seq\tlabel:token\tvalue:float"
    lines = [header]
    for user, own in by_users(rows).items():
        items = " ".join(str(row.item) for row in own)
        times = " ".join(str(seconds(row)) for row in own)
        lines.append(f"{user}\t{items}\t{times}\t{own[0].label}\t{own[0].value}")
    (folder / "x.inter").write_text("\n".join([*lines, ""]))
    return Given(folder / "x.inter", item="item_id_list", order="at_list")


RECBOLE: dict[str, Make] = {
    "RecBole inter": inter,
    "RecBole inter in its folder": in_a_folder(inter),
    "RecBole split files": split_inter,
    "RecBole token_seq": token_seq,
}


def arrow(rows: tuple[Row, ...]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([row.user for row in rows], pa.int64()),
            "item_id": pa.array([row.item for row in rows], pa.int64()),
            "at": pa.array([moment(row) for row in rows], pa.timestamp("us")),
            "label": pa.array([row.label for row in rows]),
            "value": pa.array([row.value for row in rows]),
        }
    )


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def parquet(change: Callable[[pa.Table], pa.Table], name: str = "e.parquet", **how: object) -> Make:
    """A Parquet file of the changed table."""

    def make(folder: Path, rows: tuple[Row, ...]) -> Given:
        pq.write_table(change(arrow(rows)), folder / name, **how)
        return Given(folder / name)

    return make


def ids_as(*types: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    """Users and items cast to these types, one after the other."""

    def change(table: pa.Table) -> pa.Table:
        for name in ("user_id", "item_id"):
            values = table[name]
            for each in types:
                values = values.cast(each)
            table = with_column(table, name, values)
        return table

    return change


def dictionary_of(kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        for name in ("user_id", "item_id", "label"):
            values = table[name] if name == "label" else table[name].cast(kind)
            table = with_column(table, name, values.dictionary_encode())
        return table

    return change


def time_as(convert: Callable[[pa.ChunkedArray], object]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: with_column(table, "at", convert(table["at"]))


def epoch(unit: str, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    kind = kind or pa.int64()
    return time_as(lambda at: at.cast(pa.timestamp(unit)).cast(pa.int64()).cast(kind))


def formatted(form: str, zone: str | None = None) -> Callable[[pa.Table], pa.Table]:
    def convert(at: pa.ChunkedArray) -> list[str]:
        times = [time.replace(tzinfo=ZoneInfo(zone)) if zone else time for time in at.to_pylist()]
        return [time.strftime(form) for time in times]

    return time_as(lambda at: pa.array(convert(at)))


def same(table: pa.Table) -> pa.Table:
    return table


TYPES: dict[str, Make] = {
    "int64": parquet(same),
    "uint64": parquet(ids_as(pa.uint64())),
    "decimal128": parquet(ids_as(pa.decimal128(19, 0))),
    "decimal128, 38 digits": parquet(ids_as(pa.decimal128(38, 0))),
    "decimal256": parquet(ids_as(pa.decimal256(60, 0))),
    "texts": parquet(ids_as(pa.string())),
    "large texts": parquet(ids_as(pa.large_string())),
    "text views": parquet(ids_as(pa.string(), pa.string_view())),
    "bytes of UTF-8": parquet(ids_as(pa.string(), pa.binary())),
    "large bytes of UTF-8": parquet(ids_as(pa.string(), pa.large_binary())),
    "dictionaries of integers": parquet(dictionary_of(pa.int64())),
    "dictionaries of texts": parquet(dictionary_of(pa.string())),
}

SMALL_TYPES: dict[str, Make] = {
    str(kind): parquet(ids_as(kind))
    for kind in (
        *(pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32()),
        *(pa.float32(), pa.float64(), pa.decimal128(21, 2), pa.decimal256(50, 2)),
    )
}

TIMES: dict[str, Make] = {
    "timestamps in seconds": parquet(time_as(lambda at: at.cast(pa.timestamp("s")))),
    "timestamps in milliseconds": parquet(time_as(lambda at: at.cast(pa.timestamp("ms")))),
    "timestamps in nanoseconds": parquet(time_as(lambda at: at.cast(pa.timestamp("ns")))),
    "timestamps in UTC": parquet(time_as(lambda at: at.cast(pa.timestamp("us", "UTC")))),
    "timestamps in Berlin": parquet(
        time_as(lambda at: pc.assume_timezone(at, "Europe/Berlin", ambiguous="earliest"))
    ),
    "timestamps of 96 bits": parquet(same, use_deprecated_int96_timestamps=True),
    "dates of 32 bits": parquet(time_as(lambda at: at.cast(pa.date32()))),
    "dates of 64 bits": parquet(time_as(lambda at: at.cast(pa.date64()))),
    "seconds since 1970": parquet(epoch("s")),
    "seconds since 1970 in 32 bits": parquet(epoch("s", pa.uint32())),
    "seconds since 1970 as floats": parquet(epoch("s", pa.float64())),
    "seconds since 1970 as decimals": parquet(epoch("s", pa.decimal128(20, 0))),
    "milliseconds since 1970": parquet(epoch("ms")),
    "microseconds since 1970": parquet(epoch("us")),
    "nanoseconds since 1970": parquet(epoch("ns")),
    "nanoseconds since 1970, unsigned": parquet(epoch("ns", pa.uint64())),
    "times as texts": parquet(formatted("%Y-%m-%d %H:%M:%S")),
    "times as texts of ISO 8601": parquet(formatted("%Y-%m-%dT%H:%M:%SZ")),
    "times as texts with a zone": parquet(formatted("%Y-%m-%dT%H:%M:%S%z", "Asia/Tokyo")),
    "dates as texts": parquet(formatted("%Y-%m-%d")),
}

STORED: dict[str, Make] = {
    "row groups": parquet(same, row_group_size=2),
    "zstd within": parquet(same, compression="zstd"),
    "pages of version 2": parquet(same, data_page_version="2.0", use_dictionary=False),
    "pq": in_a_folder(parquet(same, "e.pq")),
    "PARQUET": in_a_folder(parquet(same, "E.PARQUET")),
    "parquet.snappy": in_a_folder(parquet(same, "e.parquet.snappy")),
    "snappy.parquet": in_a_folder(parquet(same, "e.snappy.parquet")),
    "Parquet under another name": parquet(same, "e.csv"),
}


def many_files(folder: Path, rows: tuple[Row, ...]) -> Given:
    for number, row in enumerate(rows):
        path = folder / f"part-{number}"
        if number % 2:
            pq.write_table(arrow((row,)), path.with_suffix(".parquet"))
        else:
            path.with_suffix(".csv").write_text(text_of((row,)))
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.csv.crc").write_bytes(b"\0")
    (folder / "part-99.csv").touch()
    return Given(folder)


def partitions(suffix: str) -> Make:
    def make(folder: Path, rows: tuple[Row, ...]) -> Given:
        table = arrow(rows)
        for number, label in enumerate(dict.fromkeys(row.label for row in rows)):
            inner = folder / f"label={label.replace(' ', '%20')}"
            inner.mkdir()
            part = table.filter(pc.equal(table["label"], label)).drop_columns(["label"])
            if suffix == "parquet":
                pq.write_table(part, inner / "0.parquet")
            else:
                own = tuple(row for row in rows if row.label == label)
                body = [f"{r.user},{r.item},{moment(r).isoformat()},{r.value}" for r in own]
                text = "\n".join(["user_id,item_id,at,value", *body, ""])
                (inner / f"{number}.csv").write_text(text)
        return Given(folder)

    return make


FOLDERS: dict[str, Make] = {
    "many files of two forms": many_files,
    "partitions of Parquet": partitions("parquet"),
    "partitions of csv": partitions("csv"),
}


def lists(
    kind: Callable[[pa.DataType], pa.DataType], time: pa.DataType | None, as_frame: bool = False
) -> Make:
    """One row per user, with a list of items and, if ``time`` is given, one of times."""

    def make(folder: Path, rows: tuple[Row, ...]) -> Given:
        users = by_users(rows)
        own = [sorted(u, key=lambda r: r.day) if time is None else u for u in users.values()]
        columns = {
            "user_id": pa.array(list(users), pa.int64()),
            "items": pa.array([[r.item for r in u] for u in own], kind(pa.int64())),
            "label": pa.array([u[0].label for u in own]),
            "value": pa.array([u[0].value for u in own]),
        }
        if time is not None:
            moments = [[moment(r) for r in u] for u in own]
            columns["times"] = pa.array(moments, kind(pa.timestamp("us"))).cast(kind(time))
        table = pa.table(columns)
        order = None if time is None else "times"
        if as_frame:
            return Given(table, item="items", order=order)
        pq.write_table(table, folder / "e.parquet")
        return Given(folder / "e.parquet", item="items", order=order)

    return make


def of_three(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind, 3)


LISTS: dict[str, Make] = {
    "lists in order": lists(pa.list_, None),
    "lists with times": lists(pa.list_, pa.timestamp("us")),
    "lists with seconds since 1970": lists(pa.list_, pa.int64()),
    "large lists": lists(pa.large_list, pa.timestamp("us")),
    "lists of one size": lists(of_three, pa.timestamp("us")),
    "lists in an Arrow table": lists(pa.list_, pa.timestamp("us"), as_frame=True),
}


def frame(convert: Callable[[pa.Table], object]) -> Make:
    return lambda _, rows: Given(convert(arrow(rows)))


def categories(table: pa.Table) -> pd.DataFrame:
    found = table.to_pandas()
    return found.astype({"user_id": "category", "item_id": "category", "label": "category"})


FRAMES: dict[str, Make] = {
    "pandas": frame(lambda table: table.to_pandas()),
    "pandas with nullable integers": frame(
        lambda table: table.to_pandas().astype({"user_id": "Int64", "item_id": "UInt64"})
    ),
    "pandas with an index": frame(lambda table: table.to_pandas().set_index("label", drop=False)),
    "pandas with texts": frame(
        lambda table: table.to_pandas().astype({"user_id": "string", "item_id": "string"})
    ),
    "pandas with objects": frame(
        lambda table: table.to_pandas().astype({"user_id": str, "item_id": str})
    ),
    "pandas with categories": frame(categories),
    "pandas over Arrow": frame(lambda table: table.to_pandas(types_mapper=pd.ArrowDtype)),
    "polars": frame(pl.from_arrow),
    "polars with categories": frame(
        lambda table: pl.DataFrame(table).with_columns(pl.col("label").cast(pl.Categorical))
    ),
    "Arrow": frame(same),
    "Arrow in chunks": frame(lambda table: pa.concat_tables([table[:5], table[5:]])),
    "a DuckDB relation": frame(lambda table: duckdb.from_arrow(table)),
}

TWINS = TEXTS | RECBOLE | TYPES | TIMES | STORED | FOLDERS | LISTS | FRAMES


def require_the_same(given: Given, rows: tuple[Row, ...]) -> None:
    """Everything that training reads of a twin, against what its rows say."""
    users = by_users(rows)
    wanted = {
        str(user): tuple(str(row.item) for row in sorted(own, key=lambda row: row.day))
        for user, own in users.items()
    }
    histories = given.histories()
    found = {user: histories.items_of(i) for i, user in enumerate(histories.users)}
    assert found == wanted
    counts: dict[str, int] = {}
    for row in rows:
        counts[str(row.item)] = counts.get(str(row.item), 0) + 1
    by_count = sorted(counts, key=lambda item: (-counts[item], item))
    assert build_vocabulary(histories).items == tuple(by_count)
    labels = read_labels(given.answers("label")).by_user
    assert labels == {str(user): (own[0].label,) for user, own in users.items()}
    values = read_values(given.answers("value")).by_user
    numbers = {user: tuple(float(text) for text in texts) for user, texts in values.items()}
    assert numbers == {str(user): (own[0].value,) for user, own in users.items()}


def test_there_are_at_least_forty_forms():
    assert len(TWINS) >= 40


@pytest.mark.parametrize("form", TWINS)
def test_a_twin_reads_the_same(tmp_path, form):
    require_the_same(TWINS[form](tmp_path, LARGE), LARGE)


@pytest.mark.parametrize("form", SMALL_TYPES)
def test_a_twin_with_narrow_ids_reads_the_same(tmp_path, form):
    require_the_same(SMALL_TYPES[form](tmp_path, SMALL), SMALL)
