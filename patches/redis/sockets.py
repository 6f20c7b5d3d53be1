"""Private folders for unix sockets, whose paths must be short."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from peterrec.model.scratch import ScratchFolder, remove_abandoned
from peterrec.patches.errors import NoSocketFolder

SOCKET_PATH_LIMIT = 103
"""Bytes that a unix socket's path may have: 103 on macOS, 107 on Linux."""

LONGEST_SOCKET_NAME = len("redis.sock")
"""Characters of the longest name that a socket in such a folder has."""


def make_socket_folder(data_dir: Path) -> ScratchFolder:
    """Make a folder that only this user may enter, where a socket's path is not too long.

    It is in the folder for temporary files, or in ``/tmp``, or in the data directory: whichever
    can be written first. NoSocketFolder with every reason if none can. Folders of processes that
    were killed are removed from all of these places.
    """
    reasons = []
    for parent in _parents(data_dir):
        remove_abandoned(parent)
    for parent in _parents(data_dir):
        try:
            folder = ScratchFolder(parent)
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror or error}")
            continue
        if len(os.fsencode(folder.path)) + 1 + LONGEST_SOCKET_NAME <= SOCKET_PATH_LIMIT:
            return folder
        folder.remove()
        reasons.append(f"{parent}: the path is longer than a socket's may be")
    raise NoSocketFolder(reasons)


def _parents(data_dir: Path) -> list[Path]:
    parents = [Path("/tmp"), data_dir.absolute()]  # noqa: S108  # mkdtemp makes a private folder
    with suppress(OSError):  # there may be no folder for temporary files at all
        parents.insert(0, Path(tempfile.gettempdir()))
    return list(dict.fromkeys(parents))
