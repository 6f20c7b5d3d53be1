"""Bodies in JSON or MessagePack → typed requests; an error names the place in the body."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, TooManyRows, TooManyValues, cut
from peterrec.service.predict.body_hints import (
    DOCS,
    PREDICT,
    PREDICT_USER,
    VECTORS,
    BodyForm,
    query_hint,
    repeated_field,
    schema_hint,
    syntax_hint,
)
from peterrec.service.predict.schemas import (
    MAX_INSTANCES,
    Instance,
    LooseRequest,
    Parameters,
    PredictRequest,
    UsersPredictRequest,
)
from peterrec.service.predict.user_vectors import (
    LooseVectorsRequest,
    VectorInstance,
    VectorsAsked,
    VectorsRequest,
)

LARGE_BODY_BYTES = 64 << 10
"""Smaller bodies are decoded within a millisecond or two, whatever is in them."""

MAX_VALUES = 131_072
"""Most values of one body: 256 histories of 512 items. Decoding them takes a few milliseconds, in
which a worker's event loop does nothing else."""

MAX_DIGITS = 1000
"""Most digits in a row of a large body: the time that a number takes grows with their square."""

SHOWN_PROBLEM = 200
"""Characters of a decoder's message that an answer repeats: it may quote the caller's own text."""

MAX_HINTS = 8
"""Bad instances of one call whose error has a hint of its own: finding one takes a while."""

WHOLE_OPTIONS = ("top_k", "explain", "items", "newest")
"""Fields of bodies that are whole numbers within bounds."""

LARGEST_USER_ID = 10**64
"""User ids that are numbers are smaller: each answer of a call repeats them."""

_DIGITS_ALONE = bytes(9 if chr(at).isdigit() and at < 128 else 0 for at in range(256))
_TOO_MANY_DIGITS = bytes([9]) * (MAX_DIGITS + 1)

_decode_request = msgspec.json.Decoder(PredictRequest).decode
_decode_instance = msgspec.json.Decoder(Instance).decode
_decode_vectors_request = msgspec.json.Decoder(VectorsRequest).decode
_decode_vectors_instance = msgspec.json.Decoder(VectorInstance).decode
_decode_users_request = msgspec.json.Decoder(UsersPredictRequest).decode


AnyInstance = TypeVar("AnyInstance", Instance, VectorInstance)
LooseBody = TypeVar("LooseBody", LooseRequest, LooseVectorsRequest)


class ParsedPredict(NamedTuple):
    """The instances of a call, each valid or an error, and its parameters."""

    instances: list[Instance | PeterRecError]
    parameters: Parameters


def parse_predict(body: bytes) -> ParsedPredict:
    """Parse a predict body. A bad instance among several becomes an error in its own place."""
    check_cost(body)
    try:
        request = _decode_request(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        whole = _with_whole_numbers(body, error)
        return _parse_loosely(body, error) if whole is None else parse_predict(whole)
    _check_names(body, 1 if request.instances is UNSET else len(request.instances))
    return _settled(request)


def _settled(request: PredictRequest) -> ParsedPredict:
    """Return the instances of a request whose fields are right, also together."""
    _check_user_id(request.user_id)
    if request.history is not UNSET and request.instances is UNSET:
        return ParsedPredict([Instance(request.history, request.user_id)], request.parameters)
    if request.instances is not UNSET and request.history is UNSET and request.user_id is None:
        return ParsedPredict(list(map(_checked, request.instances)), request.parameters)
    raise _contradictory(request)


def parse_users_predict(body: bytes) -> UsersPredictRequest:
    """Parse a body that asks many tasks about one history."""
    check_cost(body)
    try:
        request = _decode_users_request(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        whole = _with_whole_numbers(body, error)
        if whole is not None:
            return parse_users_predict(whole)
        raise _malformed(PREDICT_USER, body, error) from error
    _check_user_id(request.user_id)
    _check_names(body, 1)
    return request


class ParsedVectors(NamedTuple):
    """The instances of a call for vectors, each valid or an error, and its parameters."""

    instances: list[VectorInstance | PeterRecError]
    parameters: VectorsAsked


def parse_vectors(body: bytes) -> ParsedVectors:
    """Parse a body that asks for user vectors, with errors as in ``parse_predict``."""
    check_cost(body)
    try:
        request = _decode_vectors_request(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        loose = _split(body, LooseVectorsRequest, VECTORS, error)
        decoded = _decoded_each(loose.instances, _decode_vectors_instance, VECTORS)
        return ParsedVectors(decoded, loose.parameters)
    _check_names(body, 1 if request.instances is UNSET else len(request.instances))
    _check_user_id(request.user_id)
    if request.history is not UNSET and request.instances is UNSET:
        return ParsedVectors([VectorInstance(request.history, request.user_id)], request.parameters)
    if request.instances is not UNSET and request.history is UNSET and request.user_id is None:
        return ParsedVectors(list(map(_checked, request.instances)), request.parameters)
    raise _contradictory(request)


def parse_instance(line: bytes) -> Instance:
    """Parse one user of a stream of lines; MalformedRequest says where it is wrong."""
    check_cost(line)
    try:
        instance = _decode_instance(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _malformed(PREDICT, line, error) from error
    _check_names(line, 1)
    _check_user_id(instance.user_id)
    return instance


def instance_of(history: object, user_id: object) -> Instance:
    """Check one user of a table; MalformedRequest says where it is wrong."""
    try:
        instance = msgspec.convert({"history": history, "user_id": user_id}, Instance)
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"the row is wrong: {error}.", hint=DOCS) from error
    _check_user_id(instance.user_id)
    return instance


def check_cost(body: bytes) -> None:
    """Refuse a body that would keep the event loop busy, before it is decoded."""
    if len(body) <= LARGE_BODY_BYTES:
        return
    if body.count(b",") >= MAX_VALUES:
        raise TooManyValues(MAX_VALUES)
    if _TOO_MANY_DIGITS in body.translate(_DIGITS_ALONE):
        raise MalformedRequest(
            f"the body has a number of more than {MAX_DIGITS} digits.",
            hint=f"Ids are short texts or whole numbers. {DOCS}",
        )


def _with_whole_numbers(body: bytes, error: Exception) -> bytes | None:
    """Return a refused body in which options such as 5.0 are written as 5; None if it has none.

    To JSON Schema, and so to those who generate clients or tests from ours, both are one whole
    number. Ids stay as they are: an item 5.0 is a mistake.
    """
    if len(body) > LARGE_BODY_BYTES or "got `float`" not in str(error):
        return None
    try:
        found = msgspec.json.decode(body)
        return msgspec.json.encode(found) if _make_whole(found) else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # what comes after the first mistake is no JSON, or nested too deeply


def _make_whole(value: object) -> bool:
    """Make the options in a document whole where they are; return whether one was not."""
    if isinstance(value, list):
        return sum(map(_make_whole, value)) > 0
    if not isinstance(value, dict):
        return False
    floats = [name for name in WHOLE_OPTIONS if isinstance(value.get(name), float)]
    changed = [name for name in floats if value[name].is_integer()]
    value.update({name: int(value[name]) for name in changed})
    return len(changed) + sum(map(_make_whole, value.values())) > 0


def _check_user_id(user_id: str | int | None) -> None:
    if isinstance(user_id, int) and abs(user_id) >= LARGEST_USER_ID:
        digits = len(str(LARGEST_USER_ID)) - 1
        raise MalformedRequest(
            f"`user_id` is a number of more than {digits} digits.", hint="Send it as a text."
        )


def _checked(instance: AnyInstance) -> AnyInstance | PeterRecError:
    """Return an instance, or the error of its user id."""
    try:
        _check_user_id(instance.user_id)
    except MalformedRequest as error:
        return error
    return instance


def _check_names(body: bytes, histories: int) -> None:
    """Refuse a field that occurs twice in one object, of which the decoder takes the last.

    All fields are checked only if "history" occurs more often than there are histories, which it
    does in bodies of two and where it is an item's id: counting takes a fraction of a microsecond.
    And if there is a filter, in which a second condition on an attribute would be ignored.
    """
    has_filter = b'"where"' in body and len(body) <= LARGE_BODY_BYTES
    if body.count(b'"history"') > histories or has_filter:
        twice = repeated_field(body)
        if twice is not None:
            raise MalformedRequest(
                f"field {twice[:60]!r} occurs twice in one object.",
                hint=f"Several conditions on an attribute are one object. {DOCS}"
                if has_filter
                else f"Several histories are entries of `instances`. {DOCS}",
            )


def query_refused(form: BodyForm, query: bytes) -> MalformedRequest:
    """Return the error of a prediction with parameters in its URL, which has none.

    They are refused because a version or number of items there would be ignored.
    """
    name = next(iter(parse_qs(query.decode("latin-1"), keep_blank_values=True)), "")
    return MalformedRequest(
        f"a prediction has no query parameters, such as {name[:60]!r}.",
        hint=query_hint(form, name),
    )


def _contradictory(request: PredictRequest | VectorsRequest) -> MalformedRequest:
    """Return the error of a body whose parts are right, but not together."""
    needed = "the body needs either history or instances"
    if request.history is UNSET and request.instances is UNSET:
        hint = f"Send one user's history: {PREDICT.example}; an empty list is a cold start. {DOCS}"
        return MalformedRequest(f"{needed}; it has neither.", hint=hint)
    if request.history is not UNSET and request.instances is not UNSET:
        hint = f"Make the history an entry of instances. {DOCS}"
        return MalformedRequest(f"{needed}; it has both.", hint=hint)
    hint = f"`user_id` belongs in each entry of `instances`. {DOCS}"
    return MalformedRequest("the body has one user_id for several instances.", hint=hint)


def _parse_loosely(body: bytes, reason: Exception) -> ParsedPredict:
    request = _split(body, LooseRequest, PREDICT, reason)
    decoded = _decoded_each(request.instances, _decode_instance, PREDICT)
    return ParsedPredict(decoded, request.parameters)


def _decoded_each(
    raws: Sequence[msgspec.Raw], decode: Callable[[msgspec.Raw], AnyInstance], form: BodyForm
) -> list[AnyInstance | PeterRecError]:
    """Decode the instances one by one: a bad one becomes an error in its own place."""
    _check_count(len(raws))
    instances: list[AnyInstance | PeterRecError] = []
    failed = 0
    for at, raw in enumerate(raws):
        try:
            instances.append(_checked(decode(raw)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            failed += 1
            within, has_hint = f"$.instances[{at}]", failed <= MAX_HINTS
            instances.append(_malformed(form, b"{}", error, within, has_hint=has_hint))
    return instances


def _check_count(count: int) -> None:
    if count > MAX_INSTANCES:
        raise TooManyRows(
            f"the call has {count} instances, at most {MAX_INSTANCES} are accepted.",
            hint="Split it.",
        )


def _split(body: bytes, kind: type[LooseBody], form: BodyForm, reason: Exception) -> LooseBody:
    """Split a body that was refused for a ``reason`` into its instances; malformed without any.

    msgspec refuses half of a surrogate pair wherever it is, so Python's decoder finds the instance
    that has it, which then fails alone.
    """
    try:
        split = _decode_loosely(body, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _malformed(form, body, reason) from reason
    if not split.instances:
        raise _malformed(form, body, reason) from reason
    return split


def _decode_loosely(body: bytes, kind: type[LooseBody]) -> LooseBody:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        found = json.loads(body, parse_constant=_refuse_constant)
        if isinstance(found, dict) and isinstance(found.get("instances"), list):
            found["instances"] = [_as_raw(each) for each in found["instances"]]
        return msgspec.convert(found, kind)


def _as_raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _malformed(
    form: BodyForm, body: bytes, error: Exception, within: str = "$", *, has_hint: bool = True
) -> MalformedRequest:
    """Return the error of a body, or of the part ``within`` it, with its place and a hint."""
    problem = str(error).replace("got `None`", "got `null`")  # msgspec's name for it in MessagePack
    text, _, place = problem.rpartition(" - at `$")
    if not isinstance(error, msgspec.ValidationError):
        what = "the body" if within == "$" else within
        hint = syntax_hint(form, body) if has_hint else DOCS
        if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in str(error):
            # msgspec raises the first before version 0.23, and a DecodeError since.
            return MalformedRequest(f"{what} is not UTF-8.", hint=hint)
        return MalformedRequest(f"{what} is not JSON: {cut(str(error), SHOWN_PROBLEM)}.", hint=hint)
    text, where = (text, within + place[:-1]) if text else (problem, within)
    text = cut(text, SHOWN_PROBLEM)
    hint = schema_hint(form, text, where) if has_hint else DOCS
    return MalformedRequest(f"{text} at {where}.", hint=hint)


_decode_packed = msgspec.msgpack.Decoder(PredictRequest).decode
_decode_packed_users = msgspec.msgpack.Decoder(UsersPredictRequest).decode
_decode_packed_loosely = msgspec.msgpack.Decoder(LooseRequest).decode
_decode_packed_instance = msgspec.msgpack.Decoder(Instance).decode
_walk_packed = msgspec.msgpack.Decoder(msgspec.Raw).decode

NOT_PACKED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _PackedLists(msgspec.Struct, frozen=True):
    """The lists of a body in MessagePack, not decoded yet."""

    history: msgspec.Raw = msgspec.Raw()
    exclude: msgspec.Raw = msgspec.Raw()
    candidates: msgspec.Raw = msgspec.Raw()
    instances: msgspec.Raw = msgspec.Raw()
    tasks: msgspec.Raw = msgspec.Raw()


_find_lists = msgspec.msgpack.Decoder(_PackedLists).decode
_find_list_items = msgspec.msgpack.Decoder(list[_PackedLists]).decode


def parse_packed_predict(body: bytes) -> ParsedPredict:
    """Parse a predict body in MessagePack, with the same bounds and errors as one in JSON."""
    _check_packed(body)
    try:
        request = _decode_packed(body)
    except NOT_PACKED as error:
        return _parse_packed_loosely(body, error)
    _check_packed_names(body, 1 if request.instances is UNSET else len(request.instances))
    return _settled(request)


def parse_packed_users_predict(body: bytes) -> UsersPredictRequest:
    """Parse a body in MessagePack that asks many tasks about one history."""
    _check_packed(body)
    try:
        request = _decode_packed_users(body)
    except NOT_PACKED as error:
        raise _malformed_packed(PREDICT_USER, error) from error
    _check_user_id(request.user_id)
    _check_packed_names(body, 1)
    return request


def _check_packed(body: bytes) -> None:
    """Refuse a body that would cost much memory or time, before it is decoded.

    A list is decoded into as much memory as its announced length needs, so a walk that decodes
    nothing finds lengths that go beyond the body first.
    """
    try:
        _walk_packed(body)
    except NOT_PACKED as error:
        raise _malformed_packed(PREDICT, error) from error
    if len(body) > LARGE_BODY_BYTES and sum(_list_lengths(body)) > MAX_VALUES:
        raise TooManyValues(MAX_VALUES)


def _list_lengths(body: bytes) -> Iterator[int]:
    """Return the lengths of the lists in a body, as far as it has the form of a request."""
    try:
        whole = _find_lists(body)
        _check_count(_length(whole.instances))
        parts = [whole, *(_find_list_items(whole.instances) if whole.instances else ())]
    except NOT_PACKED:
        return  # decoding it will end at the same place
    for each in parts:
        yield from map(_length, (each.history, each.exclude, each.candidates, each.tasks))


def _length(packed: msgspec.Raw) -> int:
    """Return how many elements a packed list has; 0 if it is none."""
    data = bytes(memoryview(packed)[:5])
    first = data[0] if data else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first in (0xDC, 0xDD):
        return int.from_bytes(data[1:3] if first == 0xDC else data[1:5], "big")
    return 0


def _check_packed_names(body: bytes, histories: int) -> None:
    """Refuse a field that occurs twice in one map, of which the decoder takes the last.

    Packing what was decoded again shows whether one was dropped, if "history" occurs so often.
    """
    found = body.count(b"history")
    if found > histories and found > msgspec.msgpack.encode(msgspec.msgpack.decode(body)).count(
        b"history"
    ):
        raise MalformedRequest(
            "field 'history' occurs twice in one object.",
            hint=f"Several histories are entries of `instances`. {DOCS}",
        )


def _parse_packed_loosely(body: bytes, reason: Exception) -> ParsedPredict:
    try:
        request = _decode_packed_loosely(body)
    except NOT_PACKED:
        raise _malformed_packed(PREDICT, reason) from reason
    if not request.instances:
        raise _malformed_packed(PREDICT, reason) from reason
    decoded = _decoded_each(request.instances, _decode_packed_instance, PREDICT)
    return ParsedPredict(decoded, request.parameters)


def _malformed_packed(form: BodyForm, error: Exception) -> MalformedRequest:
    if isinstance(error, msgspec.ValidationError):
        return _malformed(form, b"{}", error)
    return MalformedRequest(
        f"the body is not MessagePack: {cut(str(error), SHOWN_PROBLEM)}.",
        hint=f"Texts in it are UTF-8. Its fields are those of JSON. {DOCS}",
    )
