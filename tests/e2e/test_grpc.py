"""The Open Inference Protocol over gRPC, spoken by an unmodified ``tritonclient.grpc``."""

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import KINDS, push
from tests.e2e.neighbours import as_caller, make_tenant, push_films
from tests.e2e.running import RunningServer, running_server
from tests.e2e.test_open_inference import numbers, predictions, texts
from tests.waiting import eventually

STUB = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def server(workshop, tmp_path_factory) -> Iterator[RunningServer]:
    """A server with gRPC on a free port, two workers, and a task of every kind."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(workshop.folder, folder, workers=2, grpc_port=0) as server:
        with server.client() as client:
            for kind in KINDS:
                push(client, kind, workshop.bundle(kind, seed=1))
        yield server


@pytest.fixture
def api(server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def client(server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


@pytest.fixture
def headers(server) -> dict[str, str]:
    return {"authorization": f"Bearer {server.key}"}


@pytest.fixture
def channel(server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


def call(channel: grpc.Channel, name: str, request: object, secret: str, **options):
    method = channel.unary_unary(
        STUB + name,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(service_pb2, f"{name}Response").FromString,
    )
    metadata = (("x-api-key", secret),) if secret else ()
    return method(request, metadata=metadata, timeout=options.pop("timeout", 30), **options)


def request(task: str, version: str = "", **changes) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name=task, model_version=version)
    given = {"name": "history", "datatype": "INT64", "shape": [1, 2]}
    made.inputs.add(**{**given, **changes})
    if "contents" not in changes:
        made.inputs[0].contents.int64_contents.extend([1, 2])
    return made


def refusal(channel: grpc.Channel, name: str, asked: object, secret: str, **options):
    """Return status, code and text of a call that is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, name, asked, secret, **options)
    trailing = dict(refused.value.trailing_metadata() or ())
    return refused.value.code(), trailing.get("x-error-code"), refused.value.details()


def tensor(name: str, values: np.ndarray) -> triton.InferInput:
    kinds = {"O": "BYTES", "i": "INT64"}
    given = triton.InferInput(name, list(values.shape), kinds[values.dtype.kind])
    given.set_data_from_numpy(values)
    return given


def test_health_needs_no_key_and_metadata_does(client, headers):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ranking", headers=headers)
    with pytest.raises(InferenceServerException, match="unauthenticated: "):
        client.is_model_ready("ranking")
    with pytest.raises(InferenceServerException, match="task_not_found: "):
        client.is_model_ready("nothing", headers=headers)
    server = client.get_server_metadata(headers=headers)
    assert server.name == "peterrec-serving"
    assert "model_repository" in server.extensions


def test_metadata_and_configuration_equal_those_over_http(client, headers, api):
    for kind in KINDS:
        expected = api.get(f"/v2/models/{kind}").json()
        found = client.get_model_metadata(kind, headers=headers, as_json=True)
        found["inputs"] = [each | {"shape": [*map(int, each["shape"])]} for each in found["inputs"]]
        found["outputs"] = [
            each | {"shape": [*map(int, each["shape"])]} for each in found["outputs"]
        ]
        assert found == expected
        config = client.get_model_config(kind, headers=headers).config
        of_http = api.get(f"/v2/models/{kind}/config").json()
        assert [each.name for each in config.input] == [each["name"] for each in of_http["input"]]
        assert [[*each.dims] for each in config.output] == [
            each["dims"] for each in of_http["output"]
        ]


def test_the_index_lists_the_tasks_and_loading_a_served_one_is_right(client, headers):
    found = client.get_model_repository_index(headers=headers)
    assert {(each.name, each.version, each.state) for each in found.models} == {
        (kind, "1", "READY") for kind in KINDS
    }
    client.load_model("value", headers=headers)
    with pytest.raises(InferenceServerException, match="unload_refused"):
        client.unload_model("value", headers=headers)


@pytest.mark.parametrize("make", [numbers, texts], ids=["INT64", "BYTES"])
def test_a_call_is_answered_as_over_http(client, headers, api, make):
    ids = [[1, 2, 3], [4, 5, 6]]
    rows = make(*ids) if make is numbers else make(*[[str(i) for i in row] for row in ids])
    answer = client.infer(
        "classification", [tensor("history", rows)], request_id="mine", headers=headers
    )
    expected = predictions(api, "classification", *ids)
    assert answer.get_response().id == "mine"
    assert [each.decode() for each in answer.as_numpy("label")] == [e["label"] for e in expected]
    np.testing.assert_array_equal(
        answer.as_numpy("probabilities"),
        np.array([[*each["scores"].values()] for each in expected], np.float32),
    )
    assert answer.get_response().parameters["kind"].string_param == "classification"


def test_a_ranking_has_its_options_and_only_the_outputs_that_are_wanted(client, headers, api):
    (expected,) = predictions(api, "ranking", [1, 2], top_k=3)
    answer = client.infer(
        "ranking",
        [tensor("history", numbers([1, 2]))],
        outputs=[triton.InferRequestedOutput("items")],
        parameters={"top_k": 3},
        headers=headers,
    )
    items = [each.decode() for each in answer.as_numpy("items")[0]]
    assert items == [each["id"] for each in expected["items"]]
    assert len(answer.get_response().outputs) == 1


def test_typed_contents_are_as_good_as_raw_ones(server, channel, api):
    asked = request("value")
    typed = call(channel, "ModelInfer", asked, server.key)
    contents = service_pb2.InferTensorContents(bytes_contents=[b"1", b"2"])
    text = call(
        channel,
        "ModelInfer",
        request("value", datatype="BYTES", contents=contents),
        server.key,
    )
    (expected,) = predictions(api, "value", [1, 2])
    assert typed.raw_output_contents[0] == text.raw_output_contents[0]
    assert np.frombuffer(typed.raw_output_contents[0]) == [expected["value"]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [2, 2]}, "2 elements and the shape [2, 2]"),
        ({"shape": [-1]}, "the shape [-1]"),
        ({"shape": []}, "the shape []"),
        ({"datatype": "FP32"}, "datatype 'FP32'"),
        ({"datatype": "BYTES"}, "has int64_contents"),
        ({"name": "items"}, "not one of this task"),
        ({"shape": [1 << 40, 1 << 40]}, "too_many_values"),
        ({"contents": service_pb2.InferTensorContents()}, "0 elements"),
        (
            {
                "datatype": "BYTES",
                "contents": service_pb2.InferTensorContents(bytes_contents=[b"\xff", b"1"]),
            },
            "not UTF-8",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_is_wrong(server, channel, changes, says):
    status, code, text = refusal(channel, "ModelInfer", request("value", **changes), server.key)
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"{code}: ")
    assert says in text


def test_parts_of_a_call_that_contradict_each_other_are_refused(server, channel):
    both = request("value")
    both.raw_input_contents.append(b"\1" * 16)
    assert "beside raw ones" in refusal(channel, "ModelInfer", both, server.key)[2]
    more = request("value", contents=None)
    more.raw_input_contents.extend([b"\1" * 16] * 2)
    assert "1 inputs and 2 raw" in refusal(channel, "ModelInfer", more, server.key)[2]
    many = request("value")
    for _ in range(100):
        many.inputs.add(name="history")
    assert "101 inputs" in refusal(channel, "ModelInfer", many, server.key)[2]
    shared = request("value")
    shared.inputs[0].parameters["shared_memory_region"].string_param = "x"
    assert "not supported" in refusal(channel, "ModelInfer", shared, server.key)[2]
    unset = request("value")
    unset.parameters["top_k"].SetInParent()
    assert "has no value" in refusal(channel, "ModelInfer", unset, server.key)[2]


def test_errors_have_a_status_and_their_code_in_the_metadata(server, channel, api):
    cases = [
        (request("nothing"), server.key, grpc.StatusCode.NOT_FOUND, "task_not_found"),
        (request("value", "77"), server.key, grpc.StatusCode.NOT_FOUND, "version_not_found"),
        (request("value"), "", grpc.StatusCode.UNAUTHENTICATED, "unauthenticated"),
        (request("value"), "prk_no", grpc.StatusCode.UNAUTHENTICATED, "unauthenticated"),
    ]
    for asked, secret, status, code in cases:
        assert refusal(channel, "ModelInfer", asked, secret)[:2] == (status, code)
    key = api.post("/keys", json={"name": "k", "scopes": ["predict:films"]}).json()["api_key"]
    refused = refusal(channel, "ModelInfer", request("value"), key)
    assert refused[:2] == (grpc.StatusCode.PERMISSION_DENIED, "forbidden")
    empty = refusal(channel, "ModelInfer", service_pb2.ModelInferRequest(), server.key)
    assert empty[1] == "task_not_found"


def test_a_message_that_is_none_of_ours_is_refused(server, channel):
    method = channel.unary_unary(STUB + "ModelInfer")
    with pytest.raises(grpc.RpcError) as refused:
        method(b"\x0a\xff", metadata=(("x-api-key", server.key),), timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    nothing = channel.unary_unary(STUB + "ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as refused:
        nothing(b"", metadata=(("x-api-key", server.key),), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_key_is_looked_at_before_the_message(channel):
    """The call has a head only: its message never comes, and the refusal does."""
    stream = channel.stream_stream(STUB + "ModelInfer")
    answers = stream(_never(), timeout=20)
    with pytest.raises(grpc.RpcError) as refused:
        next(answers)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_that_does_not_come_in_time_ends_the_call(server, channel):
    stream = channel.stream_stream(STUB + "ModelInfer")
    metadata = (("x-api-key", server.key), ("x-request-timeout-ms", "300"))
    answers = stream(_never(), metadata=metadata)
    with pytest.raises(grpc.RpcError) as refused:
        next(answers)
    assert dict(refused.value.trailing_metadata())["x-error-code"] == "request_timeout"


def _never() -> Iterator[bytes]:
    time.sleep(5)
    yield b""


def test_a_message_that_is_too_large_or_expands_to_it_is_refused(server, channel):
    large = request("value")
    large.raw_input_contents.append(b"\0" * 2_100_000)
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        refused = refusal(channel, "ModelInfer", large, server.key, compression=compression)
        assert refused[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    head = refusal(channel, "ServerMetadata", service_pb2.ServerMetadataRequest(), "x" * 100_000)
    assert head[0] is not grpc.StatusCode.OK


def test_a_bomb_costs_no_memory(server, channel):
    """300 MB of zeros, which gzip makes small."""
    before = peak_bytes(server)
    bomb = service_pb2.ModelInferRequest(model_name="value")
    bomb.raw_input_contents.append(b"\0" * 300_000_000)
    for _ in range(3):
        refused = refusal(
            channel, "ModelInfer", bomb, server.key, compression=grpc.Compression.Gzip
        )
        assert refused[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak_bytes(server) - before < 100_000_000


def peak_bytes(server: RunningServer) -> int:
    """Return the most memory that any worker had so far."""
    names = [child for child in server.children() if "worker" in " ".join(child.cmdline())]
    statuses = [Path(f"/proc/{child.pid}/status").read_text() for child in names]
    return max(int(re.findall(r"VmHWM:\s+(\d+)", each)[0]) << 10 for each in statuses)


def test_compressed_messages_are_read(server, channel):
    answer = call(
        channel, "ModelInfer", request("value"), server.key, compression=grpc.Compression.Gzip
    )
    assert answer.model_name == "value"


def test_a_deadline_of_the_client_ends_the_call_and_is_counted(server, channel):
    name = 'peterrec_requests_total{outcome="deadline",task="value"}'
    before = server.metrics().get(name, 0.0)
    asked = request("value")
    refused = refusal(channel, "ModelInfer", asked, server.key, timeout=0.0001)
    assert refused[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    asked.parameters["timeout"].int64_param = 1
    refused = refusal(channel, "ModelInfer", asked, server.key)
    assert refused[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded")
    eventually(lambda: server.metrics().get(name, 0.0) > before)


def test_a_client_that_cancels_is_counted_as_one_that_left(server, channel):
    name = 'peterrec_requests_total{outcome="client_left",task="__unknown__"}'
    before = server.metrics().get(name, 0.0)
    stream = channel.stream_stream(STUB + "ModelInfer")
    running = stream(_never(), metadata=(("x-api-key", server.key),), timeout=30)
    call(channel, "ServerLive", service_pb2.ServerLiveRequest(), "")  # the call above has begun
    running.cancel()
    eventually(lambda: server.metrics().get(name, 0.0) > before)


def test_many_calls_at_once_are_all_answered(server, channel, api):
    (expected,) = predictions(api, "value", [1, 2])

    def ask(_: int) -> float:
        answer = call(channel, "ModelInfer", request("value"), server.key)
        return float(np.frombuffer(answer.raw_output_contents[0])[0])

    with ThreadPoolExecutor(32) as pool:
        assert {*pool.map(ask, range(300))} == {expected["value"]}
    name = 'peterrec_protocol_requests_total{outcome="ok",protocol="open_inference_grpc"}'
    eventually(lambda: server.metrics()[name] >= 300)


def test_nobody_learns_of_a_neighbours_task(server, channel, workshop):
    with server.client() as operator:
        victim = make_tenant(operator, "victim")
        attacker = make_tenant(operator, "attacker")
    push_films(server, victim, workshop.bundle("value", seed=31))
    push_films(server, attacker, workshop.bundle("value", seed=33))
    with as_caller(server, victim, "admin") as client:
        push(client, "secret", workshop.bundle("ranking", seed=34))

    def questions(task: str) -> list[tuple[str, object]]:
        return [
            ("ModelInfer", request(task)),
            ("ModelInfer", request(task, "1")),
            ("ModelReady", service_pb2.ModelReadyRequest(name=task)),
            ("ModelMetadata", service_pb2.ModelMetadataRequest(name=task, version="1")),
            ("ModelConfig", service_pb2.ModelConfigRequest(name=task)),
            ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=task)),
            ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=task)),
        ]

    for caller in attacker.keys:
        secret = attacker.secret(caller)
        for there, nowhere in zip(questions("secret"), questions("nowhere"), strict=True):
            seen = refusal(channel, *there, secret)
            expected = refusal(channel, *nowhere, secret)
            assert seen[:2] == expected[:2]
            assert seen[2].replace("secret", "T") == expected[2].replace("nowhere", "T")
        index = service_pb2.RepositoryIndexRequest()
        listed = call(channel, "RepositoryIndex", index, secret)
        assert {each.name for each in listed.models} <= {"films"}
    for asked in questions("films"):
        assert refusal(channel, *asked, victim.secret("predict some"))[1] == "forbidden"
    mine = call(channel, "ModelInfer", request("films"), attacker.secret("admin"))
    digest = mine.parameters["digest"].string_param
    assert digest == attacker.digest.removeprefix("sha256:")


def test_health_checking_and_reflection_answer_without_a_key(channel):
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=30) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as refused:
        check(b"\x0a\x01x", timeout=30)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    info = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    services, file, missing = info(
        iter([b"\x3a\x00", b"\x22\x13inference.ModelReady"[:21], b"\x22\x01x"])
    )
    assert b"inference.GRPCInferenceService" in services
    assert file
    assert b"no such file" in missing


def test_connections_are_bounded(workshop, tmp_path):
    with running_server(
        workshop.folder, tmp_path, workers=1, grpc_port=0, peer_connections=20
    ) as server:
        host, port = server.grpc_address.split(":")
        opened = [socket.create_connection((host, int(port))) for _ in range(60)]
        try:
            for each in opened:
                each.settimeout(10)
            alive = sum(bool(_first_byte(each)) for each in opened)
            assert alive <= 20
        finally:
            for each in opened:
                each.close()
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            eventually(lambda: _is_live(channel), 20)


def _first_byte(connection: socket.socket) -> bytes:
    """The server begins with its settings."""
    try:
        return connection.recv(1)
    except (ConnectionResetError, TimeoutError):
        return b""


def _is_live(channel: grpc.Channel) -> bool:
    try:
        return call(channel, "ServerLive", service_pb2.ServerLiveRequest(), "").live
    except grpc.RpcError:
        return False


def test_a_drain_answers_what_was_accepted_and_then_refuses(workshop, tmp_path):
    with running_server(workshop.folder, tmp_path, workers=1, grpc_port=0) as server:
        with server.client() as client:
            push(client, "value", workshop.bundle("value", seed=1))
        with grpc.insecure_channel(server.grpc_address) as channel:
            outcomes = []
            with ThreadPoolExecutor(1) as thread:
                server.terminate(signal.SIGTERM)
                stopped = thread.submit(server.wait)
                while not stopped.done():
                    try:
                        call(channel, "ModelInfer", request("value"), server.key)
                        outcomes.append("ok")
                    except grpc.RpcError as error:
                        outcomes.append(error.code().name)
            assert stopped.result() == 0
        assert "ok" in outcomes
        assert set(outcomes) <= {"ok", "UNAVAILABLE", "CANCELLED"}
        assert "Traceback" not in server.log


def test_a_port_that_is_taken_is_named(workshop, tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0), reuse_port=True)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AssertionError, match="address_in_use"),
            running_server(workshop.folder, tmp_path, workers=1, grpc_port=port),
        ):
            pass
