"""Tables of items: display names, and columns of every type, declared or recognised."""

from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from peterrec.model.data.item_columns import read_item_columns, read_titles
from peterrec.model.data.observer import SilentObserver
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import PeterRecError

TEXT = """id,title,genre,price,since,zip
1,One,Drama|War,1.50,2026-01-01,01234
2,Two,,,2026-01-02T03:04:05+01:00,99999
3,"Three, 3",War,1e2,,
"""


def write(folder: Path, text: str = TEXT) -> TableSource:
    path = folder / "items.csv"
    path.write_text(text)
    return TableSource(path)


def read(source: TableSource, **types: str | None):
    return read_item_columns(source, "id", types, "|")  # type: ignore[arg-type]  # texts


def test_titles_are_read_by_id(tmp_path):
    found = read_titles(write(tmp_path), "id", "title")
    assert found == {"1": "One", "2": "Two", "3": "Three, 3"}


def test_the_types_of_columns_are_recognised(tmp_path):
    found = read(write(tmp_path))
    kinds = {name: column.type for name, column in found.items()}
    assert kinds == {
        "title": "text",
        "genre": "text",
        "price": "number",
        "since": "time",
        "zip": "text",
    }
    assert found["price"].values == {"1": 1.5, "2": None, "3": 100.0}
    second = datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC).timestamp() * 1_000_000
    assert found["since"].values["2"] == second
    assert found["zip"].values == {"1": "01234", "2": "99999", "3": None}


def test_lists_are_split_and_rows_of_one_item_add_up(tmp_path):
    text = "id,genre\n1,Drama | War\n2,\n1,Comedy\n"
    found = read(write(tmp_path, text), genre="list")["genre"]
    assert found.type == "list"
    assert found.values == {"1": ("Drama", "War", "Comedy"), "2": ()}


def test_tables_in_memory_keep_their_types():
    table = pa.table(
        {
            "id": [1, 2],
            "genre": pa.array([["a", "b"], None], pa.list_(pa.string())),
            "since": pa.array([date(2026, 1, 1), None]),
            "price": pa.array([0.1, None], pa.float64()),
            "ok": [True, False],
        }
    )
    found = read(TableSource(table))
    kinds = {name: column.type for name, column in found.items()}
    assert kinds == {"genre": "list", "since": "time", "price": "number", "ok": "text"}
    assert found["genre"].values == {"1": ("a", "b"), "2": ()}
    assert found["price"].values["1"] == 0.1
    assert found["ok"].values == {"1": "true", "2": "false"}


@pytest.mark.parametrize(
    ("text", "types", "code", "words"),
    [
        ("id,price\n1,5\n1,6\n", {}, "data_item_repeated", "line 3"),
        ("id,price\n1,5\n2,cheap\n", {"price": "number"}, "data_number_unreadable", "line 3"),
        ("id,since\n1,soon\n", {"since": "time"}, "data_time_unreadable", "line 2"),
        ("id,price\n1,5\n", {"prise": None}, "data_column_missing", "prise"),
        ("id\n1\n", {}, "data_column_missing", "no column but"),
        ("item,price\n1,5\n", {}, "data_column_missing", "id"),
        ("id,price\n,5\n", {}, "data_value_missing", "line 2"),
        ("id,genre\n1,NULL\n", {}, "data_missing_text", "NULL"),
        ("id,genre\n1,\"['a', 'b']\"\n", {"genre": "list"}, "data_lists_invalid", "line 2"),
    ],
)
def test_what_can_not_be_read_names_its_place(tmp_path, text, types, code, words):
    with pytest.raises(PeterRecError) as refused:
        read(write(tmp_path, text), **types)
    assert refused.value.code == code
    assert words in f"{refused.value.message} {refused.value.hint}"


def test_fields_that_look_like_lists_are_told(tmp_path):
    notices: list[str] = []

    class Listening(SilentObserver):
        def notice(self, text: str) -> None:
            notices.append(text)

    source = write(tmp_path, "id,genre\n1,a|b\n2,b|a\n3,a\n")
    read_item_columns(source, "id", {}, "|", Listening())
    assert any("look like several texts" in each for each in notices)
