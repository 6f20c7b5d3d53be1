"""Bodies of the Open Inference Protocol over HTTP: JSON, and the raw bytes of tensors after it."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.model.documents import Document
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, cut, problem_of, retry_after_s
from peterrec.service.http.asgi import (
    Header,
    Headers,
    encode_json,
    error_headers,
    problem_headers,
)
from peterrec.service.open_inference.infer import Inferred
from peterrec.service.open_inference.inputs import INPUTS, InferCall, Scalar
from peterrec.service.open_inference.outputs import Output
from peterrec.service.open_inference.tensors import SHOWN, GivenTensor, malformed
from peterrec.service.predict.parse import check_cost
from peterrec.service.predict.schemas import MAX_NAME_CHARACTERS

JSON_SIZE = b"inference-header-content-length"
"""The header with the bytes of a body's JSON, after which the raw bytes of tensors begin."""

BINARY_SIZE = "binary_data_size"
BINARY_OUTPUT = "binary_data_output"
MAX_ID_CHARACTERS = 256
MAX_OUTPUTS = 64

Parameters = dict[str, bool | int | float | str]
Text = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
Size = Annotated[int, Meta(ge=0, le=1 << 40)]


class InputTensor(Struct, frozen=True, forbid_unknown_fields=True):
    """An input: its elements are in ``data``, or after the JSON as ``binary_data_size`` bytes."""

    name: Text
    shape: Annotated[list[Size], Meta(min_length=1, max_length=2)]
    datatype: Text
    parameters: Parameters = {}
    data: msgspec.Raw | UnsetType = UNSET


class RequestedOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """An output that is wanted. ``parameters`` may have ``binary_data``."""

    name: Text
    parameters: Parameters = {}


class InferRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A call in tensors. ``model_name`` and ``model_version`` repeat what the URL says."""

    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=len(INPUTS))]
    outputs: Annotated[list[RequestedOutput], Meta(max_length=MAX_OUTPUTS)] | None = None
    parameters: Parameters | None = None
    id: Annotated[str, Meta(max_length=MAX_ID_CHARACTERS)] | None = None
    model_name: Text | None = None
    model_version: Text | None = None


class OutputTensor(Struct, frozen=True):
    """An output. Its elements are in ``data``, or after the JSON as ``binary_data_size`` bytes."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET


class InferResponse(Struct, frozen=True):
    """The answer to a call in tensors. ``parameters`` name the bundle that answered."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    parameters: Parameters
    id: str | UnsetType = UNSET


class OpenInferenceError(Struct, frozen=True):
    """A refusal in the protocol's form: code, message and hint in one text."""

    error: str


class IndexRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What an index lists. There is one repository, whatever its name."""

    ready: bool = False
    repository_name: Text = ""


class RepositoryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What clients of model repositories send; nothing of it has an effect here."""

    parameters: Parameters = {}


_decode = msgspec.json.Decoder(InferRequest).decode
_DIGITS = re.compile(rb"[0-9]{1,9}\Z")

INFER_REQUESTS: dict[str, Document] = {
    "two users": {
        "value": {
            "inputs": [
                {
                    "name": "history",
                    "datatype": "BYTES",
                    "shape": [2, 3],
                    "data": ["1193", "661", "914", "260", "", ""],
                },
                {"name": "lengths", "datatype": "INT64", "shape": [2], "data": [3, 1]},
            ],
            "parameters": {"top_k": 5},
            "outputs": [{"name": "items"}, {"name": "scores"}],
        }
    }
}
INFER_RESPONSES: dict[str, Document] = {
    "classification": {
        "value": {
            "model_name": "gender",
            "model_version": "7",
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["F"]},
                {
                    "name": "probabilities",
                    "datatype": "FP32",
                    "shape": [1, 2],
                    "data": [0.81, 0.19],
                },
            ],
            "parameters": {"digest": "5f1c…", "kind": "classification", "role": "prod"},
        }
    }
}


class InferBody(NamedTuple):
    """A body that was read, and the id of the call in it; None if it has none."""

    call: InferCall
    request_id: str | None


def read_infer(body: bytes, json_size: bytes | None, task: str, version: str) -> InferBody:
    """Read a body. ``json_size`` is the value of the header that splits it, if it is there."""
    head, raw = _split(body, json_size)
    check_cost(head)
    try:
        request = _decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = cut(str(error), 3 * SHOWN)
        raise MalformedRequest(f"the body is refused: {problem}.", hint=HINT) from error
    _check_repeated(request, task, version)
    parameters: dict[str, Scalar] = dict(request.parameters or {})
    is_binary = _is_true(parameters.pop(BINARY_OUTPUT, False), BINARY_OUTPUT)
    outputs = {each.name: _wants_bytes(each, is_binary) for each in request.outputs or ()}
    inputs = [*_inputs(request.inputs, raw)]
    return InferBody(InferCall(inputs, parameters, outputs, is_binary), request.id)


HINT = (
    'It is {"inputs": [{"name": "history", "datatype": "BYTES", "shape": [1, 2], "data": ["1193", '
    '"661"]}]}; /docs shows all of it.'
)


def _split(body: bytes, json_size: bytes | None) -> tuple[bytes, memoryview]:
    if json_size is None:
        return body, memoryview(b"")
    if not _DIGITS.match(json_size) or int(json_size) > len(body):
        raise MalformedRequest(
            f"Inference-Header-Content-Length {json_size[:20].decode('latin-1')!r} is no number "
            f"of bytes up to the {len(body)} of the body.",
            hint="It counts the bytes of the JSON before the raw bytes of the tensors.",
        )
    return body[: int(json_size)], memoryview(body)[int(json_size) :]


def _check_repeated(request: InferRequest, task: str, version: str) -> None:
    """Refuse a body that names another task or version than the URL, which decides."""
    for given, meant in ((request.model_name, task), (request.model_version, version)):
        if given and given != meant:
            raise MalformedRequest(
                f"the body is for {given!r}, the URL for {meant or 'no version'!r}.",
                hint="Leave model_name and model_version out, or repeat what the URL says.",
            )


def _inputs(tensors: Sequence[InputTensor], raw: memoryview) -> Iterator[GivenTensor]:
    """Give each tensor its data; the raw bytes follow one another in the order of the inputs."""
    begin = 0
    for each in tensors:
        others = [name for name in each.parameters if name not in (BINARY_SIZE, "content_type")]
        if others:
            raise malformed(
                each.name,
                f"has the parameter {cut(others[0], SHOWN)!r}, which is not supported",
                "Send the elements in the body; there is no shared memory.",
            )
        size = each.parameters.get(BINARY_SIZE)
        if size is None:
            data = None if each.data is UNSET else each.data
            yield GivenTensor(each.name, each.datatype, each.shape, json=data)
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - begin or each.data is not UNSET:
            raise malformed(
                each.name,
                "has a binary_data_size that does not fit the bytes after the JSON",
                f"{len(raw) - begin} bytes are left for it, and it has no `data` then.",
            )
        yield GivenTensor(each.name, each.datatype, each.shape, raw=raw[begin : begin + size])
        begin += size
    if begin != len(raw):
        raise MalformedRequest(
            f"{len(raw) - begin} bytes after the JSON belong to no input.",
            hint="Say how many each input has: its parameter binary_data_size.",
        )


def _wants_bytes(output: RequestedOutput, otherwise: bool) -> bool:
    others = [name for name in output.parameters if name != "binary_data"]
    if others:
        raise MalformedRequest(
            f"output {output.name!r} has the parameter {cut(others[0], SHOWN)!r}.",
            hint="Only binary_data is supported.",
        )
    return _is_true(output.parameters.get("binary_data", otherwise), "binary_data")


def _is_true(value: Scalar, name: str) -> bool:
    if not isinstance(value, bool):
        raise MalformedRequest(f"parameter {name!r} is not true or false.", hint=HINT)
    return value


class Encoded(NamedTuple):
    """An answer as bytes; ``headers`` say where its JSON ends, if raw bytes follow."""

    body: bytes
    headers: Headers


def encode_inferred(task: str, request_id: str | None, inferred: Inferred) -> Encoded:
    """Encode an answer: JSON, and after it the raw bytes of the outputs that are wanted so."""
    response = InferResponse(
        model_name=task,
        model_version=str(inferred.by.version),
        outputs=[_tensor(output) for output in inferred.outputs],
        parameters=dict(inferred.parameters),
        id=UNSET if request_id is None else request_id,
    )
    head = encode_json(response)
    raw = [output.raw for output in inferred.outputs if output.is_binary]
    if not raw:
        return Encoded(head, [(b"content-type", b"application/json")])
    headers = [(b"content-type", b"application/octet-stream"), (JSON_SIZE, b"%d" % len(head))]
    return Encoded(b"".join([head, *raw]), headers)


def _tensor(output: Output) -> OutputTensor:
    if output.is_binary:
        size = sum(map(len, output.parts))
        return OutputTensor(output.name, output.datatype, output.shape, {BINARY_SIZE: size})
    return OutputTensor(output.name, output.datatype, output.shape, data=output.json)


class RefusalHead(NamedTuple):
    """Status and headers of a refusal, which have what its body has no place for."""

    status: int
    headers: Headers


def refusal_head(error: PeterRecError, request_id: str) -> RefusalHead:
    """Return status and headers of a refusal in the protocol's form."""
    problem = problem_of(error, request_id)
    fields = [*problem_headers(problem, retry_after_s(error)), *error_headers(error)]
    kept = [each for each in fields if each[0] != b"content-type"]
    json: Header = (b"content-type", b"application/json")
    return RefusalHead(problem.status, [json, *kept, (b"x-error-code", problem.code.encode())])
