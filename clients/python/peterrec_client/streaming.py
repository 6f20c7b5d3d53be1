"""Predictions for as many users as there are: a line for each user, and a line for each answer."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypedDict

import httpx
import msgspec

from peterrec_client.answers import FailedInstance, UserPrediction
from peterrec_client.call import CONNECT_TIMEOUT_S, MAX_TIMEOUT_MS, Reply, T
from peterrec_client.errors import (
    PeterRecError,
    broken_off,
    connection_broke,
    not_understood,
    out_of_time,
    refused,
    unreachable,
)
from peterrec_client.kinds import ItemId, Prediction
from peterrec_client.kinds.prediction import Reason
from peterrec_client.predicting import Fields, UserAnswer, path_of, profile, slot
from peterrec_client.questions import (
    BatchOptions,
    Instance,
    UserBatchOptions,
    check_options,
    encode,
)

SENT_BYTES = 1 << 14
"""Bytes of lines that are sent at a time."""

SENT_AFTER_S = 0.005
"""Seconds after which lines are sent, however few they are."""

PATIENCE_S = 60.0
"""Seconds without progress after which a stream is given up, unless the caller says otherwise."""

GRACE_S = 5.0
"""Seconds that the server has to say itself that it gave a stream up."""

Asked = Instance | Sequence[ItemId]
"""One user: a history, or an ``Instance``."""


class StreamOptions(TypedDict):
    """Arguments of ``httpx.Client.stream``."""

    params: dict[str, str]
    headers: dict[str, str]
    timeout: httpx.Timeout


@dataclass(frozen=True, slots=True)
class BatchCall(Generic[T]):
    """A stream: where it goes, and how an answer is read, given the id of the request."""

    path: str
    params: dict[str, str]
    read: Callable[[Fields, str], T]
    patience_s: float

    @property
    def options(self) -> StreamOptions:
        """How the stream is asked for, without its lines."""
        patience_ms = min(max(int(self.patience_s * 1000), 1), MAX_TIMEOUT_MS)
        return {
            "params": self.params,
            "headers": {
                "Content-Type": "application/x-ndjson",
                "X-Request-Timeout-Ms": str(patience_ms),
            },
            "timeout": httpx.Timeout(self.patience_s + GRACE_S, connect=CONNECT_TIMEOUT_S),
        }


def of_task(task: str, options: BatchOptions) -> BatchCall[Prediction | FailedInstance]:
    """Ask one task for each user."""
    check_options(options, BatchOptions.__optional_keys__)

    def read(fields: Fields, request_id: str) -> Prediction | FailedInstance:
        shared = {"task": task, "registry_revision": None, "request_id": request_id}
        return slot({**shared, **fields})

    return BatchCall(f"{path_of(task)}:batch", _params(options), read, _patience_s(options))


def of_tasks(
    tasks: Sequence[str] | Literal["all"], options: UserBatchOptions
) -> BatchCall[UserPrediction | FailedInstance]:
    """Ask many tasks for each user."""
    check_options(options, UserBatchOptions.__optional_keys__)
    if isinstance(tasks, str) and tasks != "all":
        raise TypeError(f'tasks is a list of names or "all", not the text {tasks[:40]!r}')
    names = tasks if isinstance(tasks, str) else ",".join(tasks)
    return BatchCall(
        "/users/predict:batch",
        {"tasks": names, **_params(options)},
        _read_user,
        _patience_s(options),
    )


def _read_user(fields: Fields, request_id: str) -> UserPrediction | FailedInstance:
    if "results" not in fields:
        return msgspec.convert(fields, FailedInstance)
    return profile(msgspec.convert({"request_id": request_id, **fields}, UserAnswer))


def _params(options: BatchOptions | UserBatchOptions) -> dict[str, str]:
    given = {name: value for name, value in options.items() if value is not None}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
        if name != "timeout_s"
    }


def _patience_s(options: BatchOptions | UserBatchOptions) -> float:
    given = options.get("timeout_s")
    return PATIENCE_S if given is None else given


class Lines:
    """Users as lines. Each is taken from the caller only when there is room to send it.

    ``taken`` counts them, ``is_over`` says that all were taken, and ``failure`` is what the
    caller's own code raised, if it did.
    """

    def __init__(self, instances: Iterable[Asked] | AsyncIterable[Asked]) -> None:
        self._instances = instances
        self.taken = 0
        self.is_over = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Lines, several of which may come together."""
        assert isinstance(self._instances, Iterable)
        with self._watched():
            yield from _joined(map(self._line, self._instances))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Lines, of an asynchronous source one by one."""
        if not isinstance(self._instances, AsyncIterable):
            for part in self:
                yield part
            return
        with self._watched():
            async for instance in self._instances:
                yield self._line(instance)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error
            raise
        self.is_over = True

    def _line(self, instance: Asked) -> bytes:
        self.taken += 1
        return encode(instance if isinstance(instance, Instance) else Instance(instance)) + b"\n"


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines, unless the caller takes long to bring further ones."""
    held = bytearray()
    until = 0.0  # the first line does not wait
    for line in lines:
        held += line
        if len(held) >= SENT_BYTES or time.monotonic() > until:
            yield bytes(held)
            held.clear()
            until = time.monotonic() + SENT_AFTER_S
    if held:
        yield bytes(held)


_decode = msgspec.json.Decoder(Fields).decode


class Answers(Generic[T]):
    """The answers of one stream, from its bytes; and the errors of a stream that breaks."""

    def __init__(self, call: BatchCall[T], lines: Lines, url: str) -> None:
        self._call, self._lines, self._url = call, lines, url
        self._rest = bytearray()
        self._request_id: str | None = None  # until the server takes the stream
        self._answered = 0

    def begin(self, response: httpx.Response) -> None:
        """Take the head of the answer, or raise what its body, which was read, says instead."""
        if not response.is_success:
            raise Reply(response.status_code, response.headers, response.content).error()
        self._request_id = response.headers.get("x-request-id", "")

    def read(self, data: bytes) -> Iterator[T]:
        """The answers that have become whole."""
        self._rest += data
        *whole, self._rest = self._rest.split(b"\n")
        for line in whole:
            fields = _decode(line)
            if fields.keys() == {"error"}:
                reason = msgspec.convert(fields["error"], Reason)
                raise broken_off(refused(reason, self._request_id or ""), self._answered)
            answer = self._call.read(fields, self._request_id or "")
            self._answered += 1
            yield answer

    def end(self) -> None:
        """Raise StreamBroken if the answer has ended, but not with all that was asked."""
        if not self._lines.is_over or self._lines.taken != self._answered or self._rest:
            early = connection_broke(self._url, EOFError("the answers ended early"))
            raise broken_off(early, self._answered)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise what breaks a stream as our error; what the caller's own source raises stays."""
        try:
            yield
        except (httpx.RequestError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if self._lines.failure is not None:
                raise
            raise self._error(error) from error

    def _error(self, cause: Exception) -> PeterRecError:
        if not isinstance(cause, httpx.RequestError):
            found: PeterRecError = not_understood(f"POST {self._call.path}", cause, httpx.codes.OK)
        elif isinstance(cause, httpx.TimeoutException) and not isinstance(
            cause, httpx.ConnectTimeout
        ):
            found = out_of_time(self._call.patience_s)
        elif self._request_id is None:
            found = unreachable(self._url, cause)
        else:
            found = connection_broke(self._url, cause)
        return found if self._request_id is None else broken_off(found, self._answered)
