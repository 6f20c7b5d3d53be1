"""Registering, activating and inspecting on a real server."""

from uuid import uuid4

import pytest

from peterrec_client import (
    Conflict,
    Incompatible,
    NotFound,
    OutputsDiffer,
    StaleRevision,
    TaskChoice,
    UnsafeFormat,
)


@pytest.fixture
def api(server):
    with server.client() as api:
        yield api


@pytest.fixture
def task():
    return f"task-{uuid4().hex[:8]}"


def test_a_pushed_bundle_serves(client, save, task):
    pushed = client.push(task, save("classification", 3))
    assert (pushed.task, pushed.version, pushed.alias) == (task, 1, "prod")
    assert (pushed.summary.kind, pushed.summary.outputs) == ("classification", 3)
    assert client.predict(task, [1]).digest == pushed.digest


def test_a_path_may_be_a_string_and_a_push_may_be_repeated(client, save, task):
    first = client.push(task, str(save("classification", 3)))
    assert client.push(task, str(save("classification", 3))) == first


def test_a_dry_run_registers_nothing(client, save, task):
    pushed = client.push(task, save("value", 3), validate_only=True)
    assert (pushed.version, pushed.registry_revision) == (None, None)
    with pytest.raises(NotFound):
        client.task(task)


def test_a_push_without_an_alias_does_not_serve_until_one_is_set(client, save, task):
    pushed = client.push(task, save("tags", 3), alias=None)
    assert pushed.alias is None
    with pytest.raises(Conflict):
        client.predict(task, [])
    moved = client.set_alias(task, pushed.version)
    assert (moved.alias, moved.version, moved.previous) == ("prod", 1, None)
    assert client.predict(task, []).digest == pushed.digest


def test_a_refused_bundle_reports_every_reason(client, save, task):
    path = save("tags", 4)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(Incompatible) as refused:
        client.push(task, path)
    assert refused.value.code == "bundle_rejected"
    assert "checksum_mismatch" in [reason.code for reason in refused.value.reasons]


def test_a_pickle_is_unsafe(client, tmp_path, task):
    path = tmp_path / "model.bundle"
    path.write_bytes(b"\x80\x04\x95" + bytes(200) + b".")
    with pytest.raises(UnsafeFormat):
        client.push(task, path)


def test_a_missing_file_sends_no_request(client, tmp_path, task):
    with pytest.raises(FileNotFoundError):
        client.push(task, tmp_path / "nothing.bundle")


def test_aliases_move_by_version_and_by_digest_and_roll_back(client, save, task):
    first = client.push(task, save("value", 1))
    second = client.push(task, save("value", 2))
    assert client.set_alias(task, first.digest).previous == second.digest
    assert client.predict(task, []).version == 1
    assert client.rollback(task).version == 2
    assert client.predict(task, []).version == 2
    assert client.set_alias(task, 1, alias="next").alias == "next"


def test_a_call_can_choose_a_version(client, save, task):
    first = client.push(task, save("value", 1))
    second = client.push(task, save("value", 2))
    client.set_alias(task, 1, alias="old")
    for wanted in (1, "old", first.digest):
        found = client.predict(task, [], version=wanted)
        assert (found.digest, found.role) == (first.digest, "pinned")
    (many,) = client.predict_many(task, [[]], version="old")
    card = client.predict_user([], [TaskChoice(task, version=1)], user_id="u1")
    assert (many.digest, card.results[task].digest) == (first.digest, first.digest)
    assert card.results[task].user_id == "u1"
    found = client.predict(task, [])
    assert (found.digest, found.role, found.alias) == (second.digest, "prod", "prod")
    client.push(task, save("value", 3), alias=None)
    with pytest.raises(Conflict) as refused:
        client.predict(task, [], version=3)
    assert refused.value.code == "version_not_served"
    with pytest.raises(NotFound) as missing:
        client.predict(task, [], version=9)
    assert missing.value.code == "version_not_found"


def test_other_outputs_are_refused_until_they_are_allowed(client, save, task):
    client.push(task, save("value", 1))
    with pytest.raises(OutputsDiffer) as refused:
        client.push(task, save("classification", 1))
    assert [reason.message for reason in refused.value.reasons] == ["kind: value → classification"]
    assert len(client.task(task).versions) == 1
    client.push(task, save("classification", 1), allow_new_outputs=True)
    with pytest.raises(OutputsDiffer):
        client.set_alias(task, 1)
    back = client.rollback(task)
    assert (back.version, back.new_outputs) == (1, ("kind: classification → value",))
    assert client.set_alias(task, 2, allow_new_outputs=True).version == 2


def test_a_rollback_returns_the_state_that_it_restored(client, api, save, task):
    client.push(task, save("value", 1))
    client.push(task, save("value", 2))
    split = {"prod_weight": 3, "canary": [{"version": 1, "weight": 1}], "guard": {"max_p99_ms": 9}}
    assert api.put(f"/tasks/{task}/traffic", json=split).status_code == 200
    seen = client.task(task).traffic
    assert (seen.prod_weight, [each.version for each in seen.canary]) == (3, [1])
    assert seen.guard["max_p99_ms"] == 9
    api.delete(f"/tasks/{task}/traffic")
    back = client.rollback(task)
    assert (back.traffic, set(back.aliases)) == (seen, {"prod"})


def test_a_task_lists_its_aliases_and_versions(client, save, task):
    pushed = client.push(task, save("classification", 5))
    detail = client.task(task)
    assert detail.aliases["prod"].digest == pushed.digest
    assert [version.version for version in detail.versions] == [1]
    assert detail.versions[0].metrics == {"accuracy": 0.5}
    assert detail.created_at.tzinfo is not None
    assert task in [listed.task for listed in client.tasks()]


def test_a_change_to_a_task_that_others_have_changed_is_stale(client, save, task):
    client.push(task, save("value", 1))
    revision = client.task(task).revision
    pushed = client.push(task, save("value", 2), if_revision=revision)
    for change in (
        lambda: client.push(task, save("value", 3), if_revision=revision),
        lambda: client.set_alias(task, 1, if_revision=revision),
        lambda: client.rollback(task, if_revision=revision),
        lambda: client.delete_task(task, if_revision=revision),
    ):
        with pytest.raises(StaleRevision):
            change()
    assert client.predict(task, []).digest == pushed.digest


def test_a_deleted_task_is_not_found(client, save, task):
    client.push(task, save("value", 1))
    changed = client.delete_task(task)
    assert changed.task == task
    with pytest.raises(NotFound):
        client.predict(task, [])
    with pytest.raises(NotFound):
        client.delete_task(task)


def test_the_backbone_has_its_identity(client, workshop):
    found = client.backbone()
    assert found.fingerprint == workshop.loaded.fingerprint
    assert (found.max_len, found.dilations) == (20, (1, 4))


def test_readiness_needs_no_key(make, server):
    found = make(server.url).ready()
    assert found.is_ready
    assert found.reasons == ()


def test_a_file_that_is_sent_tells_how_many_bytes_are_on_their_way(client, save, task):
    path = save("classification", 3)
    sent: list[int] = []
    client.request("POST", f"/tasks/{task}/versions", body=path, on_sent=sent.append)
    assert (sent[0], sent[-1]) == (0, path.stat().st_size)
    assert sent == sorted(sent)
