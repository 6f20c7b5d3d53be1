"""The network that tests break leaves nothing behind, whenever it is cut."""

import gc
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.patches.breakable_proxy import HOST, BreakableProxy

CUTS = 50
CLIENTS = 4


@pytest.fixture
def network() -> Iterator[BreakableProxy]:
    with closing(socket.create_server((HOST, 0), backlog=CUTS * CLIENTS)) as upstream:
        proxy = BreakableProxy(upstream.getsockname()[1])
        yield proxy
        proxy.close()


def test_clients_that_are_accepted_as_the_network_is_cut_are_reset_and_leave_no_socket_open(
    network: BreakableProxy, recwarn: pytest.WarningsRecorder
) -> None:
    for _ in range(CUTS):
        clients = [socket.create_connection((HOST, network.port), 5) for _ in range(CLIENTS)]
        network.cut()
        for client in clients:
            with closing(client):
                assert is_over(client)
        network.mend()
    gc.collect()
    assert [str(warning.message) for warning in recwarn.list] == []


def is_over(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
