"""Uploads are streamed to a file with a limit, and never left behind."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peterrec.model.errors import DiskFull
from peterrec.service.errors import BodyTooLarge, MalformedRequest
from peterrec.service.http.upload import WRITE_BYTES, uploaded_file
from tests.full_disk import files_of_at_most


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


def left_in(folder: Path) -> list[Path]:
    return [*folder.iterdir()]


@pytest.mark.parametrize("parts", [(b"a",), (b"ab", b"", b"c"), (bytes(WRITE_BYTES), b"x" * 9)])
async def test_the_file_has_exactly_what_was_sent_and_goes_afterwards(tmp_path, parts):
    async with uploaded_file(chunks(*parts), tmp_path, 1 << 30) as path:
        assert path.read_bytes() == b"".join(parts)
    assert left_in(tmp_path) == []


async def test_a_body_past_the_limit_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(BodyTooLarge, match="more than 10 bytes"):
        async with uploaded_file(chunks(b"x" * 6, b"x" * 5), tmp_path, 10):
            pytest.fail("it was accepted")
    assert left_in(tmp_path) == []


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    with files_of_at_most(1000), pytest.raises(DiskFull, match="2,000 bytes are wanted"):
        async with uploaded_file(chunks(bytes(2000)), tmp_path, 1 << 20):
            pytest.fail("it was accepted")
    assert left_in(tmp_path) == []


async def test_a_body_of_exactly_the_limit_is_accepted(tmp_path):
    async with uploaded_file(chunks(b"x" * 10), tmp_path, 10) as path:
        assert path.stat().st_size == 10


async def test_an_empty_body_is_refused(tmp_path):
    with pytest.raises(MalformedRequest, match="empty"):
        async with uploaded_file(chunks(), tmp_path, 10):
            pytest.fail("it was accepted")
    assert left_in(tmp_path) == []
