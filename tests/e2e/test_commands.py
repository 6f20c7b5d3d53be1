"""The command line of operators against a real server: tables, JSON, exit statuses, completion."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.rollouts import with_two_versions
from tests.e2e.running import free_port

PROGRAM = (sys.executable, "-P", "-m", "peterrec")
INSTALLED = (str(Path(sys.executable).parent / "peterrec"),)


class Commands:
    """`peterrec` with the server's address and key in the environment."""

    def __init__(self, url: str, key: str) -> None:
        self._environment = {
            **os.environ,
            "COLUMNS": "220",
            "PETERREC_URL": url,
            "PETERREC_API_KEY": key,
        }

    def run(
        self, *arguments: object, program: tuple[str, ...] = PROGRAM, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**self._environment, **variables},
        )

    def started(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def said(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *arguments: object) -> Any:  # Any: a JSON document
        return json.loads(self.said(*arguments, "--json"))


@pytest.fixture
def peterrec(server) -> Commands:
    return Commands(server.url, server.key)


@pytest.fixture
def task() -> str:
    return f"cli-{uuid4().hex[:8]}"


@pytest.fixture
def digests(api, task, workshop) -> list[str]:
    bundles = [workshop.bundle("classification", seed) for seed in (81, 82)]
    return with_two_versions(api, task, *bundles)


def test_a_canary_is_put_shown_and_cleared(peterrec, api, task, digests):
    bounds = ("--max-error-share", "0.02", "--min-requests", "50")
    said = peterrec.said("traffic", "set", task, "--canary", "2=5", "--shadow", "2", *bounds)
    assert f"{task}: prod=95, canary 2=5, shadow 2, guarded; before: prod answers alone." in said
    shown = peterrec.said("traffic", "show", task)
    assert re.search(r"canary +│ 2 +│ 5\.0%", shown)
    assert "max_error_share 0.02" in shown
    found = peterrec.json("traffic", "show", task)
    assert found == api.get(f"/tasks/{task}/traffic").json()
    assert found["traffic"]["guard"]["min_requests"] == 50
    assert "prod=95" in peterrec.said("tasks")
    assert "prod answers alone; before: prod=95" in peterrec.said("traffic", "clear", task)


def test_versions_are_listed_with_their_aliases(peterrec, api, task, digests):
    peterrec.said("alias", "set", task, "next", "2")
    peterrec.said("traffic", "set", task, "--canary", "next=1")
    said = peterrec.said("versions", task)
    assert re.search(r"1 +│ prod ", said)
    assert re.search(r"2 +│ next, \(canary\)", said)
    assert peterrec.json("versions", task) == api.get(f"/tasks/{task}/versions").json()


def test_aliases_are_set_listed_and_deleted(peterrec, api, task, digests):
    assert "next names version 2; before: nothing" in peterrec.said(
        "alias", "set", task, "next", digests[1]
    )
    assert set(peterrec.json("alias", "list", task)) == {"next", "prod"}
    assert "next names nothing" in peterrec.said("alias", "delete", task, "next")
    assert set(api.get(f"/tasks/{task}/aliases").json()) == {"prod"}


def test_a_rollback_and_its_entry_in_the_trail(peterrec, api, task, digests):
    peterrec.said("alias", "set", task, "prod", "2")
    assert "prod names version 1; prod answers alone" in peterrec.said("rollback", task)
    assert api.get(f"/tasks/{task}").json()["aliases"]["prod"]["version"] == 1
    said = peterrec.said("audit", "--task", task)
    assert re.search(rf"rollback +│ {task} +│ prod: .* → .* \(version 1\)", said)
    lines = peterrec.said("audit", "--task", task, "--json").splitlines()
    actions = [json.loads(line)["action"] for line in lines]
    assert actions == ["add_version", "add_version", "set_alias", "rollback"]
    newest = peterrec.said("audit", "--task", task, "--json", "--limit", "1").splitlines()
    assert newest == lines[-1:]


def test_the_trail_is_followed_from_a_revision_on(peterrec, api, task, digests):
    seen = api.get(f"/tasks/{task}").json()["revision"]
    peterrec.said("alias", "set", task, "next", "1")
    with peterrec.started("audit", "--follow", "--task", task, "--since", seen) as following:
        entry = json.loads(following.stdout.readline())
        following.terminate()
    assert (entry["task"], entry["action"], entry["alias"]) == (task, "set_alias", "next")


def test_keys_are_created_listed_and_revoked(peterrec):
    created = peterrec.said("keys", "create", "--scope", "predict:cli-*", "--name", "reader")
    assert created.startswith("prk_")
    (key,) = [each for each in peterrec.json("keys", "list") if each["name"] == "reader"]
    assert (key["scopes"], created.split("_")[1]) == (["predict:cli-*"], key["key_id"])
    assert "is revoked" in peterrec.said("keys", "revoke", key["key_id"])
    assert "reader" not in peterrec.said("keys", "list")


def test_exit_statuses_say_what_went_wrong(peterrec, task, digests):
    seen = peterrec.json("traffic", "show", task)["revision"]
    peterrec.said("alias", "set", task, "next", "2", "--if-match", seen)

    def status(*arguments: object, **variables: str) -> tuple[int, str]:
        done = peterrec.run(*arguments, **variables)
        return done.returncode, done.stderr.partition(":")[0]

    assert status("rollback", "no-such-task") == (3, "task_not_found")
    assert status("alias", "set", task, "next", "9") == (3, "version_not_found")
    assert status("rollback", task, "--if-match", seen) == (4, "revision_mismatch")
    assert status("alias", "set", task, "bad name", "1") == (1, "invalid_name")
    assert status("traffic", "set", task) == (1, "invalid_traffic")
    assert status("tasks", PETERREC_API_KEY="prk_x_y") == (1, "unauthenticated")
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert status("tasks", PETERREC_URL=nowhere) == (5, "server_unreachable")
    assert peterrec.run("traffic", "set", task, "--canary", "2").returncode == 2


def test_a_push_can_be_conditional_and_print_its_answer_as_json(
    peterrec, api, task, digests, workshop, tmp_path
):
    path = tmp_path / "third.bundle"
    path.write_bytes(workshop.bundle("classification", seed=83))
    late = peterrec.run("push", path, "--task", task, "--if-match", 1)
    assert (late.returncode, late.stderr.partition(":")[0]) == (4, "revision_mismatch")
    seen = api.get(f"/tasks/{task}").json()["revision"]
    pushed = peterrec.json("push", path, "--quiet", "--task", task, "--if-match", seen)
    assert (pushed["version"], pushed["alias"]) == (3, "prod")


def test_the_shell_completes_tasks_from_the_server(peterrec, task, digests):
    words = {"COMP_WORDS": f"peterrec rollback {task[:-3]}", "COMP_CWORD": "2"}
    done = peterrec.run(program=INSTALLED, _PETERREC_COMPLETE="complete_bash", **words)
    assert done.stdout.split() == [task]
