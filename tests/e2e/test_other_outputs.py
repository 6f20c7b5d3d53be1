"""A task goes on answering what its callers expect, unless somebody says otherwise."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from uuid import uuid4

import pytest

from tests.e2e.conftest import push
from tests.e2e.test_observing import run

AGES = ("18-29", "30-49", "50+")
ALLOWED = {"allow_new_outputs": "true"}


@pytest.fixture
def task():
    return f"task-{uuid4().hex[:8]}"


def post(api, task, bundle, **parameters):
    return api.post(f"/tasks/{task}/versions", content=bundle, params=parameters)


def predict(api, task, **parameters):
    body = {"history": ["item-3", 7], "parameters": parameters}
    return api.post(f"/tasks/{task}/predict", json=body).json()


def differences(answer):
    body = answer.json()
    assert (answer.status_code, body["code"], body["retryable"]) == (409, "outputs_differ", False)
    assert "allow_new_outputs" in body["hint"]
    lines = [reason["message"] for reason in body["reasons"]]
    assert all(line in body["detail"] for line in lines)
    return lines


CHANGES = {
    "other labels": (
        {"kind": "classification", "seed": 1, "names": ("f", "m", "x")},
        {"kind": "classification", "seed": 2, "names": AGES},
        ["labels: + '18-29', '30-49', '50+', − 'f', 'm', 'x'"],
    ),
    "labels in another order": (
        {"kind": "classification", "seed": 1, "names": ("f", "m", "x")},
        {"kind": "classification", "seed": 2, "names": ("m", "f", "x")},
        ["labels: order differs at 1 ('f' → 'm')"],
    ),
    "one more tag": (
        {"kind": "tags", "seed": 1, "names": ("a", "b")},
        {"kind": "tags", "seed": 2, "names": ("a", "b", "c")},
        ["labels: + 'c'"],
    ),
    "another kind": (
        {"kind": "classification", "seed": 1},
        {"kind": "value", "seed": 2},
        ["kind: classification → value"],
    ),
    "another catalog": (
        {"kind": "ranking", "seed": 1, "names": ("p1", "p2", "p3")},
        {"kind": "ranking", "seed": 2, "names": ("p3", "p4", "p1")},
        ["catalog: 1 item gone ('p2'), 1 new ('p4') of 3"],
    ),
    "another unit": (
        {"kind": "value", "seed": 1, "unit": "days"},
        {"kind": "value", "seed": 2, "unit": "hours"},
        ["unit: 'days' → 'hours'"],
    ),
}


def made(workshop, kind, seed, names=None, unit=None):
    return workshop.bundle(kind, seed, len(names) if names else 3, names=names, unit=unit)


@pytest.mark.parametrize("change", CHANGES)
def test_a_push_that_would_answer_something_else_is_refused(api, workshop, task, change):
    before, after, expected = CHANGES[change]
    first = push(api, task, made(workshop, **before)).json()
    answered = predict(api, task)["predictions"]
    bundle = made(workshop, **after)
    assert differences(post(api, task, bundle, validate_only="true")) == expected
    assert differences(post(api, task, bundle)) == expected
    found = predict(api, task)
    assert (found["digest"], found["predictions"]) == (first["digest"], answered)
    assert len(api.get(f"/tasks/{task}/versions").json()) == 1
    allowed = post(api, task, bundle, **ALLOWED)
    assert allowed.status_code == 201
    assert predict(api, task)["digest"] == allowed.json()["digest"]


def test_the_same_outputs_with_other_weights_are_pushed_as_ever(api, workshop, task):
    push(api, task, workshop.bundle("ranking", 1, names=("p1", "p2", "p3")))
    second = push(api, task, workshop.bundle("ranking", 2, names=("p3", "p1", "p2")))
    assert predict(api, task)["digest"] == second.json()["digest"]


def test_an_alias_moves_to_other_outputs_only_if_that_is_said(api, workshop, task):
    first = push(api, task, workshop.bundle("classification", 1)).json()
    push(api, task, workshop.bundle("value", 2), alias="")
    moved = api.put(f"/tasks/{task}/aliases/prod", json={"version": 2})
    assert differences(moved) == ["kind: classification → value"]
    assert predict(api, task)["digest"] == first["digest"]
    moved = api.put(f"/tasks/{task}/aliases/prod", json={"version": 2}, params=ALLOWED)
    assert moved.status_code == 200
    assert predict(api, task)["kind"] == "value"


@pytest.mark.parametrize("split", [{"canary": [{"version": 2, "weight": 1}]}, {"shadow": [2]}])
def test_canaries_and_shadows_have_prods_outputs_unless_others_are_allowed(
    api, workshop, task, split
):
    push(api, task, workshop.bundle("classification", 1))
    push(api, task, workshop.bundle("classification", 2, names=AGES), alias="")
    body = {"prod_weight": 1, **split}
    refused = api.put(f"/tasks/{task}/traffic", json=body)
    assert differences(refused)[0].startswith("labels: + '18-29'")
    assert api.get(f"/tasks/{task}/traffic").json()["traffic"] is None
    assert api.put(f"/tasks/{task}/traffic", json=body, params=ALLOWED).status_code == 200
    allowed = {("label-0", "label-1", "label-2"), AGES}
    for user in range(20):
        body = {"history": [1], "user_id": user}
        (found,) = api.post(f"/tasks/{task}/predict", json=body).json()["predictions"]
        assert tuple(found["scores"]) in allowed


def test_a_rollback_needs_no_permission_and_says_what_changes(api, workshop, task):
    first = push(api, task, workshop.bundle("classification", 1)).json()
    push(api, task, workshop.bundle("value", 2), **ALLOWED)
    back = api.post(f"/tasks/{task}:rollback").json()
    assert back["digest"] == first["digest"]
    assert back["new_outputs"] == ["kind: value → classification"]
    assert predict(api, task)["kind"] == "classification"


def test_a_version_of_other_outputs_can_be_asked_for_by_its_alias(api, workshop, task):
    push(api, task, workshop.bundle("classification", 1))
    push(api, task, workshop.bundle("value", 2), alias="next")
    found = predict(api, task, version="next")
    assert (found["kind"], found["role"], found["version"]) == ("value", "pinned", 2)


def test_the_unit_of_a_value_is_told_by_its_answers(api, workshop, task):
    push(api, task, workshop.bundle("value", 1, unit="days"))
    (found,) = predict(api, task)["predictions"]
    assert found["unit"] == "days"
    (plain,) = predict(api, "value")["predictions"]
    assert "unit" not in plain


def test_the_command_lists_the_differences_and_takes_the_permission(
    server, api, workshop, task, tmp_path
):
    push(api, task, workshop.bundle("classification", 1))
    file = tmp_path / "ages.bundle"
    file.write_bytes(workshop.bundle("classification", 2, names=AGES))
    refused = run(server, "push", str(file), "--task", task)
    assert refused.returncode == 1
    assert "outputs_differ" in refused.stderr
    assert "'18-29'" in refused.stderr
    pushed = run(server, "push", str(file), "--task", task, "--allow-new-outputs")
    assert pushed.returncode == 0, pushed.stderr
    back = run(server, "rollback", task)
    assert "other outputs than before: labels: + 'label-0'" in back.stdout
    moved = run(server, "alias", "set", task, "prod", "2", "--allow-new-outputs")
    assert moved.returncode == 0, moved.stderr
    split = run(server, "traffic", "set", task, "--canary", "1=5")
    assert "outputs_differ" in split.stderr
    allowed = run(server, "traffic", "set", task, "--canary", "1=5", "--allow-new-outputs")
    assert allowed.returncode == 0, allowed.stderr


def test_every_answer_has_the_labels_of_the_version_that_it_names_while_they_change(
    server, api, workshop, task
):
    orders = [("f", "m", "x"), ("x", "m", "f")]
    for seed, names in enumerate(orders, 1):
        push(api, task, workshop.bundle("classification", seed, names=names), **ALLOWED)
    seen: Counter[int] = Counter()
    body = {"instances": [{"history": [number]} for number in range(20)]}

    def ask() -> None:
        with server.client() as client:
            while not is_done.is_set():
                found = client.post(f"/tasks/{task}/predict", json=body).json()
                expected = orders[found["version"] - 1]
                for each in found["predictions"]:
                    seen[found["version"]] += tuple(each["scores"]) == expected
                    seen[0] += tuple(each["scores"]) != expected

    is_done = Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        for number in range(30):
            version = {"version": 1 + number % 2}
            assert api.put(f"/tasks/{task}/aliases/prod", json=version, params=ALLOWED).is_success
        is_done.set()
        asking.result()
    assert seen[0] == 0
    assert min(seen[1], seen[2]) > 0
