"""The registry's changes as they happen: server-sent events, read for both clients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import httpx_sse
import msgspec

from peterrec_client.call import CONNECT_TIMEOUT_S, Reply
from peterrec_client.errors import PeterRecError, not_understood, unreachable

PATH = "/registry/events"

SILENCE_TIMEOUT_S = 180.0
"""Seconds without a byte after which a stream counts as broken; comments come more often."""

TIMEOUTS = httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)

Event = Mapping[str, Any]  # Any: a JSON object, an entry of the audit trail

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parameters(since: int | None) -> dict[str, str]:
    """Query of a stream that begins after revision ``since``; None begins it now."""
    return {} if since is None else {"since": str(since)}


def read_event(sent: httpx_sse.ServerSentEvent) -> Event:
    """The object that an event carries."""
    return _decode(sent.data)


def refusal(response: httpx.Response) -> PeterRecError:
    """The error behind a stream that the server refused; the response's body has been read."""
    return Reply(response.status_code, response.headers, response.content).error()


@contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Raise the errors of the libraries that read a stream as ours."""
    try:
        yield
    except (httpx_sse.SSEError, msgspec.MsgspecError) as error:
        raise not_understood(f"GET {PATH}", error, httpx.codes.OK) from error
    except httpx.RequestError as error:
        raise unreachable(url, error) from error
