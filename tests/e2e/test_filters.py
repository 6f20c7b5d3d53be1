"""``where``, lists of available items and titles over real HTTP, compared with brute force."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from peterrec.patches.bundle.attributes import (
    NO_TIME,
    list_column,
    number_column,
    text_column,
    time_column,
)
from peterrec.patches.bundle.bundle import Catalog, open_bundle
from peterrec.patches.bundle.described import describe_bundle
from tests.e2e.conftest import push
from tests.service.random_bundles import ITEMS

TASK = "shop"
NEWEST = datetime(2026, 11, 29, tzinfo=UTC)
GENRES = ("Drama", "War", "Comedy", "Krimi – Ü", "Horror")
HISTORY = ITEMS[:4]
COUNT = 61
"""Items of the catalog: not a multiple of the bits in a byte."""


class Shop:
    """The catalog of a ranking bundle with attributes, some without a value."""

    def __init__(self, bundle: bytes) -> None:
        self.items = [*Catalog.of(open_bundle(bundle).tensors)]
        random = np.random.default_rng(7)
        count = len(self.items)
        self.maker = [None if n % 5 == 0 else f"maker-{n % 3}" for n in range(count)]
        self.genres = [
            sorted(random.choice(GENRES, size=n % 4, replace=False)) for n in range(count)
        ]
        self.price = [float("nan") if n % 7 == 0 else round(n * 1.1, 2) for n in range(count)]
        self.since = [None if n % 6 == 0 else NEWEST - timedelta(days=n) for n in range(count)]
        self.bundle = describe_bundle(
            bundle,
            {item: f"Title of {item}" for item in self.items[1:]},
            {
                "maker": text_column(self.maker),
                "genre": list_column(self.genres),
                "price": number_column(np.array(self.price)),
                "available_from": time_column(np.array([*map(_micros, self.since)], np.int64)),
            },
        )

    def passing(self, test):
        """The items that pass a test of maker, genres, price and time."""
        rows = zip(self.items, self.maker, self.genres, self.price, self.since, strict=True)
        return {item for item, *values in rows if test(*values)}


def _micros(at):
    return NO_TIME if at is None else int(at.timestamp()) * 1_000_000


@pytest.fixture(scope="module")
def shop(server, workshop):
    bundle = workshop.bundle("ranking", seed=3, outputs=COUNT, names=tuple(ITEMS[:COUNT]))
    found = Shop(bundle)
    with server.client() as client:
        push(client, TASK, found.bundle)
        push(client, "plain", bundle)
    return found


def ask(api, body, task=TASK):
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def ranked(api, **parameters):
    """All items with their scores, best first, as the bundle without attributes ranks them."""
    body = {"history": HISTORY, "parameters": {"top_k": 1000, **parameters}}
    return ask(api, body, "plain")[0]["items"]


def expected(api, passing, top_k=10, **parameters):
    kept = [each for each in ranked(api, **parameters) if each["id"] in passing]
    return kept[:top_k]


FILTERS = [
    ({"maker": "maker-1"}, lambda m, g, p, t: m == "maker-1"),
    ({"maker": ["maker-1", "maker-2"]}, lambda m, g, p, t: m in {"maker-1", "maker-2"}),
    ({"maker": {"not": "maker-1"}}, lambda m, g, p, t: m != "maker-1"),
    ({"maker": {"exists": False}}, lambda m, g, p, t: m is None),
    ({"maker": "nobody"}, lambda m, g, p, t: False),
    ({"genre": "War"}, lambda m, g, p, t: "War" in g),
    ({"genre": ["War", "Krimi – Ü"]}, lambda m, g, p, t: bool({"War", "Krimi – Ü"} & {*g})),
    ({"genre": {"all": ["War", "Drama"]}}, lambda m, g, p, t: {"War", "Drama"} <= {*g}),
    ({"genre": {"not": ["War", "Drama"]}}, lambda m, g, p, t: not {"War", "Drama"} & {*g}),
    ({"genre": {"exists": True, "not": "War"}}, lambda m, g, p, t: bool(g) and "War" not in g),
    ({"price": 2.2}, lambda m, g, p, t: p == 2.2),
    ({"price": {"gte": 2.2, "lt": 11}}, lambda m, g, p, t: 2.2 <= p < 11),
    ({"price": {"gt": 2.2, "lte": 11}}, lambda m, g, p, t: 2.2 < p <= 11),
    ({"price": {"not": [2.2, 3.3]}}, lambda m, g, p, t: p not in {2.2, 3.3}),
    (
        {"available_from": {"gte": "2026-11-20"}},
        lambda m, g, p, t: t is not None and t >= datetime(2026, 11, 20, tzinfo=UTC),
    ),
    (
        {"available_from": {"lt": "2026-11-20T02:00:00+02:00"}},
        lambda m, g, p, t: t is not None and t < datetime(2026, 11, 20, tzinfo=UTC),
    ),
    (
        {"available_from": {"lte": (NEWEST - timedelta(days=4)).timestamp()}},
        lambda m, g, p, t: t is not None and t <= NEWEST - timedelta(days=4),
    ),
    (
        {"genre": "War", "price": {"lt": 15}, "maker": {"not": "maker-0"}},
        lambda m, g, p, t: "War" in g and p < 15 and m != "maker-0",
    ),
]


@pytest.mark.parametrize(("where", "test"), FILTERS, ids=[json.dumps(each) for each, _ in FILTERS])
def test_a_filtered_ranking_is_the_whole_one_without_the_items_that_fail(api, shop, where, test):
    passing = shop.passing(test)
    for top_k in (1, 10, 1000):
        body = {"history": HISTORY, "parameters": {"where": where, "top_k": top_k}}
        (found,) = ask(api, body)
        assert found["items"] == expected(api, passing, top_k)
        assert found["matching"] == len(passing)
        assert found["filtered"] == len(passing & {*HISTORY})


def test_filters_hold_together_with_excluded_items_candidates_and_seen_ones(api, shop):
    passing = shop.passing(lambda m, g, p, t: m == "maker-1")
    exclude, candidates = sorted(passing)[:3], [*shop.items[:20], "no such item"]
    where = {"maker": "maker-1"}
    body = {
        "instances": [
            {"history": HISTORY, "where": where, "exclude": exclude},
            {"history": HISTORY, "where": where, "candidates": candidates},
            {"history": HISTORY, "where": where, "exclude": exclude, "candidates": candidates},
            {"history": HISTORY, "where": where, "exclude_seen": False},
            {"history": HISTORY},
        ],
        "parameters": {"top_k": 1000},
    }
    excluded, among, both, seen, whole = ask(api, body)
    assert ids(excluded) == ids_of(expected(api, passing - {*exclude}, 1000))
    assert ids(among) == ids_of(expected(api, passing & {*candidates}, 1000))
    assert among["unknown_candidates"] == ["no such item"]
    assert ids(both) == ids_of(expected(api, (passing & {*candidates}) - {*exclude}, 1000))
    assert ids(seen) == ids_of(expected(api, passing, 1000, exclude_seen=False))
    assert ids(whole) == ids_of(ranked(api))
    assert "matching" not in whole


def ids(answer):
    return ids_of(answer["items"])


def ids_of(items):
    return [each["id"] for each in items]


def test_every_user_of_a_call_may_have_a_filter_and_others_none(api, shop):
    instances = [
        {"history": ITEMS[n : n + 3], **({"where": FILTERS[n % 18][0]} if n % 3 else {})}
        for n in range(60)
    ]
    together = ask(api, {"instances": instances, "parameters": {"top_k": 7}})
    for at in range(0, 60, 7):
        (alone,) = ask(api, {"instances": [instances[at]], "parameters": {"top_k": 7}})
        assert ids(alone) == ids(together[at])


def test_many_tasks_of_one_user_may_be_filtered_each_by_its_own(api, shop):
    tasks = [
        {"task": TASK, "where": {"price": {"lt": 9}}, "top_k": 5},
        "classification",
        {"task": "ranking", "top_k": 5},
    ]
    results = api.post("/users/predict", json={"history": HISTORY, "tasks": tasks}).json()
    cheap = shop.passing(lambda m, g, p, t: p < 9)
    assert ids(results["results"][TASK]) == ids_of(expected(api, cheap, 5))
    assert len(results["results"]) == 3


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ({"genr": "War"}, "unknown_attribute", "Is 'genre' meant?"),
        ({"colour": "red"}, "unknown_attribute", "'available_from', 'genre', 'maker', 'price'"),
        ({"price": "5"}, "filter_invalid", "without quotes"),
        ({"price": True}, "filter_invalid", "without quotes"),
        ({"price": 10**400}, "filter_invalid", "beyond the largest number"),
        ({"maker": 5}, "filter_invalid", 'send "5"'),
        ({"maker": {"gt": "a"}}, "filter_invalid", "belongs to numbers and times"),
        ({"maker": {"all": ["a"]}}, "filter_invalid", "belongs to lists"),
        ({"available_from": "yesterday"}, "filter_invalid", "2026-01-31T12:00:00Z"),
        ({"available_from": 1e30}, "filter_invalid", "Unix seconds"),
        ({"available_from": {"lt": "0001-01-01T00:00:00+14:00"}}, None, ""),
        ({"maker": {}}, "filter_invalid", "Name a value"),
        ({"maker": None}, "malformed_request", "Leave out"),
        ({"maker": {"equals": "x"}}, "malformed_request", "`eq`"),
        ({"maker": []}, "malformed_request", ""),
        ({"maker": ["x"] * 257}, "malformed_request", ""),
        ({"maker": [["x"]]}, "malformed_request", ""),
        ({"x" * 65: "x"}, "malformed_request", ""),
        ({f"a{n}": "x" for n in range(17)}, "malformed_request", ""),
        ("maker", "malformed_request", "for each attribute"),
        (["maker"], "malformed_request", "for each attribute"),
    ],
    ids=lambda each: json.dumps(each)[:40] if isinstance(each, dict | list) else None,
)
def test_a_wrong_filter_is_a_clear_refusal(api, shop, where, code, words):
    body = {"history": HISTORY, "parameters": {"where": where}}
    answer = api.post(f"/tasks/{TASK}/predict", json=body)
    if code is None:
        assert answer.status_code == 200
        return
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert words in f"{answer.json()['detail']} {answer.json()['hint']}"
    assert len(answer.content) < 2000


def test_two_conditions_on_one_attribute_are_not_read_as_the_last_one(api, shop):
    body = b'{"history": [], "parameters": {"where": {"price": {"gt": 1}, "price": {"lt": 9}}}}'
    answer = api.post(f"/tasks/{TASK}/predict", content=body)
    assert answer.status_code == 400
    assert "twice" in answer.json()["detail"]


def test_one_wrong_filter_leaves_the_neighbours_their_answers(api, shop):
    body = {
        "instances": [
            {"history": HISTORY, "where": {"genr": "War"}},
            {"history": HISTORY, "where": {"genre": "War"}},
        ]
    }
    wrong, right = ask(api, body)
    assert wrong["error"]["code"] == "unknown_attribute"
    assert right["items"]


def test_tasks_that_do_not_rank_and_bundles_without_attributes_say_so(api, shop):
    body = {"history": HISTORY, "parameters": {"where": {"genre": "War"}}}
    answer = api.post("/tasks/classification/predict", json=body).json()
    assert answer["code"] == "not_a_ranking_task"
    answer = api.post("/tasks/plain/predict", json=body).json()
    assert (answer["code"], "no attributes" in answer["hint"]) == ("unknown_attribute", True)


def test_titles_are_there_if_they_are_asked_for(api, shop):
    (plain,) = ask(api, {"history": HISTORY, "parameters": {"top_k": 1000}})
    assert all("title" not in each for each in plain["items"])
    body = {"history": HISTORY, "parameters": {"titles": True, "top_k": 1000}}
    (titled,) = ask(api, body)
    for each in titled["items"]:
        has_one = each["id"] != shop.items[0]
        assert each.get("title") == (f"Title of {each['id']}" if has_one else None)
    (without,) = ask(api, body, "plain")
    assert without["items"] == plain["items"]


def test_labels_have_titles_too(api, workshop):
    bundle = workshop.bundle("classification", seed=1)
    labels = open_bundle(bundle).manifest.head.labels or ()
    push(api, "titled", describe_bundle(bundle, {labels[0]: "Först"}))
    body = {"history": HISTORY, "parameters": {"titles": True}}
    (found,) = ask(api, body, "titled")
    assert found["titles"] == {labels[0]: "Först"}
    del body["parameters"]
    (plain,) = ask(api, body, "titled")
    assert "titles" not in plain
    assert plain == ask(api, {"history": HISTORY}, "classification")[0]


def test_an_explanation_of_a_filtered_answer_is_about_the_filtered_items(api, shop):
    parameters = {"where": {"maker": "maker-2"}, "explain": 2, "top_k": 3}
    (found,) = ask(api, {"history": HISTORY, "parameters": parameters})
    outputs = found["explanation"]["outputs"]
    assert [each["output"] for each in outputs] == ids(found)
    assert [each["score"] for each in outputs] == pytest.approx(
        [each["score"] for each in found["items"]], abs=1e-5
    )
