"""Metrics, logs and the command line against a running server."""

import os
import re
import subprocess
import sys

import pytest

from tests.e2e.conftest import push
from tests.waiting import eventually

SECRET_ITEM = "item-77"


def run(server, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PETERREC_URL": server.url,
        "PETERREC_API_KEY": server.key if key is None else key,
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "peterrec", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def sample(server, name: str) -> float:
    return server.metrics().get(f"peterrec_{name}", 0.0)


def test_requests_of_all_workers_are_counted_once(server, api):
    name = 'requests_total{outcome="ok",task="value"}'
    counted = 'instances_total{outcome="ok",task="value"}'
    before, instances = sample(server, name), sample(server, counted)
    for _ in range(20):
        with server.client() as client:
            client.post("/tasks/value/predict", json={"instances": [{"history": [1]}] * 3})
    eventually(lambda: sample(server, name) == before + 20)
    assert sample(server, counted) == instances + 60


def test_a_call_for_many_tasks_counts_for_each(server, api):
    names = [f'requests_total{{outcome="ok",task="{task}"}}' for task in ("tags", "ranking")]
    before = [sample(server, name) for name in names]
    api.post("/users/predict", json={"history": [1], "tasks": ["tags", "ranking"]})
    eventually(lambda: [sample(server, name) for name in names] == [n + 1 for n in before])


def test_names_that_nobody_registered_share_one_label(server, api):
    name = 'requests_total{outcome="client_error",task="__unknown__"}'
    before = sample(server, name)
    for number in range(5):
        api.post(f"/tasks/made-up-{number}/predict", json={"history": []})
    eventually(lambda: sample(server, name) == before + 5)
    assert not [sample for sample in server.metrics() if "made-up" in sample]


def test_the_series_of_a_deleted_task_are_removed(server, api, workshop):
    push(api, "brief", workshop.bundle("value", seed=21))
    name = 'requests_total{outcome="ok",task="brief"}'
    eventually(lambda: asked_and_counted(server, api, name))
    api.delete("/tasks/brief")
    eventually(lambda: not [each for each in server.metrics() if 'task="brief"' in each])


def asked_and_counted(server, api, name: str) -> bool:
    api.post("/tasks/brief/predict", json={"history": []})
    return sample(server, name) > 0


def test_unknown_items_and_batches_and_the_registry_are_measured(server, api, workshop):
    before = {name: sample(server, name) for name in ("items_total", "unknown_items_total")}
    api.post("/tasks/tags/predict", json={"history": [1, "nope", "nope"]})
    revision = push(api, "tags", workshop.bundle("tags", seed=1)).json()["registry_revision"]
    eventually(lambda: sample(server, "unknown_items_total") >= before["unknown_items_total"] + 2)
    eventually(lambda: sample(server, "registry_revision") >= revision)
    eventually(lambda: sample(server, "resident_bundles") >= 4)
    assert sample(server, "batch_rows_count") > 0
    assert sample(server, "queue_duration_seconds_count") > 0
    assert sample(server, "device_busy_seconds_total") > 0
    assert sample(server, "backbone_bytes") > 0
    assert sample(server, "registry_up") == 1
    assert sample(server, "registry_last_sync_timestamp_seconds") > 1e9


def test_refused_bundles_are_counted_by_reason(server, api):
    api.post("/tasks/value/versions", content=b"\x80\x04 a pickle")
    name = 'bundle_rejected_total{reason="unsafe_format"}'
    eventually(lambda: sample(server, name) > 0)


def test_readiness_tells_revision_and_staleness(api):
    body = api.get("/readyz").json()
    assert (body["status"], body["reasons"]) == ("ready", [])
    assert body["registry_revision"] > 0


def test_logs_hold_no_histories_no_keys_and_no_weights(server, api, workshop):
    key = api.post("/keys", json={"name": "k", "scopes": ["predict"]}).json()["api_key"]
    api.post("/tasks/value/predict", json={"history": [SECRET_ITEM, "secret-item-xyz"]})
    api.post("/tasks/value/predict", content=b'{"history":["secret-item-xyz",null]}')
    api.post("/tasks/value/versions", content=b"secret-item-xyz" * 10)
    push(api, "value", workshop.bundle("value", seed=1))
    everything = server.log + server.out.replace(server.key, "", 1)
    assert "secret-item-xyz" not in everything
    assert SECRET_ITEM not in everything
    assert key not in everything
    assert server.key not in everything


@pytest.mark.parametrize(
    ("key", "content", "code"),
    [("prk_nobody", b'{"history": []}', "unauthenticated"), (None, b"{", "malformed_request")],
)
def test_the_log_names_the_address_of_a_client_with_a_wrong_key_or_no_json(
    server, key, content, code
):
    line = re.compile(rf"event=refused code={code} peer=127\.0\.0\.1 ")
    with server.client(key) as client:
        assert client.post("/tasks/value/predict", content=content).json()["code"] == code
    eventually(lambda: line.search(server.log) is not None)


def test_every_log_line_is_structured_and_names_its_process(server):
    lines = server.log.splitlines()
    assert lines
    for line in lines:
        assert line.startswith("timestamp="), line
        assert " level=" in line
        assert " process=" in line
        assert " event=" in line


def test_the_command_line_pushes_lists_and_manages_keys(server, workshop, tmp_path):
    file = tmp_path / "x.bundle"
    file.write_bytes(workshop.bundle("value", seed=22))
    dry = run(server, "push", str(file), "--task", "by-hand", "--validate-only")
    assert (dry.returncode, "is valid" in dry.stdout) == (0, True), dry.stderr
    pushed = run(server, "push", str(file), "--task", "by-hand")
    assert pushed.returncode == 0, pushed.stderr
    assert "by-hand version 1: value" in pushed.stdout
    assert "by-hand" in run(server, "tasks").stdout
    made = run(server, "keys", "create", "--name", "films", "--scope", "predict:films")
    assert made.stdout.startswith("prk_")
    key_id = made.stdout.split("_")[1]
    assert key_id in run(server, "keys", "list").stdout
    assert run(server, "keys", "revoke", key_id).returncode == 0
    assert key_id not in run(server, "keys", "list").stdout


def test_the_command_line_tells_every_reason_of_a_refusal(server, workshop, tmp_path):
    file = tmp_path / "x.bundle"
    file.write_bytes(workshop.bundle("value", seed=22)[:-50])
    refused = run(server, "push", str(file), "--task", "by-hand")
    assert refused.returncode == 1
    assert "bundle_rejected" in refused.stderr
    assert "  - " in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "key", "code", "status"),
    [
        (["push", "no-such-file", "--task", "x"], None, "path_missing", 1),
        (["tasks"], "prk_wrong", "unauthenticated", 1),
        (["tasks", "--url", "http://127.0.0.1:1"], None, "server_unreachable", 5),
        (["keys", "revoke", "nope"], None, "key_not_found", 3),
    ],
)
def test_the_command_line_fails_with_a_code_and_a_status(server, arguments, key, code, status):
    failed = run(server, *arguments, key=key)
    assert failed.returncode == status
    assert code in failed.stderr, failed.stderr
