"""Sends typed events from a worker or the device process to the supervisor's metrics."""

import contextlib
import socket
import threading
from collections import deque
from pathlib import Path

from peterrec.service.protocol.frames import join_frames
from peterrec.service.telemetry.events import Event, TasksChanged, encode_events

SEND_INTERVAL_S = 0.25
"""Seconds between two messages."""

MAX_WAITING = 100_000
"""Events kept while the supervisor does not receive; the oldest are dropped first."""

MAX_MESSAGE_EVENTS = 5_000

PATIENCE_S = 0.5
"""Seconds that sending waits for a supervisor that does not receive."""


class EventSender:
    """Collects events from any thread, and sends them in batches from a separate thread."""

    def __init__(self, endpoint: Path) -> None:
        self._endpoint = endpoint
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._awake = threading.Event()
        self._is_closing = False
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Queue an event; never blocks.

        A change of tasks is sent immediately, so that the metrics know a task before its requests.
        """
        self._waiting.append(event)
        if isinstance(event, TasksChanged):
            self._awake.set()

    def close(self) -> None:
        """Send the waiting events and stop the thread."""
        self._is_closing = True
        self._awake.set()
        self._thread.join()

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            self._awake.wait(SEND_INTERVAL_S)
            self._awake.clear()
            is_closing = self._is_closing
            with contextlib.suppress(OSError):  # tried again with the next events
                self._send_waiting()
        self._hang_up()

    def _send_waiting(self) -> None:
        """Send what waits. Events are lost if the connection ends before they have passed."""
        while self._waiting:
            connection = self._socket or self._connect()
            count = min(len(self._waiting), MAX_MESSAGE_EVENTS)
            events = [self._waiting.popleft() for _ in range(count)]
            try:
                connection.sendall(join_frames([encode_events(events)]))
            except OSError:
                self._hang_up()  # the stream may end within a message
                raise

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(str(self._endpoint))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        return connection

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
