"""Cut-offs between inputs and targets, so that no input comes from a target's future.

``model/data/interactions.py`` has the rules: equal times count as later.
"""

import numpy as np

from peterrec.model.data.interactions import Events, Flags, on_one_scale
from peterrec.model.data.order_columns import OrderValues
from peterrec.model.errors import FutureItem, OrderUnreadable

Cuts = dict[str, int | float]
"""A time for each of some users, in the scale of the events that it was taken from."""


def first_times(events: Events) -> Cuts:
    """The time of each user's first event."""
    return {user: times[0].item() for user, times in _times_by_user(events).items()}


def cuts_after(inputs: Events, targets: Events, least: int) -> Cuts:
    """The time of each user's first target that at least ``least`` inputs precede.

    Users without such a target are left out. Both must be on one scale (see ``on_one_scale``).
    """
    seen = _times_by_user(inputs)
    cuts: Cuts = {}
    for user, times in _times_by_user(targets).items():
        earlier = np.searchsorted(seen.get(user, np.empty(0)), times, side="left")
        late_enough = times[earlier >= least]
        if len(late_enough):
            cuts[user] = late_enough[0].item()
    return cuts


def is_past(events: Events, cuts: Cuts) -> Flags:
    """True for events strictly before their user's cut, and for users without one."""
    times = _times_of(events)
    has_cut = np.array([user in cuts for user in events.users], dtype=np.bool_)
    cut_of = np.array([cuts.get(user, 0) for user in events.users], dtype=_exact(times, cuts))
    past: Flags = (times < cut_of[events.user]) | ~has_cut[events.user]
    return past


def _exact(times: OrderValues, cuts: Cuts) -> type[np.generic]:
    """The type of cuts: that of the times, so that comparing 64-bit integers rounds nothing."""
    is_float = any(isinstance(cut, float) for cut in cuts.values())
    return np.float64 if is_float else times.dtype.type


def require_past(inputs: Events, targets: Events) -> None:
    """Refuse inputs that hold an event at or after their user's first target.

    If either file has no times, refuse an item that is both an input and a target of one user: it
    may be the target itself.
    """
    if inputs.time is None or targets.time is None:
        _require_disjoint(inputs, targets)
    else:
        _require_earlier(*on_one_scale(inputs, targets))


def _require_earlier(inputs: Events, targets: Events) -> None:
    cuts, times = first_times(targets), _times_of(inputs)
    late = np.flatnonzero(~is_past(inputs, cuts))
    if len(late):
        user = inputs.users[inputs.user[late[0]]]
        others = len({int(inputs.user[i]) for i in late}) - 1
        raise FutureItem(
            f"{inputs.source}: user {user!r} has item {inputs.items[inputs.item[late[0]]]!r} at "
            f"{times[late[0]]}, but a target at {cuts[user]} in {targets.source}. "
            f"{others} other users also have inputs that are not before their first target.",
            hint="Give histories that end before the targets. Or cut them there: `drop_future`.",
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
                hint="Name columns of times with `order_column` and `target_order_column`.",
            )


def _times_by_user(events: Events) -> dict[str, OrderValues]:
    """Each user's times, ascending."""
    all_times = _times_of(events)
    order = np.lexsort((all_times, events.user))
    present, starts = np.unique(events.user[order], return_index=True)
    times = np.split(all_times[order], starts[1:])
    return {events.users[u]: t for u, t in zip(present.tolist(), times, strict=True)}


def _times_of(events: Events) -> OrderValues:
    if events.time is None:
        raise OrderUnreadable(
            f"{events.source} has no times to cut it by.",
            hint="Name columns of times with `order_column` and `target_order_column`.",
        )
    return events.time
