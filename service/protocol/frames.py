"""Messages on a stream: each comes after its length, four bytes in little endian order."""

import struct
from collections.abc import Iterable

LENGTH = struct.Struct("<I")


def join_frames(messages: Iterable[bytes]) -> bytes:
    """Return messages as they pass through a stream."""
    return b"".join([part for each in messages for part in (LENGTH.pack(len(each)), each)])


class FrameReader:
    """Splits what comes out of one stream into its messages."""

    def __init__(self) -> None:
        self._begun = bytearray()  # of a message that has not arrived whole
        self._needed = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; return the messages that are complete with them."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._needed:
                return []  # looked at once it is whole: large messages come in many parts
            data = bytes(self._begun)
        messages: list[bytes] = []
        start, end = 0, len(data)
        self._needed = LENGTH.size
        while end - start >= LENGTH.size:
            begin = start + LENGTH.size
            stop = begin + LENGTH.unpack_from(data, start)[0]
            if stop > end:
                self._needed = stop - start
                break
            messages.append(data[begin:stop])
            start = stop
        self._begun = bytearray(data[start:]) if start < end else bytearray()
        return messages
