"""JSON bodies → typed requests; an error names the place in the body."""

from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, TooManyRows
from peterrec.service.predict.body_hints import (
    DOCS,
    PREDICT,
    PREDICT_USER,
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

_decode_request = msgspec.json.Decoder(PredictRequest).decode
_decode_loosely = msgspec.json.Decoder(LooseRequest).decode
_decode_instance = msgspec.json.Decoder(Instance).decode
_decode_users_request = msgspec.json.Decoder(UsersPredictRequest).decode


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
        raise _malformed(PREDICT, body, error) from error
    _check_names(body, 1 if request.instances is UNSET else len(request.instances))
    if request.history is not UNSET and request.instances is UNSET:
        return ParsedPredict([Instance(request.history, request.user_id)], request.parameters)
    if request.instances is not UNSET and request.history is UNSET and request.user_id is None:
        return ParsedPredict([*request.instances], request.parameters)
    raise _contradictory(request)


def parse_users_predict(body: bytes) -> UsersPredictRequest:
    """Parse a body that asks many tasks about one history."""
    try:
        request = _decode_users_request(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _malformed(PREDICT_USER, body, error) from error
    _check_names(body, 1)
    return request


def _check_names(body: bytes, histories: int) -> None:
    """Refuse a field that occurs twice in one object, of which the decoder takes the last.

    All fields are checked only if "history" occurs more often than there are histories, which it
    does in bodies of two and where it is an item's id: counting takes a fraction of a microsecond.
    """
    if body.count(b'"history"') > histories:
        twice = repeated_field(body)
        if twice is not None:
            raise MalformedRequest(
                f"field {twice[:60]!r} occurs twice in one object.",
                hint=f"Several histories are entries of `instances`. {DOCS}",
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


def _contradictory(request: PredictRequest) -> MalformedRequest:
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


def _parse_loosely(body: bytes, reason: msgspec.ValidationError) -> ParsedPredict:
    try:
        request = _decode_loosely(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _malformed(PREDICT, body, reason) from reason
    count = len(request.instances)
    if count > MAX_INSTANCES:
        raise TooManyRows(
            f"the call has {count} instances, at most {MAX_INSTANCES} are accepted.",
            hint="Split it.",
        )
    if not count:
        raise _malformed(PREDICT, body, reason) from reason
    instances = [_parse_instance(raw, at) for at, raw in enumerate(request.instances)]
    return ParsedPredict(instances, request.parameters)


def _parse_instance(raw: msgspec.Raw, at: int) -> Instance | PeterRecError:
    try:
        return _decode_instance(raw)
    except msgspec.MsgspecError as error:
        return _malformed(PREDICT, b"", error, f"$.instances[{at}]")


def _malformed(
    form: BodyForm, body: bytes, error: Exception, within: str = "$"
) -> MalformedRequest:
    """Return the error of a body, or of the part ``within`` it, with its place and a hint."""
    text, _, place = str(error).partition(" - at `")
    where = within + place.removesuffix("`").removeprefix("$")
    if isinstance(error, msgspec.ValidationError):
        return MalformedRequest(f"{text} at {where}.", hint=schema_hint(form, text, where))
    if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in text:
        # msgspec raises the first before version 0.23, and a DecodeError since.
        return MalformedRequest("the body is not UTF-8.", hint=syntax_hint(form, body))
    return MalformedRequest(f"the body is not JSON: {text}.", hint=syntax_hint(form, body))
