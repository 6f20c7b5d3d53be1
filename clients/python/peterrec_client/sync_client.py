"""The blocking client."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, Unpack

import httpx
from httpx_sse import connect_sse

from peterrec_client import administering, following, predicting
from peterrec_client.answers import (
    AliasMoved,
    Backbone,
    Changed,
    FailedInstance,
    Pushed,
    Readiness,
    RolledBack,
    Task,
    TaskDetail,
    UserPrediction,
)
from peterrec_client.call import CHUNK_BYTES, Call, Lost, Outcome, Reply, T, timeouts, unheard
from peterrec_client.connecting import DEFAULT_TIMEOUT_S, http_options
from peterrec_client.following import Event
from peterrec_client.kinds import ItemId, Prediction
from peterrec_client.questions import CallOptions, Instance, PredictOptions, TaskChoice, UserOptions
from peterrec_client.retrying import Exchange, RetryPolicy, Wait


class Client:
    """Calls to one PeterRec server, or to the balancer in front of several.

    Threads may share a client. ``timeout_s`` bounds each call with all its retries. The server gets
    this limit too, and drops what it can't answer in time. Pushes and other changes have their own,
    longer limit. Connections are kept between calls: make one client and close it at the end, or
    use it in a ``with`` block.

    Every method may raise a ``PeterRecError``; ``peterrec_client.errors`` has its subclasses. After
    429, 502, 503 and broken connections a call is repeated as ``retry`` says, unless a repetition
    could do harm.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = RetryPolicy(),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(**http_options(url, api_key))
        self._timeout_s = timeout_s
        self._retry = retry
        self._clock = clock
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self, task: str, history: Sequence[ItemId], **options: Unpack[PredictOptions]
    ) -> Prediction:
        """Predict one task for one user; the type of the answer is that of the task's kind.

        ``history``: item ids, oldest first, at most 10 000; the newest ``max_len`` of the backbone
        are used. Empty is a cold start. Options: ``top_k``, ``exclude``, ``candidates``,
        ``exclude_seen``, ``unknown_items``, ``user_id``, ``timeout_s`` (see ``PredictOptions``).
        """
        return self._run(predicting.predict(task, history, options))

    def predict_many(
        self,
        task: str,
        instances: Sequence[Instance | Sequence[ItemId]],
        **options: Unpack[CallOptions],
    ) -> list[Prediction | FailedInstance]:
        """Predict one task for 1 to 256 users, in their order, all by one bundle.

        An instance is a history, or an ``Instance`` with its own parameters. One that can't be
        answered is a ``FailedInstance`` in its place; if none can, the gravest error is raised, and
        its ``errors`` has all of them by the instance's number.
        """
        return self._run(predicting.predict_many(task, instances, options))

    def predict_user(
        self,
        history: Sequence[ItemId],
        tasks: Sequence[str | TaskChoice] | Literal["all"] = "all",
        **options: Unpack[UserOptions],
    ) -> UserPrediction:
        """Predict up to 512 tasks for one user, all from one registry revision.

        Tasks that can't be answered are in ``errors``; if none can, the gravest error is raised.
        "all" are the registered tasks that the key may ask.
        """
        return self._run(predicting.predict_user(history, tasks, options))

    def push(
        self,
        task: str,
        path: Path | str,
        *,
        alias: str | None = "prod",
        validate_only: bool = False,
        allow_new_outputs: bool = False,
        if_revision: int | None = None,
    ) -> Pushed:
        """Register a ``.bundle`` file and point ``alias`` at it. When this returns, it is served.

        The server first verifies the bundle and runs its probes. If it refuses the bundle,
        ``Incompatible`` lists every reason and the old version keeps serving. ``validate_only``
        changes nothing. With ``if_revision``, nothing happens unless the task still has this
        revision: else ``StaleRevision`` is raised.
        """
        return self._run(
            administering.push(
                task, Path(path), alias, validate_only, allow_new_outputs, if_revision
            )
        )

    def tasks(self) -> list[Task]:
        """List the tasks that this key may use or administer, by name."""
        return self._run(administering.tasks())

    def task(self, name: str) -> TaskDetail:
        """Read a task with its aliases and versions."""
        return self._run(administering.task(name))

    def set_alias(
        self,
        task: str,
        version: int | str,
        *,
        alias: str = "prod",
        allow_new_outputs: bool = False,
        if_revision: int | None = None,
    ) -> AliasMoved:
        """Point an alias at a version, by its number or digest. The version of ``prod`` answers.

        ``OutputsDiffer`` is raised as by ``push``.
        """
        return self._run(
            administering.set_alias(task, alias, version, allow_new_outputs, if_revision)
        )

    def rollback(
        self, task: str, *, alias: str = "prod", if_revision: int | None = None
    ) -> RolledBack:
        """Restore a task's previous state: all aliases and the traffic.

        Each further call goes back one more step. States in which ``alias`` named no version are
        skipped, so it always names one afterwards. ``new_outputs`` of the result lists how the
        answers' outputs differ from those before, if they do.
        """
        return self._run(administering.rollback(task, alias, if_revision))

    def delete_task(self, task: str, *, if_revision: int | None = None) -> Changed:
        """Delete a task with its versions. Requests for it raise ``NotFound`` from then on."""
        return self._run(administering.delete_task(task, if_revision))

    def backbone(self) -> Backbone:
        """Read what the server's backbone is."""
        return self._run(administering.backbone())

    def ready(self) -> Readiness:
        """Read whether the server is ready for requests. Needs no key and is never retried."""
        return self._run(administering.ready())

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] = {},
        if_revision: int | None = None,
        on_sent: Callable[[int], None] = unheard,
    ) -> bytes:
        """Make a call that has no separate method, and return the body of the answer.

        ``body`` is sent as JSON, a ``Path`` as the bytes of that file; ``on_sent`` is then called
        with the number of bytes sent so far, from 0 again if the call is repeated. With
        ``if_revision``, the task must still have this revision, else ``StaleRevision`` is raised.
        """
        call = administering.request(method, path, body, params, if_revision)
        return self._run(replace(call, on_sent=on_sent))

    def events(self, since: int | None = None) -> Iterator[Event]:
        """Yield the registry's changes as they happen; with ``since``, first those after it.

        Each is an entry of the audit trail. The stream ends when the server stops; follow again
        from the last ``revision`` seen. It has no deadline and is not retried.
        """
        options = {"params": following.parameters(since), "timeout": following.TIMEOUTS}
        with (
            following.translated_errors(str(self._http.base_url)),
            connect_sse(self._http, "GET", following.PATH, **options) as source,
        ):
            if not source.response.is_success:
                source.response.read()
                raise following.refusal(source.response)
            for sent in source.iter_sse():
                yield following.read_event(sent)

    def _run(self, call: Call[T]) -> T:
        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        exchange = Exchange(call, self._retry, timeout_s, self._clock)
        while True:
            answer = exchange.judge(self._attempt(call, timeout_s, exchange.begin()))
            if not isinstance(answer, Wait):
                return answer
            self._sleep(answer.seconds)

    def _attempt(self, call: Call[T], timeout_s: float, left_s: float) -> Outcome:
        try:
            with _content(call) as (content, length):
                response = self._http.request(
                    call.method,
                    call.path,
                    params=call.params,
                    headers={**call.headers_for(left_s), "Content-Length": str(length)},
                    content=content,
                    timeout=timeouts(left_s),
                )
        except httpx.RequestError as error:
            return Lost(error, str(self._http.base_url), timeout_s)
        return Reply(response.status_code, response.headers, response.content)


@contextmanager
def _content(call: Call[T]) -> Iterator[tuple[bytes | Iterator[bytes], int]]:
    """The content to send and its length in bytes."""
    if isinstance(call.body, bytes):
        yield call.body, len(call.body)
        return
    with call.body.open("rb") as file:
        yield _chunks(file, call.on_sent), os.fstat(file.fileno()).st_size


def _chunks(file: BinaryIO, on_sent: Callable[[int], None]) -> Iterator[bytes]:
    """A file's bytes; those before the ones that are asked for were sent."""
    on_sent(0)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        on_sent(file.tell())
