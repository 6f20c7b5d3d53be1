"""Streams of Arrow record batches over real HTTP: as JSON lines, in the columns of a table."""

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import KINDS, push
from tests.e2e.running import RunningServer, running_server
from tests.e2e.test_predict_batch import read_until
from tests.service.random_bundles import ITEMS

ARROW = "application/vnd.apache.arrow.stream"
HEADERS = {"content-type": ARROW}


def stream_of(*batches: pa.RecordBatch, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def users(many: int, first: int = 0) -> pa.RecordBatch:
    at = range(first, first + many)
    return pa.record_batch(
        {
            "user_id": pa.array([f"u{n}" for n in at]),
            "items": pa.array([ITEMS[n % 50 : n % 50 + 20] for n in at], pa.list_(pa.string())),
        }
    )


def answered(response: httpx.Response) -> pa.Table:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == ARROW
    return pa.ipc.open_stream(response.content).read_all()


def asked(api: httpx.Client, task: str, body: bytes, **params: str) -> pa.Table:
    path = f"/tasks/{task}/predict:batch"
    return answered(api.post(path, content=body, headers=HEADERS, params=params))


@pytest.fixture(scope="module")
def scored(workshop, tmp_path_factory):
    """What ``peterrec score`` writes of 150 users, by kind."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "bundles").mkdir()
    for kind in KINDS:
        (folder / "bundles" / f"{kind}.bundle").write_bytes(workshop.bundle(kind, seed=1))
    batch = users(150)
    table = pa.table({"user_id": batch["user_id"], "history": batch["items"]})
    pq.write_table(table, folder / "users.parquet")
    command = [sys.executable, "-m", "peterrec", "score", "--users", folder / "users.parquet"]
    command += ["--backbone", workshop.folder, "--bundles", folder / "bundles", "--tasks", "all"]
    subprocess.run([*command, "--out", folder / "out", "--quiet"], check=True, timeout=120)
    return folder / "out"


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_are_those_that_score_writes(api, scored, kind):
    found = asked(api, kind, stream_of(users(100), users(50, 100)))
    written = pq.read_table(scored / f"task={kind}" / "part-00000.parquet", partitioning=None)
    shared = [name for name in written.column_names if name != "task"]
    assert found.column_names == [*shared, "version", "error_code", "error_reason"]
    assert found["error_code"].null_count == 150
    assert set(found["version"].to_pylist()) == {1}
    about = json.loads(written.schema.metadata[b"peterrec"])
    own = json.loads(found.schema.metadata[b"peterrec"])
    assert own["task"] == about["task"] == kind
    assert own.get("labels") == about.get("labels")
    for name in shared:
        if (kind, name) == ("ranking", "scores"):
            ours, theirs = (t[name].combine_chunks().flatten().to_numpy() for t in (found, written))
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        else:
            assert found[name].to_pylist() == written[name].to_pylist(), name


def test_a_bad_row_is_a_row_with_its_reason_and_costs_no_other_row_anything(api):
    items = pa.array([[1], None, [1, None], [], [2] * 10_001], pa.list_(pa.int64()))
    batch = pa.record_batch({"user_id": pa.array([5, 6, None, 8, 9]), "items": items})
    found = asked(api, "value", stream_of(batch)).to_pylist()
    assert [row["error_code"] for row in found] == [
        *(None, "malformed_request", "malformed_request", None, "history_too_long"),
    ]
    assert [row["value"] is None for row in found] == [False, True, True, False, True]
    assert [row["user_id"] for row in found] == [5, 6, None, 8, 9]
    assert "got `null` - at `$.history[1]`" in found[2]["error_reason"]


def test_user_ids_and_numbers_are_optional(api):
    for kind in (pa.int32(), pa.uint64(), pa.large_string()):
        items = pa.array([[1, 2], [3]]).cast(pa.large_list(kind))
        found = asked(api, "tags", stream_of(pa.record_batch({"items": items})))
        assert found["user_id"].null_count == 2
        assert found["error_code"].null_count == 2


def test_many_tasks_answer_each_row(api):
    found = answered(
        api.post(
            "/users/predict:batch?tasks=tags,value", content=stream_of(users(3)), headers=HEADERS
        )
    ).to_pylist()
    assert [row["user_id"] for row in found] == ["u0", "u1", "u2"]
    assert [*found[0]["results"]] == ["tags", "value"]
    assert [*found[0]["results"]["value"]] == [
        *("used_items", "unknown_items", "value", "version", "error_code", "error_reason"),
    ]
    (alone,) = asked(api, "value", stream_of(users(1))).to_pylist()
    assert found[0]["results"]["value"]["value"] == alone["value"]


def test_both_directions_are_chosen_by_headers(api):
    lines = api.post(
        "/tasks/value/predict:batch",
        content=stream_of(users(2)),
        headers={**HEADERS, "accept": "application/x-ndjson"},
    )
    assert lines.headers["content-type"] == "application/x-ndjson"
    values = [json.loads(line)["value"] for line in lines.text.splitlines()]
    body = b"\n".join(
        json.dumps({"user_id": row["user_id"], "history": row["items"]}).encode()
        for row in users(2).to_pylist()
    )
    rows = answered(api.post("/tasks/value/predict:batch", content=body, headers={"accept": ARROW}))
    assert rows["value"].to_pylist() == values
    assert rows["user_id"].to_pylist() == ["u0", "u1"]


def test_a_stream_without_rows_has_columns_and_no_rows(api):
    for body in (stream_of(users(0)), users(0).schema.serialize().to_pybytes()):
        found = asked(api, "value", body)
        assert found.num_rows == 0
        assert "value" in found.column_names


def renamed(items, name: str = "items") -> bytes:
    return stream_of(pa.record_batch({name: items}))


ROWS = pa.array([[1, 2, 3]] * 100)
WHOLE = renamed(ROWS)
COMPRESSED = stream_of(
    pa.record_batch({"items": ROWS}), options=pa.ipc.IpcWriteOptions(compression="zstd")
)


def with_rows(rows: int) -> bytes:
    """A record batch that says that it has so many rows."""
    claimed = struct.pack("<q", 100)
    assert WHOLE.count(claimed) > 1
    return WHOLE.replace(claimed, struct.pack("<q", rows))


@pytest.mark.parametrize(
    ("body", "status", "code", "text"),
    [
        (b"", 400, "arrow_refused", "no schema"),
        (b'{"history": []}\n', 400, "arrow_refused", "not Arrow"),
        (b"PAR1" * 100, 400, "arrow_refused", "not Arrow"),
        (WHOLE[:300], 400, "arrow_refused", "in the middle"),
        (WHOLE + b"rest", 400, "arrow_refused", "after the end"),
        (COMPRESSED, 400, "arrow_refused", "compressed"),
        (with_rows(1 << 62), 400, "arrow_refused", "cannot have"),
        (with_rows(-1), 400, "arrow_refused", "cannot have"),
        (with_rows(150), 400, "arrow_refused", "contradicts itself"),
        (renamed(pa.array([[1.5]])), 400, "arrow_refused", "list<item: double>"),
        (renamed(pa.array([1])), 400, "arrow_refused", "of type int64"),
        (renamed(pa.array([[1]]), "history"), 400, "arrow_refused", "columns are history"),
        (renamed(pa.nulls(0)), 400, "arrow_refused", "of type null"),
        (renamed(pa.nulls(5)), 400, "arrow_refused", "cannot have"),
        (
            renamed(pa.array([[[1]]])),
            400,
            "arrow_refused",
            "list<item: list",
        ),
        (
            renamed(pa.ListArray.from_arrays([0, 1], pa.array(["a"]).dictionary_encode())),
            400,
            "arrow_refused",
            "dictionar",
        ),
        (
            stream_of(pa.record_batch([ROWS, ROWS], names=["items", "items"])),
            400,
            "arrow_refused",
            "columns are items, items",
        ),
        (renamed(pa.array([[1] * 600_000])), 413, "arrow_batch_too_large", "at most 4194304"),
        (
            b"\xff\xff\xff\xff" + struct.pack("<i", 1 << 30),
            413,
            "arrow_batch_too_large",
            "description",
        ),
        (b"\xff\xff\xff\xff" + struct.pack("<i", 64) + b"\x7f" * 64, 400, "arrow_refused", "read"),
        (b"\xff\xff\xff\xff" + struct.pack("<i", 64) + bytes(64), 400, "arrow_refused", ""),
    ],
)
def test_a_body_that_is_no_table_of_users_is_refused(api, body, status, code, text):
    answer = api.post("/tasks/value/predict:batch", content=body, headers=HEADERS)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert text in answer.json()["detail"]


def test_a_refusal_of_the_call_is_a_problem_document(api):
    body = stream_of(users(1))
    for path in ("/tasks/nothing/predict:batch", "/tasks/value/predict:batch?titles=true"):
        answer = api.post(path, content=body, headers=HEADERS)
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_stream_that_breaks_off_says_why_and_is_cut(server):
    """The rows that were answered are followed by the error; the end of the answer is missing."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = (
            "POST /tasks/value/predict:batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            f"Authorization: Bearer {server.key}\r\nContent-Type: {ARROW}\r\n\r\n"
        )
        good = stream_of(users(5))[:-8]
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(good), good))
        found = read_until(connection, b"u4")
        connection.sendall(b"%x\r\n%s\r\n" % (len(COMPRESSED), COMPRESSED))
        while part := connection.recv(65536):
            found += part
    assert not found.endswith(b"0\r\n\r\n")
    whole = b"".join(chunks_of(found.partition(b"\r\n\r\n")[2]))
    rows = pa.ipc.open_stream(whole).read_all().to_pylist()
    assert [row["error_code"] for row in rows] == [None] * 5 + ["arrow_refused"]


def chunks_of(body: bytes) -> Iterator[bytes]:
    """The parts of a chunked body."""
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


def test_damaged_streams_never_hurt_the_worker(api, server):
    """Every byte of a small stream is damaged in turn; the worker answers or refuses."""
    worker: psutil.Process = server.child("worker")
    batch = pa.record_batch({"user_id": pa.array(["a", "b"]), "items": pa.array([[1], [2, 3]])})
    body = stream_of(batch)
    statuses = set()
    for at in range(0, len(body), 3):
        for value in (0x00, 0x7F, 0xFF):
            damaged = body[:at] + bytes([value]) + body[at + 1 :]
            try:
                answer = api.post("/tasks/value/predict:batch", content=damaged, headers=HEADERS)
                statuses.add(answer.status_code)
            except httpx.RemoteProtocolError:
                statuses.add(0)  # it was cut off in the middle
    assert statuses <= {0, 200, 400, 413}
    assert {200, 400} <= statuses
    assert server.child("worker").pid == worker.pid
    assert answered(api.post("/tasks/value/predict:batch", content=body, headers=HEADERS)).num_rows


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_stream_takes_constant_memory(workshop, tmp_path):
    """40,000 rows take no more memory of the worker than 10,000 did."""
    with (
        running_server(workshop.folder, tmp_path / "server", workers=1) as server,
        server.client() as client,
    ):
        push(client, "value", workshop.bundle("value", seed=1))
        worker: psutil.Process = server.child("worker")
        peaks = [answered_in_pieces(server, worker, many) for many in (10_000, 40_000)]
    assert peaks[1] < peaks[0] + (20 << 20)


def answered_in_pieces(server: RunningServer, worker: psutil.Process, many: int) -> int:
    """The worker's memory after so many rows, which curl sends while it reads."""
    body = server.folder / "users.arrow"
    body.write_bytes(stream_of(*[users(1000, at) for at in range(0, many, 1000)]))
    command = [
        *("curl", "-sS", "-N", "-X", "POST", "-T", str(body)),
        *("-H", f"Authorization: Bearer {server.key}", "-H", f"Content-Type: {ARROW}"),
        f"{server.url}/tasks/value/predict:batch",
    ]
    done = subprocess.run(command, check=True, capture_output=True, timeout=250)
    assert pa.ipc.open_stream(done.stdout).read_all().num_rows == many
    return worker.memory_info().rss
