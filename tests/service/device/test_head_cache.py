"""Heads share a limit in bytes: ranking heads give way to each other, and can all come back."""

from contextlib import suppress

import numpy as np
import pytest
import torch

from peterrec.model.inference.heads import HeadRef, MixedHeads
from peterrec.model.spec import HeadSpec
from peterrec.service.device.head_cache import HeadMoves, HeadRoom
from peterrec.service.errors import HeadBudgetExceeded

CHANNELS = 8
ITEMS = 10
CATALOG = 4 * ITEMS * (CHANNELS + 1)


class Heads:
    """A limit in catalogs, and heads that are loaded one by one."""

    def __init__(self, catalogs: float) -> None:
        self.room = HeadRoom(int(catalogs * CATALOG))
        self.mixed = MixedHeads(CHANNELS, torch.device("cpu"))
        self.refs: dict[int, HeadRef] = {}

    def load(self, handle: int, *, items: int = ITEMS, is_movable: bool = True) -> None:
        self.room.admit(4 * items * (CHANNELS + 1), is_movable=is_movable)
        spec = HeadSpec("ranking", items)
        tensors = {name: torch.zeros(shape) for name, shape in spec.shapes(CHANNELS).items()}
        self.refs[handle] = self.mixed.add(spec, tensors)
        self.room.add(handle, self.refs[handle], is_movable=is_movable)

    def settle(self, *handles: int) -> None:
        for handle in handles:
            self.load(handle)
            self.room.release_held()


def test_the_head_used_least_recently_leaves() -> None:
    heads = Heads(2)
    heads.settle(1, 2)
    heads.room.use([1])
    heads.settle(3)
    assert heads.room.away == {2}
    assert [ref.is_here for ref in heads.refs.values()] == [True, False, True]
    assert heads.room.used_bytes == 2 * CATALOG
    assert heads.room.take_moves() == HeadMoves(evicted=1, evicted_bytes=CATALOG)
    assert heads.room.take_moves() == HeadMoves()


def test_heads_that_are_not_validated_yet_do_not_leave() -> None:
    heads = Heads(2)
    heads.load(1)
    heads.load(2)
    with pytest.raises(HeadBudgetExceeded):
        heads.load(3)
    heads.room.release_held()
    heads.load(3)
    assert heads.room.away == {1}


def test_a_head_larger_than_the_limit_is_refused_and_nothing_moves() -> None:
    heads = Heads(2)
    heads.settle(1, 2)
    with pytest.raises(HeadBudgetExceeded):
        heads.load(3, items=3 * ITEMS)
    assert heads.room.away == set()


def test_heads_that_stay_leave_room_for_the_largest_that_may_have_to_come_back() -> None:
    heads = Heads(2)
    heads.settle(1)
    heads.load(2, is_movable=False)
    with pytest.raises(HeadBudgetExceeded):
        heads.load(3, items=1, is_movable=False)


def test_a_head_that_returns_takes_the_room_of_another() -> None:
    heads = Heads(1)
    heads.settle(1, 2)
    heads.room.begin_return(1)
    assert heads.room.away == {1, 2}
    assert heads.room.used_bytes == CATALOG
    heads.room.end_return(1, is_here=True)
    assert heads.room.away == {2}
    assert heads.room.take_moves() == HeadMoves(2, 2 * CATALOG, 1, CATALOG)


def test_a_new_head_may_take_the_room_that_was_kept_for_one_that_returns() -> None:
    heads = Heads(1)
    heads.settle(1, 2)
    heads.room.begin_return(1)
    heads.settle(3)
    assert not heads.room.is_returning(1)
    assert heads.room.away == {1, 2}
    assert heads.room.used_bytes == CATALOG


@pytest.mark.parametrize("is_returning", [False, True])
def test_removing_every_head_gives_every_byte_back(*, is_returning: bool) -> None:
    heads = Heads(2)
    heads.load(9, items=1, is_movable=False)
    heads.settle(1, 2, 3)
    if is_returning:
        heads.room.begin_return(1)
    for handle, ref in heads.refs.items():
        heads.room.remove(handle, ref)
    assert heads.room.used_bytes == 0
    assert heads.room.away == set()
    heads.settle(4, 5)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_bytes_are_right_and_within_the_limit(seed: int) -> None:
    heads, random = Heads(3.5), np.random.default_rng(seed)
    returning: list[int] = []
    for handle in range(200):
        deed = random.integers(4)
        if deed == 0:
            with suppress(HeadBudgetExceeded):
                heads.load(handle, items=int(random.integers(1, 2 * ITEMS)))
                heads.room.release_held()
        elif deed == 1 and heads.refs:
            gone = int(random.choice(list(heads.refs)))
            heads.room.remove(gone, heads.refs.pop(gone))
        elif deed == 2 and heads.room.away and not returning:
            returning = [int(random.choice(list(heads.room.away)))]
            heads.room.begin_return(returning[0])
        elif deed == 3 and returning:
            back = returning.pop()
            if heads.room.is_returning(back):
                zeros = {
                    n: torch.zeros(s) for n, s in heads.refs[back].spec.shapes(CHANNELS).items()
                }
                heads.mixed.put_back(heads.refs[back], zeros)
                heads.room.end_return(back, is_here=True)
        here = {h: ref.size_bytes for h, ref in heads.refs.items() if ref.is_here}
        kept = sum(heads.refs[h].size_bytes for h in returning if heads.room.is_returning(h))
        assert heads.room.used_bytes == sum(here.values()) + kept <= 3.5 * CATALOG
        assert heads.room.away == heads.refs.keys() - here.keys()
