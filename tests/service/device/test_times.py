"""A batch says what held it up, if somebody asks: also while its rows waited to be read."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from peterrec.patches.identity import Digest
from peterrec.service.predict.device_link import BoundRow
from peterrec.service.protocol.messages import PLAIN, VECTOR, Row
from peterrec.service.telemetry.timeline import TIMELINE, Timeline
from tests.service.random_bundles import Workshop
from tests.service.replicas import DeviceThread, Replica
from tests.waiting import soon

HELD_S = 0.02


@pytest.fixture
async def replica(redis_url: str, redis_prefix: str, tmp_path: Path) -> AsyncIterator[Replica]:
    (tmp_path / "backbone").mkdir()
    workshop = Workshop(tmp_path / "backbone")
    replica = Replica(DeviceThread(), workshop, tmp_path / "r", redis_url, redis_prefix)
    await replica.open()
    await soon(lambda: replica.link.is_connected, 60)
    yield replica
    await replica.close()


async def ask(replica: Replica, timeline: Timeline | None) -> None:
    token = TIMELINE.set(timeline)
    tokens = np.array([5, 6], np.int32).tobytes()
    row = BoundRow(Row(PLAIN, tokens, VECTOR, candidates=b""), Digest(""))
    await replica.link.predict([row], time.monotonic() + 30)
    TIMELINE.reset(token)


async def test_rows_that_wait_to_be_read_while_the_device_thread_is_busy_say_so(replica):
    begun, sent = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert sent.wait(30)
        time.sleep(HELD_S)

    working = replica.device.submit(work)
    await soon(begun.is_set)
    timeline = Timeline("r", time.monotonic(), None)
    loop = asyncio.get_running_loop()
    loop.call_later(0, lambda: loop.call_soon(sent.set))  # after the link has sent the row
    await ask(replica, timeline)
    working.result(30)
    (batch,) = timeline.rounds[0].batches
    assert batch.held_s["swap"] >= HELD_S
    assert timeline.spent(time.monotonic())["swap"] >= HELD_S / 2


async def test_a_batch_about_which_nobody_asks_is_counted_and_says_nothing(replica):
    before = replica.device.batches
    await ask(replica, None)
    assert replica.device.batches == before + 1
