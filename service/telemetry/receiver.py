"""Receives the events of all processes in the supervisor, in one thread that records them."""

import threading
from collections.abc import Callable

import msgspec
import structlog
import zmq

from peterrec.service.telemetry.events import Event, decode_events

log = structlog.get_logger()

POLL_MS = 100


class EventReceiver:
    """Binds ``endpoint`` and calls ``record`` with each event, from a separate thread."""

    def __init__(self, endpoint: str, record: Callable[[Event], None]) -> None:
        self._record = record
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.bind(endpoint)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Record the events that have arrived, and stop."""
        self._closing.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        while self._socket.poll(POLL_MS) or not self._closing.is_set():
            while self._socket.poll(0):
                self._record_all(self._socket.recv())

    def _record_all(self, message: bytes) -> None:
        try:
            events = decode_events(message)
        except msgspec.MsgspecError as error:
            log.error("events_refused", reason=str(error))
            return
        for event in events:
            self._record(event)
