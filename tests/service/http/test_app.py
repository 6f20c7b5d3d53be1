"""One router for both kinds of routes: what it refuses, and what it adds to every answer."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from peterrec.service.http.app import Application
from peterrec.service.http.raw_route import RawRoute
from peterrec.service.http.routes import predict
from tests.service.http.application import make_application


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Application:
    monkeypatch.setattr("peterrec.service.http.app.START_PATIENCE_S", 0.0)
    return make_application()


async def ask(application: Application, method: str, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        return await client.request(method, path, headers=headers)


def every_handler(application: Application) -> Iterator[Callable[..., object]]:
    for each in iter_route_contexts([*predict.router.routes, *application.routes]):
        if isinstance(each.original_route, APIRoute):
            yield each.original_route.endpoint


def test_every_handler_is_a_function_of_a_module(application):
    nested = [each for each in every_handler(application) if "<locals>" in each.__qualname__]
    assert nested == []


@pytest.mark.parametrize("path", ["/tasks/films/predict", "/users/predict", "/backbone"])
async def test_a_method_that_is_not_allowed_is_a_problem_that_names_the_allowed_ones(
    application, path
):
    answer = await ask(application, "PATCH", path)
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    allowed = "GET, HEAD, OPTIONS" if path == "/backbone" else "OPTIONS, POST"
    assert answer.headers["allow"] == allowed
    assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path", ["/tasks/a/b/predict", "/tasks//predict", "/users/predict/x", "/tasks/a/predict%0A"]
)
async def test_a_path_that_only_resembles_a_prediction_is_no_route(application, path):
    answer = await ask(application, "POST", path)
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("path", ["/tasks/films/predict", "/livez", "/nowhere", "/keys"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "OPTIONS"])
async def test_every_answer_carries_the_callers_request_id(application, path, method):
    answer = await ask(application, method, path, **{"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("path", ["/tasks/films/predict", "/livez"])
async def test_a_draining_worker_closes_every_connection(application, path):
    assert "connection" not in (await ask(application, "GET", path)).headers
    application.state.admin.readiness.drain()
    assert (await ask(application, "GET", path)).headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
async def test_the_documentation_is_served_without_a_key(application, path):
    assert (await ask(application, "GET", path)).status_code == 200


def test_the_prediction_calls_are_raw_routes():
    assert {type(route) for route in predict.router.routes} == {RawRoute}


async def test_a_body_without_a_key_is_refused_with_one_request_id(application):
    headers = {"X-Request-Id": "mine-2", "Content-Length": "9"}
    answer = await ask(application, "POST", "/keys", **headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "mine-2")
