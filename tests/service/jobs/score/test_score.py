"""``peterrec score``: whole user bases, from files to files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from peterrec.service.errors import (
    NoTaskMatches,
    OutputChanged,
    OutputExists,
    RunChanged,
)
from peterrec.service.library.backbone import load_backbone
from peterrec.service.library.task import load_bundle
from tests.service.jobs.score.conftest import KINDS, USERS, answers
from tests.waiting import eventually

PARTS = ("--part-rows", "64")
EVERY_TASK = sorted((*KINDS, "listed"))


@pytest.fixture(scope="module")
def scored(base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scored") / "out"
    assert base.score(out, *PARTS)["rows"] == USERS
    return out


def of_service(base, task: str) -> list:
    """The answers of the code that answers requests."""
    found = load_bundle(base.bundles / f"{task}.bundle", load_backbone(base.backbone))
    return found.predict(base.histories, progress=False)


def test_every_user_has_one_row_of_every_task_in_the_order_of_the_input(base, scored):
    for task in EVERY_TASK:
        assert answers(scored, task)["user_id"].to_pylist() == base.users


@pytest.mark.parametrize("task", ["classification", "listed"])
def test_probabilities_equal_those_of_the_service_to_the_bit(base, scored, task):
    expected = of_service(base, task)
    found = answers(scored, task)
    assert found["label"].to_pylist() == [answer.label for answer in expected]
    assert found["scores"].to_pylist() == [[*answer.scores.values()] for answer in expected]
    assert found["score"].to_pylist() == [max(answer.scores.values()) for answer in expected]


def test_tags_and_values_equal_those_of_the_service_to_the_bit(base, scored):
    expected = of_service(base, "tags")
    found = answers(scored, "tags")
    assert found["tags"].to_pylist() == [[t.label for t in answer.tags] for answer in expected]
    assert found["scores"].to_pylist() == [[*answer.scores.values()] for answer in expected]
    values = [answer.value for answer in of_service(base, "value")]
    assert answers(scored, "value")["value"].to_pylist() == values


def test_rankings_equal_those_of_the_service(base, scored):
    expected = of_service(base, "ranking")
    found = answers(scored, "ranking")
    assert found["items"].to_pylist() == [[i.id for i in answer.items] for answer in expected]
    scores = [score for row in found["scores"].to_pylist() for score in row]
    reference = [item.score for answer in expected for item in answer.items]
    np.testing.assert_allclose(scores, reference, rtol=1e-5, atol=1e-5)


def test_the_table_says_what_was_read_of_each_history(base, scored):
    for task in ("classification", "listed"):
        expected, found = of_service(base, task), answers(scored, task)
        assert found["used_items"].to_pylist() == [answer.used_items for answer in expected]
        assert found["unknown_items"].to_pylist() == [answer.unknown_items for answer in expected]


def test_every_file_says_which_bundle_answered(base, scored):
    task = load_bundle(base.bundles / "tags.bundle", load_backbone(base.backbone))
    for file in sorted((scored / "task=tags").glob("part-*.parquet")):
        about = json.loads(pq.read_schema(file).metadata[b"peterrec"])
        assert about["task"] == "tags"
        assert about["digest"] == task.digest
        assert about["labels"] == [*task.outputs]
        assert (about["version"], about["registry_revision"]) == (None, None)


def test_folders_are_partitions_by_task(scored):
    found = ds.dataset(scored, partitioning="hive").to_table(columns=["user_id", "task"])
    counts = found.group_by("task").aggregate([("user_id", "count")])
    expected = dict.fromkeys(EVERY_TASK, USERS)
    pairs = zip(counts["task"].to_pylist(), counts["user_id_count"].to_pylist(), strict=True)
    assert dict(pairs) == expected


def test_tasks_are_chosen_by_name_and_by_pattern(base, tmp_path):
    base.score(tmp_path / "out", "--tasks", "tags", "--glob", "class*")
    folders = {path.name for path in (tmp_path / "out").glob("task=*")}
    assert folders == {"task=tags", "task=classification"}


@pytest.mark.parametrize("options", [("--tasks", "tgas"), ("--tasks", "tags", "--glob", "zz*")])
def test_a_task_that_is_not_there_is_named_beside_those_that_are(base, tmp_path, options):
    with pytest.raises(NoTaskMatches, match="classification, listed, ranking, tags, value"):
        base.score(tmp_path / "out", *options)


def test_names_may_stand_between_blanks(base, tmp_path):
    base.score(tmp_path / "out", "--tasks", " tags , value,")
    assert {path.name for path in (tmp_path / "out").glob("task=*")} == {"task=tags", "task=value"}


@pytest.mark.parametrize("options", [("--tasks", ""), ("--tasks", " ,", "--glob", "")])
def test_naming_nothing_is_no_choice(base, tmp_path, options):
    with pytest.raises(AssertionError, match="name --tasks"):
        base.score(tmp_path / "out", *options)


def test_vectors_are_those_of_the_backbone(base, tmp_path):
    out = tmp_path / "out"
    base.score(out, "--tasks", "tags", "--vectors", "parquet")
    found = pq.read_table(sorted((out / "_vectors").glob("*.parquet")))
    assert found["user_id"].to_pylist() == base.users
    bundle = load_backbone(base.backbone)
    expected = bundle.vectors(base.histories)
    np.testing.assert_allclose(np.stack(found["vector"].to_numpy()), expected, rtol=1e-5, atol=1e-6)


def test_vectors_are_written_in_the_form_of_the_recsys_challenge(base, tmp_path):
    out = tmp_path / "out"
    given = ("--users", base.table, "--backbone", base.backbone, "--out", out, *PARTS)
    from tests.service.cli.command_line import run

    run("score", *given, "--vectors", "npy", "-q")
    ids, vectors = (
        np.load(out / "_vectors" / f"{name}.npy") for name in ("client_ids", "embeddings")
    )
    assert (ids.dtype, vectors.dtype) == (np.int64, np.float16)
    assert ids.tolist() == base.users
    expected = np.asarray(load_backbone(base.backbone).vectors(base.histories))
    np.testing.assert_allclose(vectors.astype(np.float32), expected, rtol=2e-3, atol=1e-3)
    assert [path.name for path in sorted((out / "_vectors").iterdir())] == [
        "client_ids.npy",
        "embeddings.npy",
    ]


def killed(base, out: Path, parts: int, *options: str | Path) -> None:
    """Score in a process of its own, and kill it once so many parts are finished."""
    command = [
        *(sys.executable, "-P", "-m", "peterrec", "score", "--users", base.table),
        *("--backbone", base.backbone, "--tasks", "all"),
        *("--out", out, "--quiet", *options),
    ]
    process = subprocess.Popen([str(each) for each in command])
    journal = out / "_score" / "journal.ndjson"

    def has_parts() -> bool:
        lines = journal.read_text().count("\n") if journal.exists() else 0
        return lines > parts or process.poll() is not None

    try:
        eventually(has_parts, within_s=100)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"


def test_a_run_that_was_killed_goes_on_and_writes_every_row_once(base, scored, tmp_path):
    out = tmp_path / "out"
    killed(base, out, 3, "--part-rows", "2", "--bundles", base.bundles)
    done = {path: path.stat().st_mtime_ns for path in (out / "task=tags").glob("part-*.parquet")}
    report = base.score(out, "--part-rows", "2", "--resume")
    assert report["rows"] == USERS
    assert all(path.stat().st_mtime_ns == before for path, before in sorted(done.items())[:3])
    for task in EVERY_TASK:
        found, expected = answers(out, task), answers(scored, task)
        assert found.to_pylist() == expected.to_pylist(), task
    assert not [*out.rglob("*.partial")]


def test_whatever_a_kill_left_is_written_again(base, scored, tmp_path):
    out = tmp_path / "out"
    base.score(out, *PARTS)
    journal = out / "_score" / "journal.ndjson"
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        journal.write_bytes(b"".join(lines[:kept]) + lines[kept][:10])  # cut within a line
        (out / "task=tags" / ".part-00002.parquet.partial").write_bytes(b"half")
        assert base.score(out, *PARTS, "--resume")["rows"] == USERS
        assert answers(out, "ranking").to_pylist() == answers(scored, "ranking").to_pylist()
        assert not [*out.rglob("*.partial")]
        assert json.loads(journal.read_text().splitlines()[-1]) == {"complete": True}


def test_a_run_that_is_complete_has_nothing_left_to_do(base, tmp_path):
    out = tmp_path / "out"
    first = base.score(out, "--tasks", "tags")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert base.score(out, "--tasks", "tags", "--resume") == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before


def test_an_earlier_run_is_neither_mixed_with_nor_removed_unasked(base, tmp_path):
    out = tmp_path / "out"
    base.score(out, "--tasks", "tags,value", *PARTS)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists) as refused:
        base.score(out, "--tasks", "tags")
    assert "`resume`" in refused.value.hint
    base.score(out, "--tasks", "tags", "--overwrite")
    assert len([*out.rglob("*.parquet")]) == 1
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--tasks", "value"), "tasks"),
        (("--tasks", "tags", "--top-k", "3"), "scores"),
        (("--tasks", "tags", "--part-rows", "7"), "part_rows"),
        (("--tasks", "tags", "--vectors", "parquet"), "scores"),
    ],
)
def test_a_run_does_not_go_on_with_other_options(base, tmp_path, options, what):
    out = tmp_path / "out"
    base.score(out, "--tasks", "tags")
    with pytest.raises(RunChanged, match=f"began with {what}"):
        base.score(out, *options, "--resume")


def test_a_run_does_not_go_on_with_another_input_or_bundle(base, tmp_path):
    users = tmp_path / "users.parquet"
    pq.write_table(pq.read_table(base.table), users)
    base.score(tmp_path / "out", "--tasks", "tags", users=users)
    pq.write_table(pq.read_table(base.table).slice(1), users)
    with pytest.raises(RunChanged, match="began with files") as refused:
        base.score(tmp_path / "out", "--tasks", "tags", "--resume", users=users)
    assert "overwrite" in refused.value.hint


def test_a_finished_file_that_was_changed_stops_the_run(base, tmp_path):
    out = tmp_path / "out"
    base.score(out, "--tasks", "tags", *PARTS)
    (out / "task=tags" / "part-00001.parquet").unlink()
    with pytest.raises(OutputChanged, match="part-00001"):
        base.score(out, "--tasks", "tags", *PARTS, "--resume")
