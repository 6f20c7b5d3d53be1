"""Content codings of HTTP bodies, with a bound for what a body expands to."""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache

import brotli
import zstandard

from peterrec.service.errors import BodyTooLarge, EncodingUnsupported, MalformedRequest

MIN_COMPRESSED_BYTES = 1024
"""Smallest answer that is compressed: a smaller one fits into one packet anyway."""

BLOCKING_BYTES = 64 << 10
"""Bytes that are compressed on the event loop, in about a millisecond; more go to a thread."""

MAX_WINDOW_BYTES = 8 << 20
"""Memory that a zstd body may ask for: what RFC 8878, section 3.1.1.1.2, recommends."""

LEVELS = {"zstd": 1, "br": 3, "gzip": 1, "deflate": 1}
"""How hard answers are compressed: the levels at which each takes 5 to 20 ns per byte."""


def _gunzip(body: bytes, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    room = limit_bytes + 1
    while body and room:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        parts.append(member.decompress(body, room))
        room -= len(parts[-1])
        if room and not member.eof:
            raise zlib.error("the data end early")
        body = member.unused_data
    return b"".join(parts)


def _inflate(body: bytes, limit_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    decoded = stream.decompress(body, limit_bytes + 1)
    if len(decoded) <= limit_bytes and not stream.eof:
        raise zlib.error("the data end early")
    return decoded


def _unbrotli(body: bytes, limit_bytes: int) -> bytes:
    stream = brotli.Decompressor()
    parts = [stream.process(body, output_buffer_limit=limit_bytes + 1)]
    size = len(parts[0])
    while not stream.is_finished() and parts[-1] and size <= limit_bytes:
        parts.append(stream.process(b"", output_buffer_limit=limit_bytes + 1 - size))
        size += len(parts[-1])
    if size <= limit_bytes and not stream.is_finished():
        raise brotli.error("the data end early")
    return b"".join(parts)


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    stream = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with stream.stream_reader(body, read_across_frames=True) as reader:
        return reader.read(limit_bytes + 1)


DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "zstd": _unzstd,
    "br": _unbrotli,
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
}
"""Each gives the first bytes of what a body stands for, at most one more than the limit."""

ENCODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "zstd": lambda body: zstandard.ZstdCompressor(level=LEVELS["zstd"]).compress(body),
    "br": lambda body: brotli.compress(body, quality=LEVELS["br"]),
    "gzip": lambda body: zlib.compress(body, LEVELS["gzip"], zlib.MAX_WBITS | 16),
    "deflate": lambda body: zlib.compress(body, LEVELS["deflate"]),
}
"""The codings of answers; of those that a client likes equally, the first is taken."""

ACCEPTED = ", ".join(ENCODERS)
"""The value of ``Accept-Encoding`` in the refusal of a coding."""

NOT_DECODED = (zlib.error, brotli.error, zstandard.ZstdError)


def find_decoder(content_encoding: bytes) -> Callable[[bytes, int], bytes] | None:
    """Return what decodes a body; None if it is not encoded.

    Raises EncodingUnsupported for a coding that is unknown, and for several at once.
    """
    name = content_encoding.decode("latin-1").strip().lower()
    if name in {"", "identity"}:
        return None
    decoder = DECODERS.get(name)
    if decoder is None:
        raise EncodingUnsupported(name, ACCEPTED)
    return decoder


async def decode_body(
    decoder: Callable[[bytes, int], bytes], body: bytes, limit_bytes: int
) -> bytes:
    """Decode a body in a thread; raise BodyTooLarge if it expands to more than the limit."""
    try:
        decoded = await asyncio.to_thread(decoder, body, limit_bytes)
    except NOT_DECODED as error:
        raise MalformedRequest(
            f"the body is not in its Content-Encoding: {error!s:.100}.",
            hint="Send it compressed as Content-Encoding says, or without that header.",
        ) from error
    if len(decoded) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    return decoded


async def encode_body(accept_encoding: bytes, body: bytes) -> tuple[str, bytes]:
    """Return an answer in the coding that its client prefers, and the coding's name.

    The name is empty if the answer stays as it is.
    """
    name = choose_coding(accept_encoding) if len(body) >= MIN_COMPRESSED_BYTES else ""
    if not name:
        return "", body
    if len(body) > BLOCKING_BYTES:
        return name, await asyncio.to_thread(ENCODERS[name], body)
    return name, ENCODERS[name](body)


@lru_cache(maxsize=256)
def choose_coding(accept_encoding: bytes) -> str:
    """Return the coding that ``Accept-Encoding`` likes best of ours; empty if it likes none."""
    liked: dict[str, float] = {}
    for entry in accept_encoding[:200].decode("latin-1").lower().split(","):
        name, _, parameter = entry.partition(";")
        liked[name.strip()] = _quality(parameter)
    others = liked.get("*", 0.0)
    scores = {name: liked.get(name, others) for name in ENCODERS}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else ""


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
