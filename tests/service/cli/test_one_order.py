"""One file of events gives every command the same histories, also where times are equal."""

import json
from hashlib import sha256
from pathlib import Path

from typer.testing import CliRunner

from peterrec.model.study.corpus import read_corpora
from peterrec.patches.bundle.bundle import read_manifest
from peterrec.service.cli.main import build_app

USERS, DAYS, EVENTS_A_DAY = 40, 3, 4


def run(*arguments: object) -> None:
    result = CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def write_shop(folder: Path) -> None:
    """Several events of a user share a day."""
    rows = [
        f"{user},item-{(5 * user + 7 * day + event) % 23},{day}"
        for user in range(USERS)
        for event in range(EVENTS_A_DAY)
        for day in reversed(range(DAYS))
    ]
    (folder / "events.csv").write_text("user_id,item_id,day\n" + "\n".join(rows))
    rows = [f"{user},{'ab'[user % 2]}" for user in range(USERS)]
    (folder / "users.csv").write_text("user_id,group\n" + "\n".join(rows))


def test_compare_pretrain_and_finetune_read_tied_events_in_one_order(tmp_path):
    write_shop(tmp_path)
    events = ("--interactions", tmp_path / "events.csv", "--order-column", "day")
    labels = ("--labels", tmp_path / "users.csv", "--label-column", "group")
    backbone, bundle = tmp_path / "backbone", tmp_path / "group.bundle"
    sizes = ("--channels", 4, "--dilations", "1", "--max-len", 8, "--epochs", 1)
    run("pretrain", *events, *sizes, "--out", backbone)
    task = ("--backbone", backbone, "--kind", "classification", "--epochs", 1)
    run("finetune", *events, *labels, *task, "--out", bundle)
    run("compare", *events, *labels, "--prepare-only", "--out", tmp_path)

    (corpus,) = read_corpora(tmp_path / "prepared")
    histories, answers = corpus.histories.digest(), corpus.task("group").labels.digest()
    pretrained = json.loads((backbone / "training.json").read_text())["data"]
    assert pretrained["data_digest"] == histories
    tuned = read_manifest(bundle).provenance
    assert tuned.data_digest == sha256(f"{histories}/{answers}".encode()).hexdigest()
