"""Heads share a limit in bytes: ranking heads evict each other, and each can be reloaded."""

from contextlib import suppress

import numpy as np
import pytest
import torch

from peterrec.model.inference.heads import HeadBytes, HeadRef, MixedHeads, head_bytes
from peterrec.model.spec import BackboneSpec, HeadSpec
from peterrec.service.device.head_cache import HeadCache, HeadMoves
from peterrec.service.errors import HeadBudgetExceeded
from tests.model.random_tasks import random_table

CHANNELS = 8
ITEMS = 10
CATALOG = 4 * ITEMS * (CHANNELS + 1)
BACKBONE = BackboneSpec(item_count=70, channels=CHANNELS)


class Heads:
    """A limit in catalogs, and heads that are loaded one by one."""

    def __init__(self, catalogs: float) -> None:
        self.cache = HeadCache(int(catalogs * CATALOG))
        self.mixed = MixedHeads(CHANNELS, torch.device("cpu"), BACKBONE.token_count)
        self.refs: dict[int, HeadRef] = {}

    def load(self, handle: int, *, items: int = ITEMS, is_evictable: bool = True) -> None:
        self.cache.reserve(HeadBytes(0, 4 * items * (CHANNELS + 1)), is_evictable=is_evictable)
        spec = HeadSpec("ranking", items)
        tensors = {name: torch.zeros(shape) for name, shape in spec.shapes(CHANNELS).items()}
        self.refs[handle] = self.mixed.add(spec, tensors)
        self.cache.add(handle, self.refs[handle], is_evictable=is_evictable)

    def load_table(self, handle: int, *, is_evictable: bool = True) -> int:
        """Load a small head with an item table of about a catalog; return the table's bytes."""
        spec = HeadSpec("classification", 4)
        tensors = {name: torch.zeros(shape) for name, shape in spec.shapes(CHANNELS).items()}
        table = random_table(BACKBONE, spec.outputs, seed=1)
        size = head_bytes(spec, CHANNELS, table)
        self.cache.reserve(size, is_evictable=is_evictable)
        self.refs[handle] = self.mixed.add(spec, tensors, table=table)
        assert self.refs[handle].size == size
        self.cache.add(handle, self.refs[handle], is_evictable=is_evictable)
        self.cache.unpin()
        return size.large

    def settle(self, *handles: int) -> None:
        for handle in handles:
            self.load(handle)
            self.cache.unpin()


def test_the_head_used_least_recently_is_evicted() -> None:
    heads = Heads(2)
    heads.settle(1, 2)
    heads.cache.touch([1])
    heads.settle(3)
    assert heads.cache.evicted == {2}
    assert [ref.is_here for ref in heads.refs.values()] == [True, False, True]
    assert heads.cache.used_bytes == 2 * CATALOG
    assert heads.cache.take_moves() == HeadMoves(evicted=1, evicted_bytes=CATALOG)
    assert heads.cache.take_moves() == HeadMoves()


def test_heads_that_are_not_validated_yet_are_not_evicted() -> None:
    heads = Heads(2)
    heads.load(1)
    heads.load(2)
    with pytest.raises(HeadBudgetExceeded):
        heads.load(3)
    heads.cache.unpin()
    heads.load(3)
    assert heads.cache.evicted == {1}


def test_a_head_larger_than_the_limit_is_refused_and_nothing_moves() -> None:
    heads = Heads(2)
    heads.settle(1, 2)
    with pytest.raises(HeadBudgetExceeded):
        heads.load(3, items=3 * ITEMS)
    assert heads.cache.evicted == set()


def test_heads_that_are_never_evicted_leave_room_to_reload_the_largest_that_is() -> None:
    heads = Heads(2)
    heads.settle(1)
    heads.load(2, is_evictable=False)
    with pytest.raises(HeadBudgetExceeded):
        heads.load(3, items=1, is_evictable=False)


def test_a_head_that_is_reloaded_takes_the_room_of_another() -> None:
    heads = Heads(1)
    heads.settle(1, 2)
    heads.cache.begin_reload(1)
    assert heads.cache.evicted == {1, 2}
    assert heads.cache.used_bytes == CATALOG
    heads.cache.end_reload(1, is_here=True)
    assert heads.cache.evicted == {2}
    assert heads.cache.take_moves() == HeadMoves(2, 2 * CATALOG, 1, CATALOG)


def test_a_new_head_may_take_the_room_that_was_reserved_for_a_reload() -> None:
    heads = Heads(1)
    heads.settle(1, 2)
    heads.cache.begin_reload(1)
    heads.settle(3)
    assert not heads.cache.is_reloading(1)
    assert heads.cache.evicted == {1, 2}
    assert heads.cache.used_bytes == CATALOG


def test_item_tables_and_rankings_evict_each_other_and_small_heads_stay() -> None:
    heads = Heads(3)
    table = heads.load_table(1)
    small = heads.refs[1].size.pooled
    heads.settle(2)
    assert heads.cache.used_bytes == small + table + CATALOG
    heads.settle(3)
    assert heads.cache.evicted == {1}
    assert not heads.refs[1].is_here
    assert heads.cache.used_bytes == small + 2 * CATALOG
    heads.cache.begin_reload(1)
    assert heads.cache.evicted == {1, 2}
    heads.mixed.put_back(heads.refs[1], {"table": torch.zeros(table, dtype=torch.uint8)})
    heads.cache.end_reload(1, is_here=True)
    assert heads.refs[1].is_here
    assert heads.cache.used_bytes == small + table + CATALOG


def test_an_item_table_that_can_not_be_read_again_stays() -> None:
    heads = Heads(3)
    heads.load_table(1, is_evictable=False)
    heads.settle(2)
    with pytest.raises(HeadBudgetExceeded):
        heads.load_table(3, is_evictable=False)
    heads.cache.remove(1, heads.refs[1])
    assert heads.cache.used_bytes == CATALOG


@pytest.mark.parametrize("is_reloading", [False, True])
def test_removing_every_head_gives_every_byte_back(*, is_reloading: bool) -> None:
    heads = Heads(2)
    heads.load(9, items=1, is_evictable=False)
    heads.settle(1, 2, 3)
    if is_reloading:
        heads.cache.begin_reload(1)
    for handle, ref in heads.refs.items():
        heads.cache.remove(handle, ref)
    assert heads.cache.used_bytes == 0
    assert heads.cache.evicted == set()
    heads.settle(4, 5)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_bytes_are_right_and_within_the_limit(seed: int) -> None:
    heads, random = Heads(3.5), np.random.default_rng(seed)
    reloading: list[int] = []
    for handle in range(200):
        deed = random.integers(4)
        if deed == 0:
            with suppress(HeadBudgetExceeded):
                heads.load(handle, items=int(random.integers(1, 2 * ITEMS)))
                heads.cache.unpin()
        elif deed == 1 and heads.refs:
            gone = int(random.choice(list(heads.refs)))
            heads.cache.remove(gone, heads.refs.pop(gone))
        elif deed == 2 and heads.cache.evicted and not reloading:
            reloading = [int(random.choice(list(heads.cache.evicted)))]
            heads.cache.begin_reload(reloading[0])
        elif deed == 3 and reloading:
            back = reloading.pop()
            if heads.cache.is_reloading(back):
                zeros = {
                    n: torch.zeros(s) for n, s in heads.refs[back].spec.shapes(CHANNELS).items()
                }
                heads.mixed.put_back(heads.refs[back], zeros)
                heads.cache.end_reload(back, is_here=True)
        here = {h: sum(ref.size) for h, ref in heads.refs.items() if ref.is_here}
        kept = sum(sum(heads.refs[h].size) for h in reloading if heads.cache.is_reloading(h))
        assert heads.cache.used_bytes == sum(here.values()) + kept <= 3.5 * CATALOG
        assert heads.cache.evicted == heads.refs.keys() - here.keys()
