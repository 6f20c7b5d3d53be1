"""Traces, the slow-request log, logs as JSON, exemplars and ``Server-Timing`` of a real server."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import inject
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from peterrec_client import AsyncClient, Client
from tests.e2e.collector import Collector, about, running_collector
from tests.e2e.conftest import KINDS, push
from tests.e2e.running import RunningServer, free_port, running_server
from tests.waiting import eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
HISTORY: list[str | int] = ["item-3", 7]
BODY = {"history": HISTORY}

PY_SPY = Path(sys.executable).with_name("py-spy")
FRAMES = {"device": "device/loop.py", "worker": "http_worker.py", "supervisor": "supervisor.py"}

STAGES = ("receive", "prepare", "queue", "batch", "answer")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def seen(workshop, collector, tmp_path_factory) -> Iterator[RunningServer]:
    """A server that sends traces, logs each request as slow, and writes JSON."""
    folder = tmp_path_factory.mktemp("seen")
    with running_server(
        workshop.folder,
        folder,
        workers=2,
        grpc_port=0,
        log_format="json",
        log_level="info",
        slow_request_ms=1,
        trace_endpoint=collector.url,
        trace_share=0,
        profiling=True,
    ) as server:
        with server.client() as client:
            for kind in KINDS:
                push(client, kind, workshop.bundle(kind, seed=1))
        yield server


def ask(server: RunningServer, trace: str, task: str = "value", **headers: str) -> httpx.Response:
    with server.client() as client:
        parent = {"traceparent": f"00-{trace}-{CALLER}-01"}
        answer = client.post(f"/tasks/{task}/predict", json=BODY, headers=parent | headers)
    assert answer.status_code == 200, answer.text
    return answer


def assert_leads_to_the_batch_and_back(collector: Collector, trace: str, name: str) -> Span:
    """Follow a request by its trace; return the request's span."""
    trace_id = bytes.fromhex(trace)
    eventually(lambda: name in collector.of_trace(trace_id))
    spans = collector.of_trace(trace_id)
    request = spans[name]
    within = {stage: spans[stage] for stage in STAGES}
    assert {span.parent_span_id for span in within.values()} == {request.span_id}
    moments = [
        moment
        for span in within.values()
        for moment in (span.start_time_unix_nano, span.end_time_unix_nano)
    ]
    assert moments == sorted(moments)
    assert request.start_time_unix_nano == moments[0]
    assert request.end_time_unix_nano == moments[-1]
    (link,) = spans["batch"].links
    eventually(lambda: bool(collector.of_trace(link.trace_id)))
    batch = collector.of_trace(link.trace_id)["device batch"]
    assert batch.span_id == link.span_id
    assert spans["batch"].span_id in {each.span_id for each in batch.links}
    assert trace_id in {each.trace_id for each in batch.links}
    assert about(batch)["peterrec.process"] == "device"
    return request


def test_one_trace_leads_from_the_caller_to_the_batch_and_the_batch_back_to_it(seen, collector):
    answer = ask(seen, TRACE)
    request = assert_leads_to_the_batch_and_back(collector, TRACE, "POST /tasks/{task}/predict")
    assert request.parent_span_id.hex() == CALLER
    assert about(request)["peterrec.request_id"] == answer.headers["x-request-id"]
    assert about(request)["peterrec.task"] == "value"


def test_the_trace_of_a_grpc_call_leads_from_its_client_to_the_batch(seen, collector):
    """The client's own span is sent to the same collector, by OpenTelemetry's exporter."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.url}/v1/traces")))
    carrier: dict[str, str] = {}
    with (
        provider.get_tracer("product").start_as_current_span("page") as page,
        triton.InferenceServerClient(seen.grpc_address) as client,
    ):
        inject(carrier)
        history = triton.InferInput("history", [1, 2], "INT64")
        history.set_data_from_numpy(np.array([[1, 2]]))
        headers = {"authorization": f"Bearer {seen.key}", **carrier}
        client.infer("value", [history], headers=headers)
    provider.shutdown()
    trace = f"{page.get_span_context().trace_id:032x}"
    request = assert_leads_to_the_batch_and_back(collector, trace, "ModelInfer")
    sent = collector.of_trace(bytes.fromhex(trace))["page"]
    assert request.parent_span_id == sent.span_id
    assert about(request)["peterrec.protocol"] == "open_inference_grpc"
    assert about(request)["peterrec.process"].startswith("worker-")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_python_client_begins_the_trace_if_its_program_has_spans(seen, collector, kind):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("product")
    with tracer.start_as_current_span("page") as page:
        if kind == "sync":
            with Client(seen.url, seen.key) as client:
                client.predict("value", HISTORY)
        else:
            async with AsyncClient(seen.url, seen.key) as client:
                await client.predict("value", HISTORY)
    trace_id = page.get_span_context().trace_id.to_bytes(16, "big")
    eventually(lambda: "batch" in collector.of_trace(trace_id))


def test_a_request_whose_caller_does_not_trace_is_not_traced(seen, collector):
    before = len(collector.spans)
    with seen.client() as client:
        untraced = {"traceparent": f"00-{'1' * 32}-{CALLER}-00"}
        client.post("/tasks/value/predict", json=BODY, headers=untraced)
    ask(seen, "2" * 32)
    eventually(lambda: bool(collector.of_trace(bytes.fromhex("2" * 32))))
    assert len(collector.spans) > before
    assert not collector.of_trace(bytes.fromhex("1" * 32))


def test_a_refusal_and_a_call_of_the_administration_are_traced_too(seen, collector):
    refused, listed = "3" * 32, "5" * 32
    with seen.client() as client:
        client.post(
            "/tasks/nothing/predict",
            json=BODY,
            headers={"traceparent": f"00-{refused}-{CALLER}-01"},
        )
        client.get("/tasks", headers={"traceparent": f"00-{listed}-{CALLER}-01"})
    eventually(lambda: bool(collector.of_trace(bytes.fromhex(refused))))
    eventually(lambda: bool(collector.of_trace(bytes.fromhex(listed))))
    (call,) = collector.of_trace(bytes.fromhex(listed)).values()
    assert (call.name, about(call)["http.response.status_code"]) == ("GET /tasks", "200")
    request = collector.of_trace(bytes.fromhex(refused))["POST /tasks/{task}/predict"]
    assert about(request)["peterrec.outcome"] == "client_error"
    assert about(request)["peterrec.task"] == ""


def test_the_latency_histogram_names_a_trace_as_an_exemplar(seen, collector):
    trace = "6" * 32
    ask(seen, trace, "tags")
    url = f"http://127.0.0.1:{seen.metrics_port}/metrics"
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}

    def has_exemplar() -> bool:
        text = httpx.get(url, headers=accept, trust_env=False).text
        found = re.search(r'request_duration_seconds_bucket{[^}]*task="tags"} .* # {(.*?)}', text)
        return found is not None and found.group(1) == f'trace_id="{trace}"'

    eventually(has_exemplar)


def test_server_timing_says_where_the_time_went_if_it_is_asked_for(seen):
    timing = ask(seen, "7" * 32, **{"X-Server-Timing": "1"}).headers["server-timing"]
    spent = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", timing)}
    assert set(STAGES) <= set(spent)
    assert spent.pop("total") == pytest.approx(sum(spent.values()), abs=0.01)
    assert "server-timing" not in ask(seen, "8" * 32).headers


def test_every_line_is_json_and_a_slow_request_says_why_and_by_which_ids(seen, collector):
    trace = "9" * 32
    answer = ask(seen, trace, "ranking")

    def lines():
        return [json.loads(line) for line in seen.log.splitlines()]

    def slow():
        return [line for line in lines() if line.get("trace_id") == trace]

    eventually(lambda: bool(slow()))
    (line,) = slow()
    assert line["event"] == "slow_request"
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["tenant"], line["task"], line["outcome"]) == ("default", "ranking", "ok")
    assert line["reason"] in {"receive", *STAGES, "swap", "kernels", "head"}
    assert line["total_ms"] >= line[f"{line['reason']}_ms"] > 0
    assert {"timestamp", "level", "process", "event"} <= set(lines()[0])
    assert not [line for line in lines() if "Warning" in str(line)]


@pytest.mark.slow
def test_traces_go_on_when_the_collector_was_away(workshop, tmp_path):
    with running_collector() as first:
        port = int(first.url.rpartition(":")[2])
    with running_server(
        workshop.folder, tmp_path, workers=1, trace_endpoint=first.url, trace_share=1
    ) as server:
        with server.client() as client:
            push(client, "value", workshop.bundle("value", seed=1))
        eventually(lambda: "traces_not_sent" in server.log, within_s=30)
        with running_collector(port) as again:
            ask(server, TRACE)
            eventually(lambda: bool(again.of_trace(bytes.fromhex(TRACE))), within_s=30)
            eventually(lambda: "traces_sent_again" in server.log)


def test_top_shows_the_busiest_task_of_a_running_server(seen):
    command = [sys.executable, "-P", "-m", "peterrec", "top", "--once", "--interval", "1.5"]
    command += ["--url", seen.url, "--metrics-url", f"http://127.0.0.1:{seen.metrics_port}/metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
        while top.poll() is None:
            ask(seen, TRACE, "classification")
        assert top.stdout is not None
        shown = top.stdout.read()
    assert top.returncode == 0
    assert " ready " in shown
    assert re.search(r"^classification +[\d.]+ +0\.0% +[\d.]+ ms +[\d.]+ ms", shown, re.MULTILINE)


def test_top_says_that_there_is_no_server():
    port = free_port()
    command = [sys.executable, "-P", "-m", "peterrec", "top", "--once"]
    command += ["--metrics-url", f"http://127.0.0.1:{port}/metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "server_unreachable" in done.stderr
    assert "--metrics-url" in done.stderr


def test_profiles_are_off_unless_the_settings_allow_them(api):
    answer = api.get("/debug/profile")
    assert (answer.status_code, answer.json()["code"]) == (403, "profiling_off")


@pytest.mark.skipif(not PY_SPY.is_file(), reason="py-spy is not installed")
@pytest.mark.parametrize("process", ["device", "worker", "supervisor"])
def test_an_operator_sees_where_a_process_spends_its_time(seen, process):
    with seen.client() as client:
        made = client.post("/keys", json={"name": "tenant", "scopes": ["predict", "admin"]})
        asked = {"seconds": 1, "process": process, "idle": True}
        answer = client.get("/debug/profile", params=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "<svg" in answer.text
    assert FRAMES[process] in answer.text
    with seen.client(made.json()["api_key"]) as tenant:
        assert tenant.get("/debug/profile").status_code == 403


@pytest.mark.skipif(not PY_SPY.is_file(), reason="py-spy is not installed")
def test_one_profile_is_made_at_a_time(seen):
    with seen.client() as client, ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(client.get, "/debug/profile?seconds=2&idle=true") for _ in range(3)]
        statuses = sorted(each.result().status_code for each in asked)
    assert statuses == [200, 409, 409]


def test_an_operator_gets_the_operations_of_the_device_as_a_trace(seen):
    with seen.client() as client, ThreadPoolExecutor(1) as threads:
        asked = {"seconds": 2, "format": "chrome"}
        profile = threads.submit(client.get, "/debug/profile", params=asked)
        while not profile.done():
            ask(seen, "a" * 32, "ranking")
    answer = profile.result()
    assert answer.status_code == 200, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    names = {event.get("name", "") for event in answer.json()["traceEvents"]}
    assert any(name.startswith("aten::") for name in names)


def test_operations_are_those_of_the_device_only(seen):
    with seen.client() as client:
        answer = client.get("/debug/profile", params={"format": "chrome", "process": "worker"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
