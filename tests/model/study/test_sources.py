"""Corpora from files: users split first, inputs before targets."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import (
    ComparisonSettingsInvalid,
    FutureItem,
    PreparedFolderInvalid,
)
from peterrec.model.study.backbones import pretraining_histories
from peterrec.model.study.corpus import read_corpora, write_corpora
from peterrec.model.study.settings import ComparisonSettings
from peterrec.model.study.sources import Cut, domain_corpora, file_corpora, movielens_corpora

USERS = 40


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """Users 1 to 40 rate films 1 to 20 in order; even films are comedies."""
    genres = {True: "Comedy", False: "Drama|Romance"}
    films = [f"{i}::Film {i} ({1980 + i})::{genres[i % 2 == 0]}" for i in range(1, 21)]
    ratings = [
        f"{user}::{film}::5::{1000 + film}" for user in range(1, USERS + 1) for film in range(1, 21)
    ]
    profiles = [f"{user}::{'FM'[user % 2]}::25::{user % 3}::0" for user in range(1, USERS + 1)]
    (tmp_path / "movies.dat").write_text("\n".join(films))
    (tmp_path / "ratings.dat").write_text("\n".join(ratings))
    (tmp_path / "users.dat").write_text("\n".join(profiles))
    return tmp_path


def test_movielens_gives_profiles_and_films_of_a_genre_after_those_of_others(movielens):
    profile, films = movielens_corpora(movielens, "genre:Comedy", Cut())
    assert [task.name for task in profile.tasks] == ["gender", "age", "occupation"]
    assert films.histories.items_of(0) == ("1", "3", "5", "7", "9", "11", "13", "15")
    assert films.task("films").labels.by_user["1"] == ("18", "20")
    assert len(films.split.test) == 8


def test_a_domain_can_be_the_newer_films(movielens):
    _, films = movielens_corpora(movielens, "year:1999", Cut())
    assert films.task("films").labels.by_user["1"] == ("19", "20")


def test_ratings_of_one_second_do_not_come_in_the_order_of_ids(tmp_path):
    films = [f"{i},Film {i} (1990),Drama" for i in range(1, 31)]
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n" + "\n".join([*films, "31,A,Comedy"])
    )
    rows = [f"{user},{film},5,{film // 31}" for user in range(USERS) for film in range(1, 32)]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(rows))
    (films_corpus,) = movielens_corpora(tmp_path, "genre:Comedy", Cut())
    read = [int(item) for item in films_corpus.histories.items_of(0)]
    assert read != sorted(read)
    assert films_corpus.task("films").labels.by_user["0"] == ("31",)


def test_a_domain_without_films_is_refused(movielens):
    with pytest.raises(ComparisonSettingsInvalid, match="genre:Nonsense"):
        movielens_corpora(movielens, "genre:Nonsense", Cut())


@pytest.fixture
def two_domains(tmp_path: Path) -> InteractionSource:
    """Even users: food on days 1 and 5, kitchen on days 2 and 5. Odd ones the other way round."""
    domains = ("food", "kitchen")
    rows = [
        f"{user},{domain}-{user % 3}-{day},{domain},{day}"
        for user in range(USERS)
        for one, other in (domains if user % 2 == 0 else domains[::-1],)
        for domain, day in ((one, 5), (one, 1), (other, 2), (other, 5))
    ]
    path = tmp_path / "events.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("user_id,item_id,domain,timestamp\n" + "\n".join(rows))
    return InteractionSource(TableSource(path), order_column="timestamp")


def test_inputs_of_a_direction_end_before_the_first_target(two_domains):
    to_kitchen, to_food = domain_corpora(two_domains, "domain", ("food", "kitchen"), Cut())
    assert to_kitchen.name == "food-to-kitchen"
    assert to_kitchen.histories.items_of(0) == ("food-0-1",)
    targets = to_kitchen.task("first-items").labels.by_user
    assert targets["0"] == ("kitchen-0-2", "kitchen-0-5")
    assert to_kitchen.histories.users == tuple(str(user) for user in range(0, USERS, 2))
    assert to_food.histories.users == tuple(str(user) for user in range(1, USERS, 2))


def test_targets_can_wait_for_a_history(two_domains):
    to_kitchen, _ = domain_corpora(two_domains, "domain", ("food", "kitchen"), Cut(min_history=1))
    assert len(to_kitchen.histories.users) == USERS
    targets = to_kitchen.task("first-items").labels.by_user
    assert targets["0"] == ("kitchen-0-2", "kitchen-0-5")
    assert targets["1"] == ("kitchen-1-5",)  # the one of day 1 has nothing before it


def test_pretraining_reads_no_history_of_a_user_who_is_held_out(two_domains):
    corpus, _ = domain_corpora(two_domains, "domain", ("food", "kitchen"), Cut())
    parts = (corpus.split.validation, corpus.split.test)
    held_out = {corpus.histories.users[i] for part in parts for i in part.tolist()}
    read = pretraining_histories(corpus, ComparisonSettings())
    everybody = {str(user) for user in range(USERS)}  # odd users have a source history too
    assert set(read.users) == everybody - held_out
    assert len(read.items_of(0)) == 2  # the later event of the domain too
    every = pretraining_histories(corpus, ComparisonSettings(pretrain_on="all"))
    assert set(every.users) == everybody


def task_list(folder: Path, **changes):
    lines = [f"{user},item-{user % 5}-{day},{day}" for user in range(USERS) for day in (1, 2)]
    (folder / "interactions.csv").write_text("user_id,item_id,day\n" + "\n".join(lines))
    lines = [f"{user},target-{user % 2},{3}" for user in range(USERS)]
    (folder / "targets.csv").write_text("user_id,item_id,day\n" + "\n".join(lines))
    lines = [f"{user},group-{user % 2}" for user in range(USERS)]
    (folder / "users.csv").write_text("user_id,group\n" + "\n".join(lines))
    tasks = [
        {"name": "group", "labels": "users.csv", "label_column": "group"},
        {"name": "next", "targets": "targets.csv", "target_order_column": "day"},
    ]
    corpus = {"interactions": "interactions.csv", "order_column": "day", "tasks": tasks}
    return {"corpora": {"shop": {**corpus, **changes}}}


def test_a_task_list_gives_labels_and_targets(tmp_path):
    (corpus,) = file_corpora(task_list(tmp_path), tmp_path, Cut())
    assert [(task.name, task.kind) for task in corpus.tasks] == [
        ("group", "classification"),
        ("next", "ranking"),
    ]
    assert corpus.histories.items_of(3) == ("item-3-1", "item-3-2")


def append_future(folder: Path) -> None:
    with (folder / "interactions.csv").open("a") as file:
        file.write("\n7,item-9-9,3")


def test_a_file_with_a_future_item_is_refused(tmp_path):
    document = task_list(tmp_path)
    append_future(tmp_path)
    with pytest.raises(FutureItem, match="user '7' has item 'item-9-9'"):
        file_corpora(document, tmp_path, Cut())


def test_future_items_are_dropped_on_demand(tmp_path):
    document = task_list(tmp_path, drop_future=True)
    append_future(tmp_path)
    (corpus,) = file_corpora(document, tmp_path, Cut())
    assert corpus.histories.items_of(7) == ("item-2-1", "item-2-2")


def test_a_task_list_that_lacks_something_says_what(tmp_path):
    document = task_list(tmp_path)
    del document["corpora"]["shop"]["tasks"][0]["label_column"]
    with pytest.raises(ComparisonSettingsInvalid, match="label_column"):
        file_corpora(document, tmp_path, Cut())


def test_a_prepared_folder_reads_as_it_was_written(tmp_path):
    corpora = file_corpora(task_list(tmp_path), tmp_path, Cut())
    write_corpora(tmp_path / "prepared", corpora)
    (read,) = read_corpora(tmp_path / "prepared")
    assert read.digest == corpora[0].digest
    assert read.histories.items_of(3) == corpora[0].histories.items_of(3)
    assert read.task("next").labels.by_user == corpora[0].task("next").labels.by_user


def test_a_changed_prepared_folder_is_refused(tmp_path):
    corpora = file_corpora(task_list(tmp_path), tmp_path, Cut())
    write_corpora(tmp_path / "prepared", corpora)
    other = file_corpora(task_list(tmp_path), tmp_path, Cut(seeds=(1,)))
    write_corpora(tmp_path / "other", other)
    (tmp_path / "other" / "shop-split1" / "histories.safetensors").replace(
        tmp_path / "prepared" / "shop" / "histories.safetensors"
    )
    with pytest.raises(PreparedFolderInvalid, match="its index records"):
        read_corpora(tmp_path / "prepared")


@pytest.mark.parametrize("names", [("../away", "next"), ("next", "next")])
def test_names_that_are_no_file_names_of_their_own_are_refused(tmp_path, names):
    (corpus,) = file_corpora(task_list(tmp_path), tmp_path, Cut())
    tasks = tuple(replace(task, name=name) for task, name in zip(corpus.tasks, names, strict=True))
    with pytest.raises(ComparisonSettingsInvalid, match=f"cannot be called '{names[0]}'"):
        write_corpora(tmp_path / "prepared", [replace(corpus, tasks=tasks)])
