"""A request ends when its client leaves, and only then."""

import asyncio

import pytest

from service.asgi import ClientLeft
from service.client_watch import unless_client_leaves


class Connection:
    """An ASGI ``receive`` whose client leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.is_watched = asyncio.Event()

    async def receive(self) -> dict[str, object]:
        self.is_watched.set()
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_an_answer_that_comes_soon_needs_no_watching():
    connection = Connection()

    async def work() -> int:
        return 5

    assert await unless_client_leaves(connection.receive, work()) == 5
    assert not connection.is_watched.is_set()


async def test_a_client_that_leaves_cancels_the_work():
    connection = Connection()
    was_cancelled = asyncio.Event()

    async def work() -> None:
        await connection.is_watched.wait()
        connection.left.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    with pytest.raises(ClientLeft):
        await unless_client_leaves(connection.receive, work())
    assert was_cancelled.is_set()


async def test_work_that_fails_while_it_is_watched_fails_as_itself():
    connection = Connection()

    async def work() -> None:
        await connection.is_watched.wait()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await unless_client_leaves(connection.receive, work())


async def test_a_cancellation_from_elsewhere_is_not_mistaken_for_a_client_that_left():
    connection = Connection()

    async def work() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(unless_client_leaves(connection.receive, work()))
    await connection.is_watched.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
