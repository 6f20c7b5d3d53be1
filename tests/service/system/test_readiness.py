"""What systemd is told."""

import socket

import pytest

from peterrec.service.system.readiness import tell_systemd


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_state_reaches_the_socket_that_the_environment_names(tmp_path, monkeypatch, is_abstract):
    name = f"@peterrec-{tmp_path.name}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        tell_systemd("READY=1")
        tell_systemd("STOPPING=1")
        assert [systemd.recv(100) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("name", ["", "no-path", "/nowhere/notify"])
def test_where_nobody_waits_nothing_happens(monkeypatch, name):
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    tell_systemd("READY=1")
