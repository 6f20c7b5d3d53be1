"""Profiles of this server's processes: by py-spy, from outside; by torch, of what it computes."""

import asyncio
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from peterrec.service.errors import (
    DeadlineExceeded,
    MalformedRequest,
    ProfileFailed,
    ProfilerBusy,
)
from peterrec.service.predict.device_link import DeviceLink

ProcessName = Literal["device", "worker", "supervisor"]
"""What can be profiled. ``worker`` is the one that answers the call."""

ProfileForm = Literal["flamegraph", "speedscope", "raw", "chrome"]
"""``chrome`` has the operations of the device process, which torch's profiler records."""

PROCESSES: tuple[ProcessName, ...] = get_args(ProcessName)

MEDIA_TYPES: Mapping[ProfileForm, str] = {
    "flamegraph": "image/svg+xml",
    "speedscope": "application/json",
    "raw": "text/plain; charset=utf-8",
    "chrome": "application/json",
}

RATE_HZ = 100
"""Looks per second, as py-spy has it by default."""

NICENESS = 10
"""py-spy gives way to the processes that it looks at."""

PATIENCE_S = 15.0
"""Seconds that py-spy may take in addition to those of the profile."""

TORCH_PATIENCE_S = 60.0
"""The same of torch's profiler, which first looks for the GPU's own, and at last writes it all."""

SHOWN_ERROR = 300
"""Characters of py-spy's words that an error repeats."""

NOTHING_SEEN = "No stack counts found"
"""What py-spy says of a process all of whose threads waited."""


@dataclass(frozen=True, slots=True)
class Profiler:
    """Makes one profile at a time for all workers of a server: ``lock`` is a file of theirs.

    ``find`` returns the process ids by their names; 0 if a process does not run. ``link`` leads to
    the device process.
    """

    lock: Path
    find: Mapping[ProcessName, Callable[[], int]]
    link: DeviceLink

    async def record(
        self, process: ProcessName, seconds: int, form: ProfileForm, *, idle: bool = False
    ) -> bytes:
        """Look at a process for some seconds, and return the profile in a form.

        With ``idle``, threads that wait are in it, too. Raises ProfilerBusy, ProfileFailed, or
        MalformedRequest if the form can't be had of the process.
        """
        if form == "chrome" and process != "device":
            raise MalformedRequest(
                f"there is no profile of this form of the {process}.", hint="process=device has it."
            )
        with self._alone(), tempfile.TemporaryDirectory(prefix="profile-") as folder:
            file = Path(folder) / "profile"
            if form == "chrome":
                await self._record_operations(file, seconds)
                return await asyncio.to_thread(file.read_bytes)
            command = [_program(), "record", "--pid", str(self.find[process]())]
            command += ["--duration", str(seconds), "--rate", str(RATE_HZ), "--nonblocking"]
            command += ["--format", form, "--output", str(file)]
            command += ["--idle"] if idle else []
            await _run(command, seconds + PATIENCE_S)
            return await asyncio.to_thread(file.read_bytes)

    async def _record_operations(self, file: Path, seconds: int) -> None:
        try:
            problem = await self.link.profile(str(file), seconds, seconds + TORCH_PATIENCE_S)
        except DeadlineExceeded:
            problem = f"it took longer than {seconds + TORCH_PATIENCE_S:g} s."
        if problem:
            raise ProfileFailed("torch's profiler", problem[:SHOWN_ERROR])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProfilerBusy from None
            yield
        finally:
            os.close(descriptor)


async def _run(command: list[str], limit_s: float) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        async with asyncio.timeout(limit_s):
            _, said = await process.communicate()
    except TimeoutError:
        raise ProfileFailed("py-spy", f"it took longer than {limit_s:g} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ProfileFailed("py-spy", _reason(said.decode(errors="replace")))


def _reason(said: str) -> str:
    """Return why py-spy failed, from what it wrote to stderr."""
    if NOTHING_SEEN in said:
        return "the process did nothing in that time; with idle=true it shows where it waits."
    first = (line for line in said.splitlines() if line.startswith("Error"))
    return next(first, said.strip())[:SHOWN_ERROR]


def _program() -> str:
    """Return py-spy of this Python's installation, or of the path."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.is_file() else shutil.which("py-spy")
    if found is None:
        raise ProfileFailed("py-spy", "pip install 'peterrec-serving[profiling]' installs it.")
    return found
