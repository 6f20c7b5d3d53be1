"""A server with two backbones answers each task by its own, as a server with that one alone."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from peterrec.model.spec import BackboneSpec
from tests.e2e.conftest import KINDS, push
from tests.e2e.running import RunningServer, Start, free_port, running_server
from tests.service.random_bundles import ITEMS, Workshop
from tests.waiting import eventually

NEW_SPEC = BackboneSpec(item_count=120, channels=8, dilations=(1, 2, 4), max_len=12)
NEW_ITEMS = [f"film-{number}" for number in range(60)] + [str(200 - number) for number in range(60)]
"""Some are items of the old backbone, under other tokens; the others are new."""

PATIENT = Start(within_s=240)
"""The kernels of two backbones are compiled at the first start."""

PATIENTLY = {"X-Request-Timeout-Ms": "20000"}

LABELS = ("female", "male", "other")
HISTORIES: list[list[str | int]] = [
    [],
    ["item-3", "film-4", 150, "42", "nobody", "film-4", 12, 99],
    [number % 200 for number in range(40)],
    ["film-1", "film-2"],
    ["item-1", "item-2"],
]


class Two:
    """The old and the new backbone, and three servers: with both, and with each alone."""

    def __init__(self, old: Workshop, new: Workshop, servers: list[RunningServer]) -> None:
        self.old, self.new = old, new
        self.both, self.only_old, self.only_new = servers


@pytest.fixture(scope="module")
def new_workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("new"), NEW_SPEC, NEW_ITEMS)


@pytest.fixture(scope="module")
def two(
    workshop: Workshop, new_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Two]:
    folders = [workshop.folder, new_workshop.folder]
    served = [",".join(map(str, folders)), *folders]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_server(
                    workshop.folder,
                    tmp_path_factory.mktemp(f"server{number}"),
                    backbone_dir=folder,
                    workers=1,
                    auth="off",
                    start=PATIENT,
                )
            )
            for number, folder in enumerate(served)
        ]
        two = Two(workshop, new_workshop, servers)
        for kind in KINDS:
            for name, own, alone in (
                ("old", two.old, two.only_old),
                ("new", two.new, two.only_new),
            ):
                bundle = own.bundle(kind, seed=len(kind))
                for server in (two.both, alone):
                    with server.client() as api:
                        push(api, f"{kind}-{name}", bundle)
        yield two


def predict(server: RunningServer, task: str, **body: object) -> Any:
    with server.client() as api:
        answer = api.post(f"/tasks/{task}/predict", json=body, headers=PATIENTLY)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["old", "new"])
def test_a_task_is_answered_as_by_a_server_with_its_backbone_alone(two, kind, name):
    alone = two.only_old if name == "old" else two.only_new
    for history in HISTORIES:
        body = {"history": history, "parameters": {"unknown_items": "map", "explain": 5}}
        found = predict(two.both, f"{kind}-{name}", **body)
        assert found == predict(alone, f"{kind}-{name}", **body)


def test_a_batch_of_a_task_is_read_by_its_backbone(two):
    instances = [{"history": history} for history in HISTORIES]
    found = predict(two.both, "tags-new", instances=instances)
    assert found == predict(two.only_new, "tags-new", instances=instances)
    assert [each["unknown_items"] for each in found] == [0, 5, 40, 0, 2]


def test_one_call_for_a_user_is_answered_by_both_backbones(two):
    history = HISTORIES[1]
    with two.both.client() as api:
        answer = api.post("/users/predict", json={"history": history, "tasks": "all"}).json()
    assert answer["errors"] == {}
    assert len(answer["results"]) == 2 * len(KINDS)
    for task, found in answer["results"].items():
        alone = two.only_old if task.endswith("old") else two.only_new
        with alone.client() as api:
            expected = api.post("/users/predict", json={"history": history, "tasks": [task]}).json()
        assert found == expected["results"][task], task


def test_an_item_that_only_one_backbone_knows_is_refused_for_tasks_of_the_other(two):
    with two.both.client() as api:
        body = {"history": ["film-1"], "parameters": {"unknown_items": "error"}}
        answer = api.post("/users/predict", json={**body, "tasks": "all"}).json()
        alone = api.post("/tasks/tags-old/predict", json=body)
    assert {*answer["results"]} == {f"{kind}-new" for kind in KINDS}
    assert {each["code"] for each in answer["errors"].values()} == {"unknown_items"}
    assert (alone.status_code, alone.json()["code"]) == (400, "unknown_items")


def test_open_inference_reads_by_the_tasks_backbone(two):
    body = {
        "inputs": [
            {"name": "history", "shape": [1, 2], "datatype": "BYTES", "data": ["film-1", "film-2"]}
        ]
    }
    answers = []
    for server in (two.both, two.only_new):
        with server.client() as api:
            answers.append(api.post("/v2/models/tags-new/infer", json=body))
    assert answers[0].status_code == 200, answers[0].text
    assert answers[0].json()["outputs"] == answers[1].json()["outputs"]


def vectors(server: RunningServer, status: int = 200, **parameters: object) -> Any:
    body = {"instances": [{"history": each} for each in HISTORIES], "parameters": parameters}
    with server.client() as api:
        answer = api.post("/users/vectors", json=body, headers=PATIENTLY)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_user_vectors_are_those_of_the_backbone_that_is_named(two):
    old, new = two.old.loaded.fingerprint, two.new.loaded.fingerprint
    first, named = vectors(two.both), vectors(two.both, backbone=new)
    assert (first["backbone"], named["backbone"]) == (old, new)
    assert (first["dimensions"], named["dimensions"]) == (16, 8)
    assert first["vectors"] == vectors(two.only_old)["vectors"]
    assert named["vectors"] == vectors(two.only_new)["vectors"]
    of_task = vectors(two.both, task="tags-new")
    assert of_task["backbone"] == new
    assert of_task["vectors"] == vectors(two.only_new, task="tags-new", backbone=new)["vectors"]


def test_a_backbone_that_can_not_answer_is_told(two):
    unknown = vectors(two.both, 422, backbone="f" * 64)
    assert unknown["code"] == "backbone_not_served"
    assert two.new.loaded.fingerprint in unknown["detail"]
    other = vectors(two.both, 422, backbone=two.new.loaded.fingerprint, task="tags-old")
    assert other["code"] == "backbone_not_served"


def test_a_bundle_of_a_third_backbone_is_refused_with_the_two_that_are_served(two, tmp_path):
    third = Workshop(tmp_path / "third", items=[f"third-{item}" for item in ITEMS])
    with two.both.client() as api:
        answer = api.post("/tasks/third/versions", content=third.bundle("tags", 1))
    assert answer.status_code == 422
    assert two.old.loaded.fingerprint in answer.text
    assert two.new.loaded.fingerprint in answer.text


def test_the_memory_of_each_backbone_is_told(two):
    def views() -> list[dict[str, Any]]:
        with two.both.client() as api:
            found = api.get("/backbone").json()
        return [found, *found["others"]]

    eventually(lambda: [(each["memory"] or {}).get("bundles", 0) for each in views()] == [4, 4])
    with two.both.client() as api:
        listed = api.get("/tasks/tags-new").json()
    old, new = (each.loaded.fingerprint for each in (two.old, two.new))
    assert [each["fingerprint"] for each in views()] == [old, new]
    assert listed["versions"][0]["backbone"] == new
    metrics = two.both.metrics()
    for view in views():
        label = f'backbone="{view["fingerprint"][:12]}"'
        for pool, name in (("backbone", "backbone"), ("patches", "patch"), ("heads", "head")):
            series = f'peterrec_backbone_memory_bytes{{{label},pool="{pool}"}}'
            assert metrics[series] == view["memory"][f"{name}_bytes"] > 0
    whole = sum(view["memory"]["patch_bytes"] for view in views())
    assert metrics["peterrec_patch_bytes"] == whole


def test_a_canary_of_the_new_backbone_answers_its_users_and_then_becomes_prod(two):
    old = two.old.bundle("classification", 7, names=LABELS)
    new = two.new.bundle("classification", 7, names=LABELS)
    with two.only_new.client() as alone, two.both.client() as api:
        push(alone, "gender", new)
        push(api, "gender", old)
        push(api, "gender", new, alias="")
        guard = {"max_divergence": 1.0}
        traffic = {"prod_weight": 50, "canary": [{"version": 2, "weight": 50}], "guard": guard}
        answer = api.put("/tasks/gender/traffic", json=traffic)
        assert answer.status_code == 200, answer.text
        eventually(lambda: {"canary", "prod"} == {*_roles(api)})
        body = {"instances": [{"history": h, "user_id": u} for u in "abcdefgh" for h in HISTORIES]}
        body["parameters"] = {"explain": 5}  # type: ignore[assignment]  # a JSON object
        found = api.post("/tasks/gender/predict", json=body).json()["predictions"]
        expected = alone.post("/tasks/gender/predict", json=body).json()["predictions"]
        by_canary = [(f, e) for f, e in zip(found, expected, strict=True) if f["role"] == "canary"]
        assert by_canary
        for one, other in by_canary:
            for name in ("scores", "unknown_items", "used_items", "explanation"):
                assert one[name] == other[name]
        assert {each["role"] for each in found} == {"canary", "prod"}
        api.put("/tasks/gender/aliases/prod", json={"version": 2})
        api.delete("/tasks/gender/traffic")
        found = api.post("/tasks/gender/predict", json=body).json()["predictions"]
        assert [each["scores"] for each in found] == [each["scores"] for each in expected]


def _roles(api: httpx.Client) -> list[str]:
    body = {"instances": [{"history": [], "user_id": user} for user in "abcdefgh"]}
    answer = api.post("/tasks/gender/predict", json=body).json()
    return [each.get("role", "") for each in answer["predictions"]]


def test_rows_of_both_backbones_survive_a_new_device_process(two):
    before = vectors(two.both, backbone=two.new.loaded.fingerprint)["vectors"]
    two.both.child("device").kill()
    eventually(lambda: two.both.restarts("device") > 0)
    eventually(two.both.is_ready, 60)
    assert vectors(two.both, backbone=two.new.loaded.fingerprint)["vectors"] == before
    history = HISTORIES[1]
    assert predict(two.both, "tags-new", history=history) == predict(
        two.only_new, "tags-new", history=history
    )


def serve(*folders: Path, data_dir: Path) -> subprocess.CompletedProcess[str]:
    options = [part for folder in folders for part in ("--backbone", str(folder))]
    ports = ["--port", str(free_port()), "--metrics-port", str(free_port())]
    command = [sys.executable, "-P", "-m", "peterrec", "serve", *options, *ports]
    return subprocess.run(
        [*command, "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_second_folder_that_is_broken_is_told_at_once(workshop, tmp_path):
    (tmp_path / "broken").mkdir()
    done = serve(workshop.folder, tmp_path / "broken", data_dir=tmp_path / "data")
    assert done.returncode == 1
    assert "backbone_folder_invalid" in done.stderr
    assert str(tmp_path / "broken") in done.stderr


def test_the_same_backbone_twice_is_told(workshop, tmp_path):
    done = serve(workshop.folder, workshop.folder, data_dir=tmp_path / "data")
    assert done.returncode == 1
    assert "backbone_given_twice" in done.stderr
