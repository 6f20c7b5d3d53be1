"""Child processes that are restarted when they die, and stopped in order."""

import asyncio
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from peterrec.service.processes.liveness import LOOK_INTERVAL_S, Liveness
from peterrec.service.system.pulse import Pulse
from peterrec.service.telemetry.events import DIED, ChildRestarted, Emit

log = structlog.get_logger()

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
"""Seconds between two starts of a child that keeps dying; doubled each time."""

STABLE_AFTER_S = 10.0
"""Seconds of life after which a child counts as stable: its next pause is the first one again."""

EXIT_REFUSED = 3
"""Exit status of a child that can't start, and would fail again if it were restarted."""

DUMP_S = 1.0
"""Seconds that a child which hangs has to write its threads' stacks to the log."""


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """How to start a child process.

    ``kind`` is ``device`` or ``worker``; ``inherited`` are descriptors that the child keeps open.
    ``pulse`` is the file where it shows its progress; after ``hang_limit_s`` without any, it hangs.
    """

    kind: str
    arguments: Sequence[str]
    environment: dict[str, str]
    pulse: Path
    hang_limit_s: float
    inherited: Sequence[int] = ()


class Child:
    """One child process, restarted whenever it dies or hangs until ``terminate``."""

    def __init__(self, command: ChildCommand, emit: Emit) -> None:
        self._command = command
        self._emit = emit
        self._process: Process | None = None
        self._is_stopping = False
        self._hung = ""
        self.deaths = 0
        self.has_refused = False
        self.kind = command.kind

    def start(self) -> None:
        """Start the child, and a task of the running loop that restarts it."""
        self._keeper = asyncio.create_task(self._keep())

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the child to end; it is not restarted."""
        self._is_stopping = True
        self._signal(number)

    async def wait(self, timeout_s: float) -> None:
        """Wait for the child's end after ``terminate``; kill it at the deadline."""
        done, _ = await asyncio.wait([self._keeper], timeout=timeout_s)
        if not done:
            log.error("child_killed", child=self.kind, after_s=timeout_s)
            self._signal(signal.SIGKILL)
            await self._keeper

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._is_stopping:
            started = time.monotonic()
            code = await self._run()
            if self._is_stopping:
                return
            self.deaths += 1
            self.has_refused = code == EXIT_REFUSED
            log.error("child_died", child=self.kind, code=code)
            self._emit(ChildRestarted(self.kind, self._hung or DIED))
            if time.monotonic() - started > STABLE_AFTER_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _run(self) -> int:
        """Start the child and wait for its end. Its standard input closes if this process ends."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command.arguments,
            stdin=asyncio.subprocess.PIPE,
            env=self._command.environment,
            pass_fds=self._command.inherited,
            start_new_session=True,  # only the supervisor handles Ctrl-C
        )
        if self._is_stopping:
            self._signal(signal.SIGTERM)
        watching = asyncio.create_task(self._end_if_hung(self._process))
        try:
            return await self._process.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _end_if_hung(self, process: Process) -> None:
        """End the child if it hangs: at first so that it writes its threads' stacks to the log."""
        self._hung = ""
        liveness = Liveness(Pulse.at(self._command.pulse), self._command.hang_limit_s)
        while not self._hung:
            await asyncio.sleep(LOOK_INTERVAL_S)
            if self._is_stopping:
                return
            self._hung = liveness.look(process.pid)
        silent_s = round(liveness.silent_s, 1)
        log.error("child_hangs", child=self.kind, reason=self._hung, silent_s=silent_s)
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)  # a stopped process takes no other signal but SIGKILL
        await asyncio.sleep(DUMP_S)
        self._signal(signal.SIGKILL)
