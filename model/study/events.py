"""Events with times: ordered so that only time decides, and cut so that no future is read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.errors import FutureItem

Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64 | np.float64]


@dataclass(frozen=True, slots=True)
class Events:
    """Event ``i`` is user ``users[user[i]]`` taking item ``items[item[i]]`` at ``time[i]``.

    Without a time column, ``time`` is the place in the file and ``has_times`` is false: the file
    is then trusted to be in order.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    time: Times
    has_times: bool
    source: str

    def select(self, kept: Flags) -> "Events":
        """The events where the mask is true."""
        return Events(
            self.users,
            self.items,
            self.user[kept],
            self.item[kept],
            self.time[kept],
            self.has_times,
            self.source,
        )

    def in_order(self) -> npt.NDArray[np.int64]:
        """Indices by user, then time, then a hash of user and item.

        Events of one moment (one day, in daily data) come in an order that neither the file nor an
        id decides: sorted ids would tell which item is older or more popular.
        """
        return np.lexsort((self._ties(), self.time, self.user))

    def _ties(self) -> npt.NDArray[np.uint64]:
        mixed = _hashes(self.users)[self.user] ^ _scrambled(_hashes(self.items)[self.item])
        return _scrambled(mixed)


def histories_of(events: Events) -> Histories:
    """Each user's items in order; users without events are left out."""
    order = events.in_order()
    present, user = np.unique(events.user, return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(present)))])
    users = tuple(events.users[i] for i in present.tolist())
    return Histories(users, events.items, events.item[order], offsets.astype(np.int64))


def first_targets(events: Events, most: int) -> UserLabels:
    """Each user's first distinct items, at most so many; the same moment's in the hash's order."""
    histories = histories_of(events)
    by_user = {
        user: tuple(dict.fromkeys(histories.items_of(i)))[:most]
        for i, user in enumerate(histories.users)
    }
    return UserLabels(by_user, events.source)


def first_times(events: Events) -> dict[str, float]:
    """When each user's first event was."""
    earliest: dict[str, float] = {}
    for user, time in zip(events.user.tolist(), events.time.tolist(), strict=True):
        name = events.users[user]
        earliest[name] = min(time, earliest.get(name, time))
    return earliest


def cuts_after(inputs: Events, targets: Events, least: int) -> dict[str, float]:
    """When each user's first target was that at least so many inputs precede; others have none."""
    seen = histories_times(inputs)
    cuts: dict[str, float] = {}
    for user, times in histories_times(targets).items():
        earlier = np.searchsorted(seen.get(user, np.empty(0)), times, side="left")
        late_enough = times[earlier >= least]
        if len(late_enough):
            cuts[user] = float(late_enough[0])
    return cuts


def histories_times(events: Events) -> dict[str, Times]:
    """Each user's times, ascending."""
    order = np.lexsort((events.time, events.user))
    present, starts = np.unique(events.user[order], return_index=True)
    times = np.split(events.time[order], starts[1:])
    return {events.users[u]: t for u, t in zip(present.tolist(), times, strict=True)}


def is_past(events: Events, cuts: dict[str, float]) -> Flags:
    """True for events strictly before their user's cut, and for users without one."""
    cut_of = np.array([cuts.get(user, np.inf) for user in events.users])
    past: Flags = events.time < cut_of[events.user]
    return past


def require_past(inputs: Events, targets: Events) -> None:
    """Refuse inputs that hold an event at or after their user's first target.

    Where either file has no times, an item that is both input and target of a user is refused: it
    may be the target itself.
    """
    if inputs.has_times and targets.has_times:
        _require_earlier(inputs, targets)
    else:
        _require_disjoint(inputs, targets)


def _require_earlier(inputs: Events, targets: Events) -> None:
    cuts = first_times(targets)
    late = np.flatnonzero(~is_past(inputs, cuts))
    if len(late):
        user = inputs.users[inputs.user[late[0]]]
        raise FutureItem(
            f"{inputs.source}: user {user!r} has item {inputs.items[inputs.item[late[0]]]!r} at "
            f"{inputs.time[late[0]]}, but a target at {cuts[user]:.16g} in {targets.source}; so "
            f"have {len({int(inputs.user[i]) for i in late}) - 1} other users.",
            hint="Give histories that end before the targets, or --drop-future to cut them there.",
        )


def _require_disjoint(inputs: Events, targets: Events) -> None:
    wanted = {
        (targets.users[user], targets.items[item])
        for user, item in zip(targets.user.tolist(), targets.item.tolist(), strict=True)
    }
    for user, item in zip(inputs.user.tolist(), inputs.item.tolist(), strict=True):
        if (inputs.users[user], inputs.items[item]) in wanted:
            raise FutureItem(
                f"{inputs.source}: item {inputs.items[item]!r} of user {inputs.users[user]!r} is "
                f"also a target in {targets.source}, and no time says which came first.",
                hint="Name time columns with --order-column and --target-order-column.",
            )


def _hashes(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)


def _scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64, so that equal low bits of two hashes do not meet."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return scrambled
