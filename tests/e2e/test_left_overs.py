"""Nothing of processes that were killed is left, at the latest after the next start."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import push
from tests.e2e.running import RunningServer, kill_everything, running_server
from tests.waiting import eventually

PATIENCE_S = 60.0
LARGE = 4 << 20
"""Bytes of an upload that is cut off: more than what is written at one time."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="left-") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_nothing_is_left_of_killed_processes(workshop, tmp_path, temporary, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(temporary))
    folder = tmp_path / "server"
    spool = folder / "data" / "spool"
    with running_server(workshop.folder, folder, workers=1) as server:
        with server.client() as client:
            push(client, "before", workshop.bundle("classification", seed=1))
        folders = left_in(temporary)
        assert len(folders) == 2  # the server's and its Redis'

        with upload_in_progress(server):
            eventually(lambda: any(spool.iterdir()))
            server.child("worker").send_signal(signal.SIGKILL)
            eventually(lambda: server.restarts("worker", "died") == 1)
            eventually(lambda: not any(spool.iterdir()), PATIENCE_S)
        server.child("device").send_signal(signal.SIGKILL)
        eventually(lambda: server.restarts("device", "died") == 1)
        server.child("redis").send_signal(signal.SIGKILL)
        eventually(lambda: server.restarts("redis", "died") == 1)
        eventually(server.is_ready, PATIENCE_S)
        assert left_in(temporary) == folders

        with upload_in_progress(server):
            eventually(lambda: any(spool.iterdir()))
            for name in ("cache/.writing-a", "redis/temp-rewriteaof-bg-1.aof", "redis/temp-1.rdb"):
                (folder / "data" / name).touch()  # as if their writers were killed
            kill_everything(server)
        assert left_in(temporary) == folders
        key = server.key

    with running_server(workshop.folder, folder, workers=1) as server:
        now = left_in(temporary)
        assert (len(now), now & folders) == (2, set())
        assert not any(spool.iterdir())
        names = {path.name for path in (folder / "data").rglob("*")}
        assert not {n for n in names if n.startswith((".writing", "temp-"))}
        with server.client(key) as client:
            assert client.post("/tasks/before/predict", json={"history": []}).status_code == 200
    assert left_in(temporary) == set()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def upload_in_progress(server: RunningServer) -> socket.socket:
    """A push whose body does not end; closing the socket cuts it off."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = (
        "POST /tasks/cut/versions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {server.key}\r\nContent-Length: {2 * LARGE}\r\n\r\n"
    )
    connection.sendall(head.encode() + os.urandom(LARGE))
    return connection
