"""Tell systemd that the server is ready, or stopping, if it started it as ``Type=notify``.

The protocol is that of sd_notify(3): one datagram to the socket that the environment names.
"""

import os
import socket
from contextlib import suppress
from typing import Literal


def tell_systemd(state: Literal["READY=1", "STOPPING=1"]) -> None:
    """Send a state; nothing if nobody waits for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # a name without a file
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(state.encode(), address)
