"""Streams of lines over real HTTP: answered in order, while they come, in bounded memory."""

import json
import shutil
import socket
import subprocess

import httpx
import psutil
import pytest

from tests.e2e.conftest import KINDS, push
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import ITEMS
from tests.waiting import eventually


def lines_of(users: int) -> list[bytes]:
    return [
        json.dumps({"history": ITEMS[at % 50 : at % 50 + 20], "user_id": f"u{at}"}).encode()
        for at in range(users)
    ]


def answers(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def sent_alone(api: httpx.Client, task: str, line: bytes) -> dict:
    answer = api.post(f"/tasks/{task}/predict", json=json.loads(line))
    found: dict = answer.json()["predictions"][0]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_is_answered_as_a_request_of_its_own(api, kind):
    lines = lines_of(150)
    found = answers(api.post(f"/tasks/{kind}/predict:batch", content=b"\n".join(lines)))
    assert [answer["user_id"] for answer in found] == [f"u{at}" for at in range(150)]
    assert {answer["version"] for answer in found} == {1}
    for at in (0, 63, 64, 149):
        alone = sent_alone(api, kind, lines[at])
        own = {name: found[at][name] for name in alone}
        if kind == "ranking":
            assert [item["id"] for item in own["items"]] == [item["id"] for item in alone["items"]]
        else:
            assert own == alone


def test_a_bad_line_becomes_an_error_with_its_number_and_costs_no_other_line_anything(api):
    lines = lines_of(8)
    lines[1] = b"{no json"
    lines[3] = b'{"history": "x"}'
    lines[4] = b""
    lines[5] = b'{"history": [1], "user_id": "u", "surprise": 1}'
    lines[6] = b'{"history": [' + b'"a",' * 400_000 + b'"a"]}'
    found = answers(api.post("/tasks/tags/predict:batch", content=b"\n".join(lines)))
    assert [answer["kind"] for answer in found] == [
        *("tags", "error", "tags", "error", "error", "error", "tags"),
    ]
    failed = [answer for answer in found if answer["kind"] == "error"]
    assert [answer["line"] for answer in failed] == [2, 4, 6, 7]
    assert [answer["error"]["code"] for answer in failed] == [
        *("malformed_request", "malformed_request", "malformed_request", "line_too_long"),
    ]


def test_many_tasks_answer_each_line(api):
    lines = [*lines_of(3), b"[]"]
    found = answers(
        api.post("/users/predict:batch", params={"tasks": "tags,value"}, content=b"\n".join(lines))
    )
    assert [answer.get("user_id") for answer in found] == ["u0", "u1", "u2", None]
    assert [*found[1]["results"]] == ["tags", "value"]
    assert found[1]["errors"] == {}
    assert (found[3]["kind"], found[3]["line"]) == ("error", 4)
    every = answers(api.post("/users/predict:batch", params={"tasks": "all"}, content=lines[0]))
    assert {*KINDS} <= {*every[0]["results"], *every[0]["errors"]}


def test_parameters_of_the_url_hold_for_all_lines(api):
    asked = {"top_k": "2", "exclude_seen": "false", "version": "1"}
    found = answers(
        api.post("/tasks/ranking/predict:batch", params=asked, content=b"\n".join(lines_of(2)))
    )
    assert [len(answer["items"]) for answer in found] == [2, 2]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/tasks/nothing/predict:batch", 404, "task_not_found"),
        ("/tasks/tags/predict:batch?top_k=0", 400, "malformed_request"),
        ("/tasks/tags/predict:batch?top_k=1&top_k=2", 400, "malformed_request"),
        ("/tasks/tags/predict:batch?topk=1", 400, "malformed_request"),
        ("/users/predict:batch", 400, "malformed_request"),
        ("/users/predict:batch?tasks=tags,nothing", 404, "task_not_found"),
    ],
)
def test_what_can_be_refused_before_the_first_line_is_refused_as_any_request(
    api, path, status, code
):
    answer = api.post(path, content=b'{"history": []}\n')
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_stream_without_lines_has_no_answers(api):
    assert answers(api.post("/tasks/tags/predict:batch", content=b"\n\n")) == []


def opened(server: RunningServer, key: str = "", headers: str = "") -> socket.socket:
    """A connection with the head of a stream, whose lines are sent as chunks."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = (
        "POST /tasks/tags/predict:batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {key or server.key}\r\n{headers}\r\n"
    )
    connection.sendall(head.encode())
    return connection


def send_line(connection: socket.socket, line: bytes) -> None:
    connection.sendall(b"%x\r\n%s\n\r\n" % (len(line) + 1, line))


def read_until(connection: socket.socket, text: bytes) -> bytes:
    found = b""
    while text not in found:
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def test_lines_are_answered_before_further_ones_are_sent(server):
    """The client sends one line at a time, and reads its answer before it sends the next one."""
    with opened(server) as connection:
        for line in lines_of(3):
            send_line(connection, line)
            user = json.loads(line)["user_id"].encode()
            read_until(connection, b'"user_id":"%s"' % user)
        connection.sendall(b"0\r\n\r\n")
        read_until(connection, b"0\r\n\r\n")


def test_a_client_that_sends_nothing_more_is_told_so(server):
    with opened(server, headers="X-Request-Timeout-Ms: 300\r\n") as connection:
        send_line(connection, lines_of(1)[0])
        found = read_until(connection, b"request_timeout")
    assert b'"user_id":"u0"' in found


def test_a_revoked_key_ends_its_stream(api, server):
    made = api.post("/keys", json={"name": "x", "scopes": ["predict"]}).json()
    with opened(server, made["api_key"]) as connection:
        send_line(connection, lines_of(1)[0])
        read_until(connection, b"u0")
        assert api.delete(f"/keys/{made['key_id']}").status_code == 200
        send_line(connection, lines_of(1)[0])
        read_until(connection, b"unauthenticated")


def test_a_client_that_leaves_frees_everything(server, api):
    body = b"\n".join(lines_of(400))
    for _ in range(12):  # more than the streams that a tenant may have at a time
        with opened(server) as connection:
            connection.sendall(b"%x\r\n" % (10 * len(body)) + body)
            connection.recv(1000)

    def is_free() -> bool:
        answer = api.post("/tasks/tags/predict:batch", content=lines_of(1)[0])
        return answer.status_code == 200

    eventually(is_free)
    eventually(lambda: waiting_rows(server) == 0)


def waiting_rows(server: RunningServer) -> float:
    text = httpx.get(f"http://127.0.0.1:{server.metrics_port}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("peterrec_queue_rows")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_long_file_through_curl_takes_constant_memory(workshop, tmp_path):
    """60,000 lines take no more memory of the worker than 15,000 did."""
    with running_server(workshop.folder, tmp_path / "server", workers=1) as server:
        with server.client() as client:
            push(client, "tags", workshop.bundle("tags", seed=1))
        worker: psutil.Process = server.child("worker")
        peaks = []
        for users in (15_000, 60_000):
            (tmp_path / "users.ndjson").write_bytes(b"\n".join(lines_of(users)) + b"\n")
            command = (
                f"curl -sS -N -X POST -T - -H 'Authorization: Bearer {server.key}' "
                f"{server.url}/tasks/tags/predict:batch < users.ndjson > answers.ndjson"
            )
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=500)
            with (tmp_path / "answers.ndjson").open() as file:
                assert sum('"kind":"tags"' in line for line in file) == users
            peaks.append(worker.memory_info().rss)
        assert peaks[1] < peaks[0] + (20 << 20)
