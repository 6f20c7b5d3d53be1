"""A real `peterrec serve` as a child process, and what tests can do to it from outside."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.waiting import eventually

START_TIMEOUT_S = 120
STARTED = re.compile(r'PeterRec serves on|"event": "serving"')
"""What a server prints when it is ready, in a text or in a log of JSON objects."""

STOP_TIMEOUT_S = 60

LOOKS_BEHIND = "it looks behind the server, which runs elsewhere"


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
    return port


@dataclass(frozen=True)
class Start:
    """The program to start, the current folder to start it in, and the seconds it may take.

    ``until`` is what it prints or logs when it has come so far as a test needs.
    """

    program: Sequence[str] = (sys.executable, "-P", "-m", "peterrec")
    cwd: Path | None = None
    within_s: float = START_TIMEOUT_S
    until: re.Pattern[str] = STARTED


@dataclass
class RunningServer:
    """One running server. ``key`` is the first key that it printed; empty if it printed none."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    folder: Path
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        """Host and port of gRPC, as the server printed them."""
        found = re.search(r'grpc"?: "?([^\s",]+)', self.out)
        assert found, self.out
        return found.group(1)

    @property
    def out(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "err.txt").read_text()

    def client(self, key: str | None = None) -> httpx.Client:
        """Open a client with ``key``, by default the first key; an empty text sends no key."""
        key = self.key if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def child(self, name: str) -> psutil.Process:
        """Return the device process, a worker or Redis."""
        commands = [(c, " ".join(c.cmdline())) for c in self.children()]
        found = [c for c, command in commands if name in command and "peterrec run-" not in command]
        assert found, f"no {name} among {[c.cmdline() for c in self.children()]}"
        return found[0]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> dict[str, float]:
        """Read every sample, by its name with labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        lines = httpx.get(url, trust_env=False).text.splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def restarts(self, child: str, reason: str = "") -> float:
        """How often a child process was restarted, for one reason or for any."""
        start = f'peterrec_child_restarts_total{{child="{child}",reason="{reason}'
        return sum(count for name, count in self.metrics().items() if name.startswith(start))

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(STOP_TIMEOUT_S)


class ServerElsewhere(RunningServer):
    """A server that somebody else has started.

    Tests may call it; one that looks behind it, at a process, a file or a port of its own, is
    skipped there.
    """

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self.key = key

    @property
    def url(self) -> str:
        return self._address

    @property
    def port(self) -> int:  # type: ignore[override]  # known here, and not to be set
        return httpx.URL(self._address).port or 80

    @property
    def process(self) -> subprocess.Popen[bytes]:  # type: ignore[override]
        pytest.skip(LOOKS_BEHIND)

    @property
    def folder(self) -> Path:  # type: ignore[override]
        pytest.skip(LOOKS_BEHIND)

    @property
    def metrics_port(self) -> int:  # type: ignore[override]
        pytest.skip(LOOKS_BEHIND)


def kill_everything(server: RunningServer) -> None:
    """Kill all processes, the supervisor first because it would restart the others."""
    processes = [psutil.Process(server.process.pid), *server.children()]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    server.wait()
    psutil.wait_procs(processes[1:], timeout=10)


def _port(settings: Mapping[str, object], name: str) -> int:
    """The port that a test chose, or a free one."""
    return int(str(settings.get(name) or free_port()))


@contextmanager
def running_server(
    backbone: Path, folder: Path, *, start: Start = Start(), **settings: object
) -> Iterator[RunningServer]:
    """Start a server, wait until it reports that it serves, and end it even if the test fails."""
    folder.mkdir(parents=True, exist_ok=True)
    port, metrics_port = _port(settings, "port"), _port(settings, "metrics_port")
    given = {
        "backbone_dir": backbone,
        "port": port,
        "metrics_port": metrics_port,
        "data_dir": folder / "data",
        "threads": 1,
        "drain_delay_s": 0.2,
        "log_level": "debug",
        **settings,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {f"PETERREC_{name.upper()}": str(value) for name, value in given.items()}
    with (folder / "out.txt").open("wb") as out, (folder / "err.txt").open("ab") as err:
        process = subprocess.Popen(
            [*start.program, "serve"],
            cwd=start.cwd,
            stdout=out,
            stderr=err,
            env=environment,
        )
    server = RunningServer(process, port, metrics_port, folder)
    try:
        eventually(
            lambda: bool(start.until.search(server.out + server.log)) or process.poll() is not None,
            start.within_s,
        )
        assert process.poll() is None, server.log
        key = re.search(r"prk_\w+", server.out)
        server.key = key.group() if key else ""
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
