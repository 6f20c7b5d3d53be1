"""Bodies in MessagePack: the same requests, bounds and errors as in JSON, and no new traps."""

import time
import tracemalloc

import msgspec
import pytest

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, TooManyRows, TooManyValues
from peterrec.service.predict.parse import (
    parse_packed_predict,
    parse_packed_users_predict,
    parse_predict,
    parse_users_predict,
)
from peterrec.service.predict.schemas import Instance

pack = msgspec.msgpack.encode
HISTORY = b"\x81\xa7history"

BODIES = [
    {"history": ["1193", 661]},
    {"history": [], "user_id": "u"},
    {"history": [1], "parameters": {"top_k": 3, "version": "next"}},
    {"instances": [{"history": [1], "exclude": ["2"]}, {"history": [2], "user_id": 7}]},
    {"instances": [{"history": [1]}, {"history": [1.5]}, {"histories": []}, 3]},
]


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_a_packed_body_means_what_the_same_body_means_in_json(body):
    packed, plain = parse_packed_predict(pack(body)), parse_predict(msgspec.json.encode(body))
    assert packed.parameters == plain.parameters
    assert [str(each) for each in packed.instances] == [str(each) for each in plain.instances]


def test_a_packed_body_for_many_tasks_means_what_it_means_in_json():
    body = {"history": [1, "2"], "tasks": ["a", {"task": "b", "top_k": 3}], "user_id": 5}
    assert parse_packed_users_predict(pack(body)) == parse_users_predict(msgspec.json.encode(body))


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        3,
        {"history": [1], "instances": [{"history": [2]}]},
        {"history": [1], "other": 2},
        {"history": "1193"},
        {"history": [True]},
        {"history": [None]},
        {"instances": []},
        {"history": [1], "user_id": 2.5},
        {"history": [1], "parameters": {"top_k": 0}},
    ],
    ids=str,
)
def test_what_json_refuses_is_refused_with_the_same_code_and_place(body):
    with pytest.raises(PeterRecError) as plain:
        parse_predict(msgspec.json.encode(body))
    with pytest.raises(PeterRecError) as packed:
        parse_packed_predict(pack(body))
    assert packed.value.code == plain.value.code
    assert packed.value.message == plain.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"{}",
        HISTORY + b"\xdd\xff\xff\xff\xff\x01",
        HISTORY + b"\xdc\xff\xff\x01",
        HISTORY + b"\xdf\xff\xff\xff\xff\x01",
        HISTORY + b"\xdb\xff\xff\xff\xffa",
        HISTORY + b"\xc6\xff\xff\xff\xffa",
        HISTORY + b"\xc9\xff\xff\xff\xff\x05a",
        b"\x81\xa9instances\xdd\xff\xff\xff\xff\x80",
        b"\xdf\xff\xff\xff\xff\xa7history\x90",
        HISTORY + b"\x91" * 1_900_000,
        HISTORY + b"\x81\x01" * 900_000,
        HISTORY + b"\x91\xc4\x041193",
        HISTORY + b"\x91\xd6\xff\x00\x00\x00\x00",
        HISTORY + b"\x91\xa1\xff",
        HISTORY + b"\x91\x01\x01",
        b"\x82\xa7history\x91\x01\xa7history\x91\x02",
        b"\x82\xa7history\x91\x01\xd9\x07history\x91\x02",
    ],
    ids=lambda body: body[:24].hex(),
)
def test_hostile_bytes_are_refused_at_once_and_cost_no_memory(body):
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(MalformedRequest) as refused:
            parse_packed_predict(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert time.process_time() - started < 1
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("item", [1, "", 40_000])
def test_large_bodies_have_as_many_values_at_most_as_in_json(item):
    most = [item] * 131_072
    assert len(parse_packed_predict(pack({"history": most})).instances) == 1
    with pytest.raises(TooManyValues):
        parse_packed_predict(pack({"history": [*most, item]}))
    rows = [{"history": [item] * 1000}] * 132
    with pytest.raises(TooManyValues):
        parse_packed_predict(pack({"instances": rows}))
    with pytest.raises(TooManyRows):
        parse_packed_predict(pack({"instances": [{"history": []}] * 100_000}))


def test_an_item_may_be_called_history():
    (instance,) = parse_packed_predict(pack({"history": ["history"] * 3})).instances
    assert isinstance(instance, Instance)
    assert instance.history == ["history"] * 3
