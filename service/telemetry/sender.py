"""Sends typed events from a worker or the device process to the supervisor's metrics."""

import threading
from collections import deque

import zmq

from peterrec.service.telemetry.events import Event, TasksChanged, encode_events

SEND_INTERVAL_S = 0.25
"""Seconds between two messages."""

MAX_WAITING = 100_000
"""Events kept while the supervisor does not receive; the oldest are dropped first."""

MAX_MESSAGE_EVENTS = 5_000

LINGER_MS = 500
"""Milliseconds that closing waits for the last message to be received."""


class EventSender:
    """Collects events from any thread, and sends them in batches from a separate thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._awake = threading.Event()
        self._is_closing = False
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
        context = zmq.Context()
        socket = context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.connect(self._endpoint)
        is_closing = False
        while not is_closing:
            self._awake.wait(SEND_INTERVAL_S)
            self._awake.clear()
            is_closing = self._is_closing
            self._send_waiting(socket)
        socket.close()
        context.term()

    def _send_waiting(self, socket: "zmq.Socket[bytes]") -> None:
        while self._waiting:
            count = min(len(self._waiting), MAX_MESSAGE_EVENTS)
            events = [self._waiting.popleft() for _ in range(count)]
            try:
                socket.send(encode_events(events), zmq.DONTWAIT)
            except zmq.Again:
                return
