"""ColdRec files become tables of users, items and answers; broken lines are named."""

import gzip

import pyarrow.parquet as pq
import pytest

from peterrec.model.data.convert.coldrec import convert_coldrec
from peterrec.model.data.interactions import InteractionSource, read_histories, read_targets
from peterrec.model.data.labels import LabelSource, read_labels
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import DataFileEmpty, DataFileMissing, DataFileUnreadable


def test_a_fine_tuning_file_gives_histories_without_padding_and_targets(tmp_path):
    (tmp_path / "fine.csv").write_text("0,0,7,5,,9,8\n3,4,5,6,,9\n")
    (converted,) = convert_coldrec(tmp_path / "fine.csv", tmp_path / "out")
    folder = tmp_path / "out" / "fine"
    histories = read_histories(InteractionSource(TableSource(folder / "histories.parquet")))
    targets = read_targets(
        InteractionSource(TableSource(folder / "targets.parquet"), item_column="target")
    )
    assert (converted.users, converted.events, converted.answers) == (2, 6, 3)
    assert [histories.items_of(i) for i in range(2)] == [("7", "5"), ("3", "4", "5", "6")]
    assert targets.by_user == {"1": ("9", "8"), "2": ("9",)}


def test_classes_are_labels_of_the_same_column_and_may_be_zero(tmp_path):
    (tmp_path / "age.csv").write_text("0,7,5,,0\n3,4,5,,2\n")
    convert_coldrec(tmp_path, tmp_path / "out")
    table = TableSource(tmp_path / "out" / "age" / "targets.parquet")
    assert read_labels(LabelSource(table, "target")).by_user == {"1": ("0",), "2": ("2",)}


def test_every_file_of_a_folder_is_converted_and_one_without_answers_has_no_targets(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "pre.csv.gz").write_bytes(gzip.compress(b"0,7,5\n\n1,2,3\n"))
    (data / "fine.csv").write_text("7,5,,9\n")
    names = {file.name: file for file in convert_coldrec(data, tmp_path / "out")}
    assert (names["pre"].users, names["pre"].events, names["pre"].answers) == (2, 5, 0)
    assert not (tmp_path / "out" / "pre" / "targets.parquet").exists()
    users = pq.read_table(tmp_path / "out" / "pre" / "histories.parquet")["user_id"].to_pylist()
    assert users == ["1", "1", "3", "3", "3"]


def test_rows_are_written_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.model.data.convert.coldrec.BATCH_EVENTS", 2)
    (tmp_path / "pre.csv").write_text("1,2,3\n4,5,6\n7\n")
    convert_coldrec(tmp_path / "pre.csv", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "pre" / "histories.parquet")
    assert table["item_id"].to_pylist() == list("1234567")
    assert table["position"].to_pylist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,,3\n4,5\n", "line 2: the line has no answers"),
        ("1,2\n4,5,,3\n", "line 2: the line has answers"),
        ("1,2,,3\n4,0,5,,3\n", "line 2: column 2 is padding after an item"),
        ("1,2,,3\n4,5,,3,,2\n", "line 2: column 5 is empty"),
        ("1,2\n4,5,\n", "line 2: column 3 is empty"),
        ("1,2\nk\xe4se\n", "line 2"),
    ],
)
def test_broken_lines_are_refused_with_their_place(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataFileUnreadable) as caught:
        convert_coldrec(tmp_path / "bad.csv", tmp_path / "out")
    assert message in caught.value.message
    assert "bad.csv" in caught.value.message


def test_empty_and_other_files_are_refused(tmp_path):
    (tmp_path / "pre.csv").write_text("\n")
    with pytest.raises(DataFileEmpty):
        convert_coldrec(tmp_path, tmp_path / "out")
    (tmp_path / "file.txt").write_text("1,2\n")
    with pytest.raises(DataFileMissing):
        convert_coldrec(tmp_path / "file.txt", tmp_path / "out")
