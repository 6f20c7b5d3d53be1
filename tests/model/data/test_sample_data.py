"""The sample shop is small, repeatable, and has something to learn in every task."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from peterrec.model.data.sample_data import AGE_GROUPS, GENDERS, write_sample_data


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_sample_data(folder, users=300, seed=1)
    return folder


def column(folder: Path, name: str, of: str) -> list[Any]:  # texts or numbers
    return pq.read_table(folder / f"{name}.parquet")[of].to_pylist()


def test_the_same_seed_gives_the_same_shop(shop, tmp_path):
    write_sample_data(tmp_path, users=300, seed=1)
    names = sorted(file.name for file in shop.iterdir())
    assert names == sorted(file.name for file in tmp_path.iterdir())
    assert all(pq.read_table(shop / n).equals(pq.read_table(tmp_path / n)) for n in names)


def test_every_item_taken_has_a_title(shop):
    titled = dict(
        zip(column(shop, "items", "item_id"), column(shop, "items", "title"), strict=True)
    )
    taken = {*column(shop, "interactions", "item_id"), *column(shop, "targets", "item_id")}
    assert taken <= titled.keys()
    assert all(titled.values())


def test_source_and_target_items_do_not_overlap(shop):
    source, target = (set(column(shop, n, "item_id")) for n in ("interactions", "targets"))
    assert not source & target


def test_histories_are_the_beginning_of_the_interactions(shop):
    whole, known = (Counter(column(shop, n, "user_id")) for n in ("interactions", "histories"))
    assert all(known[user] == int(0.8 * count) for user, count in whole.items())


def test_every_user_has_a_profile_tags_and_targets(shop):
    users = column(shop, "users", "user_id")
    assert set(column(shop, "tags", "user_id")) == set(users)
    assert set(column(shop, "targets", "user_id")) == set(users)
    assert set(column(shop, "users", "gender")) == set(GENDERS)
    assert set(column(shop, "users", "age_group")) == set(AGE_GROUPS)
    assert min(column(shop, "users", "monthly_spend")) >= 0
