"""Tasks with item tables over real HTTP read whole histories, beside others in one call."""

from collections.abc import Callable

import numpy as np
import pytest

from peterrec.model import kinds
from peterrec.model.network.item_gaps import unpack_gaps
from peterrec.model.spec import FIRST_ITEM, TableSpec
from peterrec.patches.bundle.header import Array
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from tests.e2e.conftest import BUNDLE_LIMIT, push
from tests.patches.bundles import BundleParts
from tests.service.random_bundles import ITEMS, SPEC

TABLE = TableSpec(1, exponent=0.25)
COUNTING = TableSpec(1, bits=4, counting="count")
TASKS = {"whole-class": ("classification", TABLE), "whole-value": ("value", COUNTING)}
TOLERANCE = 2e-5


def history(length: int, seed: int = 0) -> list[str]:
    return [ITEMS[n] for n in np.random.default_rng(seed).integers(0, len(ITEMS), length)]


def tokens(items: list[str]) -> list[int]:
    return [FIRST_ITEM + ITEMS.index(item) for item in items if item in ITEMS]


def scores(workshop, kind, items, table=None, seed=1):
    logits = workshop.task(kind, seed, table=table).logits(tokens(items))
    return kinds.KINDS[kind].scores(logits.unsqueeze(0))[0].tolist()


def found_scores(answer):
    return [answer["value"]] if "value" in answer else [*answer["scores"].values()]


@pytest.fixture(scope="module")
def served(server, workshop):
    with server.client() as client:
        for task, (kind, table) in TASKS.items():
            push(client, task, workshop.bundle(kind, seed=1, table=table))
    return TASKS


@pytest.mark.parametrize("length", [0, 3, SPEC.max_len, 21, 900, 10_000])
def test_a_task_with_a_table_reads_the_whole_history(api, workshop, served, length):
    items = history(length, length)
    for task, (kind, table) in served.items():
        answer = api.post(f"/tasks/{task}/predict", json={"history": items}).json()
        (found,) = answer["predictions"]
        expected = scores(workshop, kind, items, table)
        np.testing.assert_allclose(found_scores(found), expected, atol=TOLERANCE)
        assert (found["used_items"], found["truncated"]) == (length, False)


def test_tasks_with_and_without_tables_answer_one_user_in_one_call(api, workshop, served):
    items = history(3000)
    body = {"history": items, "tasks": ["classification", *served, "tags"]}
    results = api.post("/users/predict", json=body).json()["results"]
    for task, found in results.items():
        kind, table = served.get(task, (task, None))
        expected = scores(workshop, kind, items, table)
        np.testing.assert_allclose(found_scores(found), expected, atol=TOLERANCE)
        assert found["truncated"] == (table is None)


def test_users_with_long_and_short_histories_share_a_call(api, workshop, served):
    users = [history(length, length) for length in (0, 2000, 5, 100)]
    body = {"instances": [{"history": items} for items in users]}
    found = api.post("/tasks/whole-class/predict", json=body).json()["predictions"]
    for items, answer in zip(users, found, strict=True):
        expected = scores(workshop, "classification", items, TABLE)
        np.testing.assert_allclose(found_scores(answer), expected, atol=TOLERANCE)


@pytest.mark.parametrize("policy", ["drop", "map"])
def test_unknown_items_do_not_count_in_a_table(api, workshop, served, policy):
    items = [*history(50), *(f"new-{n}" for n in range(3)), *history(30, 2)]
    body = {"history": items, "parameters": {"unknown_items": policy}}
    (found,) = api.post("/tasks/whole-class/predict", json=body).json()["predictions"]
    if policy == "drop":
        expected = scores(workshop, "classification", items, TABLE)
        np.testing.assert_allclose(found_scores(found), expected, atol=TOLERANCE)
    assert found["used_items"] == len(items) - (3 if policy == "drop" else 0)
    assert (found["unknown_items"], found["truncated"]) == (3, False)


def test_a_history_of_unknown_items_is_cold_only_if_no_older_one_is_known(api, served):
    unknown = [f"new-{n}" for n in range(SPEC.max_len)]
    body = {"history": unknown * 2, "parameters": {"unknown_items": "map"}}
    (cold,) = api.post("/tasks/whole-class/predict", json=body).json()["predictions"]
    body["history"] = [*history(1), *unknown]
    (known,) = api.post("/tasks/whole-class/predict", json=body).json()["predictions"]
    (newest,) = api.post("/tasks/classification/predict", json=body).json()["predictions"]
    assert (cold["cold"], known["cold"], newest["cold"]) == (True, False, True)


def test_a_version_with_a_table_and_one_without_follow_each_other(api, workshop):
    items = history(400)
    for seed, table in ((1, None), (2, TABLE), (3, None), (4, COUNTING)):
        push(api, "moving", workshop.bundle("classification", seed, table=table))
        answer = api.post("/tasks/moving/predict", json={"history": items}).json()
        expected = scores(workshop, "classification", items, table, seed)
        found = found_scores(answer["predictions"][0])
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_canary_with_a_table_reads_whole_histories_beside_prod_without(api, workshop):
    push(api, "split", workshop.bundle("classification", 1))
    push(api, "split", workshop.bundle("classification", 2, table=TABLE), alias="")
    split = {"prod_weight": 1, "canary": [{"version": 2, "weight": 1}]}
    assert api.put("/tasks/split/traffic", json=split).status_code == 200
    items, seen = history(200), set()
    for user in range(20):
        body = {"history": items, "user_id": user}
        answer = api.post("/tasks/split/predict", json=body).json()
        table = TABLE if answer["version"] == 2 else None
        expected = scores(workshop, "classification", items, table, seed=answer["version"])
        found = found_scores(answer["predictions"][0])
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        seen.add(answer["version"])
    assert seen == {1, 2}


def infinite_scale(parts: BundleParts) -> BundleParts:
    return parts.with_tensors(table__scale=parts.tensors["table.scale"] * np.float32(np.inf))


def negative_scale(parts: BundleParts) -> BundleParts:
    return parts.with_tensors(table__scale=-parts.tensors["table.scale"])


def other_scale(parts: BundleParts) -> BundleParts:
    return parts.with_tensors(table__scale=parts.tensors["table.scale"] * np.float32(1.01))


def tokens_of(parts: BundleParts) -> Array:
    """The tokens int32 [N] with a row, which a bundle may have in place of the gaps."""
    assert parts.manifest.table is not None
    return unpack_gaps(parts.tensors["table.items"], parts.manifest.table.items)


def gap_of_the_end(parts: BundleParts, *last: int) -> BundleParts:
    """The table whose list ends with other bytes."""
    gaps = parts.tensors["table.items"]
    return parts.with_tensors(table__items=np.append(gaps[:-1], np.array(last, np.uint8)))


def gap_past_the_vocabulary(parts: BundleParts) -> BundleParts:
    return gap_of_the_end(parts, SPEC.token_count)


def gap_past_the_largest_number(parts: BundleParts) -> BundleParts:
    return gap_of_the_end(parts, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F)


def gap_without_an_end(parts: BundleParts) -> BundleParts:
    return gap_of_the_end(parts, 0, 0x80)


def gap_of_a_byte_too_many(parts: BundleParts) -> BundleParts:
    return gap_of_the_end(parts, 0x80, 0)


def gap_too_few(parts: BundleParts) -> BundleParts:
    return gap_of_the_end(parts)


def unsorted_items(parts: BundleParts) -> BundleParts:
    return parts.with_tensors(table__items=tokens_of(parts)[::-1].copy())


def repeated_item(parts: BundleParts) -> BundleParts:
    items = tokens_of(parts)
    items[1] = items[0]
    return parts.with_tensors(table__items=items)


def item_beyond_the_vocabulary(parts: BundleParts) -> BundleParts:
    items = tokens_of(parts)
    items[-1] = SPEC.token_count
    return parts.with_tensors(table__items=items)


def item_near_the_largest_number(parts: BundleParts) -> BundleParts:
    items = tokens_of(parts)
    items[-1] = 2**31 - 1
    return parts.with_tensors(table__items=items)


def special_token(parts: BundleParts) -> BundleParts:
    items = tokens_of(parts)
    items[0] = 1
    return parts.with_tensors(table__items=items)


def weight_beyond_the_range(parts: BundleParts) -> BundleParts:
    weight = parts.tensors["table.weight"].copy()
    weight[0, 0] = -128
    return parts.with_tensors(table__weight=weight)


def fewer_rows(parts: BundleParts) -> BundleParts:
    return parts.with_tensors(table__weight=parts.tensors["table.weight"][:-1].copy())


def items_shifted_by_one(parts: BundleParts) -> BundleParts:
    """The table of another vocabulary, which has the same items in another order."""
    items = tokens_of(parts)
    free = np.setdiff1d(np.arange(FIRST_ITEM, SPEC.token_count), items)
    moved = np.sort(np.append(items[:-1], free[0])).astype(np.int32)
    return parts.with_tensors(table__items=moved)


def no_table_in_the_manifest(parts: BundleParts) -> BundleParts:
    return parts.with_manifest(table=None)


HOSTILE: dict[str, tuple[Callable[[BundleParts], BundleParts], str]] = {
    "a scale is infinite": (infinite_scale, "tensor_not_finite"),
    "a scale is negative": (negative_scale, "table_invalid"),
    "a scale is another": (other_scale, "probe_failed"),
    "items are out of order": (unsorted_items, "table_invalid"),
    "an item occurs twice": (repeated_item, "table_invalid"),
    "an item is beyond the vocabulary": (item_beyond_the_vocabulary, "table_invalid"),
    "an item is the largest number": (item_near_the_largest_number, "table_invalid"),
    "an item is a special token": (special_token, "table_invalid"),
    "a gap goes past the vocabulary": (gap_past_the_vocabulary, "table_invalid"),
    "a gap goes past the largest number": (gap_past_the_largest_number, "table_invalid"),
    "the last gap has no end": (gap_without_an_end, "table_invalid"),
    "a gap takes more bytes than it needs": (gap_of_a_byte_too_many, "table_invalid"),
    "a gap is missing": (gap_too_few, "table_invalid"),
    "a weight is out of its range": (weight_beyond_the_range, "table_invalid"),
    "a row is missing": (fewer_rows, "tensor_shape"),
    "the items are others": (items_shifted_by_one, "probe_failed"),
    "the manifest has no table": (no_table_in_the_manifest, "manifest_invalid"),
}


@pytest.mark.parametrize("wrong", HOSTILE)
def test_a_wrong_table_is_refused_with_a_code_and_what_serves_goes_on(api, workshop, served, wrong):
    change, code = HOSTILE[wrong]
    good = verify_bundle(
        workshop.bundle("classification", 5, table=TableSpec(1)),
        backbone=workshop.identity,
        limits=BundleLimits(),
    )
    parts = change(BundleParts(good.manifest, dict(good.tensors)))
    answer = api.post("/tasks/whole-class/versions", content=parts.encode())
    assert answer.status_code in {413, 415, 422}, answer.text
    body = answer.json()
    assert code in [body["code"], *(reason["code"] for reason in body.get("reasons", []))]
    items = history(100)
    found = api.post("/tasks/whole-class/predict", json={"history": items}).json()
    expected = scores(workshop, "classification", items, TABLE)
    np.testing.assert_allclose(found_scores(found["predictions"][0]), expected, atol=TOLERANCE)


def test_every_bit_of_a_table_is_covered_by_the_checksum(api, workshop):
    bundle = workshop.bundle("classification", 6, table=TableSpec(1))
    table = verify_bundle(bundle, backbone=workshop.identity, limits=BundleLimits()).tensors
    for name in ("table.items", "table.weight", "table.scale"):
        at = bundle.index(table[name].tobytes())
        flipped = bytearray(bundle)
        flipped[at + table[name].nbytes // 2] ^= 4
        answer = api.post("/tasks/flipped/versions", content=bytes(flipped))
        codes = [reason["code"] for reason in answer.json()["reasons"]]
        assert "checksum_mismatch" in codes
    answer = api.post("/tasks/flipped/versions", content=bundle[:-100])
    assert "truncated" in [reason["code"] for reason in answer.json()["reasons"]]


def test_a_table_that_makes_a_bundle_too_large_is_refused_unread(api, workshop):
    bundle = workshop.bundle("tags", 1, outputs=900, table=TableSpec(1))
    assert len(bundle) > BUNDLE_LIMIT
    answer = api.post("/tasks/large-table/versions", content=bundle)
    assert answer.status_code == 413, answer.text


@pytest.mark.parametrize("length", [0, 3, SPEC.max_len, 21, 900, 10_000])
def test_a_ranking_with_a_table_reads_the_whole_history(api, workshop, length):
    push(api, "whole-ranking", workshop.bundle("ranking", 1, outputs=40, table=TABLE))
    items = history(length, length)
    task = workshop.task("ranking", 1, outputs=40, table=TABLE)
    expected = task.logits(tokens(items)).sort(descending=True)
    body = {"history": items, "parameters": {"top_k": 40, "exclude_seen": False}}
    (found,) = api.post("/tasks/whole-ranking/predict", json=body).json()["predictions"]
    names = [f"film-{index}" for index in expected.indices.tolist()]
    assert [item["id"] for item in found["items"]] == names
    given = [item["score"] for item in found["items"]]
    np.testing.assert_allclose(given, expected.values.tolist(), atol=TOLERANCE)
    assert (found["used_items"], found["truncated"]) == (length, False)


def test_a_ranking_whose_table_has_a_weight_per_output_is_refused(api, workshop):
    limits = {"backbone": workshop.identity, "limits": BundleLimits()}
    ranking = verify_bundle(workshop.bundle("ranking", 1, table=TableSpec(1)), **limits)
    other = verify_bundle(workshop.bundle("tags", 1, table=TableSpec(1)), **limits)
    table = {name: t for name, t in other.tensors.items() if name.startswith("table.")}
    parts = BundleParts(ranking.manifest, {**ranking.tensors, **table})
    answer = api.post("/tasks/ranked-table/versions", content=parts.encode())
    assert "tensor_shape" in [reason["code"] for reason in answer.json()["reasons"]]
