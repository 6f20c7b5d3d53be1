"""Whatever a body holds: no long step of the event loop, no long answer, no harm to neighbours."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, TooManyValues, problem_of
from peterrec.service.http.asgi import encode_json
from peterrec.service.predict.item_ids import SHOWN_ID, ItemId, ItemVocabulary
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.parse import MAX_VALUES, parse_predict, parse_users_predict
from peterrec.service.predict.schemas import MAX_BODY_BYTES, Instance, TaskChoice

LONGEST_STEP_S = 0.02
LONGEST_ANSWER_BYTES = 200_000  # 256 problems


def filled(begin: bytes, part: bytes, end: bytes) -> bytes:
    """As large a body as is read, of equal parts."""
    return begin + (part * ((MAX_BODY_BYTES - len(begin + end)) // len(part)))[:-1] + end


NAME = b"a" * 1_900_000
ONE = {
    "small numbers": filled(b'{"history":[', b"1,", b"]}"),
    "large numbers": filled(b'{"history":[', b"9" * 4000 + b",", b"]}"),
    "one huge number": b'{"history":[' + b"9" * 1_900_000 + b"]}",
    "one huge id": b'{"history":["' + NAME + b'"]}',
    "empty ids": filled(b'{"history":[', b'"",', b"]}"),
    "ids like the field": filled(b'{"history":[', b'"history",', b"]}"),
    "a huge unknown field": b'{"' + NAME + b'":1}',
    "huge unknown fields": filled(b'{"instances":[', b'{"' + b"h" * 8000 + b'":1},', b"]}"),
    "256 unknown fields": b'{"instances":['
    + b",".join(b'{"history":[],"histor%d":1}' % at for at in range(256))
    + b"]}",
    "empty objects": filled(b'{"instances":[', b"{},", b"]}"),
    "deep lists": b'{"history":' + b"[" * 900_000 + b"]" * 900_000 + b"}",
    "deep lists as instances": b'{"instances":[1,' + b"[" * 900_000 + b"]" * 900_000 + b"]}",
    "escapes": filled(b'{"history":["', b"\\u0041", b'"]}'),
    "a huge user id": b'{"history":[],"user_id":"' + NAME + b'"}',
    "a huge version": b'{"history":[],"parameters":{"version":"' + NAME + b'"}}',
    "a huge policy": b'{"history":[],"parameters":{"unknown_items":"' + NAME + b'"}}',
}
MANY = {
    "many tasks": filled(b'{"history":[],"tasks":[', b'"a",', b"]}"),
    "huge names": filled(b'{"history":[],"tasks":[', b'"' + b"a" * 3700 + b'",', b"]}"),
    "many choices": filled(b'{"history":[],"tasks":[', b'{"task":"a"},', b"]}"),
    "a huge field": b'{"history":[],"tasks":[{"' + NAME + b'":1}]}',
    "a long list": filled(b'{"history":[],"tasks":[{"task":"a","exclude":[', b"1,", b"]}]}"),
}


def cost_of(parse: Callable[[bytes], object], body: bytes) -> tuple[float, int]:
    """The seconds of CPU that a body takes at best, and the bytes of its errors."""
    fastest, errors = 1e9, []
    for _ in range(3):
        began = time.thread_time()
        try:
            parsed = parse(body)
            errors = [e for e in getattr(parsed, "instances", []) if isinstance(e, PeterRecError)]
        except PeterRecError as error:
            errors = [error]
        fastest = min(fastest, time.thread_time() - began)
    return fastest, sum(len(encode_json(problem_of(each, "1"))) for each in errors)


@pytest.mark.parametrize("name", [*ONE, *MANY])
def test_no_body_takes_long_or_comes_back(name: str):
    parse = parse_predict if name in ONE else parse_users_predict
    seconds, answer_bytes = cost_of(parse, (ONE | MANY)[name])
    assert seconds < LONGEST_STEP_S
    assert answer_bytes < LONGEST_ANSWER_BYTES


def test_as_many_values_as_256_full_histories_are_read():
    history = b'{"history":[' + b",".join([b"123456"] * 250) + b"]}"
    parsed = parse_predict(b'{"instances":[' + b",".join([history] * 256) + b"]}")
    assert all(isinstance(each, Instance) for each in parsed.instances)


def test_more_values_than_anybody_needs_are_refused():
    with pytest.raises(TooManyValues):
        parse_predict(b'{"history":[' + b"1," * MAX_VALUES + b"1]}")


@pytest.mark.parametrize(
    "broken",
    [b'{"history":["\xff"]}', b'{"history":["\\ud800"]}', b'{"history":[1],"user_id":"\\udc00"}'],
)
def test_a_text_that_is_none_fails_its_own_instance_alone(broken: bytes):
    parsed = parse_predict(b'{"instances":[{"history":["a"]},' + broken + b',{"history":[7]}]}')
    first, second, third = parsed.instances
    assert (first, third) == (Instance(["a"]), Instance([7]))
    assert isinstance(second, MalformedRequest)
    assert "instances[1]" in second.message


def test_parameters_are_kept_when_a_text_is_none():
    body = b'{"instances":[{"history":["\\ud800"]}],"parameters":{"top_k":3}}'
    assert parse_predict(body).parameters.top_k == 3


@pytest.mark.parametrize("extra", [b',"x":1', b',"parameters":{"top_k":"3"}', b',"history":[]'])
def test_a_text_that_is_none_hides_no_other_mistake(extra: bytes):
    with pytest.raises(MalformedRequest):
        parse_predict(b'{"instances":[{"history":["\\ud800"]}]' + extra + b"}")


def test_an_option_of_five_point_zero_is_five():
    parsed = parse_predict(
        b'{"instances":[{"history":[1],"top_k":5.0},{"history":[2],"top_k":6}],'
        b'"parameters":{"top_k":7.0}}'
    )
    first, second = parsed.instances
    assert isinstance(first, Instance)
    assert isinstance(second, Instance)
    assert (first.top_k, second.top_k, parsed.parameters.top_k) == (5, 6, 7)
    asked = parse_users_predict(b'{"history":[],"tasks":[{"task":"a","top_k":8.0}]}').tasks[0]
    assert isinstance(asked, TaskChoice)
    assert asked.top_k == 8


@pytest.mark.parametrize("option", [b"5.5", b"1e400", b"0.0", b"1001.0"])
def test_an_option_that_is_no_whole_number_within_the_bounds_is_refused(option: bytes):
    with pytest.raises(MalformedRequest):
        parse_predict(b'{"history":[],"parameters":{"top_k":' + option + b"}}")


@pytest.mark.parametrize("rest", [b"[" * 5000 + b"]" * 5000, b'"\xff"', b'"\\ud800"', b"nonsense"])
def test_what_follows_a_mistake_is_refused_with_it(rest: bytes):
    with pytest.raises(MalformedRequest):
        parse_predict(b'{"history":[1.5],"user_id":' + rest + b"}")
    with pytest.raises(MalformedRequest):
        parse_users_predict(b'{"history":[1.5],"user_id":' + rest + b"}")


def test_an_item_of_five_point_zero_is_refused():
    with pytest.raises(MalformedRequest):
        parse_predict(b'{"history":[5.0],"parameters":{"top_k":3.0}}')


@pytest.mark.parametrize("user_id", [b"1" + b"0" * 64, b"-1" + b"0" * 64])
def test_a_user_id_of_too_many_digits_fails_its_own_instance_alone(user_id: bytes):
    parsed = parse_predict(
        b'{"instances":[{"history":[1],"user_id":' + user_id + b'},{"history":[2],"user_id":3}]}'
    )
    assert isinstance(parsed.instances[0], MalformedRequest)
    assert parsed.instances[1] == Instance([2], 3)
    with pytest.raises(MalformedRequest):
        parse_users_predict(b'{"history":[],"tasks":[],"user_id":' + user_id + b"}")


def test_unknown_ids_come_back_cut():
    history: list[ItemId] = ["x" * 1_000_000, 10**500, "y"]
    unknown = ItemVocabulary(["a"], 5).map_history(history, "drop").unknown
    assert [len(str(each)) for each in unknown] == [SHOWN_ID, SHOWN_ID, 1]


async def test_long_work_is_done_in_short_steps():
    pulses: list[float] = []
    has_ended = asyncio.Event()

    async def beat() -> None:
        while not has_ended.is_set():
            pulses.append(time.thread_time())
            await asyncio.sleep(0)

    beating = asyncio.create_task(beat())
    pace = Pace()
    for _ in range(100):
        sum(range(20_000))  # a row
        if pace.is_due:
            await pace.rest()
    has_ended.set()
    await beating
    assert max(after - before for before, after in pairwise(pulses)) < LONGEST_STEP_S
