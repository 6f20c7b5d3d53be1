"""The fields that the answers of all kinds share."""

from msgspec import Struct

ItemId = str | int
"""An item as the caller knows it; an int means its decimal string."""


class Prediction(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """An answer of any kind of task; its class says which kind, and has the result.

    ``digest`` (``sha256:…``) and ``version`` name the bundle that answered. ``role`` says why this
    version answered: ``prod``, ``canary``, or ``pinned`` if the call asked for it. ``alias`` is the
    name under which it was found, if any. ``used_items`` items were read by the network, only the
    newest ones if ``truncated``; ``unknown_items`` are not in the backbone's vocabulary, and
    ``unknown`` holds the first ten of them. ``cold``: no known item was read.
    """

    task: str
    version: int
    digest: str
    alias: str | None
    registry_revision: int
    request_id: str
    used_items: int
    unknown_items: int
    truncated: bool
    cold: bool
    unknown: tuple[ItemId, ...] = ()
    user_id: str | int | None = None
    role: str = "prod"
