"""A replica whose backbone is not that of the registered bundles does not take requests."""

import json
import os
import re
import subprocess
import sys
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, Start, running_server
from tests.service.random_bundles import ITEMS, Workshop
from tests.waiting import eventually


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Another backbone: the same shape, but other items."""
    return Workshop(tmp_path_factory.mktemp("other"), items=[f"new-{item}" for item in ITEMS])


@pytest.fixture
def shared(redis_url: str) -> dict[str, object]:
    """The settings of replicas of one service."""
    prefix = f"test-{uuid4().hex}"
    return {"redis_url": redis_url, "redis_prefix": prefix, "auth": "off", "workers": 1}


def readiness(server: RunningServer) -> dict[str, Any]:
    return httpx.get(f"{server.url}/readyz", trust_env=False).json()


def test_a_rolling_update_to_a_wrong_backbone_stops_at_the_first_replica(
    workshop, others, shared, tmp_path
):
    unready = Start(until=re.compile("no_bundle_fits"))
    with running_server(workshop.folder, tmp_path / "old", **shared) as old:
        with old.client() as api:
            digest = push(api, "gender", workshop.bundle("classification", 1)).json()["digest"]
        with running_server(others.folder, tmp_path / "new", start=unready, **shared) as new:
            eventually(lambda: readiness(new)["reasons"] == ["no_bundle_fits"])
            found = httpx.get(f"{new.url}/readyz", trust_env=False)
            assert found.status_code == 503
            bundles = found.json()["prod_bundles"]
            assert (bundles["registered"], bundles["answering"], bundles["unfit"]) == (1, 0, 1)
            assert bundles["some"][0]["digest"] == digest
            assert "backbone_mismatch" in bundles["some"][0]["codes"]
            assert "gender" not in found.text  # names of tasks are not for everybody
            assert "default/gender version 1 (backbone_mismatch" in new.log
            assert "PeterRec serves on" not in new.out
            eventually(lambda: new.metrics()["peterrec_no_bundle_fits"] == 1)
            assert new.metrics()['peterrec_prod_bundles{state="unfit"}'] == 1
            assert old.is_ready()
            with new.client() as api:  # a bundle that fits brings it to life
                push(api, "age", others.bundle("classification", 1))
            eventually(lambda: "PeterRec serves on" in new.out)
            assert new.is_ready()
        # a task that the old one can't serve was registered after it had become ready
        eventually(lambda: readiness(old)["prod_bundles"]["unfit"] == 1)
        assert old.is_ready()


def test_a_server_may_be_asked_for_a_share_before_it_is_ready(workshop, others, shared, tmp_path):
    with running_server(workshop.folder, tmp_path / "a", **shared) as one:
        with one.client() as api:
            push(api, "gender", workshop.bundle("classification", 1))
        unready = Start(until=re.compile("no_bundle_fits"))
        with (
            running_server(others.folder, tmp_path / "b", start=unready, **shared) as other,
            other.client() as api,
        ):
            push(api, "age", others.bundle("classification", 1))
    unready = Start(until=re.compile("bundles_missing"))
    with running_server(
        workshop.folder, tmp_path / "c", start=unready, ready_share=0.6, **shared
    ) as strict:
        eventually(lambda: readiness(strict)["reasons"] == ["bundles_missing"])
    with running_server(workshop.folder, tmp_path / "d", ready_share=0.5, **shared) as content:
        assert readiness(content)["prod_bundles"]["answering"] == 1


def test_an_empty_registry_is_no_reason_to_wait(others, shared, tmp_path):
    with running_server(others.folder, tmp_path / "a", ready_share=1, **shared) as new:
        assert readiness(new)["reasons"] == []


def test_the_doctor_says_beforehand_that_no_bundle_will_fit(workshop, others, shared, tmp_path):
    with running_server(workshop.folder, tmp_path / "a", **shared) as old, old.client() as api:
        push(api, "gender", workshop.bundle("classification", 1))
    command = [sys.executable, "-P", "-m", "peterrec", "doctor", "--json"]
    command += ["--backbone", str(others.folder), "--data-dir", str(tmp_path / "b")]
    named = {f"PETERREC_{name.upper()}": str(value) for name, value in shared.items()}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **named}
    )
    assert done.returncode == 1
    told = [each["what"] for each in json.loads(done.stdout) if each["state"] == "bad"]
    assert "no_bundle_fits: of 1 tasks, none has a prod for this backbone" in told
