"""Which items of a task are to be had now: a list that is replaced without a new bundle."""

import hashlib
from collections.abc import Collection
from heapq import merge
from itertools import groupby
from typing import Literal, Self

import msgspec

from peterrec.model.errors import Category, PeterRecError

MAX_BYTES = 2 << 20
"""Largest list in bytes, as JSON: some 200,000 ids. Every worker keeps it."""

MAX_ITEMS = 250_000
"""Most items of a list: mapping them to a catalog takes a worker some tenths of a second."""

MAX_ID_CHARACTERS = 256
"""Characters of the longest item id in a list."""

DIGEST_DIGITS = 32

SORTED_AT_ONCE = 10_000
"""Items that are sorted in one step, which takes some milliseconds."""

Mode = Literal["unavailable", "available"]
"""Whether the listed items are held back, or all others are."""


class AvailabilityTooLarge(PeterRecError):
    """A list with more items or bytes than a worker keeps."""

    code = "availability_too_large"
    category = Category.TOO_LARGE

    def __init__(self, found: str, limit: str) -> None:
        super().__init__(
            f"the list has {found}, at most {limit} are kept.",
            hint="List the items that are available instead of the others, if these are fewer, or "
            "push a bundle without them.",
        )


class Availability(msgspec.Struct, frozen=True, array_like=True):
    """The list of one task. ``text`` has its item ids in JSON, sorted, and each once.

    It stays a text until somebody needs the ids: most processes pass it on only.
    """

    mode: Mode
    digest: str
    text: str

    @classmethod
    def of(cls, mode: Mode, items: Collection[str]) -> Self:
        """Make a list; AvailabilityTooLarge if it is. Equal sets of items give equal lists."""
        if len(items) > MAX_ITEMS:
            raise AvailabilityTooLarge(f"{len(items)} items", str(MAX_ITEMS))
        longest = max(map(len, items), default=0)
        if longest > MAX_ID_CHARACTERS:
            raise AvailabilityTooLarge(
                f"an item id of {longest} characters", f"{MAX_ID_CHARACTERS}"
            )
        text = msgspec.json.encode(_sorted(items)).decode()
        if len(text.encode()) > MAX_BYTES:
            raise AvailabilityTooLarge(f"{len(text.encode())} bytes", f"{MAX_BYTES}")
        digest = hashlib.sha256(f"{mode} {text}".encode()).hexdigest()[:DIGEST_DIGITS]
        return cls(mode, digest, text)

    @classmethod
    def parse(cls, stored: bytes | str) -> Self:
        """Read what ``stored`` returns."""
        found = msgspec.json.decode(stored, type=_Stored)
        return cls(found.mode, found.digest, bytes(found.items).decode())

    @property
    def stored(self) -> str:
        """The form that Redis holds."""
        items = msgspec.Raw(self.text.encode())
        return msgspec.json.encode(_Stored(self.mode, self.digest, items)).decode()

    @property
    def items(self) -> tuple[str, ...]:
        """The item ids, decoded from the text."""
        return msgspec.json.decode(self.text, type=tuple[str, ...])


def _sorted(items: Collection[str]) -> list[str]:
    """Return the different items in order, in short steps.

    Sorting all at once would keep other threads from running for a tenth of a second.
    """
    given = list(items)
    runs = [sorted(given[at : at + SORTED_AT_ONCE]) for at in range(0, len(given), SORTED_AT_ONCE)]
    return [item for item, _ in groupby(merge(*runs))]


class _Stored(msgspec.Struct, frozen=True):
    mode: Mode
    digest: str
    items: msgspec.Raw
