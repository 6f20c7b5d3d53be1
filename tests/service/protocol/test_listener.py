"""The listening end of a Unix socket, against plain sockets."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peterrec.service.protocol.frames import FrameReader, join_frames
from peterrec.service.protocol.listener import Arrival, Listener

LARGE = bytes(range(256)) * 40_000  # more than a socket takes at once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    listener = Listener(path)
    yield listener
    listener.close()


@pytest.fixture
def connect(path: Path, listener: Listener) -> Iterator[Callable[[], socket.socket]]:
    clients: list[socket.socket] = []

    def connect() -> socket.socket:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(path))
        clients[-1].settimeout(10)
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def gather(listener: Listener, count: int) -> list[Arrival]:
    """Poll until so many messages have come."""
    arrived: list[Arrival] = []
    until = time.monotonic() + 10
    while sum(len(messages) for _, messages in arrived) < count and time.monotonic() < until:
        arrived += [each for each in listener.poll(0.1) if each[1]]
    return arrived


def read(client: socket.socket, count: int) -> list[bytes]:
    reader, messages = FrameReader(), list[bytes]()
    while len(messages) < count:
        data = client.recv(1 << 16)
        assert data, "the connection has ended"
        messages += reader.feed(data)
    return messages


def test_each_connection_has_its_number_and_gets_its_answers(listener, connect):
    one, two = connect(), connect()
    one.sendall(join_frames([b"from one"]))
    two.sendall(join_frames([b"from two", b"again"]))
    arrived = gather(listener, 3)
    peers = {messages[0]: peer for peer, messages in arrived}
    assert {b"from one", b"from two"} <= peers.keys()
    listener.send(peers[b"from one"], b"to one")
    listener.send(peers[b"from two"], b"to two")
    assert read(one, 1) == [b"to one"]
    assert read(two, 1) == [b"to two"]


def test_messages_sent_before_the_connection_is_accepted_arrive_in_the_same_poll(listener, connect):
    connect().sendall(join_frames([b"early"]))
    assert [messages for _, messages in listener.poll(1)] == [[b"early"]]


def test_a_peer_that_does_not_read_holds_nobody_up_and_gets_everything_later(listener, connect):
    slow, quick = connect(), connect()
    slow.sendall(join_frames([b"slow"]))
    quick.sendall(join_frames([b"quick"]))
    peers = {messages[0]: peer for peer, messages in gather(listener, 2)}
    for _ in range(3):
        listener.send(peers[b"slow"], LARGE)
    listener.send(peers[b"slow"], b"last")
    listener.send(peers[b"quick"], b"at once")
    assert read(quick, 1) == [b"at once"]
    reading = threading.Thread(target=lambda: got.extend(read(slow, 4)))
    got: list[bytes] = []
    reading.start()
    while reading.is_alive():
        listener.poll(0.01)
    assert got == [LARGE, LARGE, LARGE, b"last"]


def test_a_connection_that_ends_is_reported_once_and_takes_no_messages(listener, connect):
    client = connect()
    client.sendall(join_frames([b"hello"]))
    ((peer, _),) = gather(listener, 1)
    gone: list[int] = []
    listener.on_gone = gone.append
    client.close()
    listener.poll(1)
    listener.poll(0)
    assert gone == [peer]
    listener.send(peer, b"nobody hears this")


def test_a_peer_that_goes_with_messages_unsent_is_dropped(listener, connect):
    client = connect()
    client.sendall(join_frames([b"hello"]))
    ((peer, _),) = gather(listener, 1)
    gone: list[int] = []
    listener.on_gone = gone.append
    listener.send(peer, LARGE)
    client.close()
    listener.send(peer, LARGE)
    listener.poll(0.1)
    assert gone == [peer]


def test_wake_ends_a_poll_and_is_kept_for_the_next_one(listener):
    threading.Timer(0.05, listener.wake).start()
    started = time.monotonic()
    assert listener.poll(10) == []
    listener.wake()
    listener.wake()
    assert listener.poll(10) == []
    assert time.monotonic() - started < 10


def test_closing_sends_what_is_left_for_as_long_as_it_lingers(path, connect, listener):
    client = connect()
    client.sendall(join_frames([b"hello"]))
    ((peer, _),) = gather(listener, 1)
    gone: list[int] = []
    listener.on_gone = gone.append
    listener.send(peer, LARGE)
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.extend(read(client, 1)))
    reading.start()
    listener.close(linger_s=10)
    reading.join()
    assert got == [LARGE]


def test_the_socket_of_a_process_that_was_killed_is_replaced(path, listener):
    successor = Listener(path)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(join_frames([b"hello"]))
    assert [messages for _, messages in gather(successor, 1)] == [[b"hello"]]
    client.close()
    successor.close()
