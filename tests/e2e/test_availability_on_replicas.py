"""A list of items that is put at one replica holds at all, soon, and survives restarts."""

from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import push
from tests.e2e.running import running_server
from tests.patches.redis_servers import HOST, RedisServer, running
from tests.service.random_bundles import ITEMS, Workshop
from tests.waiting import eventually

WITHIN_S = 2.0
"""Seconds within which every replica holds back what was sold out at one of them."""

CATALOG = tuple(ITEMS[:30])

pytestmark = pytest.mark.timeout(300)


def items_of(api: httpx.Client) -> set[str]:
    body = {"history": [], "parameters": {"top_k": 100}}
    answer = api.post("/tasks/stock/predict", json=body).json()
    return {each["id"] for found in answer.get("predictions", []) for each in found["items"]}


def test_a_list_holds_at_every_replica_and_after_a_start_without_redis(
    workshop: Workshop, tmp_path: Path
) -> None:
    bundle = workshop.bundle("ranking", 5, outputs=len(CATALOG), names=CATALOG)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    redis = RedisServer(tmp_path)

    def serving(stack: ExitStack, folder: Path) -> httpx.Client:
        url = f"redis://{HOST}:{redis.port}"
        starting = running_server(workshop.folder, folder, redis_url=url, auth="off", workers=1)
        server = stack.enter_context(starting)
        return stack.enter_context(server.client())

    with running(redis), ExitStack() as stack:
        one, two = (serving(stack, folder) for folder in folders)
        push(one, "stock", bundle)
        eventually(lambda: items_of(two) == {*CATALOG})
        for gone in (CATALOG[:3], CATALOG[10:20]):
            one.put("/tasks/stock/availability", json={"unavailable": gone})
            assert items_of(one) == {*CATALOG} - {*gone}
            left = {*CATALOG}.difference(gone)
            eventually(lambda left=left: items_of(two) == left, WITHIN_S)  # type: ignore[misc]  # a default
    with ExitStack() as stack:
        alone = serving(stack, folders[1])
        assert items_of(alone) == {*CATALOG} - {*CATALOG[10:20]}
