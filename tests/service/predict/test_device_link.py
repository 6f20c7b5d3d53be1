"""A worker's connection to the device process, against a real listener."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from peterrec.service.errors import DeadlineExceeded, DeviceUnavailable, QueueFull, TooManyRows
from peterrec.service.predict.device_link import BoundRow, DeviceLink
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.listener import Listener
from peterrec.service.protocol.messages import (
    ITEM_BYTES,
    ITEMS_PER_ROW,
    BatchResults,
    Cancel,
    Hello,
    Predict,
    ProofReason,
    RequestRows,
    Row,
    RowResult,
    Status,
    Sync,
    Synced,
    TableAck,
    TableUpdate,
    ToDevice,
    Validate,
    Validated,
    Welcome,
    encode,
    to_device,
)
from peterrec.service.protocol.sender import BATCH, Sender
from tests.service.messages import DIGEST_A, DIGEST_B, bundle_entry, full_update, update
from tests.waiting import soon


class Peer:
    """The device process's end of the line; it sends what a test has it send."""

    def __init__(self, endpoint: Path) -> None:
        self._listener = Listener(endpoint)
        self._gone: list[int] = []
        self._listener.on_gone = self._gone.append
        self.worker = 0
        self._arrived: list[bytes] = []

    async def next(self, kind: type[ToDevice]) -> ToDevice:
        """The next message of this kind; others are skipped."""
        async with asyncio.timeout(10):
            while True:
                while not self._arrived:
                    self._read()
                    await asyncio.sleep(0.001)
                message = to_device.decode(self._arrived.pop(0))
                if isinstance(message, kind):
                    return message

    async def asked(self) -> RequestRows:
        """The next message with rows, which are of one request."""
        message = await self.next(Predict)
        assert isinstance(message, Predict)
        (request,) = message.requests
        return request

    async def send(self, message: object) -> None:
        self._listener.send(self.worker, encode(message))

    async def has_gone(self) -> None:
        """Wait until the worker has hung up."""
        async with asyncio.timeout(10):
            while self.worker not in self._gone:
                self._read()
                await asyncio.sleep(0.001)

    def _read(self) -> None:
        for worker, messages in self._listener.poll(0):
            self.worker = worker
            self._arrived += messages

    async def welcome(self, table: TableUpdate) -> None:
        await self.next(Hello)
        await self.send(Welcome(table.epoch, True, table))
        await self.next(TableAck)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def endpoint(tmp_path: Path) -> Path:
    return tmp_path / "d"


@pytest.fixture
async def start_peer(endpoint: Path) -> AsyncIterator[Callable[[], Peer]]:
    """Start a device process's stand-in; an earlier one must be closed before."""
    peers: list[Peer] = []

    def start() -> Peer:
        peers.append(Peer(endpoint))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


@pytest.fixture
def peer(start_peer: Callable[[], Peer]) -> Peer:
    return start_peer()


@pytest.fixture
def updates() -> list[TableUpdate]:
    return []


@pytest.fixture
async def link(endpoint: Path, updates: list[TableUpdate]) -> AsyncIterator[DeviceLink]:
    link = DeviceLink(endpoint, TaskTable(), max_rows=4, on_update=updates.append)
    await link.start()
    yield link
    await link.close()


def row(handle: int = 7, digest: str = DIGEST_A) -> BoundRow:
    return BoundRow(Row(handle, b"\1\0\0\0"), digest)


def table(epoch: int, **handles: int) -> TableUpdate:
    digests = {"a": DIGEST_A, "b": DIGEST_B}
    bundles = [bundle_entry(handle, digests[name]) for name, handle in handles.items()]
    return full_update(epoch, bundles)


def soon_due(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def ask(link: DeviceLink, *rows: BoundRow, within_s: float = 10.0) -> "asyncio.Task":
    return asyncio.create_task(_rows(link, rows, within_s))


async def _rows(link: DeviceLink, rows: tuple[BoundRow, ...], within_s: float) -> object:
    return (await link.predict(rows, soon_due(within_s))).rows


def answer(asked: RequestRows, at: int, values: bytes = b"ok") -> RowResult:
    return RowResult(asked.request_id, at, values)


async def test_a_worker_that_was_never_welcomed_refuses_immediately(link):
    with pytest.raises(DeviceUnavailable):
        await link.predict([row()], soon_due())


async def test_rows_are_answered_in_order_in_any_order_of_results(peer, link):
    await peer.welcome(table(1, a=7))
    task = ask(link, row(), row(), row())
    asked = await peer.asked()
    await peer.send(BatchResults(1, [answer(asked, 2, b"2"), answer(asked, 0, b"0")]))
    await peer.send(BatchResults(1, [answer(asked, 1, b"1")]))
    assert [result.values for result in await task] == [b"0", b"1", b"2"]
    assert link.places.total == 0


async def test_a_table_change_is_applied_before_it_is_acknowledged(peer, link, updates):
    await peer.welcome(table(1, a=7))
    change = update(2, bundles=[bundle_entry(8, DIGEST_B)])
    await peer.send(change)
    acknowledged = await peer.next(TableAck)
    assert acknowledged == TableAck(1, 2)
    assert updates[-1] == change


async def test_a_change_of_another_epoch_is_ignored(peer, link, updates):
    await peer.welcome(table(1, a=7))
    await peer.send(update(2, epoch=99))
    await peer.send(update(2))
    await peer.next(TableAck)
    assert [change.epoch for change in updates] == [1, 1]


async def test_waiting_rows_go_to_the_next_device_process_under_their_new_handles(
    start_peer, peer, link
):
    await peer.welcome(table(1, a=7, b=8))
    task = ask(link, row(7, DIGEST_A), row(8, DIGEST_B))
    first = await peer.asked()
    await peer.send(BatchResults(1, [answer(first, 0, b"old")]))
    await peer.send(Status(1, True, 5, 1.0, 0))
    await soon(lambda: link.state.status is not None)
    peer.close()
    successor = start_peer()
    await successor.welcome(table(2, a=3, b=4))
    message = await successor.next(Predict)
    assert isinstance(message, Predict)
    (again,) = message.requests
    assert (message.epoch, [r.handle for r in again.rows]) == (2, [4])
    await successor.send(BatchResults(2, [answer(again, 0, b"new")]))
    assert [result.values for result in await task] == [b"old", b"new"]


async def test_a_waiting_row_whose_bundle_is_gone_gets_an_error(start_peer, peer, link):
    await peer.welcome(table(1, a=7))
    task = ask(link, row())
    await peer.asked()
    peer.close()
    successor = start_peer()
    await successor.welcome(table(2, b=4))
    assert [result.error for result in await task] == ["bundle_gone"]


async def test_results_of_a_former_epoch_are_ignored(peer, link):
    await peer.welcome(table(5, a=7))
    task = ask(link, row())
    asked = await peer.asked()
    await peer.send(BatchResults(4, [answer(asked, 0, b"stale")]))
    await peer.send(BatchResults(5, [answer(asked, 0, b"fresh")]))
    assert [result.values for result in await task] == [b"fresh"]


async def test_a_row_without_an_answer_at_its_deadline_gets_an_error_and_is_withdrawn(peer, link):
    await peer.welcome(table(1, a=7))
    task = ask(link, row(), row(), within_s=0.2)
    asked = await peer.asked()
    await peer.send(BatchResults(1, [answer(asked, 0)]))
    assert [result.error for result in await task] == ["", "deadline_exceeded"]
    assert await peer.next(Cancel) == Cancel(asked.request_id)


async def test_each_request_ends_at_its_own_deadline(peer, link):
    await peer.welcome(table(1, a=7))
    late = ask(link, row(), within_s=10.0)
    second = ask(link, row(), within_s=0.2)
    first = ask(link, row(), within_s=0.1)
    assert [result.error for result in await first] == ["deadline_exceeded"]
    assert not second.done()
    assert [result.error for result in await second] == ["deadline_exceeded"]
    assert not late.done()
    late.cancel()


async def test_requests_of_one_turn_travel_together_and_ahead_of_their_withdrawal(peer, link):
    await peer.welcome(table(1, a=7))
    task, other = ask(link, row()), ask(link, row())
    await asyncio.sleep(0)
    task.cancel()
    message = await peer.next(Predict)
    assert isinstance(message, Predict)
    assert len(message.requests) == 2
    assert await peer.next(Cancel) == Cancel(message.requests[0].request_id)
    other.cancel()


async def test_rows_of_a_caller_that_gave_up_are_withdrawn(peer, link):
    await peer.welcome(table(1, a=7))
    task = ask(link, row())
    asked = await peer.asked()
    task.cancel()
    assert await peer.next(Cancel) == Cancel(asked.request_id)
    assert link.places.total == 0


async def test_the_items_of_long_histories_count_towards_the_bound(peer, link):
    await peer.welcome(table(1, a=7))
    older = bytes(2 * ITEMS_PER_ROW * ITEM_BYTES)
    long = BoundRow(Row(7, b"\1\0\0\0", older=older), DIGEST_A)
    task = ask(link, long, long)  # one user: two rows, and two places for the items
    asked = await peer.asked()
    assert [each.older for each in asked.whole_rows()] == [older, older]
    with pytest.raises(QueueFull):
        await link.predict([row()], soon_due())
    await peer.send(BatchResults(1, [answer(asked, 0), answer(asked, 1)]))
    await task
    assert link.places.total == 0
    longer = BoundRow(Row(7, b"", older=older * 2), DIGEST_A)
    with pytest.raises(TooManyRows, match="5 rows with long histories and filters"):
        await link.predict([longer], soon_due())


async def test_more_rows_than_the_bound_are_refused_immediately(peer, link):
    await peer.welcome(table(1, a=7))
    task = ask(link, row(), row(), row())
    await peer.asked()
    with pytest.raises(QueueFull):
        await link.predict([row(), row()], soon_due())
    task.cancel()


async def test_rows_say_who_sends_them_also_to_the_next_device_process(start_peer, peer, link):
    await peer.welcome(table(1, a=7))
    sender = Sender("acme", BATCH)
    task = asyncio.create_task(link.predict([row()], soon_due(), sender=sender))
    assert (await peer.asked()).sender == sender
    peer.close()
    again = start_peer()
    await again.welcome(table(2, a=8))
    assert (await again.asked()).sender == sender
    task.cancel()


async def test_a_tenants_flood_does_not_keep_another_one_out(peer, link):
    await peer.welcome(table(1, a=7))
    flood, polite = Sender("flood"), Sender("polite")
    tasks = [asyncio.create_task(link.predict([row()], soon_due(), sender=flood)) for _ in range(4)]
    await soon(lambda: link.places.of("flood") == 4)
    with pytest.raises(QueueFull):
        await link.predict([row()], soon_due(), sender=flood)
    asked = asyncio.create_task(link.predict([row(), row()], soon_due(), sender=polite))
    await soon(lambda: link.places.of("polite") == 2)
    with pytest.raises(QueueFull):  # it has its half now
        await link.predict([row()], soon_due(), sender=polite)
    for task in (*tasks, asked):
        task.cancel()


async def test_weights_of_tenants_arrive_with_the_table(peer, link):
    update = msgspec.structs.replace(table(1, a=7), weights={"acme": 3.0})
    await peer.welcome(update)
    await soon(lambda: link.places.weight("acme") == 3.0)
    assert link.places.weight("rival") == 1.0


async def test_a_silent_device_process_counts_as_gone(peer, link, monkeypatch):
    monkeypatch.setattr("peterrec.service.predict.device_link.SILENCE_LIMIT_S", 0.1)
    await peer.welcome(table(1, a=7))
    await soon(lambda: not link.is_connected)
    with pytest.raises(DeviceUnavailable):
        await link.predict([row()], soon_due())
    await peer.send(Status(1, True, 5, 1.0, 0))
    await soon(lambda: link.is_connected)


async def test_status_carries_readiness(peer, link):
    await peer.welcome(table(1))
    await peer.send(Status(1, False, 5, 12.5, 3))
    await soon(lambda: link.state.status is not None)
    assert (link.state.is_ready, link.state.status.registry_synced_at) == (False, 12.5)


async def test_a_proof_comes_back_with_its_reasons(peer, link):
    await peer.welcome(table(1))
    task = asyncio.create_task(link.validate("/spool/x", 5.0))
    asked = await peer.next(Validate)
    reasons = [ProofReason("oversize", "too big", "")]
    await peer.send(Validated(asked.request_id, "", 0, b"{}", reasons, "too_large"))
    assert (await task).reasons == reasons


async def test_a_proof_under_way_is_asked_of_the_next_device_process(start_peer, peer, link):
    await peer.welcome(table(1))
    task = asyncio.create_task(link.validate("/spool/x", 5.0))
    await peer.next(Validate)
    peer.close()
    successor = start_peer()
    await successor.welcome(table(2))
    asked = await successor.next(Validate)
    await successor.send(Validated(asked.request_id, DIGEST_A, 1, b"{}", []))
    assert (await task).digest == DIGEST_A


async def test_a_sync_waits_for_the_device_process_to_come_back(start_peer, link):
    task = asyncio.create_task(link.sync(9, 5.0))
    peer = start_peer()
    await peer.welcome(table(2))
    asked = await peer.next(Sync)
    await peer.send(Synced(asked.request_id, 9))
    assert (await task).revision == 9


async def test_a_call_that_is_never_answered_ends_at_its_deadline(peer, link):
    await peer.welcome(table(1))
    with pytest.raises(DeadlineExceeded):
        await link.sync(9, 0.05)


async def test_a_worker_that_closes_hangs_up(endpoint, peer):
    link = DeviceLink(endpoint, TaskTable(), max_rows=4, on_update=lambda _: None)
    await link.start()
    await peer.welcome(table(1))
    await link.close()
    await peer.has_gone()


async def test_many_requests_at_once_are_all_answered(peer, link, monkeypatch):
    monkeypatch.setattr(link.places, "max_places", 10_000)
    await peer.welcome(table(1, a=7))
    tasks = [ask(link, row()) for _ in range(500)]
    asked: list[RequestRows] = []
    while len(asked) < 500:
        message = await peer.next(Predict)
        assert isinstance(message, Predict)
        asked += message.requests
    await peer.send(BatchResults(1, [answer(each, 0) for each in asked]))
    assert [[r.values for r in await task] for task in tasks] == [[b"ok"]] * 500


async def test_shadow_rows_travel_in_the_same_message_and_come_back_with_the_others(peer, link):
    await peer.welcome(table(1, a=7, b=8))
    task = asyncio.create_task(link.predict([row()], soon_due(), [row(8, DIGEST_B)]))
    asked = await peer.asked()
    assert [each.handle for each in asked.rows] == [7, 8]
    await peer.send(BatchResults(1, [answer(asked, 0, b"answer"), answer(asked, 1, b"shadow")]))
    results = await task
    assert [result.values for result in results.rows] == [b"answer"]
    assert [result and result.values for result in results.shadows] == [b"shadow"]


async def test_nobody_waits_for_a_shadow_row(peer, link):
    await peer.welcome(table(1, a=7))
    task = asyncio.create_task(link.predict([row()], soon_due(), [row()]))
    asked = await peer.asked()
    await peer.send(BatchResults(1, [answer(asked, 0, b"answer")]))
    results = await task
    assert ([result.values for result in results.rows], results.shadows) == ([b"answer"], [None])
    assert await peer.next(Cancel) == Cancel(asked.request_id)
    assert link.places.total == 0


async def test_shadow_rows_are_left_out_rather_than_a_request_refused(peer, link):
    await peer.welcome(table(1, a=7))
    shadows = [row(), row()]
    task = asyncio.create_task(link.predict([row(), row(), row()], soon_due(), shadows))
    asked = await peer.asked()
    assert len(asked.rows) == 3
    await peer.send(BatchResults(1, [answer(asked, at) for at in range(3)]))
    assert (await task).shadows == [None, None]


async def test_a_row_is_rebound_to_the_handle_that_its_bundle_has_now(peer, link):
    await peer.welcome(table(1, a=7))
    await peer.send(update(2, bundles=[bundle_entry(9, DIGEST_A)], removed=[DIGEST_A]))
    await peer.next(TableAck)
    rebound = link.rebind(row(7, DIGEST_A))
    assert rebound is not None
    assert rebound.row.handle == 9
    assert link.rebind(row(8, DIGEST_B)) is None
