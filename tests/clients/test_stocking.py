"""Filters, titles, lists of available items and user vectors by both clients."""

import numpy as np
import pytest

from peterrec.patches.bundle.attributes import number_column
from peterrec.patches.bundle.described import describe_bundle
from peterrec_client import Condition, FailedInstance, Forbidden, Instance, StaleRevision
from tests.service.random_bundles import ITEMS

CATALOG = tuple(ITEMS[:12])


@pytest.fixture(scope="module")
def shop(server, workshop, tmp_path_factory):
    """A ranking whose items cost 0, 1, 2 … and have titles; its name."""
    bundle = workshop.bundle("ranking", 8, outputs=len(CATALOG), names=CATALOG)
    prices = number_column(np.arange(len(CATALOG), dtype=np.float64))
    titles = {item: f"Title of {item}" for item in CATALOG}
    path = tmp_path_factory.mktemp("shop") / "shop.bundle"
    path.write_bytes(describe_bundle(bundle, titles, {"price": prices}))
    with server.client() as api:
        answer = api.post("/tasks/shop/versions", content=path.read_bytes())
        assert answer.is_success, answer.text
    return "shop"


def ids(answer):
    return {item.id for item in answer.items}


def test_a_ranking_is_filtered_and_has_titles(client, shop):
    answer = client.predict(shop, [], where={"price": Condition(gte=3, lt=6)}, titles=True)
    assert ids(answer) == {*CATALOG[3:6]}
    assert answer.matching == 3
    assert {item.title for item in answer.items} == {f"Title of {item}" for item in CATALOG[3:6]}
    same = client.predict(shop, [], where={"price": {"in": [3, 4, 5]}})
    assert (ids(same), same.items[0].title) == (ids(answer), None)


def test_instances_have_filters_of_their_own(client, shop):
    instances = [Instance([], where={"price": n}) for n in range(5)]
    found = client.predict_many(shop, [*instances, Instance([], where={"prise": 1})])
    assert [ids(each) for each in found[:5]] == [{item} for item in CATALOG[:5]]
    assert isinstance(found[5], FailedInstance)


def test_a_list_of_items_is_replaced_read_and_removed(client, shop):
    client.delete_availability(shop)
    assert client.availability(shop).mode is None
    changed = client.put_availability(shop, unavailable=[*CATALOG[:2], "unknown"])
    assert (changed.count, changed.unknown, changed.unknown_items) == (3, 1, ("unknown",))
    assert client.predict(shop, []).matching == len(CATALOG) - 2
    listed = client.availability(shop)
    assert (listed.mode, set(listed.items)) == ("unavailable", {*CATALOG[:2], "unknown"})
    client.put_availability(shop, available=CATALOG[:1], if_revision=listed.revision)
    with pytest.raises(StaleRevision):
        client.delete_availability(shop, if_revision=listed.revision)
    assert ids(client.predict(shop, [])) == {CATALOG[0]}
    assert client.delete_availability(shop).mode is None
    with pytest.raises(TypeError, match="either"):
        client.put_availability(shop)
    with pytest.raises(TypeError, match="unavailable is a list"):
        client.put_availability(shop, unavailable="item")


@pytest.mark.parametrize("is_half", [False, True])
def test_user_vectors_are_bytes_of_numbers(make, server, client, shop, is_half):
    found = client.vectors([ITEMS[:3], []], is_half=is_half)
    assert found.backbone == client.backbone().fingerprint
    arrays = [np.frombuffer(each.data, found.dtype) for each in found.vectors]
    assert [len(each) for each in arrays] == [found.dimensions] * 2
    patched = client.vectors([ITEMS[:3]], task=shop)
    assert (patched.task, patched.version) == (shop, 1)
    assert not np.allclose(np.frombuffer(patched.vectors[0].data, "<f4"), arrays[0], atol=1e-2)
    other = make(server.url, client.create_key("reader", ["predict"]).api_key)
    with pytest.raises(Forbidden):
        other.vectors([[]])
