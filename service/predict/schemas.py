"""Bodies of the prediction calls, decoded and encoded by msgspec; unknown fields are refused."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.model.spec import MAX_HISTORY_ITEMS
from peterrec.service.errors import ErrorBody
from peterrec.service.predict.explanation import ExplainOption
from peterrec.service.predict.item_ids import ItemId, UnknownItems
from peterrec.service.predict.kinds import AnswerRole, AnyPrediction
from peterrec.service.predict.where import Where

MAX_TOP_K = 1000
"""Most items that a ranking returns."""

DEFAULT_TOP_K = 10
"""Items that a ranking returns if the request does not say how many."""

MAX_INSTANCES = 256
"""Most users of one call."""

MAX_TASKS = 512
"""Most tasks of one call."""

MAX_BODY_BYTES = 2_000_000
"""Largest body in bytes: 256 histories of a few hundred items fit."""

MAX_NAME_CHARACTERS = 128
"""Characters of the longest name of a task, a version or an alias."""

MAX_USER_ID_CHARACTERS = 256
"""Characters of the longest user id: each answer of a call repeats it."""

Name = Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]

Version = Annotated[
    int | Name,
    Meta(
        description="The version that answers instead of prod and its canaries: its number, its "
        "digest, or an alias. It must be served, that is, named by an alias or the traffic.",
        examples=[7, "sha256:5f1c…", "next"],
    ),
]
TopK = Annotated[int, Meta(ge=1, le=MAX_TOP_K, description="How many items a ranking returns.")]
UserId = Annotated[
    Annotated[str, Meta(max_length=MAX_USER_ID_CHARACTERS)] | int,
    Meta(
        description="Returned unchanged; not looked up. A canary answers the same user ids each "
        "time, or the same histories if there is no user_id."
    ),
]
History = Annotated[
    list[ItemId],
    Meta(
        description="The user's item ids, oldest first; strings or ints (an int means its decimal "
        f"string). At most {MAX_HISTORY_ITEMS} items, of which the newest max_len are used, or all "
        "by a task with an item table. It may be empty: a cold start.",
        examples=[["1193", "661", "914"]],
        extra_json_schema={"maxItems": MAX_HISTORY_ITEMS},
    ),
]


Exclude = Annotated[list[ItemId], Meta(description="Items that a ranking must not return.")]
Candidates = Annotated[list[ItemId], Meta(description="The only items that a ranking may return.")]
HasTitles = Annotated[
    bool,
    Meta(description="Whether answers have display names of items and labels, if the bundle does."),
]


class Parameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults for every instance of the call."""

    top_k: TopK = DEFAULT_TOP_K
    exclude_seen: Annotated[
        bool, Meta(description="Whether a ranking leaves out the items of the history.")
    ] = True
    unknown_items: Annotated[
        UnknownItems,
        Meta(
            description="What happens to items that the backbone does not know: drop, map (to the "
            "unknown token) or error."
        ),
    ] = "drop"
    version: Version | None = None
    explain: ExplainOption | None = None
    where: Where | None = None
    titles: HasTitles = False
    prediction_ids: Annotated[
        bool,
        Meta(
            description="Whether answers have a prediction_id, to tell what came of them with "
            "POST /tasks/{task}/feedback."
        ),
    ] = False
    remember: Annotated[
        bool,
        Meta(
            description="Whether the answer is remembered for its user_id, for half a day or more, "
            "so that outcomes can be told by user. Not for tasks that are marked as sensitive, "
            "unless the server allows it."
        ),
    ] = False


NO_PARAMETERS = Parameters()


class Instance(Struct, frozen=True, forbid_unknown_fields=True):
    """One user to predict for."""

    history: History
    user_id: UserId | None = None
    top_k: TopK | None = None
    exclude: Exclude | None = None
    candidates: Candidates | None = None
    exclude_seen: bool | None = None
    explain: ExplainOption | None = None
    where: Where | None = None


class PredictRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Either ``history`` (and ``user_id``) for one user, or ``instances`` for several."""

    history: History | UnsetType = UNSET
    instances: (
        Annotated[list[Instance], Meta(min_length=1, max_length=MAX_INSTANCES)] | UnsetType
    ) = UNSET
    parameters: Parameters = NO_PARAMETERS
    user_id: UserId | None = None


class LooseRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A predict request whose instances are decoded one by one, so that each fails alone."""

    instances: list[msgspec.Raw]
    parameters: Parameters = NO_PARAMETERS


class TaskChoice(Struct, frozen=True, forbid_unknown_fields=True):
    """A task with its own parameters."""

    task: Name
    top_k: TopK | None = None
    exclude_seen: bool | None = None
    version: Version | None = None
    exclude: Exclude | None = None
    candidates: Candidates | None = None
    explain: ExplainOption | None = None
    where: Where | None = None


class UsersPredictRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One user's history and the tasks to answer for it, all from one registry revision."""

    history: History
    tasks: Annotated[
        list[Name | TaskChoice] | Literal["all"],
        Meta(
            description='Names, {"task", "top_k"} objects, or "all": every registered task that '
            "this key may ask; those that can't be answered are in errors."
        ),
    ]
    parameters: Parameters = NO_PARAMETERS
    user_id: UserId | None = None


class FailedRow(Struct, frozen=True, tag_field="kind", tag="error"):
    """An instance that could not be answered. The other instances are not affected."""

    error: ErrorBody
    user_id: str | int | UnsetType = UNSET


class PredictResponse(Struct, frozen=True):
    """Predictions in the order of the instances, and the bundle that gave them.

    If a canary answered some of several instances, the bundle here is prod's, and the predictions
    name their own.
    """

    task: str
    version: int
    digest: str
    alias: Annotated[
        str | None, Meta(description="The alias under which the version was found, if any.")
    ]
    role: AnswerRole
    kind: str
    registry_revision: int
    request_id: str
    predictions: list[AnyPrediction | FailedRow]


class UsersPredictResponse(Struct, frozen=True):
    """The user's profile card: the answer of every task, or why it could not be answered."""

    registry_revision: int
    request_id: str
    results: dict[str, AnyPrediction]
    errors: dict[str, ErrorBody]
