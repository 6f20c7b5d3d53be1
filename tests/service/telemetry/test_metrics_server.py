"""The port of the metrics answers whatever else is connected to it."""

import socket
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from peterrec.service.telemetry import metrics_server
from peterrec.service.telemetry.metrics_server import MOST_CONNECTIONS, start_metrics_server

HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture(params=HOSTS)
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    registry = CollectorRegistry()
    Counter("seen", "Something.", registry=registry)
    server, thread = start_metrics_server(0, request.param, registry)
    yield request.param, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def scrape(address: tuple[str, int]) -> str:
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    return httpx.get(f"http://{shown}:{port}/metrics", trust_env=False).text


def test_the_series_are_answered(address: tuple[str, int]):
    assert "seen_total 0.0" in scrape(address)


def test_idle_connections_keep_nobody_out_and_are_few(address: tuple[str, int]):
    idle = [socket.create_connection(address, timeout=10) for _ in range(5 * MOST_CONNECTIONS)]
    try:
        assert "seen_total 0.0" in scrape(address)
        ended = [each for each in idle[:MOST_CONNECTIONS] if each.recv(1) == b""]
        assert len(ended) == MOST_CONNECTIONS
    finally:
        for each in idle:
            each.close()


def test_a_connection_that_says_nothing_is_ended(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.1)
    with socket.create_connection(address, timeout=10) as silent:
        silent.sendall(b"GET /metr")
        assert silent.recv(1) == b""


def test_head_is_answered_as_get_without_the_body(address: tuple[str, int]):
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    answer = httpx.head(f"http://{shown}:{port}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(("given", "status"), [("", 401), ("Bearer no", 401), ("Bearer yes", 200)])
def test_with_a_token_only_who_sends_it_is_answered(given: str, status: int):
    server, thread = start_metrics_server(0, "127.0.0.1", CollectorRegistry(), ["yes", "also"])
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        for method in ("GET", "HEAD"):
            sent = httpx.request(method, url, headers={"Authorization": given}, trust_env=False)
            assert sent.status_code == status
            assert ("www-authenticate" in sent.headers) == (status == 401)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
