"""All three forms of MovieLens become the same Parquet folder; broken files are named."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peterrec.model.data.convert.movielens import age_range, convert_movielens
from peterrec.model.errors import DataFileMissing, DataFileUnreadable


def rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def ratings(separator: str) -> str:
    lines = [("7", str(item), "3", str(1000 - item)) for item in range(1, 11)]
    lines += [("8", "2", "4", "5"), ("8", "1", "5", "5"), ("8", "3", "5", "9")]
    return "".join(separator.join(line) + "\n" for line in lines)


@pytest.fixture
def folder_1m(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text(ratings("::"))
    (tmp_path / "users.dat").write_text("7::F::1::10::12345\n8::M::56::0::54321\n")
    films = "".join(
        f"{i}::Film {i} (caf\xe9)::Drama|{'War' if i < 6 else 'Comedy'}\n" for i in range(1, 11)
    )
    (tmp_path / "movies.dat").write_text(films, encoding="latin-1")
    return tmp_path


@pytest.fixture
def folder_100k(tmp_path: Path) -> Path:
    (tmp_path / "u.data").write_text(ratings("\t"))
    (tmp_path / "u.user").write_text("7|17|F|student|12345\n8|60|M|writer|54321\n")
    (tmp_path / "u.genre").write_text("Drama|0\nWar|1\n\n")
    (tmp_path / "u.item").write_text("".join(f"{i}|Film {i}|d|v|u|1|0\n" for i in range(1, 11)))
    return tmp_path


@pytest.fixture
def folder_csv(tmp_path: Path) -> Path:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings(","))
    films = "".join(f'{i},"Film, {i}",Drama\n' for i in range(1, 10))
    (tmp_path / "movies.csv").write_text(
        f"movieId,title,genres\n{films}10,Film 10,(no genres listed)\n"
    )
    return tmp_path


def test_the_1m_form_gives_histories_in_order_of_time(folder_1m, tmp_path):
    out = tmp_path / "out"
    converted = convert_movielens(folder_1m, out)
    assert (converted.users, converted.items, converted.events) == (2, 10, 13)
    taken = [r["item_id"] for r in rows(out / "interactions.parquet") if r["user_id"] == "7"]
    assert taken == [str(item) for item in range(10, 0, -1)]
    other = [r["item_id"] for r in rows(out / "interactions.parquet") if r["user_id"] == "8"]
    assert other == ["2", "1", "3"]  # equal times keep the order of the file


def test_histories_are_the_oldest_four_fifths_and_targets_the_rest(folder_1m, tmp_path):
    out = tmp_path / "out"
    convert_movielens(folder_1m, out)
    known = [r["item_id"] for r in rows(out / "histories.parquet") if r["user_id"] == "7"]
    asked = [r["item_id"] for r in rows(out / "targets.parquet") if r["user_id"] == "7"]
    assert known == ["10", "9", "8", "7", "6", "5", "4", "3"]
    assert asked == ["2", "1"]


def test_tags_are_the_genres_met_most_among_the_targets(folder_1m, tmp_path):
    convert_movielens(folder_1m, tmp_path / "out")
    tags = {(r["user_id"], r["tag"]) for r in rows(tmp_path / "out" / "tags.parquet")}
    assert tags == {("7", "Drama"), ("7", "War"), ("8", "Drama"), ("8", "War")}


def test_profiles_and_titles_are_readable(folder_1m, tmp_path):
    convert_movielens(folder_1m, tmp_path / "out")
    users = rows(tmp_path / "out" / "users.parquet")
    assert users[0] == {
        "user_id": "7",
        "gender": "female",
        "age": "under 18",
        "occupation": "school student",
    }
    item = rows(tmp_path / "out" / "items.parquet")[0]
    assert item == {"item_id": "1", "title": "Film 1 (café)", "genres": "Drama|War"}


def test_the_ordered_form_needs_no_times(folder_1m, tmp_path):
    (folder_1m / "ratings_ordered.csv").write_text(
        "user_id,movie_id,rating,pos\n7,1,5,1\n7,2,5,0\n8,3,5,0\n"
    )
    convert_movielens(folder_1m, tmp_path / "out")
    taken = [r["item_id"] for r in rows(tmp_path / "out" / "interactions.parquet")]
    assert taken == ["2", "1", "3"]


def test_the_100k_form_gives_the_same_kind_of_folder(folder_100k, tmp_path):
    converted = convert_movielens(folder_100k, tmp_path / "out")
    users = rows(tmp_path / "out" / "users.parquet")
    assert converted.has_profiles
    assert [user["age"] for user in users] == ["under 18", "56 and over"]
    assert rows(tmp_path / "out" / "items.parquet")[0]["genres"] == "Drama"


def test_the_csv_form_has_no_profiles(folder_csv, tmp_path):
    converted = convert_movielens(folder_csv, tmp_path / "out")
    items = rows(tmp_path / "out" / "items.parquet")
    assert not converted.has_profiles
    assert not (tmp_path / "out" / "users.parquet").exists()
    assert (items[0]["title"], items[-1]["genres"]) == ("Film, 1", "")


@pytest.mark.parametrize(
    ("age", "name"),
    [
        (1, "under 18"),
        (18, "18-24"),
        (25, "25-34"),
        (45, "45-49"),
        (50, "50-55"),
        (56, "56 and over"),
    ],
)
def test_ages_fall_into_the_ranges_of_the_1m_form(age, name):
    assert age_range(age) == name


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataFileMissing, match=r"has none of movies\.dat"):
        convert_movielens(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings.dat", "7::1::5\n", "line 1: 3 fields, not 4"),
        ("ratings.dat", "7::1::5::now\n", "line 1, field 4: the timestamp is 'now'"),
        ("users.dat", "7::X::1::10::12345\n", "line 1: gender 'X'"),
        ("users.dat", "7::F::1::99::12345\n", "line 1: occupation '99'"),
        ("users.dat", "7::F::old::1::12345\n", "line 1: age 'old'"),
    ],
)
def test_a_broken_line_is_named(folder_1m, tmp_path, name, text, message):
    (folder_1m / name).write_text(text)
    with pytest.raises(DataFileUnreadable, match=message):
        convert_movielens(folder_1m, tmp_path / "out")


def test_a_missing_file_of_the_set_is_named(folder_1m, tmp_path):
    (folder_1m / "users.dat").unlink()
    with pytest.raises(DataFileMissing, match=r"users\.dat"):
        convert_movielens(folder_1m, tmp_path / "out")


def test_a_broken_timestamp_is_named_by_its_line_behind_empty_ones(folder_100k, tmp_path):
    (folder_100k / "u.data").write_text("7\t1\t3\t-5\n\n7\t2\t3\tnow\n")
    with pytest.raises(DataFileUnreadable, match=r"u\.data, line 3, field 4: .* 'now'"):
        convert_movielens(folder_100k, tmp_path / "out")
