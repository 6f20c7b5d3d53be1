"""Receives the events of all processes in the supervisor, in one thread that records them."""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from peterrec.service.protocol.listener import Listener
from peterrec.service.telemetry.events import Event, decode_events

log = structlog.get_logger()

POLL_S = 0.1


class EventReceiver:
    """Listens at ``endpoint`` and calls ``record`` with each event, from a separate thread."""

    def __init__(self, endpoint: Path, record: Callable[[Event], None]) -> None:
        self._record = record
        self._closing = threading.Event()
        self._listener = Listener(endpoint)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Record the events that have arrived, and stop."""
        self._closing.set()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while (arrived := self._listener.poll(POLL_S)) or not self._closing.is_set():
            for _, messages in arrived:
                for message in messages:
                    self._record_all(message)

    def _record_all(self, message: bytes) -> None:
        try:
            events = decode_events(message)
        except msgspec.MsgspecError as error:
            log.error("events_refused", reason=str(error))
            return
        for event in events:
            self._record(event)
