"""Files to which a run adds a line of JSON whenever something is finished for good.

A run that was killed at any moment goes on after the last line.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peterrec.model.disk import make_folder, refusals, sync
from peterrec.model.documents import Document
from peterrec.service.errors import RunBusy

LOCK_NAME = "lock"


def read_lines(path: Path, *, mends: bool = True) -> list[Document]:
    """Read what there is. A line that a killed run did not end is left out, and removed.

    Without ``mends`` the file stays as it is: somebody else may be writing it.
    """
    if not path.exists():
        return []
    with refusals(path, doing="read"):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if mends and len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append_line(path: Path, line: Document) -> None:
    """Add a line, which is on the disk when this returns."""
    data = json.dumps(line).encode() + b"\n"
    with refusals(path, doing="written", wanted_bytes=len(data)):
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)


@contextmanager
def alone_in(folder: Path, state: str) -> Iterator[None]:
    """Keep every other run out of an output folder; a killed run keeps out nobody.

    The lock is in the folder ``state`` below it.
    """
    make_folder(folder / state)
    path = folder / state / LOCK_NAME
    with refusals(path, doing="written"):
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusy(str(folder)) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(number)
