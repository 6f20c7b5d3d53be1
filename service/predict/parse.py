"""JSON bodies → typed requests; an error names the place in the body."""

from typing import NamedTuple

import msgspec
from msgspec import UNSET

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, TooManyRows
from peterrec.service.predict.schemas import (
    MAX_INSTANCES,
    Instance,
    LooseRequest,
    Parameters,
    PredictRequest,
    UsersPredictRequest,
)

_decode_request = msgspec.json.Decoder(PredictRequest).decode
_decode_loosely = msgspec.json.Decoder(LooseRequest).decode
_decode_instance = msgspec.json.Decoder(Instance).decode
_decode_users_request = msgspec.json.Decoder(UsersPredictRequest).decode

_HINT = "/docs shows the body; item ids are strings or ints, oldest first."


class ParsedPredict(NamedTuple):
    """The instances of a call, each valid or an error, and its parameters."""

    instances: list[Instance | PeterRecError]
    parameters: Parameters


def parse_predict(body: bytes) -> ParsedPredict:
    """Parse a predict body. A bad instance among several becomes an error in its own place."""
    try:
        request = _decode_request(body)
    except msgspec.ValidationError as error:
        return _parse_loosely(body, error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(error) from error
    if request.history is not UNSET and request.instances is UNSET:
        return ParsedPredict([Instance(request.history)], request.parameters)
    if request.instances is not UNSET and request.history is UNSET:
        return ParsedPredict([*request.instances], request.parameters)
    raise MalformedRequest("the body needs either history or instances.", hint=_HINT)


def parse_users_predict(body: bytes) -> UsersPredictRequest:
    """Parse a body that asks many tasks about one history."""
    try:
        return _decode_users_request(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _malformed(error) from error


def _parse_loosely(body: bytes, reason: msgspec.ValidationError) -> ParsedPredict:
    try:
        request = _decode_loosely(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _malformed(reason) from reason
    count = len(request.instances)
    if count > MAX_INSTANCES:
        raise TooManyRows(
            f"the call has {count} instances, at most {MAX_INSTANCES} are accepted.",
            hint="Split it.",
        )
    if not count:
        raise _malformed(reason) from reason
    instances = [_parse_instance(raw, at) for at, raw in enumerate(request.instances)]
    return ParsedPredict(instances, request.parameters)


def _parse_instance(raw: msgspec.Raw, at: int) -> Instance | PeterRecError:
    try:
        return _decode_instance(raw)
    except msgspec.MsgspecError as error:
        return _malformed(error, f"$.instances[{at}]")


def _malformed(error: Exception, within: str = "$") -> MalformedRequest:
    if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in str(error):
        # msgspec raises the first before version 0.23, and a DecodeError since.
        return MalformedRequest("the body is not UTF-8.", hint=_HINT)
    text, _, place = str(error).partition(" - at `")
    where = within + place.removesuffix("`").removeprefix("$")
    if isinstance(error, msgspec.ValidationError):
        return MalformedRequest(f"{text} at {where}.", hint=_HINT)
    return MalformedRequest(f"the body is not JSON: {text}.", hint=_HINT)
