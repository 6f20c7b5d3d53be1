"""Users' histories and a task's answers in memory."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Histories:
    """Every user's items, oldest first, in one flat array.

    The items of user ``i`` are ``codes[offsets[i]:offsets[i + 1]]``; a code is an index into
    ``items``. Users and items are in the order of their first appearance.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def select(self, users: npt.NDArray[np.int64]) -> "Histories":
        """The histories of the users with these indices."""
        parts = [self.codes[self.offsets[i] : self.offsets[i + 1]] for i in users.tolist()]
        offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
        codes = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        return Histories(tuple(self.users[i] for i in users.tolist()), self.items, codes, offsets)

    def without_newest(self, count: int) -> "Histories":
        """Histories less their newest ``count`` events; users without older ones are left out."""
        if count == 0:
            return self
        lengths = np.diff(self.offsets)
        kept = np.maximum(lengths - count, 0)
        places = np.arange(len(self.codes)) - np.repeat(self.offsets[:-1], lengths)
        codes = self.codes[places < np.repeat(kept, lengths)]
        present = np.flatnonzero(kept)
        offsets = np.cumsum([0, *kept[present].tolist()], dtype=np.int64)
        return Histories(tuple(self.users[i] for i in present.tolist()), self.items, codes, offsets)

    def items_of(self, user: int) -> tuple[str, ...]:
        """One user's items, oldest first."""
        codes = self.codes[self.offsets[user] : self.offsets[user + 1]]
        return tuple(self.items[code] for code in codes.tolist())

    def digest(self) -> str:
        """sha256 over users, items and their order. It identifies the training data."""
        sha = hashlib.sha256(json.dumps([self.users, self.items]).encode())
        sha.update(self.codes.tobytes())
        sha.update(self.offsets.tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class UserLabels:
    """The answers that a task is trained on: one or several texts per user.

    ``source`` names the file in messages.
    """

    by_user: Mapping[str, tuple[str, ...]]
    source: str

    def digest(self) -> str:
        """sha256 over all answers. It identifies the labels."""
        return hashlib.sha256(json.dumps(sorted(self.by_user.items())).encode()).hexdigest()
