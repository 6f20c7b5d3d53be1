"""Files for browsers: what is found, how it is compressed, and what a page may load."""

import re
from pathlib import Path

import httpx
import pytest

from peterrec.service.console.folders import CONSOLE, find_viewers
from peterrec.service.http.app import Application
from peterrec.service.http.static_files import REDOCS_LOGO
from tests.service.http.application import make_application


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Application:
    monkeypatch.setattr("peterrec.service.http.app.START_PATIENCE_S", 0.0)
    return make_application()


async def ask(
    application: Application, path: str, method: str = "GET", **headers: str
) -> httpx.Response:
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers=fields)


async def test_the_console_may_load_nothing_but_this_servers_files(application):
    answer = await ask(application, "/console")
    rules = dict(
        rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; ")
    )
    assert rules["default-src"] == "'none'"
    assert {rules[f"{what}-src"] for what in ("script", "style", "connect", "img")} == {"'self'"}
    assert rules["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script>|<style|style=|https?:", answer.text)


async def test_no_file_of_the_console_names_another_server(application):
    addresses = {
        (path.name, found)
        for path in CONSOLE.glob("*.*")
        if path.suffix in {".js", ".css", ".html"}
        for found in re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", path.read_text())
    }
    assert addresses == {
        ("preact.js", "https://www.npmjs.com"),  # in the comment on its origin
        ("preact.js", "http://www.w3.org"),  # the name of SVG, which nothing loads
    }


@pytest.mark.parametrize("coding", ["", "gzip", "br", "zstd"])
async def test_a_file_is_the_same_in_every_coding_and_is_not_sent_twice(application, coding):
    name = "swagger-ui-bundle.js"
    first = await ask(application, f"/docs/files/{name}", accept_encoding=coding)
    assert first.content == (find_viewers() / name).read_bytes()
    assert first.headers.get("content-encoding", "") == coding
    assert int(first.headers["content-length"]) < len(first.content) or not coding
    tag = first.headers["etag"]
    again = await ask(application, f"/docs/files/{name}", if_none_match=tag)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/console/nothing.js", "/console/..%2fpages.py", "/console/folders.py", "/docs/files/x.css"],
)
async def test_a_file_that_there_is_not_is_no_route(application, path):
    answer = await ask(application, path)
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/app.js", "/docs", "/redoc"])
async def test_a_page_has_head_and_options_and_no_other_method(application, path):
    head = await ask(application, path, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    options = await ask(application, path, "OPTIONS")
    refused = await ask(application, path, "POST")
    assert options.headers["allow"] == refused.headers["allow"] == "GET, HEAD, OPTIONS"
    assert (options.status_code, refused.status_code) == (204, 405)


async def test_redoc_loads_no_picture_from_its_makers(application):
    """A reminder: a later Redoc may name it differently, and the policy would block it then."""
    assert REDOCS_LOGO in (find_viewers() / "redoc.standalone.js").read_bytes()
    answer = await ask(application, "/docs/files/redoc.standalone.js")
    assert REDOCS_LOGO not in answer.content


def test_every_file_of_the_pages_is_data_of_the_package():
    """What the wheel has is said by patterns in pyproject.toml."""
    patterns = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    endings = {path.suffix for path in CONSOLE.parent.rglob("*.*")} - {".py", ".pyc"}
    assert [each for each in endings if f'"*{each}"' not in patterns] == []
