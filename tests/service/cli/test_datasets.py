"""Public formats are converted and data are described from the command line."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peterrec.model.errors import ColumnMissing
from tests.service.cli.command_line import run

EVENTS = """user_id,item_id,at
u,a,2024-01-01
u,b,2024-01-02
u,a,2024-01-02
u,a,2024-01-02
v,a,2024-01-05
"""


@pytest.fixture
def events(tmp_path) -> Path:
    path = tmp_path / "events.csv"
    path.write_text(EVENTS)
    return path


def test_the_statistics_count_users_items_ties_repetitions_and_times(events):
    printed = run("data-info", "--interactions", events, "--order-column", "at", "--json")
    info = json.loads(printed)
    assert (info["users"], info["items"], info["events"]) == (2, 2, 5)
    assert info["sparsity"] == pytest.approx(1 / 4)
    assert info["repeated_share"] == pytest.approx(2 / 5)
    assert info["duplicate_share"] == pytest.approx(1 / 5)
    assert info["single_event_users"] == 1
    assert info["single_event_items"] == 1
    assert info["length_spread"]["quantiles"]["median"] == 2.5
    assert info["popularity_spread"]["largest"] == 4
    assert info["times"]["tied_share"] == pytest.approx(3 / 5)
    assert info["times"]["first"] == "2024-01-01 00:00:00"
    assert info["times"]["last"] == "2024-01-05 00:00:00"


def test_a_missing_column_is_refused_as_by_every_command(events):
    with pytest.raises(ColumnMissing):
        run("data-info", "--interactions", events, "--user-column", "who")


def test_coldrec_files_are_converted(tmp_path):
    (tmp_path / "fine.csv").write_text("0,7,5,,9,8\n")
    printed = run("convert", "coldrec", tmp_path, "--out", tmp_path / "out")
    assert "2 events of 1 users, 2 answers" in printed
    assert pq.read_table(tmp_path / "out" / "fine" / "targets.parquet").num_rows == 2


def test_recbole_files_are_converted_and_described_as_they_are(tmp_path):
    inter = tmp_path / "shop.inter"
    inter.write_text("user_id:token\titem_id:token\nu\ta\nu\tb\n")
    printed = run("convert", "recbole", tmp_path, "--out", tmp_path / "out")
    assert "2 events of 1 users on 2 items" in printed
    assert json.loads(run("data-info", "--interactions", inter, "--json"))["events"] == 2
