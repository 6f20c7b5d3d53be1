"""Messages on a stream come out as they went in, however the stream is cut."""

import pytest

from peterrec.service.protocol.frames import FrameReader, join_frames

MESSAGES = [b"one", b"", b"\0" * 300, b"four"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64, 1000])
def test_messages_come_out_of_parts_of_any_size(size):
    stream, reader = join_frames(MESSAGES), FrameReader()
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [message for part in parts for message in reader.feed(part)] == MESSAGES


def test_what_has_begun_waits_for_its_end():
    reader = FrameReader()
    assert reader.feed(join_frames([b"whole"]) + join_frames([b"begun"])[:-1]) == [b"whole"]
    assert reader.feed(b"") == []
    assert reader.feed(b"n" + join_frames([b"next"])) == [b"begun", b"next"]
