"""What the calls about a task's list of items take and return."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from pydantic import BaseModel, Field

from peterrec.patches.registry.availability import MAX_ITEMS, Mode
from peterrec.service.http.views.tasks import Changed
from peterrec.service.predict.item_ids import ItemId

_Items = Annotated[list[ItemId], Meta(extra_json_schema={"maxItems": MAX_ITEMS})]


class AvailabilityRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Either the items that are not to be had now, or the only ones that are."""

    unavailable: Annotated[
        _Items | UnsetType, Meta(description="Items that no answer may have: sold out, withdrawn.")
    ] = UNSET
    available: Annotated[
        _Items | UnsetType, Meta(description="The only items that an answer may have.")
    ] = UNSET


class AvailabilityView(BaseModel):
    """The list of a task's items. ``mode`` is null if there is none: all items are to be had."""

    task: str
    revision: int
    mode: Mode | None
    count: int
    items: list[str]


class AvailabilityChangedView(Changed):
    """The list after a change.

    ``unknown`` is how many of its items the catalog that answers now does not have, and null if
    none answers yet. They stay in the list: a later bundle may have them.
    """

    mode: Mode | None
    count: int
    unknown: int | None
    unknown_items: list[str] = Field(description="The first ten of them.")
