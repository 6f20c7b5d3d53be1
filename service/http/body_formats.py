"""JSON and MessagePack: the formats of the bodies of predictions, chosen by headers."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from peterrec.service.http.asgi import RequestHead, encode_json
from peterrec.service.predict.admission import count_rows
from peterrec.service.predict.parse import (
    ParsedPredict,
    parse_packed_predict,
    parse_packed_users_predict,
    parse_predict,
    parse_users_predict,
)
from peterrec.service.predict.schemas import MAX_INSTANCES, UsersPredictRequest


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """How bodies of one format are read and written. ``protocol`` is their label in the metrics."""

    protocol: str
    content_type: bytes
    problem_type: bytes
    encode: Callable[[object], bytes]
    count_rows: Callable[[bytes], int]
    parse_predict: Callable[[bytes], ParsedPredict]
    parse_users_predict: Callable[[bytes], UsersPredictRequest]


def _count_packed_rows(body: bytes) -> int:
    return min(MAX_INSTANCES, max(1, body.count(b"history")))


JSON = BodyFormat(
    "json",
    b"application/json",
    b"application/problem+json",
    encode_json,
    count_rows,
    parse_predict,
    parse_users_predict,
)
MSGPACK = BodyFormat(
    "msgpack",
    b"application/msgpack",
    b"application/msgpack",
    msgspec.msgpack.Encoder().encode,
    _count_packed_rows,
    parse_packed_predict,
    parse_packed_users_predict,
)

MSGPACK_TYPES = (b"application/msgpack", b"application/x-msgpack", b"application/vnd.msgpack")
"""Names of the media type, of which the last is the registered one and the first the usual one."""


def format_of_body(head: RequestHead) -> BodyFormat:
    """Return the format of a request's body. What is not said to be MessagePack is JSON."""
    if b"msgpack" not in head.content_type.lower():
        return JSON
    media_type = head.content_type.partition(b";")[0].strip().lower()
    return MSGPACK if media_type in MSGPACK_TYPES else JSON


def format_of_answer(head: RequestHead) -> BodyFormat:
    """Return the format that a client wants: what it accepts, else that of its own body."""
    accept = head.accept.lower()
    if not accept or (b"msgpack" not in accept and b"*/*" in accept):
        return format_of_body(head)
    if b"msgpack" not in accept:
        return JSON
    liked = dict(map(_preference, accept.split(b",")[:20]))
    packed = max(liked.get(name, 0.0) for name in MSGPACK_TYPES)
    json = max(liked.get(b"application/json", 0.0), liked.get(b"application/*", 0.0))
    return MSGPACK if packed > 0 and packed >= json else JSON


def _preference(entry: bytes) -> tuple[bytes, float]:
    name, _, parameters = entry.partition(b";")
    for parameter in parameters.split(b";"):
        key, _, value = parameter.partition(b"=")
        if key.strip() == b"q":
            try:
                return name.strip(), float(value)
            except ValueError:
                return name.strip(), 0.0
    return name.strip(), 1.0
