"""peterrec doctor: what it finds around a server, and what it says to do."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peterrec.patches.registry.registry import Registry
from tests.e2e.conftest import first_key
from tests.e2e.running import free_port
from tests.patches.registry.test_registry import SUMMARY, add
from tests.service.random_bundles import Workshop

Found = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    Workshop(folder)
    return folder


def doctor(*options: object, status: int = 0, **variables: str) -> Found:
    """What it found, by check."""
    command = [sys.executable, "-P", "-m", "peterrec", "doctor", "--json", *map(str, options)]
    environment = {**os.environ, "PETERREC_PORT": str(free_port()), **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    found: Found = {}
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    for each in listed:
        found.setdefault(each["check"], []).append(each)
        assert each["todo"] or each["state"] == "good"
    return found


def states(found: Found, check: str) -> list[str]:
    return [each["state"] for each in found[check]]


def test_where_all_is_well_every_check_says_so(backbone, tmp_path, redis_url, redis_prefix):
    asyncio.run(first_key(redis_url, redis_prefix))
    options = ("--backbone", backbone, "--data-dir", tmp_path, "--redis-url", redis_url)
    found = doctor(*options, PETERREC_REDIS_PREFIX=redis_prefix, PETERREC_DEVICE="cpu")
    names = ("versions", "settings", "backbone", "device", "server", "clock", "registry")
    assert {name for each in names for name in states(found, each)} == {"good"}
    assert "0 tasks, 1 keys" in found["registry"][0]["what"]
    assert not (tmp_path / "redis").exists()


def test_one_failure_does_not_hide_the_others(tmp_path):
    (tmp_path / "file").touch()
    address = "redis://127.0.0.1:1/0"
    options = ("--backbone", tmp_path, "--data-dir", tmp_path / "file", "--redis-url", address)
    found = doctor(*options, status=1, PETERREC_DEVICE="cuda", PETERREC_QUEUE_ROWS="9")
    for check in ("backbone", "disk", "redis"):
        assert states(found, check) == ["bad"]
    assert "PETERREC_QUEUE_ROWS is no setting" in found["settings"][0]["what"]
    assert "PETERREC_REDIS_URL" in found["redis"][0]["todo"]


def test_a_port_of_another_program_is_told_from_a_server_of_ours(backbone, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        options = ("--backbone", backbone, "--data-dir", tmp_path)
        found = doctor(*options, "--port", port, status=1, PETERREC_DEVICE="cpu")
    assert "taken by a program that is no server of ours" in found["server"][0]["what"]


async def test_tasks_of_another_backbone_are_counted(
    backbone, tmp_path, registry: Registry, redis_url, redis_prefix
):
    await add(registry, "a bundle")
    options = ("--backbone", backbone, "--data-dir", tmp_path, "--redis-url", redis_url)
    found = doctor(*options, status=1, PETERREC_REDIS_PREFIX=redis_prefix, PETERREC_DEVICE="cpu")
    assert states(found, "registry") == ["good", "note", "bad", "bad"]
    assert "no_bundle_fits: of 1 tasks" in found["registry"][2]["what"]
    assert f"1 served versions are for another backbone, {SUMMARY.backbone}" in str(
        found["registry"]
    )


def test_bad_settings_are_all_listed_at_once(tmp_path):
    command = [sys.executable, "-P", "-m", "peterrec", "doctor"]
    bad = {"PETERREC_PORT": "x", "PETERREC_WORKERS": "-1", "PETERREC_ROOT_PATH": "no-slash"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **bad}
    )
    assert done.returncode == 1
    assert all(name in done.stderr for name in bad)
