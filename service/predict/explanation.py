"""What a request for explanations looks like, and what it is answered with."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.model.spec import MAX_HISTORY_ITEMS
from peterrec.service.errors import ErrorBody
from peterrec.service.predict.item_ids import ItemId

MAX_EXPLAINED_ITEMS = 100
"""Most items that an explanation names for one output."""

Method = Literal["leave_one_out", "table", "leave_one_out_and_table"]
"""How contributions were computed; none is an estimate (``docs/explanations.md``)."""


class Explain(Struct, frozen=True, forbid_unknown_fields=True):
    """What an explanation names. A number alone means ``items``."""

    items: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_EXPLAINED_ITEMS,
            description="How many items are named for each output, those that moved it most first.",
        ),
    ]
    outputs: Annotated[
        Literal["answer", "all"],
        Meta(
            description="Whether only the outputs are explained that the answer rests on (the "
            "label, the tags that apply, each recommended item, the value) or all labels or tags."
        ),
    ] = "answer"
    newest: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=MAX_HISTORY_ITEMS,
                description="Look at this many different items only, the newest ones; by default, "
                "at all of the history.",
            ),
        ]
        | None
    ) = None


ExplainOption = Annotated[
    Explain | Annotated[int, Meta(ge=0, le=MAX_EXPLAINED_ITEMS)],
    Meta(
        description="Name this many items of the history that moved the answer most; 0: none. It "
        "costs a row of the server's queue for each different item of the history that the "
        "network reads.",
        examples=[5, {"items": 5, "outputs": "all", "newest": 50}],
    ),
]


class ItemContribution(Struct, frozen=True):
    """An item of the history, as the request names it, and what an output owes to it.

    ``contribution`` is the output's score less the score that it has for the history without the
    item. ``times``: how often the history has the item; all its occurrences are left out together.
    """

    id: ItemId
    contribution: float
    times: int


class ExplainedOutput(Struct, frozen=True):
    """An output's score for the whole history, and the items that moved it most first."""

    output: Annotated[
        str, Meta(description="The label, tag or recommended item; for a value, `value`.")
    ]
    score: float
    items: list[ItemContribution]


class Explanation(Struct, frozen=True, kw_only=True):
    """The items of the history that moved an answer most. It says nothing about causes.

    The history's different items are those looked at, those without an effect (unknown to the
    backbone, or too old for this bundle to read) and those left out on request (``newest``).
    """

    method: Annotated[
        Method,
        Meta(
            description="leave_one_out: each item's history was run without it. table: from the "
            "weights of the bundle's item table. Both are exact."
        ),
    ]
    unit: Annotated[str, Meta(description="Unit of scores and contributions.")]
    items_looked_at: int
    items_without_effect: int
    items_left_out: int
    rows: Annotated[int, Meta(description="Rows that the explanation added to the request.")]
    outputs: list[ExplainedOutput]
    error: Annotated[
        ErrorBody | UnsetType,
        Meta(description="Why there is no explanation, though there is an answer."),
    ] = UNSET


def asked_for(option: Explain | int | None) -> Explain | None:
    """Read the option: None if no explanation is asked for."""
    if isinstance(option, int):
        return Explain(option) if option else None
    return option
