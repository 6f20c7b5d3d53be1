"""The follower's loops outlive any exception."""

import asyncio

import pytest

from peterrec.service.sync.follower import forever


async def test_work_that_fails_is_run_again_and_its_errors_are_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peterrec.service.sync.follower.RETRY_S", 0.001)
    attempts: list[int] = []
    goes_well = asyncio.Event()

    async def work() -> None:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise ZeroDivisionError(f"mistake {len(attempts)}")
        goes_well.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(forever(work))
    async with asyncio.timeout(10):
        await goes_well.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    logged = capsys.readouterr()
    assert "mistake 1" in logged.out + logged.err
    assert "mistake 2" in logged.out + logged.err
