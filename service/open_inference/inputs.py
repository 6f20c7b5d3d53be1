"""Input tensors and parameters of a call → instances, as the other calls have them.

``history`` is [items], or [users, items] in which shorter rows are padded at their end; ``lengths``
then says how many items of each row are meant. ``exclude`` and ``candidates`` have the same form.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from peterrec.service.errors import MalformedRequest, TooManyRows, TooManyValues, cut
from peterrec.service.open_inference.tensors import (
    SHOWN,
    GivenTensor,
    Tensor,
    malformed,
    read_tensor,
)
from peterrec.service.predict.item_ids import ItemId
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.parse import MAX_VALUES
from peterrec.service.predict.schemas import (
    MAX_INSTANCES,
    MAX_USER_ID_CHARACTERS,
    Instance,
    Parameters,
)
from peterrec.service.protocol.sender import PRIORITIES

MAX_WHERE_CHARACTERS = 16 << 10

Scalar = bool | int | float | str

INPUTS: Mapping[str, str] = {
    "history": "Item ids, oldest first: [items], or [users, items].",
    "lengths": "How many items of each row of `history` are meant: [users].",
    "user_id": "Whom a canary is chosen for: [users].",
    "exclude": "Items that a ranking must not return: [items] for all users, or [users, items].",
    "exclude_lengths": "How many items of each row of `exclude` are meant: [users].",
    "candidates": "The only items that a ranking may return, as `exclude`.",
    "candidates_lengths": "How many items of each row of `candidates` are meant: [users].",
}
"""The inputs of every task. Only the first is required."""

OPTIONS = ("top_k", "exclude_seen", "unknown_items", "titles")
"""Fields of ``Parameters`` that are parameters of a call here, too."""

WHERE = "where"
"""The parameter with a ranking's filter: its JSON as a text, since parameters are scalars."""

TIMEOUT = "timeout"
"""The parameter with the microseconds that a call may take, as clients of Triton send it."""

PRIORITY = "priority"
"""The parameter with a call's priority, as clients of Triton send it: 1 is first, 0 says none."""


class InferCall(NamedTuple):
    """One call as any transport brings it: raw parts, and what is asked for.

    ``outputs`` are names, each with whether the output is wanted as bytes; empty means all of them,
    as ``is_binary`` says.
    """

    inputs: Sequence[GivenTensor]
    parameters: Mapping[str, Scalar]
    outputs: Mapping[str, bool]
    is_binary: bool
    request_id: str = ""


class ReadCall(NamedTuple):
    """A call that was read. ``timeout_s`` and ``priority`` are None if the call names none."""

    instances: list[Instance]
    parameters: Parameters
    timeout_s: float | None
    priority: int | None


async def read_call(call: InferCall) -> ReadCall:
    """Read the inputs and parameters of a call.

    Raises MalformedRequest, TooManyValues or TooManyRows.
    """
    parameters = _read_parameters(call.parameters)
    timeout_s, priority = _read_timeout(call.parameters), _read_priority(call.parameters)
    tensors = await _read_tensors(call.inputs)
    history = tensors.get("history")
    if history is None:
        raise MalformedRequest(
            "the call has no input `history`.",
            hint='For instance {"name": "history", "datatype": "BYTES", "shape": [1, 2], '
            '"data": ["1193", "661"]}.',
        )
    count = history.shape[0] if len(history.shape) == 2 else 1
    if not 1 <= count <= MAX_INSTANCES:
        raise TooManyRows(
            f"the call has {count} users, 1 to {MAX_INSTANCES} are accepted.", hint="Split it."
        )
    histories = _rows(tensors, "history", "lengths", count)
    excluded = _rows(tensors, "exclude", "exclude_lengths", count)
    candidates = _rows(tensors, "candidates", "candidates_lengths", count)
    user_ids = _user_ids(tensors.get("user_id"), count)
    pace = Pace()
    instances = []
    for at in range(count):
        instances.append(
            Instance(
                histories[at] or [],
                user_ids[at],
                exclude=excluded[at],
                candidates=candidates[at],
            )
        )
        if pace.is_due:
            await pace.rest()
    return ReadCall(instances, parameters, timeout_s, priority)


def _read_parameters(given: Mapping[str, Scalar]) -> Parameters:
    known: dict[str, object] = {name: given[name] for name in OPTIONS if name in given}
    if WHERE in given:
        known[WHERE] = _read_where(given[WHERE])
    unknown = [name for name in given if name not in (*known, TIMEOUT, PRIORITY)]
    if unknown:
        raise MalformedRequest(
            f"there is no parameter {cut(unknown[0], SHOWN)!r}.",
            hint=f"There are {', '.join((*OPTIONS, WHERE, TIMEOUT, PRIORITY))}; lists of items are "
            "inputs.",
        )
    try:
        return msgspec.convert(known, Parameters, strict=True)
    except msgspec.ValidationError as error:
        problem = cut(str(error).replace(" - at `$.", " in parameter `"), 3 * SHOWN)
        raise MalformedRequest(f"{problem}.", hint="/docs shows the parameters.") from error


def _read_where(text: Scalar) -> object:
    try:
        if isinstance(text, str) and len(text) <= MAX_WHERE_CHARACTERS:
            return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        pass
    raise MalformedRequest(
        f"parameter 'where' is no JSON of at most {MAX_WHERE_CHARACTERS} characters.",
        hint='Send it as a text: "{\\"genre\\": \\"Drama\\"}".',
    )


def _read_timeout(given: Mapping[str, Scalar]) -> float | None:
    timeout = given.get(TIMEOUT)
    if timeout is None:
        return None
    if type(timeout) is not int or timeout < 1:
        raise MalformedRequest(
            "parameter 'timeout' is not a number of microseconds.", hint="Send 50000 for 50 ms."
        )
    return timeout / 1e6


def _read_priority(given: Mapping[str, Scalar]) -> int | None:
    priority = given.get(PRIORITY, 0)
    if type(priority) is not int or priority < 0:
        raise MalformedRequest(
            "parameter 'priority' is not a number from 0 on.",
            hint="Send 1 for a call that somebody waits for, 2 for others.",
        )
    return min(priority - 1, len(PRIORITIES) - 1) if priority else None


async def _read_tensors(inputs: Sequence[GivenTensor]) -> dict[str, Tensor]:
    pace, total = Pace(), 0
    tensors: dict[str, Tensor] = {}
    for given in inputs:
        if given.name not in INPUTS or given.name in tensors:
            problem = "occurs twice" if given.name in tensors else "is not one of this task"
            raise malformed(given.name, problem, f"The inputs are {', '.join(INPUTS)}.")
        tensor = tensors[given.name] = await read_tensor(given, pace)
        total += len(tensor.values)
        if total > MAX_VALUES:
            raise TooManyValues(MAX_VALUES)
        if pace.is_due:
            await pace.rest()
    return tensors


def _rows(
    tensors: Mapping[str, Tensor], name: str, lengths_name: str, count: int
) -> Sequence[list[ItemId] | None]:
    """Return the items of each user, without padding; None for each if there is no such input."""
    tensor, lengths = tensors.get(name), tensors.get(lengths_name)
    if tensor is None:
        if lengths is not None:
            raise malformed(lengths_name, "belongs to an input that is not there", f"Send {name}.")
        return [None] * count
    if len(tensor.shape) == 1 and name != "history":
        if count * len(tensor.values) > MAX_VALUES:
            raise TooManyValues(MAX_VALUES)
        if lengths is not None:
            raise malformed(lengths_name, "belongs to rows", f"Send {name} as [users, items].")
        return [list(tensor.values)] * count
    width = tensor.shape[-1]
    if len(tensor.shape) == 2 and tensor.shape[0] != count:
        raise malformed(
            name, f"has {tensor.shape[0]} rows, and `history` {count}", "Each user has one row."
        )
    used = [width] * count if lengths is None else _read_lengths(lengths, count, width)
    values = tensor.values
    return [list(values[at * width : at * width + used[at]]) for at in range(count)]


def _read_lengths(tensor: Tensor, count: int, width: int) -> list[int]:
    if tensor.shape not in {(count,), (count, 1)}:
        raise malformed(
            tensor.name, f"has the shape {list(tensor.shape)}", f"Send [{count}]: one per user."
        )
    lengths = [each for each in tensor.values if isinstance(each, int) and 0 <= each <= width]
    if len(lengths) != count:
        raise malformed(
            tensor.name, f"has elements that are no numbers from 0 to {width}", "Send INT64."
        )
    return lengths


def _user_ids(tensor: Tensor | None, count: int) -> Sequence[ItemId | None]:
    if tensor is None:
        return [None] * count
    if tensor.shape not in {(count,), (count, 1)}:
        raise malformed(
            tensor.name, f"has the shape {list(tensor.shape)}", f"Send [{count}]: one per user."
        )
    if any(len(str(each)) > MAX_USER_ID_CHARACTERS for each in tensor.values):
        raise malformed(
            tensor.name,
            f"has an id of more than {MAX_USER_ID_CHARACTERS} characters",
            "Send shorter ones.",
        )
    return tensor.values
