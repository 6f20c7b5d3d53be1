"""Lists of items that are to be had, replaced while a task is served, over real HTTP."""

import pytest

from peterrec.patches.bundle.attributes import text_column
from peterrec.patches.bundle.bundle import Catalog, open_bundle
from peterrec.patches.bundle.described import describe_bundle
from tests.e2e.conftest import push
from tests.service.random_bundles import ITEMS

PATH = "/tasks/stock/availability"


LONG_LIST = b'{"available": ["' + b'","'.join(b"%040d" % n for n in range(60_000)) + b'"]}'


def made(workshop, seed):
    """A ranking of 30 items."""
    return workshop.bundle("ranking", seed, outputs=30, names=tuple(ITEMS[:30]))


@pytest.fixture
def items(api, workshop):
    bundle = made(workshop, 5)
    push(api, "stock", bundle, allow_new_outputs="true")
    api.delete(PATH)
    return [*Catalog.of(open_bundle(bundle).tensors)]


def ask(api, **body):
    body = {"history": ITEMS[:3], "parameters": {"top_k": 1000}} | body
    answer = api.post("/tasks/stock/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]


def ids(answer):
    return [each["id"] for each in answer["items"]]


def test_unavailable_items_are_held_back_until_the_list_is_removed(api, items):
    whole = ask(api)
    gone = ids(whole)[:3]
    put = api.put(PATH, json={"unavailable": [*gone, "not in the catalog"]})
    assert put.status_code == 200, put.text
    assert put.json()["mode"] == "unavailable"
    assert (put.json()["count"], put.json()["unknown"]) == (4, 1)
    assert put.json()["unknown_items"] == ["not in the catalog"]
    left = ask(api)
    assert left["items"] == whole["items"][3:]
    assert left["matching"] == len(items) - 3
    shown = api.get(PATH).json()
    assert shown["items"] == sorted([*gone, "not in the catalog"])
    assert api.delete(PATH).json()["mode"] is None
    assert ask(api) == whole
    assert api.get(PATH).json()["items"] == []


def test_only_available_items_are_answered(api, items):
    whole = ask(api)
    kept = {*ids(whole)[5:9]}
    api.put(PATH, json={"available": sorted(kept)})
    assert ask(api)["items"] == [each for each in whole["items"] if each["id"] in kept]
    api.put(PATH, json={"available": []})
    nothing = ask(api)
    assert (nothing["items"], nothing["matching"]) == ([], 0)


def test_a_list_holds_for_candidates_pinned_versions_and_later_bundles(api, items, workshop):
    gone = ids(ask(api))[:2]
    api.put(PATH, json={"unavailable": gone})
    assert ids(ask(api, parameters={"top_k": 2, "version": "prod"})) != gone
    instance = {"history": [], "candidates": [*gone, items[0], items[1]]}
    answer = api.post("/tasks/stock/predict", json={"instances": [instance]}).json()
    assert {*ids(answer["predictions"][0])} == {items[0], items[1]} - {*gone}
    push(api, "stock", made(workshop, 6))
    assert not {*gone} & {*ids(ask(api))}


def test_a_list_and_a_filter_hold_together(api, items, workshop):
    makers = [f"maker-{n % 2}" for n in range(len(items))]
    bundle = describe_bundle(made(workshop, 5), None, {"maker": text_column(makers)})
    push(api, "stock", bundle)
    whole = ask(api)
    gone = {*ids(whole)[:4]}
    api.put(PATH, json={"unavailable": sorted(gone)})
    found = ask(api, parameters={"top_k": 1000, "where": {"maker": "maker-1"}})
    passing = {item for item, maker in zip(items, makers, strict=True) if maker == "maker-1"}
    assert found["items"] == [e for e in whole["items"] if e["id"] in passing - gone]
    assert found["matching"] == len(passing - gone)


def test_numbers_and_texts_are_the_same_ids_and_equal_lists_change_nothing(api, items):
    first = api.put(PATH, json={"unavailable": [1193, "661", "661"]})
    again = api.put(PATH, json={"unavailable": ["661", "1193"]})
    assert first.json()["count"] == again.json()["count"] == 2
    assert first.headers["etag"] == again.headers["etag"]


def test_a_change_since_the_list_was_read_is_noticed(api, items):
    etag = api.get(PATH).headers["etag"]
    assert api.put(PATH, json={"unavailable": ["x"]}, headers={"If-Match": etag}).is_success
    late = api.put(PATH, json={"unavailable": ["y"]}, headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "revision_mismatch")
    assert api.delete(PATH, headers={"If-Match": etag}).status_code == 412


def test_lists_are_in_the_trail_and_count_as_bytes_of_bundles(api, items):
    before = api.get("/tenants/default/usage").json()["bundle_bytes"]["used"]
    api.put(PATH, json={"unavailable": ["x" * 100]})
    during = api.get("/tenants/default/usage").json()["bundle_bytes"]["used"]
    assert 100 < during - before < 300
    api.delete(PATH)
    assert api.get("/tenants/default/usage").json()["bundle_bytes"]["used"] == before
    events = api.get("/registry/audit", params={"task": "stock"}).json()["events"]
    assert [each["action"] for each in events][-2:] == ["put_availability", "clear_availability"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{}", 400, "malformed_request"),
        (b'{"unavailable": ["a"], "available": ["b"]}', 400, "malformed_request"),
        (b'{"unavailable": "a"}', 400, "malformed_request"),
        (b'{"unavailable": [1.5]}', 400, "malformed_request"),
        (b'{"unavailable": [null]}', 400, "malformed_request"),
        (b'{"unavailable": ["a"], "more": 1}', 400, "malformed_request"),
        (b'["a"]', 400, "malformed_request"),
        (b"\xff\xfe", 400, "malformed_request"),
        (b'{"unavailable": ["\xff"]}', 400, "malformed_request"),
        (b'{"unavailable": ["\\ud800"]}', 400, "malformed_request"),
        (b'{"unavailable": [' + b"9" * 5000 + b"]}", 400, "malformed_request"),
        (b'{"unavailable": ["' + b"x" * 300 + b'"]}', 413, "availability_too_large"),
        (b'{"unavailable": [' + b"1," * 250_000 + b"1]}", None, None),
        (
            b'{"available": ["' + b'","'.join(b"%040d" % n for n in range(60_000)) + b'"]}',
            413,
            None,
        ),
        (b" " * (5 << 20), 413, "body_too_large"),
    ],
    ids=lambda each: each[:30].decode("latin-1") if isinstance(each, bytes) else None,
)
def test_a_strange_list_is_a_clear_refusal(api, items, body, status, code):
    answer = api.put(PATH, content=body, headers={"content-type": "application/json"})
    if status is None:
        assert answer.json()["code"] == "availability_too_large"
        return
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["code"] == code
    assert len(answer.content) < 2000


def test_a_list_belongs_to_ranking_tasks_that_exist(api, items):
    answer = api.put("/tasks/classification/availability", json={"unavailable": ["a"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "task_has_no_items")
    answer = api.put("/tasks/nothing/availability", json={"unavailable": ["a"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


def test_a_list_may_come_before_the_first_bundle(api, items, workshop):
    api.put("/tasks/soon", json={"description": ""})
    put = api.put("/tasks/soon/availability", json={"unavailable": [items[0]]})
    assert (put.json()["count"], put.json()["unknown"]) == (1, None)
    push(api, "soon", made(workshop, 5))
    body = {"history": [], "parameters": {"top_k": 1000}}
    found = api.post("/tasks/soon/predict", json=body).json()["predictions"][0]
    assert items[0] not in ids(found)
