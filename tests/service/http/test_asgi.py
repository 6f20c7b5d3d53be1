"""Headers and bodies as they arrive."""

import asyncio

import pytest

from peterrec.service.errors import BodyTooLarge, MalformedRequest, RequestTimedOut
from peterrec.service.http.asgi import ClientLeft, RequestHead, read_body
from peterrec.service.protocol.sender import BATCH, INTERACTIVE


def head(*headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead.read({"headers": [*headers]})


def receiving(*messages: dict[str, object]):
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    return receive


def part(body: bytes, is_last: bool = False) -> dict[str, object]:
    return {"type": "http.request", "body": body, "more_body": not is_last}


@pytest.mark.parametrize("value", [b"a b", b"", b"x" * 129, b"\xff", b"a\n", b'"x"'])
def test_a_request_id_that_is_not_sane_is_replaced(value):
    assert head((b"x-request-id", value)).request_id != value.decode("latin-1")


def test_every_request_gets_an_id_of_its_own():
    assert len({head().request_id for _ in range(100)}) == 100


def test_the_timeout_is_the_callers_or_the_servers():
    assert head((b"x-request-timeout-ms", b"1500")).timeout_s(2000) == 1.5
    assert head().timeout_s(2000) == 2.0
    with pytest.raises(MalformedRequest):
        head((b"x-request-timeout-ms", "²".encode())).timeout_s(2000)


def test_a_call_is_interactive_unless_it_says_that_nobody_waits_for_it():
    assert head().place_of_priority() == INTERACTIVE
    assert head((b"x-priority", b"interactive")).place_of_priority() == INTERACTIVE
    assert head((b"x-priority", b"batch")).place_of_priority() == BATCH
    with pytest.raises(MalformedRequest, match="neither interactive nor batch"):
        head((b"x-priority", b"urgent")).place_of_priority()


async def read(receive, length: bytes = b"", timeout_s: float = 5.0) -> bytes:
    head = RequestHead("1", content_length=length)
    return await read_body(receive, head, 10, timeout_s, has_arrived=False)


async def test_a_body_in_parts_is_joined():
    assert await read(receiving(part(b"ab"), part(b""), part(b"c", is_last=True))) == b"abc"


@pytest.mark.parametrize("length", [b"11", b"9" * 5000])
async def test_a_length_past_the_limit_is_refused_before_anything_is_read(length):
    with pytest.raises(BodyTooLarge):
        await read(receiving(), length)


async def test_a_body_past_the_limit_is_refused_while_it_is_read():
    with pytest.raises(BodyTooLarge):
        await read(receiving(part(b"x" * 6), part(b"x" * 5)), b"3")


async def test_a_client_that_leaves_while_it_sends_is_noticed():
    with pytest.raises(ClientLeft):
        await read(receiving(part(b"x"), {"type": "http.disconnect"}))


async def test_a_body_that_never_ends_is_given_up():
    async def receive():
        await asyncio.Event().wait()

    with pytest.raises(RequestTimedOut):
        await read(receive, timeout_s=0.05)


def test_a_field_that_comes_twice_with_different_values_is_neither_of_them():
    both = head((b"authorization", b"Bearer a"), (b"authorization", b"Bearer b"))
    assert both.authorization == b"Bearer a, Bearer b"
    same = head((b"authorization", b"Bearer a"), (b"authorization", b"Bearer a"))
    assert same.authorization == b"Bearer a"
