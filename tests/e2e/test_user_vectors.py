"""User vectors over real HTTP, compared with the plain reference."""

import base64

import numpy as np
import pytest
import torch

from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import FIRST_ITEM
from tests.service.random_bundles import ITEMS

TOLERANCE = 2e-5


def tokens(items):
    return [FIRST_ITEM + ITEMS.index(item) for item in items if item in ITEMS]


def plain(workshop, history):
    """What the reference forward computes without a patch."""
    with torch.inference_mode():
        tokens = frame_histories([history], workshop.spec)
        return workshop.loaded.backbone.user_vectors(tokens)[0].numpy()


def ask(api, body):
    answer = api.post("/users/vectors", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_plain_backbone_gives_the_vector_that_the_reference_computes(api, workshop):
    for items in ([], ITEMS[:1], ITEMS[:5], ITEMS[:12]):
        answer = ask(api, {"history": items})
        (found,) = answer["vectors"]
        expected = plain(workshop, tokens(items))
        np.testing.assert_allclose(found["vector"], expected, atol=TOLERANCE)
        assert answer["dimensions"] == len(expected)
        assert found["cold"] == (not items)
    assert answer["backbone"] == api.get("/backbone").json()["fingerprint"]
    assert "task" not in answer


def test_a_task_gives_the_vector_of_its_patch(api, workshop):
    body = {"history": ITEMS[:5], "parameters": {"task": "classification"}}
    answer = ask(api, body)
    expected = workshop.task("classification", 1).user_vector(tokens(ITEMS[:5]))
    np.testing.assert_allclose(answer["vectors"][0]["vector"], expected, atol=TOLERANCE)
    assert (answer["task"], answer["version"], answer["alias"]) == ("classification", 1, "prod")
    plain = ask(api, {"history": ITEMS[:5]})["vectors"][0]["vector"]
    assert not np.allclose(answer["vectors"][0]["vector"], plain, atol=1e-3)


@pytest.mark.parametrize(
    ("encoding", "dtype", "tolerance"),
    [("base64_float32", "<f4", 0.0), ("base64_float16", "<f2", 2e-3)],
)
def test_vectors_may_be_bytes_in_base64(api, encoding, dtype, tolerance):
    instances = [{"history": ITEMS[n : n + 4], "user_id": n} for n in range(20)]
    numbers = ask(api, {"instances": instances})
    packed = ask(api, {"instances": instances, "parameters": {"encoding": encoding}})
    assert (numbers["encoding"], packed["encoding"]) == ("float32", encoding)
    for one, other in zip(numbers["vectors"], packed["vectors"], strict=True):
        found = np.frombuffer(base64.b64decode(other["vector"]), dtype)
        np.testing.assert_allclose(found, one["vector"], rtol=tolerance, atol=tolerance)
        assert one["user_id"] == other["user_id"]


def test_256_users_share_a_call_and_equal_each_alone(api):
    instances = [{"history": ITEMS[n % 10 : n % 10 + n % 7]} for n in range(256)]
    together = ask(api, {"instances": instances})["vectors"]
    assert len(together) == 256
    for at in (0, 3, 100, 255):
        (alone,) = ask(api, {"instances": [instances[at]]})["vectors"]
        np.testing.assert_allclose(together[at]["vector"], alone["vector"], atol=TOLERANCE)


def test_one_bad_history_leaves_the_others_their_vectors(api):
    parameters = {"unknown_items": "error"}
    body = {"instances": [{"history": ITEMS[:3]}, {"history": ["new"], "user_id": "u"}]}
    good, bad = ask(api, body | {"parameters": parameters})["vectors"]
    assert good["kind"] == "vector"
    assert (bad["kind"], bad["error"]["code"], bad["user_id"]) == ("error", "unknown_items", "u")


def test_one_malformed_instance_leaves_the_others_their_vectors(api):
    instances = [
        {"history": ITEMS[:3]},
        {"history": ITEMS[:3], "user_id": "u", "top_k": 3},
        {"history": [5.5]},
        {"history": ITEMS[:3], "user_id": 10**64},
    ]
    good, *bad = ask(api, {"instances": instances})["vectors"]
    assert good["kind"] == "vector"
    assert [each["error"]["code"] for each in bad] == ["malformed_request"] * 3
    assert "$.instances[2].history[0]" in bad[1]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "malformed_request"),
        ({"history": [], "instances": [{"history": []}]}, 400, "malformed_request"),
        ({"instances": []}, 400, "malformed_request"),
        ({"instances": [{"history": []}] * 257}, 413, "too_many_rows"),
        ({"history": [], "parameters": {"encoding": "float64"}}, 400, "malformed_request"),
        ({"history": [], "top_k": 3}, 400, "malformed_request"),
        ({"history": [], "parameters": {"version": 3}}, 400, "version_without_task"),
        ({"history": ["a"] * 10_001}, 413, "history_too_long"),
        ({"history": [], "parameters": {"task": "nothing"}}, 404, "task_not_found"),
        (
            {"history": [], "parameters": {"task": "classification", "version": 99}},
            None,
            "",
        ),
    ],
)
def test_a_wrong_call_is_a_clear_refusal(api, body, status, code):
    answer = api.post("/users/vectors", json=body)
    if status is None:
        assert answer.status_code in {404, 409}
        return
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_vectors_need_a_scope_of_their_own(api, server):
    keys: dict[str, dict[str, str]] = {}
    for scope in ("predict", "vectors", "vectors:class*"):
        made = api.post("/keys", json={"name": "of a test", "scopes": [scope]})
        keys[scope] = {"authorization": f"Bearer {made.json()['api_key']}"}
    plain: dict[str, object] = {"history": []}
    patched = {"history": [], "parameters": {"task": "classification"}}
    other = {"history": [], "parameters": {"task": "tags"}}
    unknown = {"history": [], "parameters": {"task": "nothing"}}

    def status(scope, body):
        return api.post("/users/vectors", json=body, headers=keys[scope]).status_code

    assert [status("predict", each) for each in (plain, patched, unknown)] == [403, 403, 403]
    assert [status("vectors", each) for each in (plain, patched, unknown)] == [200, 200, 404]
    found = [status("vectors:class*", each) for each in (plain, patched, other, unknown)]
    assert found == [403, 200, 403, 403]
