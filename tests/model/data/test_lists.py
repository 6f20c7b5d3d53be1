"""Columns of lists become events; lists that are no sequences of events are refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.data import lists
from peterrec.model.data.interactions import InteractionSource, read_histories, read_targets
from peterrec.model.data.labels import LabelSource, read_tags
from peterrec.model.data.observer import SilentObserver
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import ListsInvalid, OrderUnreadable, PeterRecError, ValueMissing


def put(folder: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), folder / "e.parquet")
    return folder / "e.parquet"


class Noticed(SilentObserver):
    """Keeps notices."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def source(path: Path, order: str | None = None, item: str = "items") -> InteractionSource:
    return InteractionSource(TableSource(path), item_column=item, order_column=order)


def read(path: Path, order: str | None = None, item: str = "items") -> dict[str, tuple[str, ...]]:
    histories = read_histories(source(path, order, item))
    return {user: histories.items_of(i) for i, user in enumerate(histories.users)}


def test_a_list_is_in_order_without_times_and_put_in_order_with_them(tmp_path):
    path = put(tmp_path, user_id=["u", "v"], items=[["b", "a"], ["c"]], at=[[2, 1], [3]])
    assert read(path) == {"u": ("b", "a"), "v": ("c",)}
    assert read(path, "at") == {"u": ("a", "b"), "v": ("c",)}


def test_several_rows_of_a_user_are_one_history(tmp_path):
    path = put(tmp_path, user_id=["u", "u"], items=[["a", "b"], ["d", "c"]], at=[[1, 2], [4, 3]])
    assert read(path) == {"u": ("a", "b", "d", "c")}
    assert read(path, "at") == {"u": ("a", "b", "c", "d")}


def test_users_with_empty_lists_or_none_have_no_events(tmp_path):
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string())):
        items = pa.array([["a"], [], None, ["b", "c"]], kind)
        path = put(tmp_path, user_id=["u", "v", "w", "x"], items=items)
        assert read(path) == {"u": ("a",), "x": ("b", "c")}


def test_lists_beyond_one_run_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "EVENTS_AT_ONCE", 4)
    rows = [[f"i{n}-{k}" for k in range(n % 4)] for n in range(20)]
    path = put(tmp_path, user_id=[f"u{n}" for n in range(20)], items=rows)
    assert read(path) == {f"u{n}": tuple(row) for n, row in enumerate(rows) if row}


@pytest.mark.parametrize(
    ("columns", "order", "message"),
    [
        (
            {"user_id": ["u", "v"], "items": [["a"], ["b", "c"]], "at": [[1], [2]]},
            "at",
            "row 2, column 'at': a list of 1 values, but 'items' has 2",
        ),
        ({"user_id": ["u"], "items": [["a"]], "at": [1]}, "at", "'at' has one value in each row"),
        ({"user_id": ["u"], "items": ["a"], "at": [[1]]}, "at", "'items' has one value"),
        ({"user_id": ["u"], "items": ["['a', 'b']"]}, None, "written as a text"),
        ({"user_id": ["u"], "items": ["[1 2 3]"]}, None, "written as a text"),
        (
            {"user_id": ["u", "u", "u"], "items": [["a"], ["a", "b"], ["a", "b", "c"]]},
            None,
            "row 2, column 'user_id': the list repeats",
        ),
        (
            {"user_id": ["u", "u", "u"], "items": [["a", "b"], ["b", "c"], ["c", "d"]]},
            None,
            "row 2, column 'user_id': the list repeats",
        ),
    ],
)
def test_lists_that_are_no_sequences_of_events_are_refused(tmp_path, columns, order, message):
    with pytest.raises(ListsInvalid, match=message):
        read(put(tmp_path, **columns), order)


@pytest.mark.parametrize("items", [["a b c", "b c"], ["1|2", "3|4"], ["x,y", "z"]])
def test_lists_in_texts_are_pointed_out_if_each_user_has_one_row(tmp_path, items):
    noticed = Noticed()
    read_histories(source(put(tmp_path, user_id=["u", "v"], items=items)), noticed)
    told = any("look like several ones" in text for text in noticed.texts)
    assert told == (items[1] != "z")


def test_a_missing_value_within_a_list_is_refused_by_its_row(tmp_path):
    path = put(tmp_path, user_id=["u", "v"], items=[["a"], ["b", None]], at=[[1], [2, 3]])
    with pytest.raises(ValueMissing, match="row 2, column 'items'"):
        read(path)
    path = put(tmp_path, user_id=["u", "v"], items=[["a"], ["b", "c"]], at=[[1], [2, None]])
    with pytest.raises(OrderUnreadable, match="row 2, column 'at'"):
        read(path, "at")


def test_lists_of_lists_and_lists_of_users_are_refused(tmp_path):
    with pytest.raises(PeterRecError, match="column 'items'"):
        read(put(tmp_path, user_id=["u"], items=[[["a"]]]))
    with pytest.raises(PeterRecError, match="column 'user_id'"):
        read(put(tmp_path, user_id=[["u"]], items=["a"]))


SAMPLES = (
    "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    "u\ta\tb\nu\ta b\tc\nu\ta b c\td\nv\tx y\tz\n"
)


def test_recboles_samples_are_not_read_as_events(tmp_path):
    (tmp_path / "x.inter").write_text(SAMPLES)
    with pytest.raises(ListsInvalid, match="its rows are samples") as caught:
        read(tmp_path / "x.inter", item="item_id")
    assert "peterrec convert recbole" in caught.value.hint
    with pytest.raises(ListsInvalid, match="line 3, column 'user_id': the list repeats"):
        read(tmp_path / "x.inter", item="item_id_list")


def test_the_last_items_of_recboles_samples_may_be_targets(tmp_path):
    rows = SAMPLES.splitlines(keepends=True)
    (tmp_path / "x.inter").write_text("".join([rows[0], *rows[-2:]]))
    assert read(tmp_path / "x.inter", item="item_id_list") == {
        "u": ("a", "b", "c"),
        "v": ("x", "y"),
    }
    targets = read_targets(source(tmp_path / "x.inter", item="item_id"))
    assert targets.by_user == {"u": ("d",), "v": ("z",)}


def test_words_of_a_token_seq_stand_between_any_number_of_spaces(tmp_path):
    text = "user_id:token\titems:token_seq\nu\t a  b \nv\t\nw\tc\n"
    (tmp_path / "x.inter").write_text(text)
    assert read(tmp_path / "x.inter") == {"u": ("a", "b"), "w": ("c",)}


def test_tags_may_be_lists_and_an_empty_list_is_no_tag(tmp_path):
    path = put(tmp_path, user_id=["u", "v", "w"], tag=[["a", "b", "a"], [], None])
    assert read_tags(LabelSource(TableSource(path), "tag")).by_user == {
        "u": ("a", "b"),
        "v": (),
        "w": (),
    }
    text = "user_id:token\ttag:token_seq\nu\ta b\nv\t\n"
    (tmp_path / "x.user").write_text(text)
    tags = read_tags(LabelSource(TableSource(tmp_path / "x.user"), "tag"))
    assert tags.by_user == {"u": ("a", "b"), "v": ()}


@pytest.mark.parametrize(
    ("items", "where"),
    [
        ([["a", "b", "0", "0"], ["c", "0", "0", "0"]], "end with '0'"),
        ([["0", "0", "a", "b"], ["0", "0", "0", "c"]], "begin with '0'"),
        ([["a", "b", "0", "0"], ["c", "0", "0"]], None),
        ([["a", "b", "c", "d"], ["c", "a", "b", "d"]], None),
        ([["0"], ["0"]], None),
    ],
)
def test_lists_that_are_filled_up_to_one_length_are_told_of(tmp_path, items, where):
    noticed = Noticed()
    read_histories(source(put(tmp_path, user_id=["u", "v"], items=items)), noticed)
    told = [text for text in noticed.texts if "as if they were filled up" in text]
    assert len(told) == (where is not None)
    assert all(where in text for text in told)
