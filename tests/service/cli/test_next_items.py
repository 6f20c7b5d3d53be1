"""``evaluate-backbone`` ranks what users took last, and says what its figures are worth."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.errors import BackboneFolderInvalid, HistoriesMissing
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.model.files.tensors import read_tensors
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import FIRST_ITEM
from peterrec.service.cli.main import build_app
from peterrec.service.jobs.train import OUTPUT_LAYER

SIZES = ["--channels", "8", "--dilations", "1,2", "--max-len", "6", "--epochs", "1"]

CYCLE = "abcdef"
"""The items that every user of the small table takes in turn, each from another one on."""


def run(*arguments: str | Path) -> tuple[str, str]:
    """The command's stdout and stderr; its error, if it fails."""
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def small_table(path: Path, *more: str) -> Path:
    """30 users with 4 to 8 events; the last user's next item is nobody else's."""
    lines = ["user_id,item_id,at"]
    for user in range(30):
        lines += [f"u{user},{CYCLE[(user + i) % 6]},{i}" for i in range(4 + user % 5)]
    lines += ["new,a,0", "new,b,1", "new,only-theirs,2", "short,a,0", "short,b,1", *more]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table and backbones that left out none, one and two of each user's events."""
    folder = tmp_path_factory.mktemp("next")
    table = small_table(folder / "events.csv")
    for count in range(3):
        left_out: list[str | Path] = [
            "--leave-out-last",
            str(count),
            "--out",
            folder / f"bb{count}",
        ]
        run("pretrain", "--interactions", table, "--order-column", "at", *SIZES, *left_out, "-q")
    return folder


def measured(place: Path, backbone: str, *options: str | Path) -> dict:
    data: list[str | Path] = ["--interactions", place / "events.csv", "--order-column", "at"]
    out, _ = run("evaluate-backbone", "--backbone", place / backbone, *data, "--json", *options)
    return json.loads(out)


def test_references_and_counts_are_those_worked_out_by_hand(place):
    found = measured(place, "bb2")
    counts = {name: found[name] for name in ("users", "items", "unknown", "too_short", "cold")}
    assert counts == {"users": 31, "items": 6, "unknown": 1, "too_short": 1, "cold": 0}
    of_last = found["metrics"]["last item"]
    for name in ("hr@5", "ndcg@10", "mrr@20"):  # every known next item follows the one before it
        assert of_last[name]["value"] == pytest.approx(30 / 31, rel=1e-12)
    assert of_last["hr@5"]["low"] < 30 / 31 <= of_last["hr@5"]["high"]
    assert found["doubts"] == []


def test_popularity_counts_the_events_before_the_two_newest(place):
    counts = dict.fromkeys(CYCLE, 0)
    for user in range(30):
        for i in range(2 + user % 5):
            counts[CYCLE[(user + i) % 6]] += 1
    counts["a"] += 1  # of the user whose next item is unknown
    wanted = [CYCLE[(user + 3 + user % 5) % 6] for user in range(30)]
    ranks = np.array([sum(n >= counts[item] for n in counts.values()) - 1 for item in wanted])
    found = measured(place, "bb2")["metrics"]["popularity"]
    assert found["hr@5"]["value"] == pytest.approx((ranks < 5).sum() / 31, rel=1e-12)
    assert found["mrr@10"]["value"] == pytest.approx((1 / (ranks + 1)).sum() / 31, rel=1e-12)


def test_the_backbones_ranks_are_those_of_its_plain_forward(place):
    loaded, layer = load_backbone(place / "bb2"), read_tensors(place / "bb2" / OUTPUT_LAYER)
    gains: list[float] = []
    of_users: list[float] = []
    for user in range(30):
        items = [CYCLE[(user + i) % 6] for i in range(4 + user % 5)]
        tokens = [FIRST_ITEM + loaded.items.index(item) for item in items]
        states = loaded.backbone.hidden(frame_histories([tokens[:-1]], loaded.backbone.spec))
        for found, state in ((gains, states[0, -2]), (of_users, states[0, -1])):
            scores = state @ layer["weight"].t() + layer["bias"]
            rank = int((scores >= scores[tokens[-1] - FIRST_ITEM]).sum()) - 1
            found.append(1 / np.log2(rank + 2))
    metrics = measured(place, "bb2")["metrics"]
    for name, expected in (("backbone", gains), ("its [CLS]", of_users)):
        assert metrics[name]["ndcg@10"]["value"] == pytest.approx(sum(expected) / 31, rel=1e-12)


def test_items_that_a_user_has_are_left_out_if_asked(place):
    found = measured(place, "bb2", "--without-seen")
    lengths = np.array([3 + user % 5 for user in range(30)])
    missed = (lengths >= 6).sum() + 1  # after six items everything is a repetition
    assert found["metrics"]["last item"]["hr@5"]["value"] == pytest.approx(1 - missed / 31)
    assert found["without_seen"]


@pytest.mark.parametrize(
    ("backbone", "part", "is_doubtful"),
    [("bb0", "test", True), ("bb1", "test", False), ("bb1", "validation", True)],
)
def test_a_backbone_that_was_trained_on_the_answers_is_told_of(place, backbone, part, is_doubtful):
    data: list[str | Path] = [
        "--interactions",
        place / "events.csv",
        "--order-column",
        "at",
        "--part",
        part,
    ]
    out, err = run("evaluate-backbone", "--backbone", place / backbone, *data)
    assert f"{part} items of 31 users" in " ".join(out.split())
    assert (f"was trained on the {part} items" in " ".join(err.split())) == is_doubtful


def test_other_data_are_told_of_and_few_users_are_measured(place, tmp_path):
    table = small_table(tmp_path / "events.csv", "late,zzz,0", "late,zzz,1", "late,a,2")
    data: list[str | Path] = [
        "--interactions",
        table,
        "--order-column",
        "at",
        "--json",
        "--max-users",
        "4",
    ]
    out, err = run("evaluate-backbone", "--backbone", place / "bb2", *data)
    assert json.loads(out)["users"] == 4
    assert json.loads(out)["cold"] == 1
    assert "trained on other data than these" in " ".join(err.split())


def test_histories_that_are_all_too_short_are_refused(place, tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id\nann,a\nann,b\n")
    with pytest.raises(HistoriesMissing, match="none of the 1 users has 3 events or more"):
        run("evaluate-backbone", "--backbone", place / "bb2", "--interactions", tmp_path)


def test_a_folder_without_its_output_layer_is_refused(place, tmp_path):
    for file in (place / "bb2").iterdir():
        if file.name != OUTPUT_LAYER:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BackboneFolderInvalid, match="which scores items"):
        run(
            "evaluate-backbone",
            *("--backbone", tmp_path, "--interactions", place / "events.csv"),
        )


def test_the_next_items_of_the_sample_shop_depend_on_the_last_one(tmp_path):
    write_sample_data(tmp_path, users=100)
    data: list[str | Path] = [
        "--interactions",
        tmp_path / "interactions.parquet",
        "--order-column",
        "position",
    ]
    run("pretrain", *data, *SIZES, "--leave-out-last", "2", "--out", tmp_path / "bb", "-q")
    out, _ = run("evaluate-backbone", "--backbone", tmp_path / "bb", *data, "--json", "-q")
    metrics = json.loads(out)["metrics"]
    assert metrics["last item"]["hr@10"]["low"] > metrics["popularity"]["hr@10"]["high"]
