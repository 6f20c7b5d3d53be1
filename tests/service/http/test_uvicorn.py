"""The parts of uvicorn that the server and its connections build upon, in the installed version."""

import inspect
import tomllib
from pathlib import Path

import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

ROOT = Path(__file__).parents[3]
MOVED = (
    "uvicorn has changed an internal part. Compare service/http/server.py and "
    "service/http/connection.py with the new version before raising its upper bound."
)


async def nothing(scope, receive, send) -> None:
    pass


@pytest.fixture
def config() -> Config:
    return Config(nothing, http="httptools", lifespan="off", log_config=None)


def test_uvicorn_has_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [each for each in project["dependencies"] if each.startswith("uvicorn")]
    assert "<" in bound, MOVED


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (HttpToolsProtocol.__init__, ["self", "config", "server_state", "app_state", "_loop"]),
        (HttpToolsProtocol.connection_made, ["self", "transport"]),
        (HttpToolsProtocol.connection_lost, ["self", "exc"]),
        (HttpToolsProtocol.data_received, ["self", "data"]),
        (HttpToolsProtocol.on_message_begin, ["self"]),
        (HttpToolsProtocol.on_headers_complete, ["self"]),
        (HttpToolsProtocol.on_body, ["self", "body"]),
        (HttpToolsProtocol.on_message_complete, ["self"]),
        (HttpToolsProtocol.on_response_complete, ["self"]),
        (HttpToolsProtocol.pause_writing, ["self"]),
        (HttpToolsProtocol.resume_writing, ["self"]),
        (HttpToolsProtocol.timeout_keep_alive_handler, ["self"]),
        (HttpToolsProtocol._start_asgi_task, ["self", "cycle", "app"]),
        (HttpToolsProtocol._unset_keepalive_if_required, ["self"]),
        (FlowControl.resume_reading, ["self"]),
        (Server.__init__, ["self", "config"]),
        (Server.handle_exit, ["self", "sig", "frame"]),
        (Server.startup, ["self", "sockets"]),
        (Server.shutdown, ["self", "sockets"]),
    ],
    ids=lambda each: getattr(each, "__qualname__", ""),
)
def test_what_we_override_or_call_takes_the_same_parameters(function, parameters):
    assert [*inspect.signature(function).parameters] == parameters, MOVED


def test_a_server_has_the_state_that_ours_sets_and_reads(config):
    server = Server(config)
    assert {"should_exit", "started", "server_state"} <= vars(server).keys(), MOVED
    assert isinstance(server.server_state.connections, set), MOVED
    source = inspect.getsource(Server)
    assert "self.servers" in source, MOVED
    assert "await self.startup(" in source, MOVED
    assert "await self.shutdown(" in source, MOVED


async def test_a_connection_has_the_state_that_ours_reads(config):
    protocol = HttpToolsProtocol(config, ServerState(), {"connection": "ours"})
    used = {"cycle", "flow", "app_state", "pipeline", "parser", "headers", "client", "transport"}
    assert used | {"server_state", "loop"} <= vars(protocol).keys(), MOVED
    source = inspect.getsource(RequestResponseCycle.__init__)
    for name in ("more_body", "keep_alive", "transport", "disconnected", "message_event"):
        assert f"self.{name} =" in source, MOVED
    for name in ("response_started", "response_complete"):
        assert f"self.{name} =" in source, MOVED
    assert "self.transport.close()" in inspect.getsource(RequestResponseCycle.send), MOVED
    assert '"state": self.app_state.copy()' in inspect.getsource(HttpToolsProtocol), MOVED
