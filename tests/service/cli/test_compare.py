"""The compare command from files to tables and pictures."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peterrec.model.errors import ComparisonSettingsInvalid, FutureItem
from peterrec.service.cli.main import build_app

RUNNER = CliRunner()
USERS = 80

SMALL = (
    *("--channels", "8", "--dilations", "1,2", "--max-len", "8", "--pretrain-epochs", "1"),
    *("--epochs", "1", "--seeds", "2", "--lr-trials", "1", "--batch-size", "16"),
    *("--insertions", "serial2", "--methods", "peterrec,fineall,mtl,linear,ease"),
)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    rows = [f"{u},item-{(7 * u + d) % 9},{d}" for u in range(USERS) for d in range(6)]
    (tmp_path / "events.csv").write_text("user_id,item_id,day\n" + "\n".join(rows))
    rows = [f"{user},target-{user % 3},6" for user in range(USERS)]
    (tmp_path / "targets.csv").write_text("user_id,item_id,day\n" + "\n".join(rows))
    rows = [f"{user},{'ab'[user % 2]},{'xyz'[user % 3]}" for user in range(USERS)]
    (tmp_path / "users.csv").write_text("user_id,group,region\n" + "\n".join(rows))
    return tmp_path


def run(shop: Path, *options: str):
    given = ("--out", str(shop / "out"), "--interactions", str(shop / "events.csv"))
    arguments = ["compare", *given, "--order-column", "day", *SMALL, *options]
    result = RUNNER.invoke(build_app(), arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def all_tasks(shop: Path) -> tuple[str, ...]:
    labels = ("--labels", str(shop / "users.csv"), *("--label-column", "group"))
    targets = ("--targets", str(shop / "targets.csv"), "--target-order-column", "day")
    return (*labels, "--label-column", "region", *targets)


def test_files_become_tables_and_pictures(shop):
    result = run(shop, *all_tasks(shop), "--depths", "1,all")
    assert result.exit_code == 0
    assert "own: group" in result.output
    assert "no history (prior)" in result.output
    document = json.loads((shop / "out" / "comparison.json").read_text())
    assert [table["task"] for table in document["tables"]] == ["group", "region", "targets"]
    methods = [row["method"] for row in document["tables"][1]["rows"]]
    trained = ["peterrec-serial2 top 1", "peterrec-serial2", "fineall", "mtl"]
    assert methods == ["prior", "linear", *trained]
    methods = [row["method"] for row in document["tables"][2]["rows"]]
    assert methods == ["popular", "linear", "ease", *trained]
    plots = shop / "out" / "plots"
    assert (plots / "own-region-depth.svg").read_text().count("<svg") == 1
    assert (plots / "own-targets-epochs.png").read_bytes().startswith(b"\x89PNG")


def test_a_future_item_is_refused_before_anything_is_trained(shop):
    with (shop / "events.csv").open("a") as file:
        file.write("\n3,item-1,6")
    with pytest.raises(FutureItem, match="user '3' has item 'item-1'"):
        run(shop, *all_tasks(shop))
    assert not (shop / "out").exists()


def test_preparing_only_leaves_a_folder_that_can_be_compared_elsewhere(shop):
    run(shop, *all_tasks(shop), "--prepare-only")
    assert not (shop / "out" / "runs.jsonl").exists()
    prepared = ("--prepared", str(shop / "out" / "prepared"), "--tasks", "group", "--no-plots")
    arguments = ["compare", "--out", str(shop / "elsewhere"), *prepared, *SMALL]
    result = RUNNER.invoke(build_app(), arguments)
    assert result.exit_code == 0
    assert (shop / "elsewhere" / "comparison.md").exists()


def test_several_splits_are_one_table_with_paired_differences(shop):
    labels = ("--labels", str(shop / "users.csv"), "--label-column", "group")
    result = run(shop, *labels, "--split-seed", "0,3", "--methods", "linear,finecls,fineall")
    assert result.exit_code == 0
    (table,) = json.loads((shop / "out" / "comparison.json").read_text())["tables"]
    assert table["splits"] == ["own", "own-split3"]
    text = (shop / "out" / "comparison.md").read_text()
    assert "| method | accuracy − linear | log-loss − linear | accuracy − fineall |" in text
    assert "differences, paired by user" in result.output


def test_a_comparison_of_nothing_is_refused(tmp_path):
    result = RUNNER.invoke(build_app(), ["compare", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ComparisonSettingsInvalid)
