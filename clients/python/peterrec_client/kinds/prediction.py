"""The fields that the answers of all kinds share."""

from collections.abc import Mapping

from msgspec import Struct

ItemId = str | int
"""An item as the caller knows it; an int means its decimal string."""


class Reason(Struct, frozen=True):
    """Why something was refused: a stable code, a message for people, and what to do about it.

    ``retryable`` says whether the same call may succeed later.
    """

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class ItemContribution(Struct, frozen=True):
    """An item of the history and what an output's score owes to it: the score less that of the
    history without the item, of which all its ``times`` are left out together."""

    id: ItemId
    contribution: float
    times: int = 1


class ExplainedOutput(Struct, frozen=True):
    """A label, tag or recommended item with its score, and the items that moved it most first."""

    output: str
    score: float
    items: tuple[ItemContribution, ...]


class Explanation(Struct, frozen=True, kw_only=True):
    """The items of the history that moved an answer most; it says nothing about causes.

    ``method`` says how contributions were computed, and ``unit`` in what they are. Of the history's
    different items some were looked at, some have no effect (unknown ones, or too old for the
    bundle), and some were left out on request. ``rows`` were added to the call. With ``error``
    there is an answer, but no explanation.
    """

    method: str
    unit: str
    items_looked_at: int
    items_without_effect: int
    items_left_out: int
    rows: int
    outputs: tuple[ExplainedOutput, ...]
    error: Reason | None = None


class Prediction(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """An answer of any kind of task; its class says which kind, and has the result.

    ``digest`` (``sha256:…``) and ``version`` name the bundle that answered. ``role`` says why this
    version answered: ``prod``, ``canary``, or ``pinned`` if the call asked for it. ``alias`` is the
    name under which it was found, if any. ``registry_revision`` is None in a stream. ``used_items``
    items were read by the network, only the newest ones if ``truncated``; ``unknown_items`` are not
    in the backbone's vocabulary, and ``unknown`` holds the first ten of them. ``cold``: no known
    item was read. ``explanation`` is there if the call asked for one, and so are ``titles``, the
    display names of labels and tags, and ``prediction_id``, which names the answer to
    ``Client.feedback``.
    """

    task: str
    version: int
    digest: str
    alias: str | None
    registry_revision: int | None
    request_id: str
    used_items: int
    unknown_items: int
    truncated: bool
    cold: bool
    unknown: tuple[ItemId, ...] = ()
    user_id: str | int | None = None
    role: str = "prod"
    titles: Mapping[str, str] | None = None
    explanation: Explanation | None = None
    prediction_id: str | None = None
