"""Users in every form that the command reads, and what it says of files that are strange."""

import csv
import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.errors import DataError, PathMissing, PeterRecError
from peterrec.model.spec import MAX_HISTORY_ITEMS
from peterrec.service.errors import InputUnreachable, NoUserReadable, UsersMixed, UsersNotNumbered
from tests.service.jobs.score.conftest import USERS, answers, bad_rows

ONLY_TAGS = ("--tasks", "tags")


@pytest.fixture(scope="module")
def expected(base, tmp_path_factory) -> pa.Table:
    out = tmp_path_factory.mktemp("expected") / "out"
    base.score(out, *ONLY_TAGS)
    return answers(out, "tags").drop(["user_id"])


def scores_of(base, folder: Path, users: Path | str, *options: str) -> pa.Table:
    base.score(folder / "out", *ONLY_TAGS, *options, users=users)
    return answers(folder / "out", "tags")


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines_of(base) -> list[dict]:
    return [
        {"user_id": user, "history": history, "ignored": {"a": [1]}}
        for user, history in zip(base.users, base.histories, strict=True)
    ]


def test_json_lines_are_read_as_parquet_is(base, expected, tmp_path):
    found = scores_of(base, tmp_path, write_lines(tmp_path / "users.ndjson", lines_of(base)))
    assert found["user_id"].to_pylist() == [str(user) for user in base.users]
    assert found.drop(["user_id"]).to_pylist() == expected.to_pylist()


def test_packed_json_lines_and_a_folder_of_them_are_read(base, expected, tmp_path):
    users = tmp_path / "users"
    users.mkdir()
    lines = [json.dumps(row) for row in lines_of(base)]
    (users / "b-10.jsonl").write_text("\n".join(lines[200:]))  # without a last line end
    with gzip.open(users / "b-2.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[:200]) + "\n")
    found = scores_of(base, tmp_path, users)
    assert found.drop(["user_id"]).to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("form", ["blanks", "json"])
def test_lists_in_a_csv_file_are_read_as_parquet_is(base, expected, tmp_path, form):
    path = tmp_path / "users.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "history"])
        for user, history in zip(base.users, base.histories, strict=True):
            items = [item.replace(" ", "_") for item in history]
            writer.writerow([user, " ".join(items) if form == "blanks" else json.dumps(items)])
    found = scores_of(base, tmp_path, path)
    assert found.drop(["user_id"]).to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_events_are_grouped_and_put_in_order(base, expected, tmp_path, suffix):
    rows = [
        (user, item, place)
        for user, history in zip(base.users, base.histories, strict=True)
        for place, item in enumerate(history)
    ]
    rows.sort(key=lambda row: hash(row) % 1009)
    users, items, places = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "item_id": items, "at": places})
    path = tmp_path / f"events.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        table.to_pandas().to_csv(path, index=False)
    found = scores_of(base, tmp_path, path, "--order-column", "at")
    with_events = [place for place, history in enumerate(base.histories) if history]
    assert found["user_id"].to_pylist() == [str(base.users[place]) for place in with_events]
    assert found.drop(["user_id"]).to_pylist() == expected.take(with_events).to_pylist()


def test_events_from_a_cut_off_on_are_not_read(base, tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,at\nu2,item-1,1\nu1,item-2,2\nu2,item-3,3\nu1,7,9\n")
    found = scores_of(base, tmp_path, path, "--order-column", "at", "--until", "3")
    assert found["user_id"].to_pylist() == ["u1", "u2"]
    assert found["used_items"].to_pylist() == [1, 1]


def test_integer_items_are_those_of_the_texts_that_write_them(base, tmp_path):
    lists = {"texts": [["7", "8"]], "integers": [[7, 8]], "floats": [[7.0, 8.0]]}
    found = {}
    for name, histories in lists.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"user_id": [1], "history": histories}), path)
        found[name] = scores_of(base, tmp_path / name, path)
    assert found["texts"]["used_items"].to_pylist() == [2]
    assert found["integers"].equals(found["texts"])
    assert found["floats"].equals(found["texts"])


def test_a_bad_row_is_kept_with_its_reason_and_costs_no_other_row_anything(base, tmp_path):
    rows = lines_of(base)
    text = [json.dumps(row) for row in rows]
    text[3] = "{no json"
    text[5] = json.dumps({"user_id": "a", "history": None})
    text[7] = json.dumps({"user_id": "b", "history": ["item-1", 2.5]})
    text[9] = json.dumps({"user_id": None, "history": ["item-1"]})
    text[11] = json.dumps({"user_id": "c", "history": ["x"] * (MAX_HISTORY_ITEMS + 1)})
    text[13] = "[1]"
    text.insert(2, "")  # an empty line is no row, but a line
    path = tmp_path / "users.ndjson"
    path.write_text("\n".join(text))
    out = tmp_path / "out"
    report = base.score(out, *ONLY_TAGS, "--part-rows", "8", users=path)
    assert (report["rows"], report["bad"]) == (USERS, 6)
    bad = bad_rows(out)
    assert [row["place"].rpartition("line ")[2] for row in bad] == ["5", "7", "9", "11", "13", "15"]
    assert [row["code"] for row in bad] == [
        *("malformed_line", "value_missing", "malformed_line"),
        *("value_missing", "history_too_long", "malformed_line"),
    ]
    good = [str(user) for at, user in enumerate(base.users) if at not in {3, 5, 7, 9, 11, 13}]
    assert answers(out, "tags")["user_id"].to_pylist() == good


def test_bad_rows_of_a_parquet_file_are_told_too(base, tmp_path):
    path = tmp_path / "users.parquet"
    histories = [["item-1"], None, ["item-2", None], [], ["item-3"]]
    users = ["a", "b", "c", "d", None]
    pq.write_table(pa.table({"user_id": users, "history": histories}), path)
    found = scores_of(base, tmp_path, path)
    assert found["user_id"].to_pylist() == ["a", "d"]
    assert [row["place"].rpartition("row ")[2] for row in bad_rows(tmp_path / "out")] == [
        *("2", "3", "5"),
    ]


def test_bad_events_are_told_and_left_out(base, tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id\nu1,item-1\n,item-2\nu2,\nNULL,item-1\nu2,item-9\n")
    found = scores_of(base, tmp_path, path)
    assert found["user_id"].to_pylist() == ["u1", "u2"]
    assert [row["place"].rpartition("row ")[2] for row in bad_rows(tmp_path / "out")] == [
        *("2", "3", "4"),
    ]


STRANGE = {
    "list.json": ('[{"user_id": 1, "history": []}]', "begins with a list"),
    "pretty.json": ('{\n  "user_id": 1,\n  "history": []\n}\n', "goes over several lines"),
    "empty.ndjson": ("", "has no rows"),
    "other.ndjson": ('{"user": 1, "items": [1]}\n', "the user has no id"),
    "no_column.csv": ("user_id,product\n1,2\n", "item_id"),
    "wide.csv": ("user_id,history\n1,2,3\n", "fields"),
    "empty.csv": ("user_id,history\n", "has no rows"),
    "page.parquet": ("<!doctype html><html>", "web page"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_is_refused_with_what_is_strange_about_it(base, tmp_path, name):
    text, reason = STRANGE[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(PeterRecError, match=reason) as refused:
        base.score(tmp_path / "out", *ONLY_TAGS, users=tmp_path / name)
    assert refused.value.hint
    assert isinstance(refused.value, DataError | NoUserReadable)


def test_a_column_that_has_no_lists_is_refused(base, tmp_path):
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": [1], "history": [2]}), path)
    with pytest.raises(DataError, match="no lists of items"):
        base.score(tmp_path / "out", *ONLY_TAGS, users=path)


def test_a_file_that_does_not_exist_is_refused(base, tmp_path):
    with pytest.raises(PathMissing):
        base.score(tmp_path / "out", *ONLY_TAGS, users=tmp_path / "nothing.parquet")


def test_users_of_two_types_are_refused(base, tmp_path):
    users = tmp_path / "users"
    users.mkdir()
    for name, user in (("a", 1), ("b", "u")):
        pq.write_table(pa.table({"user_id": [user], "history": [["7"]]}), users / f"{name}.parquet")
    with pytest.raises(UsersMixed, match="string"):
        base.score(tmp_path / "out", *ONLY_TAGS, users=users)


def test_texts_as_users_fit_no_numpy_file_of_integers(base, tmp_path):
    path = write_lines(tmp_path / "users.ndjson", [{"user_id": "anna", "history": ["7"]}])
    with pytest.raises(UsersNotNumbered, match="anna"):
        base.score(tmp_path / "out", *ONLY_TAGS, "--vectors", "npy", users=path)


def test_users_behind_a_url_are_fetched(base, expected, tmp_path):
    store = fsspec.filesystem("memory")
    with store.open("/users/part-0.parquet", "wb") as file:
        file.write(base.table.read_bytes())
    found = scores_of(base, tmp_path, "memory://users")
    assert found.drop(["user_id"]).to_pylist() == expected.to_pylist()
    store.rm("/users", recursive=True)


@pytest.mark.parametrize("url", ["memory://nothing", "gopher://a/b", "file:///nowhere/users.csv"])
def test_a_url_that_leads_nowhere_is_refused(base, tmp_path, url):
    with pytest.raises(InputUnreachable, match=url):
        base.score(tmp_path / "out", *ONLY_TAGS, users=url)
