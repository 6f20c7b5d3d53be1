"""What a push costs in reads: the kernel counts how often the upload is opened for reading."""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from peterrec.patches.identity import parse_digest
from tests.e2e.conftest import push
from tests.e2e.running import RunningServer
from tests.service.random_bundles import Workshop

IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_DELETE = 0x10, 0x08, 0x200
EVENT = struct.Struct("iIII")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


class FolderWatch:
    """The events of one folder's files, as inotify reports them."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = self._libc.inotify_init1(os.O_NONBLOCK)
        mask = IN_CLOSE_NOWRITE | IN_CLOSE_WRITE | IN_DELETE
        assert self._libc.inotify_add_watch(self._number, os.fsencode(folder), mask) > 0

    def events(self) -> list[tuple[int, str]]:
        """What happened since the last call, as mask and file name; not the folder itself."""
        try:
            data = os.read(self._number, 1 << 16)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(data):
            _, mask, _, length = EVENT.unpack_from(data, at)
            at += EVENT.size
            name = data[at : at + length].rstrip(b"\0").decode()
            at += length
            if name:
                found.append((mask, name))
        return found

    def close(self) -> None:
        os.close(self._number)


@pytest.fixture
def uploads(server: RunningServer) -> Iterator[FolderWatch]:
    watch = FolderWatch(server.folder / "data" / "spool")
    yield watch
    watch.close()


@pytest.mark.parametrize("parameters", [{}, {"validate_only": "true"}])
def test_a_pushed_bundle_is_opened_for_reading_once(
    api: httpx.Client, uploads: FolderWatch, workshop: Workshop, parameters: dict[str, str]
) -> None:
    push(api, "read-once", workshop.bundle("ranking", seed=71), **parameters)
    masks = [mask for mask, _ in uploads.events()]
    assert masks.count(IN_CLOSE_NOWRITE) == 1
    assert masks[-1] == IN_DELETE


def test_a_refused_bundle_is_opened_for_reading_once(
    api: httpx.Client, uploads: FolderWatch, workshop: Workshop
) -> None:
    bundle = workshop.bundle("value", seed=72)[:-100]
    assert api.post("/tasks/read-once/versions", content=bundle).status_code == 422
    assert [mask for mask, _ in uploads.events()].count(IN_CLOSE_NOWRITE) == 1


def test_what_was_read_once_is_what_the_registry_and_the_cache_hold(
    server: RunningServer, api: httpx.Client, workshop: Workshop
) -> None:
    bundle = workshop.bundle("tags", seed=73)
    answer = push(api, "read-once", bundle, allow_new_outputs="true").json()
    cached = server.folder / "data" / "cache" / f"{parse_digest(answer['digest'])}.bundle"
    assert cached.read_bytes() == bundle
    assert answer["version"] is not None
