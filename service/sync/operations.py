"""What the device thread computes for a few seconds, operation by operation, by torch's profiler.

Unlike py-spy, it sees what a GPU does. It takes part in every operation, so batches are slower
while it runs, and it is bounded in batches as well as in time.
"""

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from peterrec.service.device.loop import DeviceLoop
from peterrec.service.errors import ProfileFailed

Result = TypeVar("Result")

MOST_BATCHES = 100
"""Batches after which a recording ends: a trace has some hundred operations of each."""

MOST_BYTES = 64 << 20
"""Bytes of the largest trace that is given out."""

POLL_S = 0.02


async def record_operations(device: DeviceLoop, path: Path, seconds: int) -> None:
    """Record what the device thread does, and write it as a trace of Chrome's form (JSON).

    Ends after ``MOST_BATCHES``, or when the seconds are over. Raises ProfileFailed.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    recording = profile(activities=activities)
    await _ended(device.submit(recording.start))  # it sees the thread that starts it
    last = device.batches + MOST_BATCHES
    for _ in range(round(seconds / POLL_S)):
        if device.batches >= last:
            break
        await asyncio.sleep(POLL_S)
    await _ended(device.submit(recording.stop))
    await asyncio.to_thread(_write, recording, path)


def _write(recording: profile, path: Path) -> None:
    recording.export_chrome_trace(str(path))
    size = path.stat().st_size
    if size > MOST_BYTES:
        path.unlink()
        raise ProfileFailed("torch's profiler", f"{size} bytes are too many; ask for less time.")


async def _ended(job: Future[Result]) -> Result:
    return await asyncio.wrap_future(job)
