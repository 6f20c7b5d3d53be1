"""The calls about which items of a task are to be had, and about user vectors."""

import base64
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Struct, UnsetType

from peterrec_client.administering import CHANGE_TIMEOUT_S
from peterrec_client.answers import (
    Availability,
    AvailabilityChanged,
    FailedInstance,
    UserVector,
    UserVectors,
)
from peterrec_client.call import Call, Repeat
from peterrec_client.kinds import ItemId
from peterrec_client.questions import UnknownItems, check_items, encode

Encoding = Literal["float32", "base64_float32", "base64_float16"]


class _AvailabilityBody(Struct, frozen=True, omit_defaults=True):
    unavailable: Sequence[ItemId] | UnsetType = UNSET
    available: Sequence[ItemId] | UnsetType = UNSET


class _VectorInstance(Struct, frozen=True):
    history: Sequence[ItemId]


class _VectorParameters(Struct, frozen=True, omit_defaults=True):
    encoding: Encoding
    task: str | None = None
    version: int | str | None = None
    unknown_items: UnknownItems | None = None
    backbone: str | None = None


class _VectorsBody(Struct, frozen=True):
    instances: Sequence[_VectorInstance]
    parameters: _VectorParameters


class _VectorSlot(Struct, frozen=True):
    vector: str
    used_items: int
    unknown_items: int
    truncated: bool
    cold: bool


class _VectorsAnswer(Struct, frozen=True):
    backbone: str
    dimensions: int
    registry_revision: int
    request_id: str
    vectors: list[dict[str, object]]
    task: str | None = None
    version: int | None = None
    digest: str | None = None


def availability(task: str) -> Call[Availability]:
    """Read which of a task's items are to be had."""
    return Call("GET", _path(task), msgspec.json.Decoder(Availability).decode)


def put_availability(
    task: str,
    unavailable: Sequence[ItemId] | None,
    available: Sequence[ItemId] | None,
    if_revision: int | None,
) -> Call[AvailabilityChanged]:
    """Replace the list. Putting the same list again changes nothing."""
    if (unavailable is None) == (available is None):
        raise TypeError("give either unavailable or available")
    check_items(unavailable, "unavailable")
    check_items(available, "available")
    body = _AvailabilityBody(
        UNSET if unavailable is None else unavailable, UNSET if available is None else available
    )
    return Call(
        "PUT",
        _path(task),
        msgspec.json.Decoder(AvailabilityChanged).decode,
        encode(body),
        headers=_if_match(if_revision),
        repeat=Repeat.ALWAYS if if_revision is None else Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def delete_availability(task: str, if_revision: int | None) -> Call[AvailabilityChanged]:
    """Remove the list."""
    return Call(
        "DELETE",
        _path(task),
        msgspec.json.Decoder(AvailabilityChanged).decode,
        headers=_if_match(if_revision),
        repeat=Repeat.ALWAYS if if_revision is None else Repeat.IF_UNSENT,
        timeout_s=CHANGE_TIMEOUT_S,
    )


def vectors(
    histories: Sequence[Sequence[ItemId]],
    task: str | None,
    version: int | str | None,
    unknown_items: UnknownItems | None,
    is_half: bool,
    timeout_s: float | None,
    backbone: str | None = None,
) -> Call[UserVectors]:
    """Request the user vectors of up to 256 histories, as bytes, which are the shortest."""
    for history in histories:
        check_items(history, "history")
    encoding: Encoding = "base64_float16" if is_half else "base64_float32"
    body = _VectorsBody(
        [_VectorInstance(history) for history in histories],
        _VectorParameters(encoding, task, version, unknown_items, backbone),
    )
    return Call(
        "POST",
        "/users/vectors",
        lambda answer: _read(answer, is_half=is_half),
        encode(body),
        timeout_s=timeout_s,
    )


def _read(body: bytes, *, is_half: bool) -> UserVectors:
    answer = _decode(body)
    return UserVectors(
        backbone=answer.backbone,
        dimensions=answer.dimensions,
        dtype="<f2" if is_half else "<f4",
        registry_revision=answer.registry_revision,
        request_id=answer.request_id,
        vectors=tuple(map(_slot, answer.vectors)),
        task=answer.task,
        version=answer.version,
        digest=answer.digest,
    )


def _slot(fields: dict[str, object]) -> UserVector | FailedInstance:
    if fields.get("kind") == "error":
        return msgspec.convert(fields, FailedInstance)
    slot = msgspec.convert(fields, _VectorSlot)
    return UserVector(
        base64.b64decode(slot.vector),
        slot.used_items,
        slot.unknown_items,
        slot.truncated,
        slot.cold,
    )


_decode = msgspec.json.Decoder(_VectorsAnswer).decode


def _path(task: str) -> str:
    return f"/tasks/{quote(task, safe='')}/availability"


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}
