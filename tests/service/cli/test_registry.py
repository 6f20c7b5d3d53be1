"""peterrec registry: status, gc, export, import and audit, as an operator uses them."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.records import TaskOptions
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.patches.registry.traffic import Canary, GuardReason, Observed, Traffic
from tests.patches.registry.test_registry import SUMMARY

TASK = TaskId("gender")


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peterrec", "registry", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def run_json(*arguments: object, expected: int = 0) -> Any:  # Any: a JSON document
    done = run(*arguments, "--json")
    assert (done.returncode, done.stderr) == (expected, "")
    return json.loads(done.stdout)


@pytest.fixture
def filled(redis_url: str, redis_prefix: str) -> tuple[str, ...]:
    """Options that lead to a registry with a task, a tripped canary and an unused bundle."""

    async def fill() -> None:
        registry = Registry(open_redis(redis_url), redis_prefix)
        for content in (b"a", b"bb"):
            digest = await registry.blobs.put(Blob(content))
            await registry.add_version(DEFAULT_TENANT, TASK, digest, SUMMARY, "ann", "prod")
        canary = Traffic(90, (Canary(digest, 10),))
        put = await registry.put_traffic(DEFAULT_TENANT, TASK, canary, "ann")
        seen = Observed(digest, 100, 50, 1.0)
        reason = GuardReason.ERROR_SHARE
        await registry.trip_guard(DEFAULT_TENANT, TASK, reason, seen, put.revision)
        await registry.blobs.put(Blob(b"unused"))
        await registry.close()

    asyncio.run(fill())
    return ("--redis-url", redis_url, "--redis-prefix", redis_prefix)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """The Redis of a server that runs on the data directory."""
    server = EmbeddedRedis(tmp_path / "data" / "redis")
    server.start()
    yield server
    server.stop()


def test_status_tells_what_is_there_and_that_all_is_well(filled: tuple[str, ...]) -> None:
    found = run_json("status", *filled)
    assert (found["revision"], found["tasks"], found["bundles"]) == (4, 1, 3)
    assert (found["bundle_bytes"], found["server_role"]) == (9, "master")
    assert found["warnings"] == []
    done = run("status", *filled)
    assert done.returncode == 0
    assert "server version" in done.stdout


def test_a_dry_run_comes_before_the_collection(filled: tuple[str, ...]) -> None:
    expected = {"blobs": 1, "size_bytes": 6}
    assert run_json("gc", *filled, "--grace-s", 0, "--dry-run") == {**expected, "is_dry_run": True}
    assert run_json("gc", *filled, "--grace-s", 0) == {**expected, "is_dry_run": False}
    assert run("gc", *filled, "--grace-s", 0).stdout == "Freed 0 bundles, 0 bytes.\n"


def test_a_registry_moves_into_an_embedded_one(filled: tuple[str, ...], tmp_path: Path) -> None:
    archive, elsewhere = tmp_path / "x.tar", ("--data-dir", tmp_path / "data")
    assert run_json("export", archive, *filled, "--quiet")["revision"] == 4
    done = run("import", archive, *elsewhere, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "revision 5" in done.stdout
    found = run_json("status", *elsewhere)
    assert (found["revision"], found["tasks"], found["bundles"]) == (5, 1, 2)
    refused = run("import", archive, *elsewhere, "--quiet")
    assert refused.returncode == 1
    assert "registry_not_empty" in refused.stderr
    assert run_json("import", archive, *elsewhere, "--mode", "replace", "--quiet")["revision"] == 6


def test_the_audit_trail_is_shown_and_exported_as_lines(filled: tuple[str, ...]) -> None:
    done = run("audit", *filled)
    assert "trip_guard" in done.stdout
    assert "error_share" in done.stdout
    lines = run("audit", *filled, "--since", 2, "--json").stdout.splitlines()
    put, tripped = map(json.loads, lines)
    assert (put["action"], tripped["action"]) == ("put_traffic", "trip_guard")
    assert tripped["observed"]["errors"] == 50
    assert tripped["previous_traffic"] == put["traffic"]


def test_the_redis_of_a_running_server_is_found_by_its_data_directory(
    embedded: EmbeddedRedis, tmp_path: Path
) -> None:
    async def fill() -> None:
        registry = Registry(open_redis(embedded.url))
        await registry.put_task(DEFAULT_TENANT, TASK, TaskOptions(), "ann")
        await registry.close()

    asyncio.run(fill())
    done = run("status", "--json", PETERREC_DATA_DIR=str(tmp_path / "data"))
    assert json.loads(done.stdout)["revision"] == 1
    assert embedded.is_running


def test_a_data_directory_without_a_registry_is_told_so(tmp_path: Path) -> None:
    done = run("status", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "there is no registry" in done.stderr
    assert not (tmp_path / "redis").exists()


def test_a_server_without_persistence_is_warned_of(embedded: EmbeddedRedis, tmp_path: Path) -> None:
    async def weaken() -> None:
        registry = Registry(open_redis(embedded.url))
        for option, value in {
            "appendonly": "no",
            "maxmemory": "100mb",
            "maxmemory-policy": "allkeys-lru",
        }.items():
            await registry.store.redis.config_set(option, value)
        await registry.close()

    asyncio.run(weaken())
    found = run_json("status", "--data-dir", tmp_path / "data", expected=1)
    assert [warning.split()[0] for warning in found["warnings"]] == [
        "appendonly",
        "maxmemory-policy",
    ]


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").touch()
    done = run("import", tmp_path / "x.tar", "--mode", "merge", "--data-dir", tmp_path)
    assert done.returncode == 2
    assert "use empty or replace" in done.stderr
