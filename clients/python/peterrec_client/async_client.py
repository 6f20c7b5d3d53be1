"""The asyncio client."""

import asyncio
import os
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, Unpack

import httpx
from httpx_sse import aconnect_sse

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
from peterrec_client.batching import Batcher
from peterrec_client.call import CHUNK_BYTES, Call, Lost, Outcome, Reply, T, timeouts, unheard
from peterrec_client.connecting import DEFAULT_TIMEOUT_S, http_options
from peterrec_client.duplex import AsyncDuplexTransport
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


class AsyncClient:
    """``Client`` for asyncio, with equal arguments, results, retries and errors.

    Any number of coroutines of one event loop may share a client. Cancelling a call closes its
    connection, and the server then drops its rows.

    With ``batch_window_s``, predictions of one task that are asked for within so many seconds are
    one call for several users; each still has its own answer or error. A hundredth of what an
    answer takes is enough: 0.001.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = RetryPolicy(),
        hedge_after_s: float | None = None,
        batch_window_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        options = http_options(url, api_key)
        self._http = httpx.AsyncClient(**options)
        streams = AsyncDuplexTransport(options["verify"])
        self._streams = httpx.AsyncClient(**options, transport=streams)
        self._timeout_s = timeout_s
        self._retry = retry
        self._budget = RetryBudget(retry)
        self._hedge_after_s = hedge_after_s
        self._batcher = None if batch_window_s is None else Batcher(self._ask, batch_window_s)
        self._clock = clock
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._batcher is not None:
            await self._batcher.aclose()
        await self._http.aclose()
        await self._streams.aclose()

    async def predict(
        self, task: str, history: Sequence[ItemId], **options: Unpack[PredictOptions]
    ) -> Prediction:
        """Predict one task for one user; see ``Client.predict``."""
        if self._batcher is not None:
            return await self._batcher.predict(task, history, options)
        return await self._run(predicting.predict(task, history, options))

    async def predict_many(
        self,
        task: str,
        instances: Sequence[Instance | Sequence[ItemId]],
        **options: Unpack[CallOptions],
    ) -> list[Prediction | FailedInstance]:
        """Predict one task for several users; see ``Client.predict_many``."""
        return await self._run(predicting.predict_many(task, instances, options))

    async def predict_user(
        self,
        history: Sequence[ItemId],
        tasks: Sequence[str | TaskChoice] | Literal["all"] = "all",
        **options: Unpack[UserOptions],
    ) -> UserPrediction:
        """Predict many tasks for one user; see ``Client.predict_user``."""
        return await self._run(predicting.predict_user(history, tasks, options))

    def predict_batch(
        self,
        task: str,
        instances: Iterable[Instance | Sequence[ItemId]]
        | AsyncIterable[Instance | Sequence[ItemId]],
        **options: Unpack[BatchOptions],
    ) -> AsyncIterator[Prediction | FailedInstance]:
        """Predict one task for any number of users; see ``Client.predict_batch``.

        The instances may come from an asynchronous source.
        """
        return self._stream(streaming.of_task(task, options), instances)

    def predict_users_batch(
        self,
        instances: Iterable[Instance | Sequence[ItemId]]
        | AsyncIterable[Instance | Sequence[ItemId]],
        tasks: Sequence[str] | Literal["all"] = "all",
        **options: Unpack[UserBatchOptions],
    ) -> AsyncIterator[UserPrediction | FailedInstance]:
        """Predict many tasks for any number of users; see ``Client.predict_users_batch``."""
        return self._stream(streaming.of_tasks(tasks, options), instances)

    async def push(
        self,
        task: str,
        bundle: Path | str | BundleSource,
        *,
        alias: str | None = "prod",
        validate_only: bool = False,
        allow_new_outputs: bool = False,
        if_revision: int | None = None,
    ) -> Pushed:
        """Register a ``.bundle`` file; see ``Client.push``."""
        return await self._run(
            administering.push(task, bundle, alias, validate_only, allow_new_outputs, if_revision)
        )

    async def tasks(self) -> list[Task]:
        """List the tasks that this key may use or administer, by name."""
        return await self._run(administering.tasks())

    async def task(self, name: str) -> TaskDetail:
        """Read a task with its aliases and versions."""
        return await self._run(administering.task(name))

    async def set_alias(
        self,
        task: str,
        version: int | str,
        *,
        alias: str = "prod",
        allow_new_outputs: bool = False,
        if_revision: int | None = None,
    ) -> AliasMoved:
        """Point an alias at a version; see ``Client.set_alias``."""
        return await self._run(
            administering.set_alias(task, alias, version, allow_new_outputs, if_revision)
        )

    async def rollback(
        self, task: str, *, alias: str = "prod", if_revision: int | None = None
    ) -> RolledBack:
        """Restore a task's previous state; see ``Client.rollback``."""
        return await self._run(administering.rollback(task, alias, if_revision))

    async def delete_task(self, task: str, *, if_revision: int | None = None) -> Changed:
        """Delete a task with its versions; see ``Client.delete_task``."""
        return await self._run(administering.delete_task(task, if_revision))

    async def feedback(self, task: str, outcomes: Mapping[str, TrueAnswer]) -> FeedbackCounted:
        """Tell what came of predictions, by their ids; see ``Client.feedback``."""
        return await self._run(telling.feedback(task, outcomes))

    async def feedback_of_users(
        self, task: str, outcomes: Mapping[str | int, TrueAnswer]
    ) -> FeedbackCounted:
        """Tell what came of the last predictions for users; see ``Client.feedback_of_users``."""
        return await self._run(telling.feedback_of_users(task, outcomes))

    async def availability(self, task: str) -> Availability:
        """Read which items of a ranking task are to be had; see ``Client.availability``."""
        return await self._run(stocking.availability(task))

    async def put_availability(
        self,
        task: str,
        *,
        unavailable: Sequence[ItemId] | None = None,
        available: Sequence[ItemId] | None = None,
        if_revision: int | None = None,
    ) -> AvailabilityChanged:
        """Replace the list of items that are not to be had, or of the only ones that are.

        See ``Client.put_availability``.
        """
        return await self._run(stocking.put_availability(task, unavailable, available, if_revision))

    async def delete_availability(
        self, task: str, *, if_revision: int | None = None
    ) -> AvailabilityChanged:
        """Remove the list: all items of the task are to be had."""
        return await self._run(stocking.delete_availability(task, if_revision))

    async def vectors(
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
        """Read the user vectors of 1 to 256 histories; see ``Client.vectors``."""
        return await self._run(
            stocking.vectors(histories, task, version, unknown_items, is_half, timeout_s, backbone)
        )

    async def tenants(self) -> list[Tenant]:
        """List the tenants that this key may see; see ``Client.tenants``."""
        return await self._run(tenancy.tenants())

    async def tenant(self, name: str) -> Tenant:
        """Read a tenant's description and quotas; see ``Client.tenant``."""
        return await self._run(tenancy.tenant(name))

    async def usage(self, tenant: str) -> TenantUsage:
        """Read what a tenant uses of its quotas; see ``Client.usage``."""
        return await self._run(tenancy.usage(tenant))

    async def put_tenant(
        self,
        name: str,
        *,
        description: str = "",
        quotas: Mapping[str, int] = {},
        weight: float = 1.0,
        if_revision: int | None = None,
    ) -> TenantPut:
        """Create a tenant, or replace its options; see ``Client.put_tenant``."""
        body = TenantBody(description, quotas, weight)
        return await self._run(tenancy.put_tenant(name, body, if_revision))

    async def delete_tenant(self, name: str) -> TenantDeleted:
        """Erase a tenant with its tasks, keys and bundles; see ``Client.delete_tenant``."""
        return await self._run(tenancy.delete_tenant(name))

    async def keys(self, *, tenant: str | None = None) -> list[Key]:
        """List a tenant's API keys; see ``Client.keys``."""
        return await self._run(tenancy.keys(tenant))

    async def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_at: datetime | None = None,
        tenant: str | None = None,
    ) -> NewKey:
        """Create an API key; see ``Client.create_key``."""
        return await self._run(tenancy.create_key(name, scopes, expires_at, tenant))

    async def rotate_key(
        self, key_id: str, *, overlap_s: float = 86_400.0, tenant: str | None = None
    ) -> NewKey:
        """Give a key a new secret; see ``Client.rotate_key``."""
        return await self._run(tenancy.rotate_key(key_id, overlap_s, tenant))

    async def revoke_key(
        self, key_id: str, *, secret: int | None = None, tenant: str | None = None
    ) -> KeyRevoked:
        """Revoke a key, or one of its secrets; see ``Client.revoke_key``."""
        return await self._run(tenancy.revoke_key(key_id, secret, tenant))

    async def backbone(self) -> Backbone:
        """Read what the server's backbone is."""
        return await self._run(administering.backbone())

    async def ready(self) -> Readiness:
        """Read whether the server is ready for requests; see ``Client.ready``."""
        return await self._run(administering.ready())

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] = {},
        if_revision: int | None = None,
        on_sent: Callable[[int], None] = unheard,
    ) -> bytes:
        """Make any call and return the body of the answer; see ``Client.request``."""
        call = administering.request(method, path, body, params, if_revision)
        return await self._run(replace(call, on_sent=on_sent))

    async def events(self, since: int | None = None) -> AsyncIterator[Event]:
        """Yield the registry's changes as they happen; see ``Client.events``."""
        options = {"params": following.parameters(since), "timeout": following.TIMEOUTS}
        with following.translated_errors(str(self._http.base_url)):
            async with aconnect_sse(self._http, "GET", following.PATH, **options) as source:
                if not source.response.is_success:
                    await source.response.aread()
                    raise following.refusal(source.response)
                async for sent in source.aiter_sse():
                    yield following.read_event(sent)

    async def _stream(
        self,
        call: BatchCall[T],
        instances: Iterable[Instance | Sequence[ItemId]]
        | AsyncIterable[Instance | Sequence[ItemId]],
    ) -> AsyncIterator[T]:
        lines = Lines(instances)
        answers = Answers(call, lines, str(self._http.base_url))
        content = aiter(lines)
        with answers.translated():
            async with self._streams.stream(
                "POST", call.path, content=content, **call.options
            ) as response:
                if not response.is_success:
                    await response.aread()
                answers.begin(response)
                async for data in response.aiter_bytes():
                    for answer in answers.read(data):
                        yield answer
            answers.end()

    async def _run(self, call: Call[T]) -> T:
        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        exchange = Exchange(call, self._retry, timeout_s, self._clock, self._budget)
        while True:
            answer = exchange.judge(await self._hedged(call, timeout_s, exchange.begin()))
            if not isinstance(answer, Wait):
                return answer
            await self._sleep(answer.seconds)

    async def _ask(
        self, task: str, instances: Sequence[Instance], options: CallOptions
    ) -> list[Prediction | FailedInstance]:
        return await self._run(predicting.predict_many(task, instances, options))

    async def _hedged(self, call: Call[T], timeout_s: float, left_s: float) -> Outcome:
        """Make an attempt, and a second one beside it if the first is slow."""
        after_s = self._hedge_after_s
        if after_s is None or not call.is_hedged or after_s >= left_s:
            return await self._attempt(call, timeout_s, left_s)
        running = {asyncio.create_task(self._attempt(call, timeout_s, left_s))}
        try:
            done, running = await asyncio.wait(running, timeout=after_s)
            if not done and self._budget.take():
                second = self._attempt(call, timeout_s, left_s - after_s)
                running.add(asyncio.create_task(second))
            while running:
                if not done or done.copy().pop().result().is_repeatable:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                else:
                    break
            return done.pop().result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _attempt(self, call: Call[T], timeout_s: float, left_s: float) -> Outcome:
        try:
            async with _content(call) as (content, length):
                with traced(call.method, call.path) as more:
                    response = await self._http.request(
                        call.method,
                        call.path,
                        params=call.params,
                        headers={
                            **call.headers_for(left_s),
                            "Content-Length": str(length),
                            **more,
                        },
                        content=content,
                        timeout=timeouts(left_s),
                    )
        except httpx.RequestError as error:
            return Lost(error, str(self._http.base_url), timeout_s)
        return Reply(response.status_code, response.headers, response.content)


@asynccontextmanager
async def _content(call: Call[T]) -> AsyncIterator[tuple[bytes | AsyncIterator[bytes], int]]:
    """The content to send and its length in bytes. A file is read in threads."""
    if isinstance(call.body, bytes):
        yield call.body, len(call.body)
        return
    file = await asyncio.to_thread(call.body.open, "rb")
    try:
        yield _chunks(file, call.on_sent), os.fstat(file.fileno()).st_size
    finally:
        file.close()


async def _chunks(file: BinaryIO, on_sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    """A file's bytes; those before the ones that are asked for were sent."""
    on_sent(0)
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
        on_sent(file.tell())
