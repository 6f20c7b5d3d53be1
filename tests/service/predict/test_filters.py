"""Filters equal a test of every item, are kept for each tenant, and are made beside the loop."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from peterrec.patches.bundle.attributes import list_column, number_column, text_column
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.registry.availability import Availability
from peterrec.service.errors import UnknownAttribute
from peterrec.service.predict import filters
from peterrec.service.predict.filters import ItemFilter, ItemFilters, Wanted
from peterrec.service.predict.where import Condition, key_of, passing

TAGS = [f"t{n:02}" for n in range(12)]


def shop(items: int, seed: int = 0) -> tuple[Catalog, dict[str, list]]:
    """A catalog with attributes, and their values as lists."""
    draw = random.Random(seed)
    rows: dict[str, list] = {
        "tags": [draw.sample(TAGS, draw.randrange(5)) for _ in range(items)],
        "maker": [draw.choice([None, *TAGS]) for _ in range(items)],
        "price": [draw.choice([float("nan"), draw.randrange(9)]) for _ in range(items)],
    }
    catalog = Catalog.pack([f"item-{n}" for n in range(items)])
    catalog.attributes = {
        "tags": list_column(rows["tags"]),
        "maker": text_column(rows["maker"]),
        "price": number_column(np.array(rows["price"], np.float64)),
    }
    return catalog, rows


def counted(monkeypatch, name: str) -> list[str]:
    """A list that gets an entry for each call of a function of the module."""
    calls: list[str] = []
    original = getattr(filters, name)

    def counting(*arguments):
        calls.append(name)
        return original(*arguments)

    monkeypatch.setattr(filters, name, counting)
    return calls


def drawn(draw: random.Random) -> tuple[dict, dict]:
    """A filter, and a test for the values of each of its attributes."""
    some: list[Any] = draw.sample([*TAGS, "nothing"], draw.randrange(1, 4))
    low = draw.randrange(9)
    tags = draw.choice(
        [
            (some, lambda v: bool({*v} & {*some})),
            (Condition(not_=some), lambda v: not {*v} & {*some}),
            (Condition(all=some), lambda v: {*some} <= {*v}),
            (Condition(exists=True), bool),
        ]
    )
    maker = draw.choice(
        [
            (some[0], lambda v: v == some[0]),
            (Condition(in_=some), lambda v: v in some),
            (Condition(not_=some[0], exists=True), lambda v: v not in (None, some[0])),
        ]
    )
    price = draw.choice(
        [
            (Condition(gte=low), lambda v: v >= low),
            (Condition(gt=low - 3, lt=low), lambda v: low - 3 < v < low),
            (Condition(not_=low), lambda v: v != low),
        ]
    )
    names = draw.sample(["tags", "maker", "price"], draw.randrange(1, 4))
    found = {"tags": tags, "maker": maker, "price": price}
    return {n: found[n][0] for n in names}, {n: found[n][1] for n in names}


@pytest.mark.parametrize("seed", range(60))
def test_a_filter_equals_a_test_of_every_item(seed):
    catalog, rows = shop(97, seed % 7)
    where, tests = drawn(random.Random(seed))
    found = passing(where, catalog.attributes, len(catalog))
    expected = [all(test(rows[name][at]) for name, test in tests.items()) for at in range(97)]
    assert found.tolist() == expected
    packed = ItemFilter.of(found)
    assert packed.count == sum(expected)
    np.testing.assert_array_equal(packed.passes(np.arange(97)), expected)
    np.testing.assert_array_equal(packed.flags(97), expected)


def test_the_order_of_attributes_makes_no_other_filter():
    assert key_of({"a": 1, "b": Condition(lt=2)}) == key_of({"b": Condition(lt=2), "a": 1})
    assert key_of({"a": 1}) != key_of({"a": "1"})


async def test_filters_are_kept_and_errors_too(monkeypatch):
    catalog, _ = shop(20)
    kept, made = ItemFilters(), counted(monkeypatch, "_make")
    good = Wanted("d", {"maker": TAGS[0]}, None)
    first = await kept.make("ann", good, catalog)
    assert kept.peek("ann", good) is first
    assert kept.peek("bob", good) is None
    bad = Wanted("d", {"colour": "red"}, None)
    assert isinstance(await kept.make("ann", bad, catalog), UnknownAttribute)
    assert isinstance(await kept.make("ann", bad, catalog), UnknownAttribute)
    assert len(made) == 2


async def test_what_is_available_is_sought_once_for_all_filters(monkeypatch):
    catalog, rows = shop(50)
    kept, sought = ItemFilters(), counted(monkeypatch, "_available")
    gone = Availability.of("unavailable", [f"item-{n}" for n in range(25)])
    for tag in TAGS:
        found = await kept.make("ann", Wanted("d", {"tags": tag}, gone), catalog)
        assert isinstance(found, ItemFilter)
        expected = [at >= 25 and tag in rows["tags"][at] for at in range(50)]
        np.testing.assert_array_equal(found.flags(50), expected)
    assert len(sought) == 1


async def test_large_filters_are_made_in_the_thread_one_at_a_time_for_a_tenant(monkeypatch):
    catalog, _ = shop(20)
    monkeypatch.setattr(filters, "WORK_AT_ONCE", 0)
    threads: list[str] = []
    original = filters._make

    def noting(*arguments):
        threads.append(threading.current_thread().name)
        return original(*arguments)

    monkeypatch.setattr(filters, "_make", noting)
    with ThreadPoolExecutor(1, "filters") as thread:
        kept, same = ItemFilters(thread), Wanted("d", {"maker": TAGS[0]}, None)
        await asyncio.gather(*(kept.make("ann", same, catalog) for _ in range(9)))
        assert len(threads) == 1
        await kept.make("bob", same, catalog)
    assert len(threads) == 2
    assert all(name.startswith("filters") for name in threads)


async def test_the_filters_of_a_tenant_take_bounded_memory(monkeypatch):
    catalog, _ = shop(80)
    monkeypatch.setattr(filters, "TENANT_BYTES", 4 * (filters.KEPT_BESIDE + 10))
    monkeypatch.setattr(filters, "MAX_TENANTS", 2)
    kept = ItemFilters()
    wanted = [Wanted("d", {"price": n}, None) for n in range(9)]
    for each in wanted:
        await kept.make("ann", each, catalog)
    assert [kept.peek("ann", each) is not None for each in wanted] == [False] * 5 + [True] * 4
    for tenant in ("bob", "eve"):
        await kept.make(tenant, wanted[0], catalog)
    assert kept.peek("ann", wanted[8]) is None
