"""Folders for temporary files, which don't outlive the process that made them.

A process that is killed removes nothing. So a scratch folder has a file that its process keeps
locked; the system gives the lock up with the process. Whoever makes the next scratch folder
removes those whose lock is free.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PREFIX = "peterrec-"
LOCK_NAME = ".lock"


class ScratchFolder:
    """An empty folder that only this user may enter, but for its lock, until it is removed.

    It is in ``parent``, by default the folder for temporary files. OSError if that can't be.
    As a context manager, it gives its path.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        unlocked = self.path / f"{LOCK_NAME}.new"  # a file by the final name is always locked
        self._lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks: then nobody else can lock it either
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(self.path / LOCK_NAME)

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def remove_abandoned(parent: Path) -> None:
    """Remove this user's scratch folders in ``parent`` whose processes have ended."""
    with suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if _is_own_folder(folder):
                    _remove_if_abandoned(folder)


def _is_own_folder(folder: Path) -> bool:
    """False for another user's folder, and for a link, which may lead anywhere."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a folder whose lock is free; OSError if it is not, or if there is no lock file."""
    lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def is_alive(pid: int) -> bool:
    """True while a process of this machine has the id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
