"""User vectors as answers: what the backbone, or a task's patch in it, makes of a history."""

import base64
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import ResultNotFinite, row_error
from peterrec.service.predict.item_ids import ItemId, MappedHistory, UnknownItems
from peterrec.service.predict.schemas import (
    MAX_INSTANCES,
    FailedRow,
    History,
    Name,
    UserId,
    Version,
)
from peterrec.service.protocol.messages import RowResult
from peterrec.service.protocol.served_task import ServedTask

Encoding = Literal["float32", "base64_float32", "base64_float16"]
"""A list of numbers, or their bytes, little-endian, in base64."""


class VectorsAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of every history of a call. Without a task: of the plain backbone."""

    task: Annotated[
        Name | None, Meta(description="Compute with the patch of this task's prod.")
    ] = None
    version: Version | None = None
    encoding: Annotated[
        Encoding,
        Meta(description="A list of numbers, or their bytes (little-endian) in base64."),
    ] = "float32"
    unknown_items: UnknownItems = "drop"
    backbone: (
        Annotated[
            str,
            Meta(
                max_length=128,
                description="Fingerprint of the backbone to ask; by default the task's, or the "
                "first one of the server.",
            ),
        ]
        | None
    ) = None


class VectorInstance(Struct, frozen=True, forbid_unknown_fields=True):
    """One user of a call for several."""

    history: History
    user_id: UserId | None = None


class VectorsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Either ``history`` (and ``user_id``) for one user, or ``instances`` for several."""

    history: History | UnsetType = UNSET
    instances: (
        Annotated[list[VectorInstance], Meta(min_length=1, max_length=MAX_INSTANCES)] | UnsetType
    ) = UNSET
    parameters: VectorsAsked = VectorsAsked()
    user_id: UserId | None = None


class LooseVectorsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request whose instances are decoded one by one, so that each fails alone."""

    instances: list[Raw]
    parameters: VectorsAsked = VectorsAsked()


class UserVector(Struct, frozen=True, tag_field="kind", tag="vector"):
    """The vector of one history, and how the history was read."""

    vector: Annotated[list[float] | str, Meta(description="In the encoding that was asked for.")]
    used_items: int
    unknown_items: int
    unknown: list[ItemId]
    truncated: bool
    cold: bool
    user_id: str | int | UnsetType = UNSET


class VectorsResponse(Struct, frozen=True):
    """User vectors in the order of the instances.

    Vectors can be compared if their ``backbone`` is the same and, where a task is named, also
    ``digest``: those of another backbone or patch lie in another space.
    """

    backbone: str
    dimensions: int
    encoding: Encoding
    registry_revision: int
    request_id: str
    vectors: list[UserVector | FailedRow]
    task: str | UnsetType = UNSET
    version: int | UnsetType = UNSET
    digest: str | UnsetType = UNSET
    alias: str | UnsetType | None = UNSET


class VectorsFound(NamedTuple):
    """The version that computed, if a task was named, the histories, and the device's results.

    There is a result for each history that is no error. ``backbone`` is the place of the backbone.
    """

    served: ServedTask | None
    histories: Sequence[MappedHistory | PeterRecError]
    results: Sequence[RowResult]
    registry_revision: int
    backbone: int


def vector_of(
    history: MappedHistory, result: RowResult, encoding: Encoding, user_id: str | int | None
) -> UserVector | PeterRecError:
    """Encode one result, or return its error."""
    if result.error:
        return row_error(result.error, result.detail)
    values = np.frombuffer(result.values, "<f4")
    if encoding == "base64_float16":
        with np.errstate(over="ignore"):
            values = values.astype("<f2")
        if not np.isfinite(values).all():
            return row_error(ResultNotFinite.code, "the vector is beyond the range of float16")
    vector = (
        values.tolist() if encoding == "float32" else base64.b64encode(values.tobytes()).decode()
    )
    return UserVector(
        vector=vector,
        used_items=history.used_items,
        unknown_items=history.unknown_items,
        unknown=history.unknown,
        truncated=history.is_truncated,
        cold=history.is_cold,
        user_id=UNSET if user_id is None else user_id,
    )
