"""A call of the predictor: rows are bound by one table and sent before the next one is known."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import TaskNotFound
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.errors import DeadlineExceeded, NotARankingTask
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.kinds.ranking import RankingPrediction
from peterrec.service.predict.predictor import Predictor, TaskQuestions
from peterrec.service.predict.questions import Question
from peterrec.service.predict.schemas import Instance, Parameters
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.listener import Listener, Peer
from peterrec.service.protocol.messages import (
    BatchResults,
    BundleEntry,
    Hello,
    Predict,
    RequestRows,
    RowResult,
    TableAck,
    TableUpdate,
    ToDevice,
    Welcome,
    encode,
    to_device,
)
from tests.patches.bundles import make_bundle
from tests.service.messages import DIGEST_A, bundle_entry, full_update, update

ACME = TenantId("acme")
FILMS = TaskRef(ACME, TaskId("films"))
FLIPS = 60
PATIENCE_S = 20.0
ABC = make_bundle("ranking", outputs=3, catalog=("a", "b", "c"))
ONE, FIRST = np.ones(1, np.float32).tobytes(), np.zeros(1, np.int64).tobytes()


def digest_of(handle: int) -> Digest:
    return Digest(f"{handle:064x}")


class FlippingDevice:
    """A device process whose ranking task gets another bundle again and again.

    Most changes follow the acknowledgement of the one before, so that they meet calls that read a
    catalog; each third one follows rows. Like the real device process, it frees a bundle as soon as
    the worker has acknowledged the table without it. ``gone`` are the handles of rows that came
    after that; ``seen`` are the handles of all rows.
    """

    def __init__(self, endpoint: Path, folder: Path) -> None:
        self._folder = folder
        self._listener = Listener(endpoint)
        self.seen: set[int] = set()
        self.gone: list[int] = []
        self.sent, self.acked = 1, 0

    def bundle(self, handle: int) -> BundleEntry:
        path = self._folder / str(handle)
        path.write_bytes(ABC)
        return BundleEntry(handle, digest_of(handle), "ranking", 3, (), 0.5, str(path))

    def table(self, handle: int) -> TableUpdate:
        """The table with this version, whose number is its handle."""
        entry = TaskEntry.of(FILMS, handle, {"prod": handle}, {handle: digest_of(handle)})
        if handle == 1:
            return full_update(1, [self.bundle(1)], [entry])
        return update(handle, [self.bundle(handle)], [entry], removed=[digest_of(handle - 1)])

    async def run(self) -> None:
        while True:
            for worker, frames in self._listener.poll(0):
                for frame in frames:
                    self._take(worker, to_device.decode(frame))
            await asyncio.sleep(0)

    def _take(self, worker: Peer, message: ToDevice) -> None:
        match message:
            case Hello(epoch=0):
                self._send(worker, Welcome(1, True, self.table(1)))
            case TableAck():
                self.acked = message.version
                if self.acked % 3:
                    self._flip(worker)
            case Predict():
                for request in message.requests:
                    self._send(worker, self._answer(request))
                self._flip(worker)

    def _flip(self, worker: Peer) -> None:
        if self.sent == self.acked < FLIPS:
            self.sent += 1
            self._send(worker, self.table(self.sent))

    def _answer(self, request: RequestRows) -> BatchResults:
        handles = [row.handle for row in request.rows]
        self.seen.update(handles)
        self.gone += [handle for handle in handles if handle < self.acked]
        results = [RowResult(request.request_id, at, ONE, FIRST) for at in range(len(handles))]
        return BatchResults(1, results)

    def _send(self, worker: Peer, message: object) -> None:
        self._listener.send(worker, encode(message))

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[FlippingDevice]:
    device = FlippingDevice(tmp_path / "d", tmp_path)
    running = asyncio.create_task(device.run())
    yield device
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    device.close()


@pytest.fixture
async def predictor(device: FlippingDevice, tmp_path: Path) -> AsyncIterator[Predictor]:
    """A worker's predictor, connected to the device."""
    table, catalogs = TaskTable(), Catalogs()
    link = DeviceLink(tmp_path / "d", table, max_rows=1000, on_update=lambda _: None)
    await link.start()
    assert await link.welcomed(PATIENCE_S)
    yield Predictor(ItemVocabulary(["a", "b", "c"], 5), table, link, catalogs, lambda _: None)
    await link.close()
    await catalogs.close()


async def questions(predictor: Predictor, *instances: Instance) -> list[Question | PeterRecError]:
    return await predictor.questions(instances, Parameters())


async def test_no_row_is_sent_for_a_bundle_that_a_table_flip_took_away_meanwhile(
    predictor: Predictor, device: FlippingDevice
) -> None:
    asked = TaskQuestions("films", None, await questions(predictor, Instance(["a"]), Instance([])))

    async def ask_until_the_last_flip() -> int:
        calls = 0
        while device.acked < FLIPS:
            predicted = await predictor.predict(ACME, [asked], time.monotonic() + PATIENCE_S)
            for given in predicted.tasks[0].answers:
                assert isinstance(given.answer, RankingPrediction)
            calls += 1
        return calls

    async with asyncio.timeout(PATIENCE_S):
        calls = await asyncio.gather(*(ask_until_the_last_flip() for _ in range(8)))
    assert sum(calls) > FLIPS
    assert len(device.seen) >= FLIPS // 3
    assert device.gone == []


async def test_a_call_names_the_version_and_the_revision_that_its_rows_were_bound_by(
    predictor: Predictor,
) -> None:
    asked = TaskQuestions("films", None, await questions(predictor, Instance(["a"])))
    predicted = await predictor.predict(ACME, [asked], time.monotonic() + PATIENCE_S)
    (task,) = predicted.tasks
    assert not isinstance(task.served, PeterRecError)
    assert task.served.version == predicted.registry_revision
    assert task.answers[0].by is task.served


@pytest.fixture
def settled(tmp_path: Path) -> Predictor:
    """A predictor whose device process is away; its table has one classification task."""
    table = TaskTable()
    entry = TaskEntry.of(FILMS, 1, {"prod": 1}, {1: DIGEST_A})
    table.apply(full_update(1, [bundle_entry(7, DIGEST_A)], [entry]))
    link = DeviceLink(tmp_path / "d", table, max_rows=9, on_update=lambda _: None)
    return Predictor(ItemVocabulary(["a"], 5), table, link, Catalogs(), lambda _: None)


async def test_a_task_that_is_unknown_answers_each_of_its_questions_with_that(
    settled: Predictor,
) -> None:
    of_unknown = TaskQuestions(
        "unknown", None, await questions(settled, Instance([]), Instance(["a"]))
    )
    bad = TaskQuestions("films", None, await questions(settled, Instance(["a"], candidates=["a"])))
    predicted = await settled.predict(ACME, [of_unknown, bad], time.monotonic() + PATIENCE_S)
    kinds = [[type(given.answer) for given in task.answers] for task in predicted.tasks]
    assert kinds == [[TaskNotFound, TaskNotFound], [NotARankingTask]]
    assert isinstance(predicted.tasks[0].served, TaskNotFound)


async def test_a_question_that_is_an_error_already_is_its_own_answer(settled: Predictor) -> None:
    error = NotARankingTask("films", "tags")
    asked = TaskQuestions("films", None, [error])
    predicted = await settled.predict(ACME, [asked], time.monotonic() + PATIENCE_S)
    assert predicted.tasks[0].answers[0].answer is error


async def test_a_call_waits_for_a_catalog_on_a_slow_disk_until_its_deadline(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "catalog"  # opening it waits until somebody writes
    os.mkfifo(pipe)
    table, catalogs = TaskTable(), Catalogs()
    entry = TaskEntry.of(FILMS, 1, {"prod": 1}, {1: digest_of(7)})
    ranking = BundleEntry(7, digest_of(7), "ranking", 3, (), 0.5, str(pipe))
    table.apply(full_update(1, [ranking], [entry]))
    link = DeviceLink(tmp_path / "d", table, max_rows=9, on_update=lambda _: None)
    predictor = Predictor(ItemVocabulary(["a"], 5), table, link, catalogs, lambda _: None)
    asked = TaskQuestions("films", None, await questions(predictor, Instance(["a"])))
    with pytest.raises(DeadlineExceeded):
        await predictor.predict(ACME, [asked], time.monotonic() + 0.1)
    pipe.open("wb").close()
    await catalogs.close()
