"""A small shop in memory and in files, and a backbone that was pretrained on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import peterrec

PRETRAIN: dict[str, Any] = {"channels": 8, "dilations": (1, 4), "max_len": 20, "epochs": 1}
FINETUNE: dict[str, Any] = {"epochs": 1, "bottleneck": 4}


@dataclass(frozen=True)
class Shop:
    """The sample shop's tables, the files that hold them, and the same as lists.

    ``histories[i]`` and ``genders[i]``, ``spends[i]``, ``tags[i]``, ``targets[i]`` are of user
    ``users[i]``.
    """

    tables: dict[str, pa.Table]
    folder: Path
    users: list[str]
    histories: list[list[str]]
    genders: list[str]
    spends: list[float]
    tags: list[list[str]]
    targets: list[list[str]]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"


def lists_of(table: pa.Table, users: list[str], column: str) -> list[list[str]]:
    own: dict[str, list[str]] = {user: [] for user in users}
    for row in table.to_pylist():
        own[row["user_id"]].append(row[column])
    return list(own.values())


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    tables = peterrec.sample_data(users=120)
    folder = tmp_path_factory.mktemp("shop")
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    profiles = tables["users"].to_pylist()
    users = [row["user_id"] for row in profiles]
    return Shop(
        tables,
        folder,
        users,
        lists_of(tables["histories"], users, "item_id"),
        [row["gender"] for row in profiles],
        [row["monthly_spend"] for row in profiles],
        lists_of(tables["tags"], users, "tag"),
        lists_of(tables["targets"], users, "item_id"),
    )


@pytest.fixture(scope="session")
def backbone(shop: Shop) -> peterrec.Backbone:
    return peterrec.pretrain(shop.path("histories"), order_column="position", **PRETRAIN)


@pytest.fixture(scope="session")
def tasks(shop: Shop, backbone: peterrec.Backbone) -> dict[str, peterrec.Task]:
    """A task of every kind, by the kind's name."""
    given: dict[str, dict[str, Any]] = {
        "classification": {"labels": shop.path("users"), "label_column": "gender"},
        "value": {"labels": shop.path("users"), "label_column": "monthly_spend"},
        "tags": {"labels": shop.path("tags"), "label_column": "tag"},
        "ranking": {"targets": shop.path("targets"), "target_order_column": "position"},
    }
    return {
        kind: peterrec.finetune(
            backbone,
            shop.path("histories"),
            order_column="position",
            kind=kind,
            name=kind,
            **answers,
            **FINETUNE,
        )
        for kind, answers in given.items()
    }
