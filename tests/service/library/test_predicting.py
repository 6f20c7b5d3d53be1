"""A task answers in this process what a server answers, bit for bit."""

import random

import msgspec
import pyarrow as pa
import pytest

import peterrec
from peterrec.service.errors import (
    HistoryTooLong,
    MalformedRequest,
    ServerUnreachable,
    UnknownItemsRefused,
)
from peterrec_client import Client, Instance, Prediction
from tests.e2e.running import running_server
from tests.service.library.conftest import PRETRAIN

KINDS = ("classification", "tags", "ranking", "value")


@pytest.fixture(scope="module")
def server(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with running_server(backbone.save(folder / "bb"), folder / "server", workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def served(server, tasks):
    """A client of a server to which all tasks were pushed under the names of their kinds."""
    for kind, task in tasks.items():
        pushed = task.push(url=server.url, api_key=server.key)
        assert (pushed.task, pushed.digest, pushed.version) == (kind, task.digest, 1)
    with Client(server.url, server.key, timeout_s=30) as client:
        yield client


@pytest.fixture(scope="module")
def histories(backbone) -> list[list[str]]:
    """Short, long, empty, unknown and repeated ones."""
    draw = random.Random(0)
    rows = [draw.choices(backbone.items, k=draw.randrange(40)) for _ in range(300)]
    return [*rows, [], ["never seen"], [*rows[0], "never seen"], rows[0]]


def answer_of(prediction: Prediction) -> Prediction:
    """A prediction without the names that a registry gives."""
    names = {"task": "", "version": 0, "alias": None, "registry_revision": 0, "request_id": ""}
    return msgspec.structs.replace(prediction, **names, role="")


@pytest.mark.parametrize("kind", KINDS)
def test_one_history_gets_the_servers_answer(kind, served, tasks, histories):
    for history in histories[-24:]:
        (local,) = tasks[kind].predict([history])
        assert answer_of(local) == answer_of(served.predict(kind, history))


@pytest.mark.parametrize("kind", KINDS)
def test_many_histories_get_the_servers_answers(kind, served, tasks, histories):
    remote = served.predict_many(kind, histories[:256]) + served.predict_many(kind, histories[256:])
    local = tasks[kind].predict(histories)
    assert [answer_of(each) for each in local] == [answer_of(each) for each in remote]


def test_a_ranking_takes_the_servers_parameters(served, tasks, histories):
    items = tasks["ranking"].outputs
    given = {"exclude": items[:3], "candidates": [*items[:20], "none"], "top_k": 5}
    (local,) = tasks["ranking"].predict([histories[0]], **given)
    assert answer_of(local) == answer_of(served.predict("ranking", histories[0], **given))
    assert len(local.items) == 5
    assert local.unknown_candidates == ("none",)


def test_instances_have_their_own_parameters(served, tasks, histories):
    asked = [Instance(row, user_id=at, top_k=at + 1) for at, row in enumerate(histories[:4])]
    local = tasks["ranking"].predict(asked)
    remote = served.predict_many("ranking", asked)
    assert [answer_of(each) for each in local] == [answer_of(each) for each in remote]
    assert [len(each.items) for each in local] == [1, 2, 3, 4]


def test_a_server_with_another_backbone_refuses_a_push(server, shop):
    other = peterrec.pretrain(shop.path("histories"), order_column="position", **PRETRAIN, seed=3)
    task = peterrec.finetune(
        other, shop.histories, kind="classification", labels=shop.genders, epochs=1
    )
    with pytest.raises(peterrec.PeterRecError) as refused:
        task.push("gender", url=server.url, api_key=server.key)
    assert "backbone" in str(refused.value)


def test_a_push_of_other_outputs_is_refused_unless_the_caller_allows_it(server, tasks):
    where = {"url": server.url, "api_key": server.key}
    assert tasks["value"].push("shared", **where).version == 1
    with pytest.raises(peterrec.PeterRecError, match="outputs_differ"):
        tasks["tags"].push("shared", **where)
    assert tasks["tags"].push("shared", allow_new_outputs=True, **where).version == 2


def test_a_push_to_nobody_says_so(tasks):
    with pytest.raises(peterrec.PeterRecError, match="server_unreachable"):
        tasks["tags"].push(url="http://127.0.0.1:9", api_key="none")


def test_users_of_a_dict_and_of_a_table_are_named_in_the_answers(tasks, shop, histories):
    task = tasks["value"]
    named = task.predict({"ann": histories[0], 7: histories[1]})
    assert [each.user_id for each in named] == ["ann", 7]
    assert [each.value for each in named] == [each.value for each in task.predict(histories[:2])]
    table = task.predict(shop.tables["histories"], order_column="position")
    by_user = {each.user_id: each.value for each in table}
    lists = dict(zip(shop.users, task.predict(shop.histories), strict=True))
    assert by_user == {user: each.value for user, each in lists.items() if each.used_items}


@pytest.mark.parametrize(
    ("history", "options", "error"),
    [
        (["a"] * 10_001, {}, HistoryTooLong),
        ([1.5], {}, MalformedRequest),
        (["never seen"], {"unknown_items": "error"}, UnknownItemsRefused),
        (["a"], {"top_k": 0}, MalformedRequest),
    ],
)
def test_the_servers_limits_hold_here_too(history, options, error, tasks):
    with pytest.raises(error):
        tasks["ranking"].predict([history], **options)


def test_the_history_that_has_no_answer_is_named(tasks, backbone):
    known = list(backbone.items[:3])
    with pytest.raises(UnknownItemsRefused, match="history 1: "):
        tasks["value"].predict([known, ["never seen"]], unknown_items="error")


@pytest.mark.parametrize("wrong", [["a", "b"], [5], 5])
def test_one_history_instead_of_a_list_of_histories_is_refused(wrong, tasks):
    with pytest.raises(peterrec.PeterRecError, match="is expected, not"):
        tasks["value"].predict(wrong)


def test_no_histories_get_no_answers(tasks):
    assert tasks["value"].predict([]) == []


def test_hints_about_a_history_do_not_name_a_servers_pages(tasks):
    with pytest.raises(MalformedRequest) as refused:
        tasks["value"].predict([[1.5]])
    assert "12.0" in refused.value.hint
    assert "/docs" not in str(refused.value)


def test_an_address_without_its_beginning_is_told_to_lack_it(tasks):
    with pytest.raises(ServerUnreachable, match="'localhost:8000' is no address") as refused:
        tasks["value"].push("value", url="localhost:8000", api_key="prk_x")
    assert "http://" in refused.value.hint


def test_a_described_task_is_filtered_and_titled_as_on_a_server(served, server, tasks, histories):
    plain = tasks["ranking"]
    frame = pa.table(
        {
            "id": plain.outputs,
            "price": [float(n) for n in range(len(plain.outputs))],
            "tags": [["odd"] if n % 2 else ["even", "all"] for n in range(len(plain.outputs))],
        }
    )
    titles = {item: item.upper() for item in plain.outputs}
    task = plain.described(titles=titles, attributes=frame)
    task.push("described", url=server.url, api_key=server.key)
    asked = {"where": {"price": {"lt": 9}, "tags": "odd"}, "titles": True, "top_k": 1000}
    (local,) = task.predict([histories[0]], **asked)
    assert answer_of(local) == answer_of(served.predict("described", histories[0], **asked))
    assert {each.id for each in local.items} <= {*plain.outputs[1:9:2]}
    assert all(each.title == each.id.upper() for each in local.items)
    with pytest.raises(peterrec.PeterRecError, match="unknown_attribute"):
        plain.predict([[]], where={"price": 1})
