"""The asyncio client."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, Unpack

import httpx
from httpx_sse import aconnect_sse

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


class AsyncClient:
    """``Client`` for asyncio, with equal arguments, results, retries and errors.

    Any number of coroutines of one event loop may share a client. Cancelling a call closes its
    connection, and the server then drops its rows.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = RetryPolicy(),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(url, api_key))
        self._timeout_s = timeout_s
        self._retry = retry
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
        await self._http.aclose()

    async def predict(
        self, task: str, history: Sequence[ItemId], **options: Unpack[PredictOptions]
    ) -> Prediction:
        """Predict one task for one user; see ``Client.predict``."""
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

    async def push(
        self,
        task: str,
        path: Path | str,
        *,
        alias: str | None = "prod",
        validate_only: bool = False,
        allow_new_outputs: bool = False,
        if_revision: int | None = None,
    ) -> Pushed:
        """Register a ``.bundle`` file; see ``Client.push``."""
        return await self._run(
            administering.push(
                task, Path(path), alias, validate_only, allow_new_outputs, if_revision
            )
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

    async def _run(self, call: Call[T]) -> T:
        timeout_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        exchange = Exchange(call, self._retry, timeout_s, self._clock)
        while True:
            answer = exchange.judge(await self._attempt(call, timeout_s, exchange.begin()))
            if not isinstance(answer, Wait):
                return answer
            await self._sleep(answer.seconds)

    async def _attempt(self, call: Call[T], timeout_s: float, left_s: float) -> Outcome:
        try:
            async with _content(call) as (content, length):
                response = await self._http.request(
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
