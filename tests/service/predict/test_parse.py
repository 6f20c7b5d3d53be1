"""Bodies of the prediction calls: an error names the place in the body."""

import json

import pytest

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, TooManyRows
from peterrec.service.predict.parse import parse_predict, parse_users_predict
from peterrec.service.predict.schemas import Instance, Parameters


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def parse_whole(text: bytes) -> None:
    """Raise what is wrong with the body or, else, with its first instance."""
    first = parse_predict(text).instances[0]
    assert isinstance(first, PeterRecError), first
    raise first


def test_a_history_is_one_instance():
    assert parse_predict(body(history=["a", 7])) == ([Instance(["a", 7])], Parameters())


def test_instances_keep_their_own_parameters():
    (instance,), parameters = parse_predict(
        body(
            instances=[{"history": [], "top_k": 3, "user_id": 5, "exclude": [1]}],
            parameters={"top_k": 7, "unknown_items": "map", "exclude_seen": False},
        )
    )
    assert isinstance(instance, Instance)
    assert (instance.top_k, instance.user_id, instance.exclude) == (3, 5, [1])
    assert parameters == Parameters(7, False, "map")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"history":[1,true]}', "$.history[1]"),
        (b'{"history":[1,2.5]}', "$.history[1]"),
        (b'{"history":[null]}', "$.history[0]"),
        (b'{"history":"a"}', "$.history"),
        (b'{"history":[],"top_k":3}', "top_k"),
        (b'{"history":[],"parameters":{"top_k":0}}', "$.parameters.top_k"),
        (b'{"history":[],"parameters":{"top_k":1001}}', "$.parameters.top_k"),
        (b'{"history":[],"parameters":{"unknown_items":"x"}}', "$.parameters.unknown_items"),
        (b'{"instances":[{"history":[false]}]}', "$.instances[0].history[0]"),
        (b'{"instances":[{"items":[1]}]}', "items"),
        (b'{"instances":{}}', "$.instances"),
        (b'{"instances":[]}', "$.instances"),
        (b"[]", "$"),
        (b"{}", "either history or instances"),
        (b'{"history":[],"instances":[{"history":[]}]}', "either history or instances"),
        (b"", "not JSON"),
        (b'{"history":[1', "not JSON"),
        (b'{"history":[1]} x', "not JSON"),
        (b'{"history":["\xff"]}', "not UTF-8"),
        (b'{"instances":[' + b"[" * 100_000, "$.instances[0]"),
    ],
)
def test_a_malformed_body_is_refused_and_the_place_named(text, place):
    with pytest.raises(MalformedRequest) as refused:
        parse_whole(text)
    assert place in refused.value.message


def test_one_bad_instance_spoils_only_its_own_slot():
    good, bad, other = parse_predict(
        b'{"instances":[{"history":[1]},{"history":[1,null]},{"history":["b"]}]}'
    ).instances
    assert (good, other) == (Instance([1]), Instance(["b"]))
    assert isinstance(bad, MalformedRequest)
    assert "$.instances[1].history[1]" in bad.message


def test_too_many_instances_are_told_as_such():
    with pytest.raises(TooManyRows, match="257 instances"):
        parse_predict(body(instances=[{"history": []}] * 257))


def test_broken_parameters_spoil_the_whole_call():
    with pytest.raises(MalformedRequest, match=r"\$\.parameters\.top_k"):
        parse_predict(body(instances=[{"history": []}], parameters={"top_k": "many"}))


def test_users_predict_takes_names_choices_or_all():
    request = parse_users_predict(body(history=[1], tasks=["a", {"task": "b", "top_k": 2}]))
    assert not isinstance(request.tasks, str)
    assert [t if isinstance(t, str) else (t.task, t.top_k) for t in request.tasks] == [
        "a",
        ("b", 2),
    ]
    assert parse_users_predict(body(history=[], tasks="all")).tasks == "all"


@pytest.mark.parametrize("tasks", ["some", None, [1], [{"name": "b"}], {}])
def test_users_predict_refuses_anything_else(tasks):
    with pytest.raises(MalformedRequest):
        parse_users_predict(body(history=[], tasks=tasks))


@pytest.mark.parametrize(
    "body",
    [
        b'{"history":["a"],"history":["b"]}',
        b'{"instances":[{"history":["a"],"history":["b"]}]}',
        b'{"history":["a"],"parameters":{"top_k":1},"history":["b"]}',
    ],
)
def test_a_history_that_occurs_twice_is_refused_since_only_one_would_be_read(body):
    with pytest.raises(MalformedRequest, match="field 'history' occurs twice"):
        parse_predict(body)


def test_of_a_card_too():
    with pytest.raises(MalformedRequest, match="field 'history' occurs twice"):
        parse_users_predict(b'{"history":["a"],"tasks":"all","history":["b"]}')


def test_an_item_may_be_called_history():
    (instance,) = parse_predict(b'{"history":["history","history"]}').instances
    assert isinstance(instance, Instance)
    assert instance.history == ["history", "history"]
