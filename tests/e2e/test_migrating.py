"""`peterrec migrate`: tasks are trained again on a new backbone, and become guarded canaries."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.errors import DiskFull
from peterrec.patches.bundle.bundle import build_bundle, open_bundle, read_manifest
from peterrec.patches.identity import digest_of, format_digest
from peterrec.service.errors import NewBackboneNotServed, TasksNotMigrated
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, Start, running_server
from tests.full_disk import files_of_at_most
from tests.service.cli.command_line import run
from tests.waiting import eventually

TASKS = {
    "gender": ("classification", "--labels", "users.parquet", "--label-column", "gender"),
    "interests": ("tags", "--labels", "tags.parquet", "--label-column", "tag"),
    "products": ("ranking", "--targets", "targets.parquet", "--target-order-column", "position"),
    "lost": ("classification", "--labels", "ages.parquet", "--label-column", "age_group"),
}
PATIENT = Start(within_s=240)
"""The kernels of two backbones are compiled at the first start."""


@dataclass(frozen=True)
class Migrating:
    """A shop's data, an old and a new backbone, and a server that has both."""

    folder: Path
    server: RunningServer

    def backbone(self, name: str) -> str:
        return str(json.loads((self.folder / name / "spec.json").read_text())["fingerprint"])

    def arguments(self, out: Path, *more: str, key: str | None = None) -> list[str]:
        return [
            *("migrate", "--url", self.server.url),
            *("--api-key", self.server.key if key is None else key),
            *("--backbone", str(self.folder / "new"), "--old-backbone", str(self.folder / "old")),
            *("--data", str(self.folder / "moved"), "--out", str(out), *more),
        ]

    def planned(self, out: Path, *more: str, key: str | None = None) -> dict[str, Any]:
        """The rows of a dry run by task."""
        said = run(*self.arguments(out, "--json", *more, key=key))
        return {each["task"]: each for each in json.loads(said)["tasks"]}

    def stock(self, name: str, *tasks: str) -> tuple[str, str]:
        """Push tasks' old bundles under names of a test's own; return the option that names them.

        ``foreign`` records nothing of its training, and ``new`` has moved already.
        """
        with self.server.client() as api:
            for task in tasks:
                push(api, f"{name}-{task}", (self.folder / f"{task}.bundle").read_bytes())
        return "--glob", f"{name}-*"

    def state(self) -> list[dict[str, Any]]:
        with self.server.client() as api:
            names = [task["task"] for task in api.get("/tasks").json()]
            return [api.get(f"/tasks/{name}").json() for name in names]


def pretrain(folder: Path, name: str, channels: int, dilations: str) -> None:
    run(
        *("pretrain", "--interactions", folder / "shop" / "histories.parquet"),
        *("--out", folder / name, "--channels", str(channels), "--dilations", dilations),
        *("--max-len", "12", "--epochs", "1"),
    )


def finetune(folder: Path, task: str, backbone: str = "old") -> None:
    kind, option, table, *more = TASKS[task]
    shop = folder / "shop"
    out = folder / f"{task if backbone == 'old' else backbone}.bundle"
    run(
        *("finetune", "--kind", kind, "--backbone", f"{folder / backbone}", "--out", f"{out}"),
        *("--interactions", f"{shop / 'histories.parquet'}", option, f"{shop / table}", *more),
        *("--parts", "blocks", "--bottleneck", "2", "--epochs", "2", "--seed", "7"),
        *("--test-share", "0.3", "--blocks", "top:1"),
    )


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two backbones; its data have moved, and a file of them is lost."""
    folder = tmp_path_factory.mktemp("migrating")
    write_sample_data(folder / "shop", users=300)
    ages = folder / "shop" / "ages.parquet"
    ages.write_bytes((folder / "shop" / "users.parquet").read_bytes())
    pretrain(folder, "old", 16, "1,4")
    pretrain(folder, "new", 8, "1,2,4")
    pretrain(folder, "third", 8, "1")
    for task in TASKS:
        finetune(folder, task)
    finetune(folder, "gender", "new")
    (folder / "foreign.bundle").write_bytes(without_record((folder / "gender.bundle").read_bytes()))
    (folder / "shop").rename(folder / "moved")
    (folder / "moved" / "ages.parquet").unlink()
    return folder


@pytest.fixture(scope="module")
def migrating(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migrating]:
    both = f"{ground / 'old'},{ground / 'new'}"
    folder = tmp_path_factory.mktemp("server")
    with running_server(
        ground / "old", folder, backbone_dir=both, workers=1, start=PATIENT
    ) as server:
        yield Migrating(ground, server)


def without_record(bundle: bytes) -> bytes:
    """The bundle of somebody who recorded nothing of its training."""
    contents = open_bundle(bundle)
    provenance = contents.manifest.provenance.model_copy(update={"notes": None})
    manifest = contents.manifest.model_copy(update={"provenance": provenance})
    return build_bundle(manifest, contents.tensors)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(migrating, out):
    tasks = migrating.stock("dry", *TASKS, "foreign", "new")
    before = migrating.state()
    planned = migrating.planned(out, *tasks)
    assert {name: row["outcome"] for name, row in planned.items()} == {
        "dry-gender": "planned",
        "dry-interests": "planned",
        "dry-products": "planned",
        "dry-lost": "blocked",
        "dry-foreign": "blocked",
        "dry-new": "moved",
    }
    assert planned["dry-lost"]["reason"]["code"] == "training_data_missing"
    assert "ages.parquet" in planned["dry-lost"]["reason"]["message"]
    assert planned["dry-foreign"]["reason"]["code"] == "training_unrepeatable"
    gender = planned["dry-gender"]
    assert gender["from"]["backbone"] == migrating.backbone("old")
    assert gender["training"]["data"] == {
        "interactions": str(migrating.folder / "moved" / "histories.parquet"),
        "labels": str(migrating.folder / "moved" / "users.parquet"),
    }
    assert gender["training"]["settings"]["seed"] == 7
    assert gender["training"]["settings"]["blocks"] == [2]
    said = run(*migrating.arguments(out, *tasks))
    assert "3 of 6 tasks would be trained; nothing was changed." in said
    assert "dry-lost: training_data_missing: " in said
    assert "with --data" in said
    assert migrating.state() == before
    assert not out.exists()


def journal_of(out: Path) -> list[dict[str, Any]]:
    path = out / "_migrate" / "journal.ndjson"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trained_in(out: Path) -> list[str]:
    return [line["task"] for line in journal_of(out) if "trained" in line]


def report_of(out: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((out / "report.json").read_text())
    return {each["task"]: each for each in report["tasks"]}


def killed(migrating: Migrating, out: Path, *more: str) -> None:
    """Run the command until it has finished a task and trained the next one, and kill it."""
    command = [sys.executable, "-P", "-m", "peterrec", *migrating.arguments(out, *more)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: process.poll() is not None or len(trained_in(out)) > 1, 120)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_migration_goes_on_and_ends_with_guarded_canaries(migrating, out):
    tasks = migrating.stock("killed", *TASKS, "foreign", "new")
    options = (*tasks, "--apply", "--tolerance", "1", "--weight", "20")
    killed(migrating, out, *options)
    kept = journal_of(out)
    with pytest.raises(TasksNotMigrated, match="killed-foreign, killed-lost") as refused:
        run(*migrating.arguments(out, *options))
    assert str(out / "report.json") in refused.value.hint
    assert journal_of(out)[: len(kept)] == kept
    moved = ["killed-gender", "killed-interests", "killed-products"]
    assert trained_in(out) == moved
    found = report_of(out)
    assert {name: row["outcome"] for name, row in found.items()} == {
        **dict.fromkeys(moved, "canary"),
        "killed-lost": "blocked",
        "killed-foreign": "blocked",
        "killed-new": "moved",
    }
    for task in moved:
        require_migrated(migrating, out, task)
    asks_both(migrating, moved[0])


def require_migrated(migrating: Migrating, out: Path, task: str) -> None:
    """The new version is that of the same data on the new backbone, measured, and a canary."""
    bundle, row = (out / f"{task}.bundle").read_bytes(), report_of(out)[task]
    manifest = read_manifest(bundle)
    old = read_manifest(migrating.folder / f"{task.partition('-')[2]}.bundle")
    assert manifest.backbone == migrating.backbone("new")
    assert manifest.name == old.name
    assert manifest.provenance.data_digest == old.provenance.data_digest
    digest = format_digest(digest_of(bundle))
    assert row["to"] == {"version": 2, "digest": digest, "weight": 20}
    figures = row["comparison"]
    assert figures["users"] > 50
    assert figures["difference"] == pytest.approx(figures["new"] - figures["old"])
    assert figures["low"] <= figures["difference"] <= figures["high"]
    with migrating.server.client() as api:
        detail = api.get(f"/tasks/{task}").json()
    assert detail["aliases"]["prod"]["version"] == 1
    assert [each["digest"] for each in detail["versions"]][1:] == [digest]
    assert detail["traffic"]["prod_weight"] == 80
    assert [(each["version"], each["weight"]) for each in detail["traffic"]["canary"]] == [(2, 20)]
    assert detail["traffic"]["guard"]["max_error_share"] == 0.01


def asks_both(migrating: Migrating, task: str) -> None:
    """Some users are answered by the canary of the new backbone, and others by prod."""
    body = {"instances": [{"history": ["article-0001"], "user_id": f"u{n}"} for n in range(50)]}

    def roles() -> set[str]:
        with migrating.server.client() as api:
            answer = api.post(f"/tasks/{task}/predict", json=body).json()
        return {each["role"] for each in answer["predictions"]}

    eventually(lambda: roles() == {"prod", "canary"})


def test_a_canary_that_was_ended_is_not_put_back_by_the_same_command(migrating, out):
    tasks = migrating.stock("ended", "gender")
    options = (*tasks, "--apply", "--tolerance", "1")
    assert "canary (5 %)" in run(*migrating.arguments(out, *options))
    with migrating.server.client() as api:
        api.delete("/tasks/ended-gender/traffic").raise_for_status()
    before, lines = migrating.state(), journal_of(out)
    run(*migrating.arguments(out, *options))
    assert (migrating.state(), journal_of(out)) == (before, lines)


def test_what_a_killed_run_did_not_note_is_not_done_twice(migrating, out):
    """A version that is there by its digest is not pushed again, nor a canary set again."""
    options = (*migrating.stock("twice", "gender"), "--apply", "--tolerance", "1")
    run(*migrating.arguments(out, *options))
    before, path = migrating.state(), out / "_migrate" / "journal.ndjson"
    noted = path.read_text().splitlines(keepends=True)
    path.write_text("".join(noted[:2]) + noted[2][:20])
    run(*migrating.arguments(out, *options))
    assert migrating.state() == before
    assert path.read_text() == "".join(noted)


def test_a_version_that_lost_more_than_is_tolerated_is_not_registered(migrating, out):
    """Its comparison is kept, so that another tolerance registers it without training again."""
    task = (*migrating.stock("worse", "gender"), "--apply")
    with pytest.raises(TasksNotMigrated):
        run(*migrating.arguments(out, *task, "--tolerance", "1", "--max-p99-ms", "-1"))
    row = report_of(out)["worse-gender"]
    assert (row["outcome"], row["reason"]["code"]) == ("failed", "malformed_request")
    with migrating.server.client() as api:
        api.delete("/tasks/worse-gender/versions/2").raise_for_status()
    lines = journal_of(out)
    (at,) = (at for at, line in enumerate(lines) if "comparison" in line)
    lines[at]["comparison"] |= {"old": 0.5, "new": 0.4}
    path = out / "_migrate" / "journal.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[: at + 1]))
    with pytest.raises(TasksNotMigrated):
        run(*migrating.arguments(out, *task))
    row = report_of(out)["worse-gender"]
    assert (row["outcome"], row["reason"]["code"]) == ("worse", "new_version_worse")
    with migrating.server.client() as api:
        assert len(api.get("/tasks/worse-gender").json()["versions"]) == 1
    assert "canary" in run(*migrating.arguments(out, *task, "--tolerance", "0.21"))
    assert trained_in(out) == ["worse-gender"]


def test_new_bundles_are_signed_if_there_is_a_key(migrating, out, tmp_path):
    run("keygen", "--out", tmp_path / "shop")
    options = (*migrating.stock("signed", "gender"), "--apply", "--tolerance", "1")
    run(*migrating.arguments(out, *options, "--sign-key", str(tmp_path / "shop.key")))
    bundle = out / "signed-gender.bundle"
    said = run("verify", bundle, "--trusted-key", tmp_path / "shop.pub")
    assert "signed by trusted key" in said
    digest = format_digest(digest_of(bundle.read_bytes()))
    assert report_of(out)["signed-gender"]["to"]["digest"] == digest


def test_canaries_of_somebody_else_are_left_alone(migrating, out):
    tasks = migrating.stock("busy", "gender")
    with migrating.server.client() as api:
        push(api, "busy-gender", (migrating.folder / "foreign.bundle").read_bytes(), alias="")
        api.put(
            "/tasks/busy-gender/traffic", json={"prod_weight": 1, "shadow": [2]}
        ).raise_for_status()
    row = migrating.planned(out, *tasks)["busy-gender"]
    assert row["reason"]["code"] == "traffic_in_use"


def test_a_disk_that_is_full_ends_the_run_and_the_next_one_goes_on(migrating, out):
    options = (*migrating.stock("full", "gender", "interests"), "--apply", "--tolerance", "1")
    with files_of_at_most(4096), pytest.raises(DiskFull):
        run(*migrating.arguments(out, *options))
    assert trained_in(out) == []
    run(*migrating.arguments(out, *options))
    assert trained_in(out) == ["full-gender", "full-interests"]


def test_a_key_that_may_not_administer_a_task_costs_that_task_alone(migrating, out):
    tasks = migrating.stock("keyed", "gender", "interests")
    with migrating.server.client() as api:
        few = {"name": "few", "scopes": ["admin:keyed-gen*", "predict"]}
        answer = api.post("/keys", json=few)
        key = answer.raise_for_status().json()["api_key"]
    planned = migrating.planned(out, *tasks, key=key)
    assert planned["keyed-interests"]["reason"]["code"] == "forbidden"
    assert "admin" in planned["keyed-interests"]["reason"]["hint"]
    assert planned["keyed-gender"]["reason"] is None


def test_a_server_without_the_new_backbone_is_told_before_anything_is_done(migrating, out):
    arguments = migrating.arguments(out, "--tasks", "all", "--apply")
    arguments[arguments.index("--backbone") + 1] = str(migrating.folder / "third")
    with pytest.raises(NewBackboneNotServed, match=migrating.backbone("third")):
        run(*arguments)


def test_data_and_backbones_that_are_not_at_hand_are_told(migrating, out, tmp_path):
    tasks = migrating.stock("far", "interests")
    arguments = [*migrating.arguments(out, "--json", *tasks)]
    at = arguments.index("--data")
    del arguments[at : at + 2]
    assert reason_of(arguments)["code"] == "training_data_missing"
    write_sample_data(tmp_path / "changed" / "shop", users=200)
    reason = reason_of([*arguments, "--data", str(tmp_path)])
    assert reason["code"] == "training_data_changed"
    assert str(tmp_path / "changed" / "shop" / "histories.parquet") in reason["message"]
    at = arguments.index("--old-backbone")
    del arguments[at : at + 2]
    assert reason_of(arguments)["code"] == "old_backbone_missing"


def reason_of(arguments: list[str]) -> dict[str, Any]:
    (row,) = json.loads(run(*arguments))["tasks"]
    reason: dict[str, Any] = row["reason"]
    return reason


def test_a_file_says_where_data_are_that_a_bundle_did_not_record(migrating, out, tmp_path):
    moved = migrating.folder / "moved"
    (tmp_path / "sources.toml").write_text(
        f'[defaults]\ninteractions = "{moved}/histories.parquet"\n'
        f'[tasks.told-lost]\nlabels = "{moved}/users.parquet"\nlabel_column = "age_group"\n'
    )
    tasks = migrating.stock("told", "lost")
    row = migrating.planned(out, *tasks, "--sources", str(tmp_path / "sources.toml"))["told-lost"]
    assert row["outcome"] == "planned"
    assert row["training"]["data"]["labels"] == str(moved / "users.parquet")


def test_a_bundle_is_fetched_as_it_was_pushed(migrating):
    migrating.stock("fetched", "products")
    with migrating.server.client() as api:
        answer = api.get("/tasks/fetched-products/versions/1/bundle")
        missing = api.get("/tasks/fetched-products/versions/9/bundle")
    with migrating.server.client("") as nobody:
        refused = nobody.get("/tasks/fetched-products/versions/1/bundle")
    assert answer.content == (migrating.folder / "products.bundle").read_bytes()
    assert (missing.status_code, refused.status_code) == (404, 401)
