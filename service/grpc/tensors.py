"""Requests and answers of ``ModelInfer`` as messages ↔ the calls that every transport makes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peterrec.service.errors import MalformedRequest, TooManyValues, cut
from peterrec.service.grpc.messages import Message, inference_class
from peterrec.service.open_inference.infer import Inferred
from peterrec.service.open_inference.inputs import INPUTS, InferCall, Scalar
from peterrec.service.open_inference.tensors import SHOWN, GivenTensor, malformed
from peterrec.service.predict.parse import MAX_VALUES

CONTENTS: Mapping[str, str] = {
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "BYTES": "bytes_contents",
}
"""The list of ``InferTensorContents`` that has the elements of each type."""

MAX_ID_CHARACTERS = 256


def read_request(request: Message) -> InferCall:
    """Read a request. Its tensors' elements are read later, in short steps."""
    if len(request.inputs) > len(INPUTS):
        raise MalformedRequest(
            f"the call has {len(request.inputs)} inputs.",
            hint=f"The inputs are {', '.join(INPUTS)}.",
        )
    if len(request.id) > MAX_ID_CHARACTERS:
        raise MalformedRequest(
            f"the id has more than {MAX_ID_CHARACTERS} characters.", hint="Send a shorter one."
        )
    raw = request.raw_input_contents
    if len(raw) not in (0, len(request.inputs)):
        raise MalformedRequest(
            f"the call has {len(request.inputs)} inputs and {len(raw)} raw contents.",
            hint="Send the raw elements of every input in order, or none of them.",
        )
    for output in request.outputs:
        _refuse_parameters(f"output {cut(output.name, SHOWN)!r}", output.parameters)
    return InferCall(
        inputs=[*_inputs(request, raw)],
        parameters=_scalars(request.parameters),
        outputs={output.name: True for output in request.outputs},
        is_binary=True,
        request_id=request.id,
    )


def _inputs(request: Message, raw: Sequence[bytes]) -> Iterator[GivenTensor]:
    for at, each in enumerate(request.inputs):
        _refuse_parameters(f"input {cut(each.name, SHOWN)!r}", each.parameters)
        shape = [*each.shape[:3]]
        if not raw:
            yield GivenTensor(each.name, each.datatype, shape, typed=_contents(each))
        elif each.HasField("contents"):
            raise malformed(each.name, "has contents beside raw ones", "Send one of both.")
        else:
            yield GivenTensor(each.name, each.datatype, shape, raw=raw[at])


def _contents(tensor: Message) -> Sequence[Any] | None:
    # Any: numbers or bytes, by the datatype
    field = CONTENTS.get(tensor.datatype)
    if field is None or not tensor.HasField("contents"):
        return [] if field and 0 in tensor.shape else None
    others = [found.name for found, _ in tensor.contents.ListFields() if found.name != field]
    if others:
        raise malformed(
            tensor.name, f"of {tensor.datatype} has {others[0]}", f"Send them as {field}."
        )
    elements = getattr(tensor.contents, field)
    if len(elements) > MAX_VALUES:
        raise TooManyValues(MAX_VALUES)
    return [*elements]


def _refuse_parameters(what: str, parameters: Mapping[str, Message]) -> None:
    for name in parameters:
        raise MalformedRequest(
            f"{what} has the parameter {cut(name, SHOWN)!r}, which is not supported.",
            hint="There is no shared memory and no classification of outputs.",
        )


def _scalars(parameters: Mapping[str, Message]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for name, value in parameters.items():
        field = value.WhichOneof("parameter_choice")
        if field is None:
            raise MalformedRequest(
                f"parameter {cut(name, SHOWN)!r} has no value.", hint="Leave it out."
            )
        found[name] = getattr(value, field)
    return found


def make_response(task: str, request_id: str, inferred: Inferred) -> Message:
    """Make the answer of a call, with the raw elements of every output."""
    response = inference_class("ModelInferResponse")(
        model_name=task, model_version=str(inferred.by.version), id=request_id
    )
    for name, value in inferred.parameters.items():
        field = "int64_param" if isinstance(value, int) else "string_param"
        setattr(response.parameters[name], field, value)
    for output in inferred.outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        response.raw_output_contents.append(output.raw)
    return response
