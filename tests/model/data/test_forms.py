"""Which files a path stands for, the form of each, and what is refused by name or first bytes."""

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from peterrec.model.data.delimiters import parse_delimiter
from peterrec.model.data.filters import Condition
from peterrec.model.data.forms import DataFiles, find_data_files, require_columns
from peterrec.model.data.tables import TableSource, read_parts
from peterrec.model.errors import (
    ColumnMissing,
    ColumnsInvalid,
    DataFileEmpty,
    DataFileMissing,
    DataFileUnreadable,
    DelimiterInvalid,
)

TEXT = "user_id,item_id\nu,a\nv,b\n"
TABLE = pa.table({"user_id": ["u", "v"], "item_id": ["a", "b"]})


def put(path: Path, text: str | bytes = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


def put_parquet(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(TABLE, path)
    return path


def names_of(found: DataFiles) -> list[str]:
    return [str(file.path.relative_to(found.source)) for file in found.files]


TABLE_NAMES = [
    "a.csv",
    "A.CSV",
    "a.Csv.GZ",
    "a.csv.zst",
    "a.csv.zstd",
    "a.tsv",
    "a.TSV.gz",
    "a.tsv.zst",
    "a.tab",
    "a.psv",
    "a.inter",
    "x.train.inter",
    "a.inter.gz",
]
PARQUET_NAMES = [
    "a.parquet",
    "A.PARQUET",
    "a.pq",
    "a.parq",
    "a.parquet.snappy",
    "a.snappy.parquet",
    "a.zstd.parquet",
    "a.parquet.gz",
    "part-0.c000.snappy.parquet",
]


def packed(name: str, text: str) -> bytes:
    if name.lower().endswith(".gz"):
        return gzip.compress(text.encode())
    if name.lower().endswith((".zst", ".zstd")):
        return zstd(text.encode())
    return text.encode()


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_what_a_single_text_files_name_allows_a_folder_allows_too(tmp_path, name):
    delimiter = {".t": "\t", ".i": "\t", ".p": "|"}.get(name[1:3].lower(), ",")
    delimiter = "\t" if ".inter" in name else delimiter
    path = put(tmp_path / name, packed(name, TEXT.replace(",", delimiter)))
    for given in (path, tmp_path):
        (file,) = find_data_files(given).files
        assert file.names == ("user_id", "item_id")
        assert file.size == path.stat().st_size
        assert file.form is not None
        assert file.form.delimiter == delimiter


@pytest.mark.parametrize("name", PARQUET_NAMES)
def test_what_a_single_parquet_files_name_allows_a_folder_allows_too(tmp_path, name):
    path = put_parquet(tmp_path / name)
    for given in (path, tmp_path):
        (file,) = find_data_files(given).files
        assert (file.names, file.container) == (("user_id", "item_id"), "parquet")


def test_names_that_begin_with_a_dot_or_an_underscore_are_no_data(tmp_path):
    folder = tmp_path / "_mine" / ".data"
    for name in (
        "_SUCCESS",
        "_part.csv",
        ".part-0.csv",
        "._part-0.csv",
        ".part-0.parquet.crc",
        "_delta_log/000.checkpoint.parquet",
        ".ipynb_checkpoints/part-0-checkpoint.csv",
        "year=2024/_temporary/0/part-0.csv",
        "__MACOSX/part-0.csv",
    ):
        put(folder / name)
    put(folder / "part-0.csv")
    put(folder / "year=2024" / "part-1.csv")
    found = find_data_files(folder)
    assert names_of(found) == ["part-0.csv", "year=2024/part-1.csv"]
    assert len(found.left_out) == 9
    assert "_delta_log/ (its name begins with _)" in found.left_out
    assert any("Delta table" in notice for notice in found.notices)


def test_every_other_file_is_named_with_the_reason(tmp_path):
    put(tmp_path / "a.csv")
    put(tmp_path / "empty.csv", "")
    put(tmp_path / "blank.csv.gz", gzip.compress(b"\n"))
    put(tmp_path / "README.md")
    put(tmp_path / "notes.txt", "What these files are, and where from.\n")
    put(tmp_path / "schema.json", "{}")
    put(tmp_path / "a.csv.crc", b"\0")
    (tmp_path / "latest.csv").symlink_to(tmp_path / "a.csv")
    (tmp_path / "again.csv").hardlink_to(tmp_path / "a.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "round").symlink_to(tmp_path)
    found = find_data_files(tmp_path)
    assert names_of(found) == ["a.csv"]
    assert sorted(found.left_out) == [
        "README.md (no name of a table)",
        "a.csv.crc (no name of a table)",
        "again.csv (the same file as a.csv)",
        "blank.csv.gz (empty)",
        "empty.csv (empty)",
        "latest.csv (the same file as a.csv)",
        "link.csv (a link to nothing)",
        "notes.txt (no name of a table)",
        "round (a link to a folder)",
        "schema.json (no name of a table)",
    ]


def test_numbers_in_names_are_read_as_numbers(tmp_path):
    for number in (10, 9, 1, 2):
        put(tmp_path / f"day={number}" / f"part-{number}.csv")
    put(tmp_path / "part-03.csv")
    assert names_of(find_data_files(tmp_path)) == [
        *(f"day={number}/part-{number}.csv" for number in (1, 2, 9, 10)),
        "part-03.csv",
    ]


def test_recboles_parts_come_in_the_order_of_time(tmp_path):
    for part in ("test", "valid", "train"):
        put(tmp_path / f"x.{part}.inter", "user_id:token\titem_id:token\nu\ta\n")
    put(tmp_path / "x.user", "user_id:token\nu\n")
    found = find_data_files(tmp_path)
    assert names_of(found) == ["x.train.inter", "x.valid.inter", "x.test.inter"]
    assert found.left_out == ("x.user (no events; give the file itself to read it)",)
    with pytest.raises(DataFileMissing, match="does not exist") as caught:
        find_data_files(tmp_path / "x.inter")
    assert "x.train.inter" in caught.value.hint


@pytest.mark.parametrize(
    "names",
    [
        ("x.inter", "x.train.inter"),
        ("a.csv", "a.csv.gz"),
        ("a.csv", "a.tsv"),
        ("a.parquet", "a.csv.zst"),
    ],
)
def test_a_table_that_lies_in_a_folder_twice_is_refused(tmp_path, names):
    for name in names:
        put_parquet(tmp_path / name) if "parquet" in name else put(
            tmp_path / name, packed(name, TEXT)
        )
    with pytest.raises(DataFileUnreadable) as caught:
        find_data_files(tmp_path)
    assert all(name in caught.value.message for name in names)


def test_partition_folders_give_columns(tmp_path):
    put(tmp_path / "domain=a%20b" / "day=2024-01-02" / "x.csv")
    put(tmp_path / "domain=__HIVE_DEFAULT_PARTITION__" / "y.csv")
    found = find_data_files(tmp_path)
    assert [file.partitions for file in found.files] == [
        (("domain", None),),
        (("domain", "a b"), ("day", "2024-01-02")),
    ]
    assert found.files[1].columns == ("user_id", "item_id", "domain", "day")
    with pytest.raises(ColumnMissing, match=r"y\.csv.*no column 'day'"):
        require_columns(found.files[0], ["user_id", "day"])


def test_a_column_that_two_folders_give_is_refused(tmp_path):
    put(tmp_path / "a=1" / "a=2" / "x.csv")
    with pytest.raises(DataFileUnreadable, match="two of its folders give the column 'a'"):
        find_data_files(tmp_path)


def test_paths_that_are_no_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "empty").mkdir()
    put(tmp_path / "others" / "a.log")
    put(tmp_path / "blank" / "a.csv", "")
    for name, error, message in (
        ("pipe", DataFileUnreadable, "neither a file nor a folder"),
        ("link", DataFileMissing, "a link to gone"),
        ("absent", DataFileMissing, "does not exist"),
        ("a.csv/b.csv", DataFileMissing, "does not exist"),
        ("empty", DataFileMissing, "has no .csv"),
        ("others", DataFileMissing, "Left out: a.log"),
        ("blank", DataFileEmpty, "are empty"),
        ("blank/a.csv", DataFileEmpty, "is empty"),
    ):
        with pytest.raises(error, match=message):
            find_data_files(tmp_path / name)


def zipped(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, TEXT)
    return data.getvalue()


def workbook() -> bytes:
    data = io.BytesIO()
    openpyxl.Workbook().save(data)
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.csv"))
    return data.getvalue()


def arrow_bytes(form: str) -> bytes:
    data = io.BytesIO()
    if form == "orc":
        pyarrow.orc.write_table(TABLE, data)
    elif form == "feather":
        pyarrow.feather.write_feather(TABLE, data)
    elif form == "stream":
        with pa.ipc.new_stream(data, TABLE.schema) as writer:
            writer.write_table(TABLE)
    else:
        pq.write_table(TABLE, data)
    return data.getvalue()


def sqlite_bytes() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (a)")
    return connection.serialize()


FOREIGN = {
    "a zip archive": zipped("a.csv"),
    "Excel workbook (.xlsx)": workbook(),
    "Excel workbook (.xls)": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100),
    "an xz archive": lzma.compress(TEXT.encode()),
    "a bzip2 archive": bz2.compress(TEXT.encode()),
    "a tar archive, packed with gzip": tarred(),
    "a Parquet file, packed with gzip": gzip.compress(arrow_bytes("parquet")),
    "packed twice": gzip.compress(gzip.compress(TEXT.encode())),
    "an ORC file": arrow_bytes("orc"),
    "an Arrow (Feather) file": arrow_bytes("feather"),
    "an Arrow stream": arrow_bytes("stream"),
    "an Avro file": b"Obj\x01\x04\x14avro.codec" + bytes(10),
    "an SQLite database": sqlite_bytes(),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16 without a mark": TEXT.encode("utf-16-be"),
    "UTF-16, packed with gzip": gzip.compress(TEXT.encode("utf-16")),
    "UTF-32": TEXT.encode("utf-32"),
    "UTF-32 without a mark": TEXT.encode("utf-32-le"),
    "a web page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "an XML document": b"<?xml version='1.0'?><rows/>",
    "a JSON document": json.dumps([{"user_id": "u"}], indent=1).encode(),
    "JSON lines": b'{"user_id": "u"}\n{"user_id": "v"}\n',
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a binary file": b"a,b\n1,\0\n",
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("name", ["events.csv", "events.tsv.gz", "events.parquet", "events"])
def test_forms_that_are_not_read_are_named_by_their_first_bytes(tmp_path, what, name):
    path = put(tmp_path / name, FOREIGN[what])
    with pytest.raises(DataFileUnreadable) as caught:
        find_data_files(path)
    assert what.split(",")[0] in caught.value.message
    assert name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "header", ["ORCID,item_id", "PARENT,item_id", "PAR1,item_id", "[user],item_id", "DUCKS,DUCK"]
)
def test_a_header_that_begins_like_another_form_is_a_header(tmp_path, header):
    (file,) = find_data_files(put(tmp_path / "a.csv", f"{header}\nu,a\n")).files
    assert file.names == tuple(header.split(","))


@pytest.mark.parametrize(
    ("name", "data", "container", "packing"),
    [
        ("a.csv", gzip.compress(TEXT.encode()), "text", "gzip"),
        ("a.csv", zstd(TEXT.encode()), "text", "zstd"),
        ("a.csv.gz", TEXT.encode(), "text", "none"),
        ("a.csv.gz", zstd(TEXT.encode()), "text", "zstd"),
        ("a.csv", arrow_bytes("parquet"), "parquet", "none"),
    ],
    ids=["gzip", "zstd", "plain", "zstd as gzip", "parquet"],
)
def test_packed_texts_and_parquet_under_a_wrong_name_are_read_as_what_they_are(
    tmp_path, name, data, container, packing
):
    found = find_data_files(put(tmp_path / name, data))
    (file,) = found.files
    assert (file.container, file.names) == (container, ("user_id", "item_id"))
    assert file.form is None or file.form.packing == packing
    assert all("by its first bytes" in notice for notice in found.notices)


def test_a_text_with_the_name_of_a_parquet_file_is_refused(tmp_path):
    with pytest.raises(DataFileUnreadable, match=r"a\.parquet is no Parquet file"):
        find_data_files(put(tmp_path / "a.parquet"))


def test_a_table_in_a_form_that_is_not_read_is_refused_in_a_folder(tmp_path):
    put(tmp_path / "a.csv")
    for name, data in (
        ("b.xlsx", FOREIGN["Excel workbook (.xlsx)"]),
        ("b.csv.bz2", FOREIGN["a bzip2 archive"]),
        ("b.csv.zip", FOREIGN["a zip archive"]),
        ("b.jsonl", FOREIGN["JSON lines"]),
        ("b.orc", FOREIGN["an ORC file"]),
    ):
        path = put(tmp_path / name, data)
        with pytest.raises(DataFileUnreadable, match=name):
            find_data_files(tmp_path)
        path.unlink()


@pytest.mark.parametrize("name", ["part-1", "b.txt", "b.dat"])
def test_a_part_without_the_name_of_a_table_is_refused_in_a_folder(tmp_path, name):
    put(tmp_path / "a.csv")
    put(tmp_path / "a.csv.bak")
    put(tmp_path / "b.zip", FOREIGN["a zip archive"])
    put(tmp_path / "README", "u,a\n")
    assert names_of(find_data_files(tmp_path)) == ["a.csv"]
    put(tmp_path / name, "user_id,item_id\nw,c\n")
    with pytest.raises(DataFileUnreadable, match=rf"{name} has the columns of a\.csv"):
        find_data_files(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    whole = arrow_bytes("parquet")
    put(tmp_path / "a.parquet", whole[:-20])
    put(tmp_path / "a.csv.gz", gzip.compress(TEXT.encode())[:12])
    for name in ("a.parquet", "a.csv.gz"):
        with pytest.raises(DataFileUnreadable, match=name):
            find_data_files(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "character"),
    [
        (r"\t", "\t"),
        ("\t", "\t"),
        ("tab", "\t"),
        ("TAB", "\t"),
        ("comma", ","),
        ("semicolon", ";"),
        ("pipe", "|"),
        ("space", " "),
        (";", ";"),
        ("\x01", "\x01"),
        ("§", "§"),
    ],
)
def test_a_delimiter_is_one_character_or_its_name(text, character):
    assert parse_delimiter(text) == character


@pytest.mark.parametrize("text", ["", "::", ",,", "t", "7", '"', "\n", "\r", "\0", r"\n", "tabs"])
def test_other_delimiters_are_refused_with_the_ones_that_exist(text):
    with pytest.raises(DelimiterInvalid) as caught:
        parse_delimiter(text)
    assert repr(text) in caught.value.message
    assert "tab, comma, semicolon, pipe" in caught.value.hint


def columns_error(path: Path, *wanted: str) -> ColumnMissing:
    (file,) = find_data_files(path).files
    with pytest.raises(ColumnMissing) as caught:
        require_columns(file, wanted)
    return caught.value


@pytest.mark.parametrize(
    ("text", "wanted", "advice"),
    [
        ("user_id;item_id\nu;a\n", "item_id", "Give `delimiter` ';'."),
        ("user_id\titem_id\nu\ta\n", "item_id", "Give `delimiter` tab."),
        ("user_id, item_id\nu, a\n", "item_id", "Did you mean ' item_id'?"),
        ("User_ID,Item_ID\nu,a\n", "item_id", "Did you mean 'Item_ID'?"),
        ("user_id:token,item_id:token\nu,a\n", "item_id", "Did you mean 'item_id:token'?"),
        ("sep=;\nuser_id;item_id\nu;a\n", "item_id", "Delete line 1"),
        ("user_id,itemId\nu,a\n", "item_id", "Did you mean 'itemId'?"),
        ("user_id,item_ids\nu,a\n", "item_id", "Did you mean 'item_ids'?"),
        ("u1,i5,17\nu2,i7,19\n", "item_id", "no header, name its columns"),
        ("u1,i5\nu2,i7\n", "item_id", "no header, name its columns"),
        ("2024-01-01,a\n2024-01-02,b\n", "item_id", "no header, name its columns"),
        ("who,what\nu1,a\n", "item_id", "Name the column as the file does"),
        ('"user_id;item_id"\n', "item_id", "Name the column as the file does"),
    ],
)
def test_a_missing_column_comes_with_what_may_be_meant(tmp_path, text, wanted, advice):
    error = columns_error(put(tmp_path / "a.csv", text), wanted)
    assert f"line 1 split at ',': there is no column {wanted!r}" in error.message
    assert advice in error.hint


def test_a_recbole_file_with_commas_is_told_to_be_one(tmp_path):
    error = columns_error(put(tmp_path / "a.inter", "user_id:token,item_id:token\n"), "item_id")
    assert error.hint == "Give `delimiter` ','."


def test_a_column_is_missing_from_the_file_that_is_named(tmp_path):
    put(tmp_path / "a.csv")
    put(tmp_path / "b.csv", "user_id\nu\n")
    put_parquet(tmp_path / "c.parquet")
    found = find_data_files(tmp_path)
    require_columns(found.files[0], ["item_id"])
    require_columns(found.files[2], ["item_id"])
    with pytest.raises(ColumnMissing, match=r"b\.csv, line 1"):
        require_columns(found.files[1], ["item_id"])


def test_files_without_a_header_get_the_names_that_are_given(tmp_path):
    path = put(tmp_path / "a.csv", "u,a\nv,b\n")
    (file,) = find_data_files(path, columns=["user_id", "item_id"]).files
    assert file.names == ("user_id", "item_id")
    assert file.form is not None
    assert not file.form.has_header


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("u,a,1\n", "user_id,item_id", "3 fields, but 2 names"),
        ("u\ta\n", "user_id,item_id", "1 fields, but 2 names.*Split at tab, it has 2"),
        ("user_id,item_id\nu,a\n", "user_id,item_id", "the file has a header"),
        ("User_Id, item_id\nu,a\n", "user_id,item_id", "the file has a header"),
        ("u,a\n", "user_id,user_id", "'user_id' occurs twice"),
        ("u,a\n", "user_id,", "a name is empty"),
    ],
)
def test_names_that_do_not_fit_the_first_line_are_refused(tmp_path, text, columns, message):
    path = put(tmp_path / "a.csv", text)
    with pytest.raises(ColumnsInvalid, match=message):
        find_data_files(path, columns=columns.split(","))


def test_names_are_refused_for_files_that_have_names(tmp_path):
    for path in (
        put_parquet(tmp_path / "a.parquet"),
        put(tmp_path / "a.inter", "user_id:token\nu\n"),
    ):
        with pytest.raises(ColumnsInvalid, match="names of its own"):
            find_data_files(path, columns=["user_id"])


def test_a_name_that_occurs_twice_is_refused_when_it_is_asked_for(tmp_path):
    (file,) = find_data_files(put(tmp_path / "a.csv", "user_id,a,a,\nu,1,2,\n")).files
    require_columns(file, ["user_id"])
    with pytest.raises(DataFileUnreadable, match="'a' occurs twice"):
        require_columns(file, ["a"])


def test_marks_quotes_and_line_ends_leave_the_header_as_it_is(tmp_path):
    for text in (
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        b"\n\n" + TEXT.encode(),
        b'"user_id","item_id"\n"u","a"\n',
    ):
        (file,) = find_data_files(put(tmp_path / "a.csv", text)).files
        assert file.names == ("user_id", "item_id")


def test_a_header_that_is_not_utf_8_is_refused_with_its_place(tmp_path):
    path = put(tmp_path / "a.csv", "user_id,größe\nu,1\n".encode("latin-1"))
    with pytest.raises(DataFileUnreadable, match="line 1, column 2: the text is not UTF-8"):
        find_data_files(path)


def test_recboles_types_and_parquets_lists_are_known(tmp_path):
    text = "user_id:token\titem_id_list:token_seq\ttime:float\tage\nu\ta b\t1\t2\n"
    (file,) = find_data_files(put(tmp_path / "a.inter", text)).files
    assert file.names == ("user_id", "item_id_list", "time", "age")
    assert file.types == ("token", "token_seq", "float", "token")
    assert file.lists == ("item_id_list",)
    assert columns_error(tmp_path / "a.inter", "item_id").hint == "Did you mean 'item_id_list'?"
    table = pa.table({"user": ["u"], "items": [["a", "b"]]})
    pq.write_table(table, tmp_path / "b.parquet")
    assert find_data_files(tmp_path / "b.parquet").files[0].lists == ("items",)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_column_in_the_file_and_in_its_folder_must_say_the_same(tmp_path, name):
    def write(path: Path, days: Sequence[int | None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"user_id": ["u", "v"], "day": days})
        if name == "x.csv":
            pyarrow.csv.write_csv(table, path)
        else:
            pq.write_table(table, path)

    write(tmp_path / "same" / "day=7" / name, [7, 7])
    write(tmp_path / "same" / "day=__HIVE_DEFAULT_PARTITION__" / name, [None, None])
    (part, *_) = read_parts(TableSource(tmp_path / "same"), ["user_id", "day"])
    assert part.table["user_id"].to_pylist() == ["u", "v"]
    for days in ([7, 8], [7, None]):
        write(tmp_path / "other" / "day=7" / name, days)
        with pytest.raises(
            DataFileUnreadable, match=r"column 'day': .*, but its folder says day=7"
        ):
            read_parts(TableSource(tmp_path / "other"), ["day"])


def test_a_partition_column_filters_and_is_missing_where_its_folder_says_so(tmp_path):
    put(tmp_path / "domain=a" / "x.csv", "user_id,item_id\nu,a\n")
    put(tmp_path / "domain=__HIVE_DEFAULT_PARTITION__" / "x.csv", "user_id,item_id\nv,b\n")
    where = (Condition("domain", "a"),)
    found = read_parts(TableSource(tmp_path, where=where), ["user_id"])
    assert [user for part in found for user in part.table["user_id"].to_pylist()] == ["u"]


def test_a_copy_of_a_file_in_its_folder_is_told_of(tmp_path):
    for name in ("a.csv", "a (1).csv", "day=1/a.csv", "day=2/a.csv"):
        put(tmp_path / "copied" / name, "user_id,item_id\nu,a\n")
    (told,) = find_data_files(tmp_path / "copied").notices
    assert "a.csv is the same as" in told or "a (1).csv is the same as" in told
    assert "such copies" not in told
    put(tmp_path / "other" / "a.csv", "user_id,item_id\nu,a\n")
    put(tmp_path / "other" / "b.csv", "user_id,item_id\nu,b\n")
    assert not find_data_files(tmp_path / "other").notices
