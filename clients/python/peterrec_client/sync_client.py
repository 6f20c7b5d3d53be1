"""The blocking client."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, Unpack

import httpx
from httpx_sse import connect_sse

from peterrec_client import (
    administering,
    following,
    predicting,
    stocking,
    streaming,
    telling,
    tenancy,
)
from peterrec_client.answers import (
    AliasMoved,
    Availability,
    AvailabilityChanged,
    Backbone,
    Changed,
    FailedInstance,
    FeedbackCounted,
    Key,
    KeyRevoked,
    NewKey,
    Pushed,
    Readiness,
    RolledBack,
    Task,
    TaskDetail,
    Tenant,
    TenantDeleted,
    TenantPut,
    TenantUsage,
    UserPrediction,
    UserVectors,
)
from peterrec_client.call import CHUNK_BYTES, Call, Lost, Outcome, Reply, T, timeouts, unheard
from peterrec_client.connecting import DEFAULT_TIMEOUT_S, MAX_CONNECTIONS, http_options
from peterrec_client.duplex import DuplexTransport
from peterrec_client.following import Event
from peterrec_client.kinds import ItemId, Prediction
from peterrec_client.questions import (
    BatchOptions,
    BundleSource,
    CallOptions,
    Instance,
    PredictOptions,
    TaskChoice,
    TenantBody,
    UnknownItems,
    UserBatchOptions,
    UserOptions,
)
from peterrec_client.retrying import Exchange, RetryBudget, RetryPolicy, Wait
from peterrec_client.streaming import Answers, BatchCall, Lines
from peterrec_client.telling import TrueAnswer
from peterrec_client.tracing import traced


class Client:
    """Calls to one PeterRec server, or to the balancer in front of several.

    Threads may share a client. ``timeout_s`` bounds each call with all its retries. The server gets
    this limit too, and drops what it can't answer in time. Pushes and other changes have their own,
    longer limit. Connections are kept between calls: make one client and close it at the end, or
    use it in a ``with`` block.

    Every method may raise a ``PeterRecError``; ``peterrec_client.errors`` has its subclasses. After
    429, 502, 503 and broken connections a call is repeated as ``retry`` says, unless a repetition
    could do harm. With ``hedge_after_s``, a second attempt is made beside a prediction that has no
    answer after so many seconds, and the first answer counts; a value near the 95th percentile of
    what answers take costs the server a twentieth more. ``retry`` has the budget of both.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = RetryPolicy(),
        hedge_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        options = http_options(url, api_key)
        self._http = httpx.Client(**options)
        streams = DuplexTransport(options["verify"])
        self._streams = httpx.Client(**options, transport=streams)
        self._timeout_s = timeout_s
        self._retry = retry
        self._budget = RetryBudget(retry)
        self._hedge_after_s = hedge_after_s
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, "peterrec-hedge")
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
        self._streams.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

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

    def predict_batch(
        self,
        task: str,
        instances: Iterable[Instance | Sequence[ItemId]],
        **options: Unpack[BatchOptions],
    ) -> Iterator[Prediction | FailedInstance]:
        """Predict one task for any number of users; yields their answers in order, as they come.

        Instances are taken only as fast as answers are, and little is held of either. The stream
        has low priority on the server and a connection of its own. An instance that can't be
        answered is a ``FailedInstance`` in its place. A stream that breaks raises ``StreamBroken``;
        its ``answered`` says how many answers came, and nothing is repeated. The server gives a
        stream up if answers are not taken for half a minute.
        """
        return self._stream(streaming.of_task(task, options), instances)

    def predict_users_batch(
        self,
        instances: Iterable[Instance | Sequence[ItemId]],
        tasks: Sequence[str] | Literal["all"] = "all",
        **options: Unpack[UserBatchOptions],
    ) -> Iterator[UserPrediction | FailedInstance]:
        """Predict many tasks for any number of users, as ``predict_batch`` does for one task."""
        return self._stream(streaming.of_tasks(tasks, options), instances)

    def push(
        self,
        task: str,
        bundle: Path | str | BundleSource,
        *,
        alias: str | None = "prod",
        validate_only: bool = False,
        allow_new_outputs: bool = False,
        if_revision: int | None = None,
    ) -> Pushed:
        """Register a ``.bundle`` file and point ``alias`` at it. When this returns, it is served.

        ``bundle`` is the path of the file, or a ``BundleSource`` that the server fetches.

        The server first verifies the bundle and runs its probes. If it refuses the bundle,
        ``Incompatible`` lists every reason and the old version keeps serving. ``validate_only``
        changes nothing. With ``if_revision``, nothing happens unless the task still has this
        revision: else ``StaleRevision`` is raised.
        """
        return self._run(
            administering.push(task, bundle, alias, validate_only, allow_new_outputs, if_revision)
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

    def feedback(self, task: str, outcomes: Mapping[str, TrueAnswer]) -> FeedbackCounted:
        """Tell what came of predictions, by their ids; ask for these with ``prediction_ids``.

        Either all outcomes are taken or, if one is refused, none. Of each prediction the first
        outcome counts. Up to 200 in one call.
        """
        return self._run(telling.feedback(task, outcomes))

    def feedback_of_users(
        self, task: str, outcomes: Mapping[str | int, TrueAnswer]
    ) -> FeedbackCounted:
        """Tell what came of the last predictions for users that were made with ``remember``."""
        return self._run(telling.feedback_of_users(task, outcomes))

    def availability(self, task: str) -> Availability:
        """Read which items of a ranking task are to be had."""
        return self._run(stocking.availability(task))

    def put_availability(
        self,
        task: str,
        *,
        unavailable: Sequence[ItemId] | None = None,
        available: Sequence[ItemId] | None = None,
        if_revision: int | None = None,
    ) -> AvailabilityChanged:
        """Replace the list of items that are not to be had, or of the only ones that are.

        Exactly one of the two is given. It holds for all versions of the task, on every replica
        within two seconds, until it is replaced or removed.
        """
        return self._run(stocking.put_availability(task, unavailable, available, if_revision))

    def delete_availability(
        self, task: str, *, if_revision: int | None = None
    ) -> AvailabilityChanged:
        """Remove the list: all items of the task are to be had."""
        return self._run(stocking.delete_availability(task, if_revision))

    def vectors(
        self,
        histories: Sequence[Sequence[ItemId]],
        *,
        task: str | None = None,
        version: int | str | None = None,
        unknown_items: UnknownItems | None = None,
        is_half: bool = False,
        timeout_s: float | None = None,
        backbone: str | None = None,
    ) -> UserVectors:
        """Read the user vectors of 1 to 256 histories; needs the scope ``vectors``.

        They are those of the plain backbone, or with the patch of ``task``. With ``is_half`` they
        come as float16, in half the bytes. ``backbone`` is a fingerprint, for servers with several.
        """
        return self._run(
            stocking.vectors(histories, task, version, unknown_items, is_half, timeout_s, backbone)
        )

    def tenants(self) -> list[Tenant]:
        """List the tenants that this key may see: all for an operator, else the own one."""
        return self._run(tenancy.tenants())

    def tenant(self, name: str) -> Tenant:
        """Read a tenant's description and quotas."""
        return self._run(tenancy.tenant(name))

    def usage(self, tenant: str) -> TenantUsage:
        """Read what a tenant uses of its quotas."""
        return self._run(tenancy.usage(tenant))

    def put_tenant(
        self,
        name: str,
        *,
        description: str = "",
        quotas: Mapping[str, int] = {},
        weight: float = 1.0,
        if_revision: int | None = None,
    ) -> TenantPut:
        """Create a tenant, or replace the description and all quotas of one; for operators.

        ``quotas`` may bound ``tasks``, ``versions``, ``bundle_bytes``, ``head_bytes``,
        ``patch_bytes`` and ``keys``, of each bundle ``outputs``, ``row_work`` and ``answer_bytes``,
        and of requests ``requests_per_s``, ``rows_per_s``, ``waiting_rows`` and ``streams``.
        ``weight`` is the tenant's part of the device while several wait for it.
        """
        body = TenantBody(description, quotas, weight)
        return self._run(tenancy.put_tenant(name, body, if_revision))

    def delete_tenant(self, name: str) -> TenantDeleted:
        """Erase a tenant with its tasks, keys and bundles; for operators. There is no way back."""
        return self._run(tenancy.delete_tenant(name))

    def keys(self, *, tenant: str | None = None) -> list[Key]:
        """List the API keys of the own tenant, or, for operators, of another one."""
        return self._run(tenancy.keys(tenant))

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_at: datetime | None = None,
        tenant: str | None = None,
    ) -> NewKey:
        """Create an API key. ``expires_at`` has a time zone; None: the key does not expire."""
        return self._run(tenancy.create_key(name, scopes, expires_at, tenant))

    def rotate_key(
        self, key_id: str, *, overlap_s: float = 86_400.0, tenant: str | None = None
    ) -> NewKey:
        """Give a key a new secret; the one until now stays valid for ``overlap_s`` seconds.

        ``Conflict`` if the key has two valid secrets: revoke the one that nobody uses any more.
        """
        return self._run(tenancy.rotate_key(key_id, overlap_s, tenant))

    def revoke_key(
        self, key_id: str, *, secret: int | None = None, tenant: str | None = None
    ) -> KeyRevoked:
        """Revoke a key, or only the one of its two secrets that has this number."""
        return self._run(tenancy.revoke_key(key_id, secret, tenant))

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

    def _stream(
        self, call: BatchCall[T], instances: Iterable[Instance | Sequence[ItemId]]
    ) -> Iterator[T]:
        lines = Lines(instances)
        answers = Answers(call, lines, str(self._http.base_url))
        content = iter(lines)
        with answers.translated():
            with self._streams.stream(
                "POST", call.path, content=content, **call.options
            ) as response:
                if not response.is_success:
                    response.read()
                answers.begin(response)
                for data in response.iter_bytes():
                    yield from answers.read(data)
            answers.end()

    def _run(self, call: Call[T]) -> T:
        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        exchange = Exchange(call, self._retry, timeout_s, self._clock, self._budget)
        while True:
            answer = exchange.judge(self._hedged(call, timeout_s, exchange.begin()))
            if not isinstance(answer, Wait):
                return answer
            self._sleep(answer.seconds)

    def _hedged(self, call: Call[T], timeout_s: float, left_s: float) -> Outcome:
        """Make an attempt, and a second one beside it if the first is slow."""
        after_s = self._hedge_after_s
        if after_s is None or not call.is_hedged or after_s >= left_s:
            return self._attempt(call, timeout_s, left_s)
        first = self._threads.submit(copy_context().run, self._attempt, call, timeout_s, left_s)
        done, running = wait([first], timeout=after_s)
        if not done and self._budget.take():
            second = self._threads.submit(
                copy_context().run, self._attempt, call, timeout_s, left_s - after_s
            )
            running.add(second)
        while running and (not done or next(iter(done)).result().is_repeatable):
            done, running = wait(running, return_when=FIRST_COMPLETED)
        return done.pop().result()

    def _attempt(self, call: Call[T], timeout_s: float, left_s: float) -> Outcome:
        try:
            with _content(call) as (content, length), traced(call.method, call.path) as more:
                response = self._http.request(
                    call.method,
                    call.path,
                    params=call.params,
                    headers={**call.headers_for(left_s), "Content-Length": str(length), **more},
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
