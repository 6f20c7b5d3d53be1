"""A backbone, bundles of every kind, and users as lists and as events."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peterrec.model.spec import TableSpec
from tests.service.cli.command_line import run
from tests.service.random_bundles import ITEMS, Workshop

KINDS = ("classification", "ranking", "tags", "value")
USERS = 300


@dataclass(frozen=True)
class Base:
    """A folder with ``bb``, ``bundles`` and ``users.parquet``, and the same users as lists."""

    folder: Path
    users: list[int]
    histories: list[list[str]]

    @property
    def backbone(self) -> Path:
        return self.folder / "bb"

    @property
    def bundles(self) -> Path:
        return self.folder / "bundles"

    @property
    def table(self) -> Path:
        return self.folder / "users.parquet"

    def score(self, out: Path, *options: str | Path, users: Path | str | None = None) -> dict:
        """Run the command, from bundle files unless the options say otherwise; its report."""
        chosen: Sequence[str | Path] = ("--tasks", "all") if "--tasks" not in options else ()
        if "--data-dir" not in options and "--redis-url" not in options:
            chosen = (*chosen, "--bundles", self.bundles)
        given = ("--users", users or self.table, "--backbone", self.backbone, "--out", out)
        found: dict = json.loads(run("score", *given, *chosen, *options, "--json", "-q"))
        return found


def answers(out: Path, task: str) -> pa.Table:
    return pq.read_table(sorted((out / f"task={task}").glob("*.parquet")), partitioning=None)


def bad_rows(out: Path) -> list[dict]:
    files = sorted((out / "_bad_rows").glob("*.ndjson"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    workshop = Workshop(folder / "bb")
    (folder / "bundles").mkdir()
    for kind in KINDS:
        outputs = 40 if kind == "ranking" else 3
        names = tuple(ITEMS[20:60]) if kind == "ranking" else None
        data = workshop.bundle(kind, seed=1, outputs=outputs, names=names)
        (folder / "bundles" / f"{kind}.bundle").write_bytes(data)
    listed = workshop.bundle("classification", seed=2, table=TableSpec(1))
    (folder / "bundles" / "listed.bundle").write_bytes(listed)
    random = np.random.default_rng(5)
    lengths = random.integers(0, 35, USERS).tolist()
    known = [*ITEMS, "not known", "nor this"]
    histories = [[known[i] for i in random.integers(0, len(known), n)] for n in lengths]
    users = (np.arange(USERS) + 1000).tolist()
    pq.write_table(pa.table({"user_id": users, "history": histories}), folder / "users.parquet")
    return Base(folder, users, histories)
