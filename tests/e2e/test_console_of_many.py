"""The console of a server with a thousand tasks: little is drawn, and everything is found."""

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pytest

from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId
from peterrec.patches.registry.records import TaskOptions, VersionSummary
from peterrec.patches.registry.registry import Registry, open_redis
from tests.e2e.browsing import Visit, chromium, visit
from tests.e2e.conftest import first_key
from tests.e2e.running import RunningServer, running_server
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Result = TypeVar("Result")

TASKS = 1000
ROWS = 100
"""Tasks that the list shows at first."""

CHANGES = 200


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def prefix() -> str:
    return f"test-{uuid4().hex}"


def finish(work: Coroutine[None, None, Result]) -> Result:
    """Run a coroutine in another thread: Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


@pytest.fixture(scope="module")
def crowd(workshop, browser, redis_url, prefix, tmp_path_factory) -> Iterator[RunningServer]:
    """A server whose tasks are all registered. ``browser`` comes first: it may skip."""
    key = finish(first_key(redis_url, prefix))
    finish(register_many(redis_url, prefix, workshop))
    settings = {"redis_url": redis_url, "redis_prefix": prefix}
    folder = tmp_path_factory.mktemp("crowd")
    with running_server(workshop.folder, folder, workers=1, **settings) as server:
        server.key = key
        with server.client() as client:
            eventually(lambda: client.get("/readyz").status_code == 200, 60)
        yield server


async def register_many(redis_url: str, prefix: str, workshop) -> None:
    registry = Registry(open_redis(redis_url), prefix)
    bundles = [workshop.bundle(kind, seed=1) for kind in ("value", "classification")]
    stored = []
    for data in bundles:
        verified = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
        stored.append((await registry.blobs.put(Blob(data)), VersionSummary.of(verified)))
    for number in range(TASKS):
        name = TaskId(f"task-{number:04}")
        await registry.add_version(DEFAULT_TENANT, name, *stored[number % 2], "crowd")
    await registry.close()


async def describe_many(redis_url: str, prefix: str) -> None:
    registry = Registry(open_redis(redis_url), prefix)
    for number in range(CHANGES):
        options = TaskOptions(f"changed {number}")
        await registry.put_task(DEFAULT_TENANT, TaskId("task-0000"), options, "crowd")
    await registry.close()


@pytest.fixture
def tab(browser, crowd) -> Iterator[Visit]:
    with visit(browser, crowd.url, "/console") as seen:
        seen.page.get_by_label("API key").fill(crowd.key)
        seen.page.get_by_role("button", name="Sign in").click()
        seen.page.get_by_text(f"{TASKS} tasks").wait_for()
        yield seen
        seen.require_own_requests_only()


def rows(tab: Visit) -> int:
    return int(tab.page.locator("tbody tr").count())


def test_a_part_of_the_list_is_shown_and_any_task_is_found(tab):
    assert rows(tab) == ROWS
    tab.page.get_by_label("Find a task").fill("0999")
    tab.page.get_by_text(f"1 of {TASKS} tasks").wait_for()
    assert rows(tab) == 1
    tab.page.get_by_role("link", name="task-0999").click()
    tab.page.get_by_role("heading", name="task-0999", level=1).wait_for()


def test_more_of_the_list_is_shown_on_demand_by_keyboard(tab):
    more = tab.page.get_by_role("button", name="Show 100 more")
    more.focus()
    tab.page.keyboard.press("Enter")
    eventually(lambda: rows(tab) == 2 * ROWS)
    tab.picture("console-thousand-tasks", whole=False)
    tab.require_accessible()


def test_the_playground_finds_any_task_and_asks_it(tab):
    tab.show("#/playground")
    tab.page.get_by_text("940 more: find them by their names.").wait_for()
    tab.page.get_by_role("button", name="None").click()
    tab.page.get_by_label("Find a task").fill("task-0777")
    tab.page.get_by_role("checkbox", name="task-0777").check()
    tab.page.get_by_text("1 chosen").wait_for()
    tab.page.get_by_role("button", name="Ask").click()
    tab.page.locator("article.card").get_by_role("heading", name="task-0777").wait_for()


def test_many_changes_at_once_do_not_make_the_list_load_as_often(tab, redis_url, prefix):
    finish(describe_many(redis_url, prefix))
    tab.page.get_by_text(f"changed {CHANGES - 1}").wait_for(timeout=30_000)
    loads = [url for url in tab.asked if url.endswith("/tasks")]
    assert 2 <= len(loads) < CHANGES / 4
