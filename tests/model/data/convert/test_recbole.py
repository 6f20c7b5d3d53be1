"""RecBole's atomic files become Parquet tables; broken fields are named with their line."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peterrec.model.data.convert.recbole import ConvertedRecBole, convert_recbole
from peterrec.model.data.filters import Condition
from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import (
    ColumnMissing,
    DataFileMissing,
    DataFileUnreadable,
    ListsInvalid,
    NumberUnreadable,
)

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def convert(folder: Path, out: Path) -> ConvertedRecBole:
    return convert_recbole(InteractionSource(TableSource(folder)), out)


def rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def data_set(folder: Path, inter: str) -> Path:
    (folder / "shop.inter").write_text(INTER + inter)
    return folder


def test_all_three_files_become_tables_with_typed_columns(tmp_path):
    data_set(tmp_path, "u\ta\t4.5\t20\nv\tb\t\t1\nu\tb\t3\t10\n")
    (tmp_path / "shop.user").write_text("user_id:token\tage:float\nu\t31\nv\t\n")
    (tmp_path / "shop.item").write_text('item_id:token\ttitle:token_seq\na\tA "film\nb\tTwo\n')
    done = convert(tmp_path, tmp_path / "out")
    assert (done.users, done.items, done.events) == (2, 2, 3)
    assert done.tables == ("interactions", "users", "items")
    events = rows(tmp_path / "out" / "interactions.parquet")
    assert events[1] == {"user_id": "v", "item_id": "b", "rating": None, "timestamp": 1.0}
    assert rows(tmp_path / "out" / "users.parquet")[0] == {"user_id": "u", "age": 31.0}
    assert rows(tmp_path / "out" / "items.parquet")[0] == {
        "item_id": "a",
        "title": ["A", '"film'],
    }


def test_the_newest_fifth_of_each_users_events_are_targets_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.model.data.files.USERS_AT_ONCE", 1)
    lines = [f"{user}\t{user}-{9 - i}\t1\t{100 - i}\n" for i in range(10) for user in "uv"]
    convert(data_set(tmp_path, "".join(lines)), tmp_path / "out")
    targets = rows(tmp_path / "out" / "targets.parquet")
    assert targets == [
        {"user_id": user, "item_id": f"{user}-{i}", "position": i} for user in "uv" for i in (8, 9)
    ]
    assert len(rows(tmp_path / "out" / "histories.parquet")) == 16


def test_without_times_events_keep_the_files_order(tmp_path):
    (tmp_path / "shop.inter").write_text("user_id:token\titem_id:token\nu\tb\nu\ta\n")
    convert(tmp_path, tmp_path / "out")
    assert rows(tmp_path / "out" / "targets.parquet")[0]["item_id"] == "a"


@pytest.mark.parametrize(
    ("inter", "error", "message"),
    [
        ("u\ta\tgood\t1\n", NumberUnreadable, "line 2, column 'rating': 'good'"),
        ("u\ta\t1\t1\nu\tb\t1\n", DataFileUnreadable, "line 3: 3 fields, not 4"),
    ],
)
def test_broken_fields_are_refused_with_their_place(tmp_path, inter, error, message):
    with pytest.raises(error, match=message):
        convert(data_set(tmp_path, inter), tmp_path / "out")


def test_a_folder_without_one_inter_file_is_refused(tmp_path):
    with pytest.raises(DataFileMissing, match=r"no \.inter"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "one.inter").write_text(INTER)
    (tmp_path / "two.inter").write_text(INTER)
    with pytest.raises(DataFileMissing, match=r"one\.inter, two\.inter"):
        convert(tmp_path, tmp_path / "out")


def test_other_column_names_are_refused_with_those_found_or_given(tmp_path):
    text = "session_id:token\titem_id:token\tat:float\tkind:token\n"
    text += "u\tb\t2\tbuy\nu\ta\t1\tbuy\nu\tc\t3\tview\n"
    (tmp_path / "shop.inter").write_text(text)
    with pytest.raises(ColumnMissing, match="only session_id, item_id"):
        convert(tmp_path, tmp_path / "out")
    table = TableSource(tmp_path, where=(Condition("kind", "buy"),))
    source = InteractionSource(table, user_column="session_id", order_column="at")
    assert convert_recbole(source, tmp_path / "out").events == 2
    targets = rows(tmp_path / "out" / "targets.parquet")
    assert targets == [{"user_id": "u", "item_id": "b", "position": 1}]
    assert len(rows(tmp_path / "out" / "interactions.parquet")) == 2


def test_split_files_are_put_together_in_the_order_of_time(tmp_path):
    for part, item in (("train", "c"), ("valid", "b"), ("test", "a")):
        text = f"user_id:token\titem_id:token\nu\t{item}\n"
        (tmp_path / f"shop.{part}.inter").write_text(text)
    done = convert(tmp_path, tmp_path / "out")
    assert done.events == 3
    assert [row["item_id"] for row in rows(tmp_path / "out" / "histories.parquet")] == ["c", "b"]
    assert [row["item_id"] for row in rows(tmp_path / "out" / "targets.parquet")] == ["a"]


SAMPLES = "user_id:token\titem_id_list:token_seq\titem_id:token\n"


def test_samples_become_the_events_that_they_were_made_of(tmp_path):
    train = "u\ta\tb\nu\ta b\tc\nv\tx\ty\n"
    test = "u\tb c\td\nv\tx y\tz\n"  # cut to the newest two items
    (tmp_path / "shop.train.inter").write_text(SAMPLES + train)
    (tmp_path / "shop.test.inter").write_text(SAMPLES + test)
    done = convert(tmp_path, tmp_path / "out")
    assert (done.users, done.items, done.events) == (2, 7, 7)
    events = rows(tmp_path / "out" / "histories.parquet")
    events += rows(tmp_path / "out" / "targets.parquet")
    own = [e for e in events if e["user_id"] == "u"]
    assert [e["item_id"] for e in sorted(own, key=lambda e: str(e["position"]))] == list("abcd")
    first = rows(tmp_path / "out" / "interactions.parquet")[0]
    assert first == {"user_id": "u", "item_id_list": ["a"], "item_id": "b"}


def test_samples_that_do_not_continue_each_other_are_refused(tmp_path):
    (tmp_path / "shop.inter").write_text(SAMPLES + "u\ta\tb\nu\tx\ty\n")
    with pytest.raises(ListsInvalid, match="line 3, column 'item_id_list'"):
        convert(tmp_path, tmp_path / "out")
