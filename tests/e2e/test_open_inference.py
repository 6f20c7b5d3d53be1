"""The Open Inference Protocol over HTTP, spoken by an unmodified ``tritonclient.http``."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from uuid import uuid4

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import push
from tests.e2e.neighbours import as_caller, make_tenant, push_films
from tests.waiting import eventually

INFER = "/v2/models/{}/infer"


@pytest.fixture
def client(server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


@pytest.fixture
def headers(server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.key}"}


def tensor(name: str, values: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    kinds = {"O": "BYTES", "i": "INT64"}
    given = triton.InferInput(name, list(values.shape), kinds[values.dtype.kind])
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def numbers(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def texts(*rows: list[str]) -> np.ndarray:
    return np.array([[item.encode() for item in row] for row in rows], object)


def predictions(api, task: str, *histories: list[int], **options) -> list[dict]:
    body = {"instances": [{"history": each} for each in histories], "parameters": options}
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_health_needs_no_key_and_metadata_does(client, headers):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ranking", headers=headers)
    assert not client.is_model_ready("ranking")
    assert not client.is_model_ready("nothing", headers=headers)
    with pytest.raises(InferenceServerException, match="unauthenticated: "):
        client.get_server_metadata()


def test_metadata_name_the_server_the_versions_and_the_tensors(client, headers):
    server = client.get_server_metadata(headers=headers)
    assert server["name"] == "peterrec-serving"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("classification", headers=headers)
    assert (model["name"], model["platform"], model["versions"]) == (
        "classification",
        "peterrec",
        ["1"],
    )
    assert model["inputs"][0] == {"name": "history", "datatype": "BYTES", "shape": [-1, -1]}
    outputs = {each["name"]: (each["datatype"], each["shape"]) for each in model["outputs"]}
    labels = outputs["labels"][1][0]
    assert outputs["label"] == ("BYTES", [-1])
    assert outputs["probabilities"] == ("FP32", [-1, labels])
    version = client.get_model_metadata("classification", "1", headers=headers)
    assert version == model
    config = client.get_model_config("classification", headers=headers)
    assert (config["name"], config["max_batch_size"]) == ("classification", 0)
    assert config["input"][0] == {
        "name": "history",
        "data_type": "TYPE_STRING",
        "dims": [-1, -1],
    }


def test_the_index_lists_the_tasks_of_the_key(client, headers, api):
    found = client.get_model_repository_index(headers=headers)
    assert {"name": "value", "version": "1", "state": "READY", "reason": ""} in found
    key = api.post("/keys", json={"name": "k", "scopes": ["predict:val*"]}).json()
    own = client.get_model_repository_index(headers={"X-API-Key": key["api_key"]})
    assert {each["name"] for each in own} == {"value"}
    api.delete(f"/keys/{key['key_id']}")


def test_a_served_task_can_be_loaded_and_none_unloaded(client, headers):
    client.load_model("value", headers=headers)
    with pytest.raises(InferenceServerException, match="task_not_found"):
        client.load_model("nothing", headers=headers)
    with pytest.raises(InferenceServerException, match="unload_refused"):
        client.unload_model("value", headers=headers)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("make", [numbers, texts], ids=["INT64", "BYTES"])
def test_a_classification_is_answered_as_by_the_other_call(client, headers, api, binary, make):
    ids = [[1, 2, 3], [4, 5, 6]]
    rows = make(*ids) if make is numbers else make(*[[str(i) for i in row] for row in ids])
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("label", "probabilities", "labels", "version", "cold")
    ]
    answer = client.infer(
        "classification",
        [tensor("history", rows, binary=binary)],
        outputs=wanted,
        request_id="mine",
        headers=headers,
    )
    expected = predictions(api, "classification", *ids)
    assert answer.get_response()["id"] == "mine"
    assert [each.decode() for each in np.char.encode(answer.as_numpy("label").astype(str))] == [
        each["label"] for each in expected
    ]
    names = [each if isinstance(each, str) else each.decode() for each in answer.as_numpy("labels")]
    assert names == [*expected[0]["scores"]]
    found = answer.as_numpy("probabilities")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        found, np.array([[*each["scores"].values()] for each in expected], np.float32)
    )
    assert answer.as_numpy("version").tolist() == [1, 1]
    assert answer.as_numpy("cold").tolist() == [False, False]


def test_rows_of_several_lengths_are_padded_and_their_lengths_sent(client, headers, api):
    rows = numbers([1, 2, 3], [4, 0, 0], [0, 0, 0])
    inputs = [tensor("history", rows), tensor("lengths", np.array([3, 1, 0], np.int64))]
    answer = client.infer("value", inputs, headers=headers)
    expected = predictions(api, "value", [1, 2, 3], [4], [])
    assert answer.as_numpy("value").dtype == np.float64
    assert answer.as_numpy("value").tolist() == [each["value"] for each in expected]
    assert answer.as_numpy("cold").tolist() == [False, False, True]
    assert answer.as_numpy("used_items").tolist() == [3, 1, 0]


def test_padding_without_lengths_shows_as_unknown_items(client, headers):
    inputs = [tensor("history", texts(["1", "2"], ["1", ""]))]
    answer = client.infer("value", inputs, headers=headers)
    assert answer.as_numpy("unknown_items").tolist() == [0, 1]


def test_tags_say_which_apply(client, headers, api):
    answer = client.infer("tags", [tensor("history", numbers([1, 2]))], headers=headers)
    (expected,) = predictions(api, "tags", [1, 2])
    labels = [each.decode() for each in answer.as_numpy("labels")]
    applying = [n for n, does in zip(labels, answer.as_numpy("applies")[0], strict=True) if does]
    assert set(applying) == {tag["label"] for tag in expected["tags"]}


@pytest.mark.parametrize("shape", ["for all", "for each"])
def test_a_ranking_takes_its_options_as_parameters_and_inputs(client, headers, api, shape):
    body = {"history": [1, 2], "parameters": {"top_k": 3}}
    (first,) = api.post("/tasks/ranking/predict", json=body).json()["predictions"]
    best = first["items"][0]["id"]
    excluded = np.array([best.encode()], object)
    extra = [tensor("exclude", excluded)]
    if shape == "for each":
        rows = texts([best, ""], [best, ""])
        extra = [tensor("exclude", rows), tensor("exclude_lengths", np.array([1, 0], np.int64))]
    answer = client.infer(
        "ranking",
        [tensor("history", numbers([1, 2], [1, 2])), *extra],
        parameters={"top_k": 3, "exclude_seen": True},
        headers=headers,
    )
    second = {} if shape == "for each" else {"exclude": [best]}
    body["instances"] = [{"history": [1, 2], "exclude": [best]}, {"history": [1, 2], **second}]
    del body["history"]
    expected = api.post("/tasks/ranking/predict", json=body).json()["predictions"]
    for at, each in enumerate(expected):
        count = answer.as_numpy("counts")[at]
        assert [item.decode() for item in answer.as_numpy("items")[at][:count]] == [
            item["id"] for item in each["items"]
        ]
        assert answer.as_numpy("scores")[at][:count].tolist() == pytest.approx(
            [item["score"] for item in each["items"]], rel=1e-6
        )


def test_ranks_that_candidates_leave_empty_are_padding(client, headers, api):
    (first,) = predictions(api, "ranking", [1], top_k=2)
    ids = [each["id"] for each in first["items"]]
    inputs = [
        tensor("history", numbers([1], [1])),
        tensor("candidates", texts(ids, [ids[0], ""])),
        tensor("candidates_lengths", np.array([2, 1], np.int64)),
    ]
    answer = client.infer("ranking", inputs, headers=headers)
    assert answer.as_numpy("counts").tolist() == [2, 1]
    assert answer.as_numpy("items")[1].tolist() == [ids[0].encode(), b""]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_as_the_client_does(client, headers, api, coding):
    rows = numbers(*[[1, 2, 3]] * 64)
    answer = client.infer(
        "classification",
        [tensor("history", rows)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
        headers=headers,
    )
    assert answer.as_numpy("probabilities").shape[0] == 64


def test_a_version_is_named_by_the_url(client, headers):
    inputs = [tensor("history", numbers([1]))]
    assert (
        client.infer("value", inputs, "1", headers=headers).get_response()["model_version"] == "1"
    )
    assert client.infer("value", inputs, "prod", headers=headers).as_numpy("version").tolist() == [
        1
    ]
    with pytest.raises(InferenceServerException, match="version_not_found"):
        client.infer("value", inputs, "77", headers=headers)


def test_a_timeout_in_microseconds_is_a_deadline(client, headers):
    inputs = [tensor("history", numbers([1]))]
    with pytest.raises(InferenceServerException, match="deadline_exceeded") as refused:
        client.infer("value", inputs, timeout=1, headers=headers)
    assert refused.value.status() == "504"
    assert client.infer("value", inputs, timeout=20_000_000, headers=headers) is not None


@pytest.mark.parametrize("priority", [1, 2, 9])
def test_a_call_has_a_priority(client, headers, priority):
    inputs = [tensor("history", numbers([1]))]
    assert client.infer("value", inputs, priority=priority, headers=headers) is not None


def history(**changes) -> dict:
    given = {"name": "history", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([history(shape=[2, 2])], "2 elements and the shape [2, 2]"),
        ([history(shape=[1 << 40, 0], data=[])], "too_many_values"),
        ([history(shape=[1 << 40, 1 << 40])], "too_many_values"),
        ([history(shape=[1000, 1], data=[1] * 1000)], "1000 users, 1 to 256"),
        ([history(shape=[0, 5], data=[])], "0 users"),
        ([history(shape=[-1])], ">= 0"),
        ([history(shape=[1, 1, 2])], "length <= 2"),
        ([history(datatype="FP32")], "datatype 'FP32'"),
        ([history(datatype="BYTES")], "array of texts"),
        ([history(data=[[1], [2]])], "shape [1, 2]"),
        ([history(data=[1.5, 2])], "whole numbers"),
        ([history(data=None)], "has no data"),
        ([history(data="x")], "unsuitable data"),
        ([history(), history()], "occurs twice"),
        ([history(name="items")], "not one of this task"),
        ([history(parameters={"shared_memory_region": "x"})], "not supported"),
        ([history(parameters={"binary_data_size": 8}, data=None)], "does not fit"),
        ([history(), history(name="lengths", shape=[2])], "one per user"),
        ([history(), history(name="lengths", shape=[1], data=[3])], "from 0 to 2"),
        ([history(), history(name="lengths", shape=[1], data=[-1])], "from 0 to 2"),
        ([history(), history(name="exclude_lengths", shape=[1], data=[1])], "not there"),
        ([history(), history(name="candidates", shape=[2, 1])], "2 rows"),
        ([], "length >= 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_is_wrong(api, inputs, says):
    answer = api.post(INFER.format("ranking"), json={"inputs": inputs})
    assert answer.status_code in {400, 413}
    assert [*answer.json()] == ["error"]
    assert says in answer.json()["error"]
    assert answer.headers["x-error-code"] == answer.json()["error"].partition(":")[0]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"parameters": {"top": 3}}, "no parameter 'top'"),
        ({"parameters": {"top_k": "3"}}, "Expected `int`"),
        ({"parameters": {"top_k": 0}}, ">= 1"),
        ({"parameters": {"timeout": 1.5}}, "microseconds"),
        ({"parameters": {"priority": -1}}, "number from 0 on"),
        ({"parameters": {"where": "{"}}, "is no JSON"),
        ({"parameters": {"where": True}}, "is no JSON"),
        ({"parameters": {"where": "3"}}, "Expected `object"),
        ({"parameters": {"sequence_id": 3}}, "no parameter 'sequence_id'"),
        ({"parameters": {"binary_data_output": 1}}, "not true or false"),
        ({"outputs": [{"name": "labels"}]}, "no output 'labels'"),
        ({"outputs": [{"name": "items", "parameters": {"classification": 2}}]}, "classification"),
        ({"model_name": "other"}, "the URL for 'ranking'"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"id": "x" * 300}, "<= 256"),
    ],
)
def test_parameters_and_outputs_that_do_not_exist_are_refused(api, more, says):
    answer = api.post(INFER.format("ranking"), json={"inputs": [history()], **more})
    assert (answer.status_code, answer.headers["x-error-code"]) == (400, "malformed_request")
    assert says in answer.json()["error"]


def raw_body(raw: bytes, size: int | None = None, **changes) -> tuple[bytes, dict[str, str]]:
    parameters = {"binary_data_size": len(raw) if size is None else size}
    head = json.dumps({"inputs": [history(data=None, parameters=parameters, **changes)]}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    ("raw", "changes", "says"),
    [
        (b"\1" * 15, {}, "no whole number of INT64"),
        (b"\1" * 24, {}, "3 elements"),
        (b"\1" * 16, {"size": 8}, "belong to no input"),
        (b"\1" * 16, {"size": 1 << 62}, "does not fit"),
        (b"\1" * 16, {"size": -1}, "does not fit"),
        (struct.pack("<I", 1 << 31), {"datatype": "BYTES"}, "ends within element 0"),
        (b"\3\0\0", {"datatype": "BYTES"}, "ends within element 0"),
        (struct.pack("<I", 1) + b"\xff", {"datatype": "BYTES"}, "not UTF-8"),
    ],
)
def test_raw_bytes_that_do_not_fit_are_refused(api, raw, changes, says):
    body, headers = raw_body(raw, **changes)
    answer = api.post(INFER.format("value"), content=body, headers=headers)
    assert (answer.status_code, answer.headers["x-error-code"]) == (400, "malformed_request")
    assert says in answer.json()["error"]


@pytest.mark.parametrize("size", ["x", "-1", "999999999", "1" * 30, ""])
def test_a_header_that_splits_a_body_wrongly_is_refused(api, size):
    body, _ = raw_body(b"\1" * 16)
    headers = {"Inference-Header-Content-Length": size}
    answer = api.post(INFER.format("value"), content=body, headers=headers)
    assert answer.status_code == 400
    assert (
        "Inference-Header-Content-Length" in answer.json()["error"]
        or "refused" in (answer.json()["error"])
    )


def test_all_raw_bytes_that_fit_are_bounded(api):
    body, headers = raw_body(b"\1" * 400_000, datatype="INT8", shape=[40, 10_000])
    answer = api.post(INFER.format("value"), content=body, headers=headers)
    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "too_many_values")
    bomb = gzip.compress(b"[" * 50_000_000)
    answer = api.post(INFER.format("value"), content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "body_too_large")
    bomb = zlib.compress(b"[" * 50_000_000)
    answer = api.post(INFER.format("value"), content=bomb, headers={"Content-Encoding": "deflate"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (413, "body_too_large")
    deep = b'{"inputs": [{"name": "history", "data": ' + b"[" * 500_000
    answer = api.post(INFER.format("value"), content=deep)
    assert answer.headers["x-error-code"] == "malformed_request"


def test_one_bad_user_refuses_the_call_and_is_named(api):
    rows = [["1", "nope"], ["1", "2"], ["nope", "1"]]
    body = {
        "inputs": [history(datatype="BYTES", shape=[3, 2], data=rows)],
        "parameters": {"unknown_items": "error"},
    }
    answer = api.post(INFER.format("value"), json=body)
    assert (answer.status_code, answer.headers["x-error-code"]) == (400, "unknown_items")
    assert "about user 0, 2 of the call" in answer.json()["error"]


def test_a_refusal_says_in_headers_what_the_form_has_no_place_for(server, api):
    answer = api.post(INFER.format("nothing"), json={}, headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "task_not_found")
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["content-type"] == "application/json"
    with server.client("") as nobody:
        for method, path in [("POST", INFER.format("value")), ("GET", "/v2/models/value")]:
            answer = nobody.request(method, path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert [*answer.json()] == ["error"]


@pytest.fixture(scope="module")
def neighbours(server, workshop):
    """A tenant with two tasks, and another one that has the first of them, too."""
    with server.client() as operator:
        victim = make_tenant(operator, f"victim-{uuid4().hex[:8]}")
        attacker = make_tenant(operator, f"attacker-{uuid4().hex[:8]}")
    push_films(server, victim, workshop.bundle("value", seed=31))
    push_films(server, attacker, workshop.bundle("value", seed=33))
    with as_caller(server, victim, "admin") as client:
        push(client, "secret", workshop.bundle("ranking", seed=34))
    return victim, attacker


def test_the_index_has_nothing_of_a_neighbour(server, neighbours):
    _, attacker = neighbours
    for caller in attacker.keys:
        with as_caller(server, attacker, caller) as client:
            listed = client.post("/v2/repository/index").json()
            assert {each["name"] for each in listed} <= {"films"}


def test_calls_are_counted_by_their_protocol(server, api):
    name = 'peterrec_protocol_requests_total{outcome="ok",protocol="open_inference"}'
    before = server.metrics()[name]
    assert api.post(INFER.format("value"), json={"inputs": [history()]}).status_code == 200
    eventually(lambda: server.metrics()[name] == before + 1)


def test_a_neighbours_task_of_the_same_name_is_another_one(server, neighbours):
    digests = set()
    for tenant in neighbours:
        with as_caller(server, tenant, "admin") as client:
            answer = client.post(INFER.format("films"), json={"inputs": [history()]})
            digests.add(answer.headers["x-bundle-digest"])
            assert answer.json()["parameters"]["digest"] == tenant.digest.removeprefix("sha256:")
    assert len(digests) == 2


def test_the_key_is_looked_at_before_the_body(server):
    with httpx.Client(base_url=server.url, trust_env=False) as nobody:
        answer = nobody.post(INFER.format("value"), content=b"{")
    assert answer.headers["x-error-code"] == "unauthenticated"
