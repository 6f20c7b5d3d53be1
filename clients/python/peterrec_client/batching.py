"""Concurrent predictions of one task become one call for several users."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from peterrec_client.answers import FailedInstance
from peterrec_client.errors import PeterRecError, refused
from peterrec_client.kinds import ItemId, Prediction
from peterrec_client.predicting import instance_of
from peterrec_client.questions import CallOptions, Instance, PredictOptions, encode

MAX_INSTANCES = 256
"""Most users of one call."""

Answers = list[Prediction | FailedInstance]
Ask = Callable[[str, Sequence[Instance], CallOptions], Awaitable[Answers]]
"""Makes one call for several users."""


@dataclass(slots=True)
class _Batch:
    """Users whose predictions are asked for in one call, and who waits for each."""

    options: CallOptions
    instances: list[Instance] = field(default_factory=list)
    waiting: list["asyncio.Future[Prediction]"] = field(default_factory=list)


class Batcher:
    """Collects predictions for ``window_s`` seconds and asks for them together.

    Predictions share a call if task, parameters and time limit are the same. Each has its own
    answer or its own error, as if it had been asked for alone. Lives on one event loop.
    """

    def __init__(self, ask: Ask, window_s: float) -> None:
        self._ask = ask
        self._window_s = window_s
        self._open: dict[tuple[str, bytes], _Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def predict(
        self, task: str, history: Sequence[ItemId], options: PredictOptions
    ) -> Prediction:
        """Return the prediction for one user."""
        instance = instance_of(history, options)
        given = {name: options.get(name) for name in CallOptions.__optional_keys__}
        shared = cast(CallOptions, given)  # its names, and the values that were given for them
        key = (task, encode(sorted(given.items(), key=lambda pair: pair[0])))
        batch = self._open.get(key)
        loop = asyncio.get_running_loop()
        if batch is None:
            batch = self._open[key] = _Batch(shared)
            loop.call_later(self._window_s, self._send, key, batch)
        batch.instances.append(instance)
        batch.waiting.append(loop.create_future())
        mine = batch.waiting[-1]
        if len(batch.instances) == MAX_INSTANCES:
            self._send(key, batch)
        return await mine

    async def aclose(self) -> None:
        """Wait for the calls that were sent."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _send(self, key: tuple[str, bytes], batch: _Batch) -> None:
        if self._open.get(key) is not batch:
            return  # it was full before its time
        del self._open[key]
        sending = asyncio.get_running_loop().create_task(self._run(key[0], batch))
        self._running.add(sending)
        sending.add_done_callback(self._running.discard)

    async def _run(self, task: str, batch: _Batch) -> None:
        """Make the call; those who left meanwhile get nothing."""
        pairs = zip(batch.instances, batch.waiting, strict=True)
        kept = [(instance, future) for instance, future in pairs if not future.done()]
        if not kept:
            return
        try:
            answers = await self._ask(task, [instance for instance, _ in kept], batch.options)
        except PeterRecError as error:
            for at, (_, future) in enumerate(kept):
                own = error.errors.get(str(at))
                _fail(future, error if own is None else refused(own, error.request_id))
            return
        except BaseException as error:
            for _, future in kept:
                _fail(future, error)
            raise
        for (_, future), answer in zip(kept, answers, strict=True):
            if isinstance(answer, FailedInstance):
                _fail(future, refused(answer.error))
            elif not future.done():
                future.set_result(answer)


def _fail(future: "asyncio.Future[Prediction]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
