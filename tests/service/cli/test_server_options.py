"""What a command reports of a server's refusal, with its hint and exit status."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from peterrec.model.errors import PathMissing
from peterrec.service.cli.server_options import ExitStatus, exit_status
from peterrec.service.errors import ServerRefused, ServerUnreachable
from peterrec.service.jobs.server_calls import push, server, task_path

PROBLEM = {
    "code": "bundle_rejected",
    "detail": "the bundle is refused: [checksum_mismatch] it is damaged; [bad_name] no name",
    "hint": "Send it again.",
    "reasons": [
        {"code": "checksum_mismatch", "message": "it is damaged", "hint": ""},
        {"code": "bad_name", "message": "no name", "hint": ""},
    ],
}


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """The address of a server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Write nothing to stderr."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def refused(status: int, body: str) -> ServerRefused:
    with (
        answering(status, body) as url,
        pytest.raises(ServerRefused) as found,
        server(url, "k") as to,
    ):
        to.get("/tasks")
    return found.value


def test_a_problem_is_reported_with_every_reason_on_its_line():
    error = refused(422, json.dumps(PROBLEM))
    assert (error.code, error.hint) == ("bundle_rejected", "Send it again.")
    assert error.message.splitlines() == [
        "the bundle is refused:",
        "  - checksum_mismatch: it is damaged",
        "  - bad_name: no name",
    ]
    assert exit_status(error) is ExitStatus.REFUSED


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, ExitStatus.NOT_FOUND),
        (410, ExitStatus.NOT_FOUND),
        (412, ExitStatus.STALE),
        (429, ExitStatus.UNAVAILABLE),
        (503, ExitStatus.UNAVAILABLE),
        (409, ExitStatus.REFUSED),
    ],
)
def test_the_exit_status_follows_the_servers(status, expected):
    error = refused(status, json.dumps({"code": "some_code", "detail": "it says so.", "hint": ""}))
    assert (error.code, error.message) == ("some_code", "it says so.")
    assert exit_status(error) is expected


def test_an_answer_of_another_server_is_called_unexpected():
    error = refused(502, "<html>Bad gateway</html>")
    assert (error.code, error.hint) == ("unexpected_answer", "Is this a PeterRec server?")
    assert "HTTP 502" in error.message
    assert "Bad gateway" in error.message
    assert exit_status(error) is ExitStatus.UNAVAILABLE


def test_no_answer_is_reported_with_the_address_and_what_to_do():
    with pytest.raises(ServerUnreachable) as found, server("http://127.0.0.1:9", None) as to:
        to.get("/tasks")
    assert "no server answers at http://127.0.0.1:9: " in found.value.message
    assert "`url`" in found.value.hint
    assert exit_status(found.value) is ExitStatus.UNAVAILABLE


def test_a_file_that_can_not_be_read_is_not_sent(tmp_path):
    with (
        pytest.raises(PathMissing, match=r"absent\.bundle"),
        server("http://127.0.0.1:9", None) as to,
    ):
        push(to, tmp_path / "absent.bundle", "gender", {}, None)


def test_a_task_is_quoted_in_paths():
    assert task_path("a/b c", ":rollback") == "/tasks/a%2Fb%20c:rollback"
