"""Bundles at a URL of https, with redirects that stay where they may lead."""

from collections.abc import Iterator
from contextlib import contextmanager
from netrc import NetrcParseError

import httpx

from peterrec.service.errors import (
    SourceDenied,
    SourceInvalid,
    SourceNotFound,
    SourceRefused,
)
from peterrec.service.sources.address import Address, parse_address
from peterrec.service.sources.receiving import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Receiver,
    broken,
    reason_of,
)

MOST_REDIRECTS = 5


def fetch(source: Address, to: Receiver) -> None:
    """Write what a URL answers to the receiver's file; errors named ``Source…``.

    A user's name and password come from ``.netrc`` and go to their own host only.
    """
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        with (
            httpx.Client(timeout=timeout, auth=_netrc()) as client,
            _final_answer(client, source, to) as answer,
        ):
            _write(answer, source, to)
    except NetrcParseError as error:
        raise SourceDenied(source, "the file .netrc cannot be read") from error
    except httpx.HTTPError as error:
        raise broken(source, reason_of(error)) from error


def _netrc() -> httpx.Auth | None:
    try:
        return httpx.NetRCAuth()
    except FileNotFoundError:
        return None


@contextmanager
def _final_answer(client: httpx.Client, source: Address, to: Receiver) -> Iterator[httpx.Response]:
    """The answer after all redirects, each of which must lead to where the receiver may reach."""
    url = httpx.URL(url_of(source))
    for _ in range(MOST_REDIRECTS + 1):
        request = client.build_request("GET", url, headers={"Accept-Encoding": "identity"})
        answer = client.send(request, stream=True)
        try:
            if not answer.has_redirect_location:
                yield answer
                return
            url = url.join(answer.headers["location"])
        finally:
            answer.close()
        url = httpx.URL(url_of(_followed(source, str(url), to)))
    raise broken(source, f"it has more than {MOST_REDIRECTS} redirects")


def _followed(source: Address, target: str, to: Receiver) -> Address:
    try:
        address = parse_address(target)
    except SourceInvalid as error:
        raise SourceRefused(f"{source} redirects to no address of a bundle.") from error
    if address.scheme != "https" or not to.may_reach(address):
        raise SourceRefused(
            f"{source} redirects to {address.place}, which PETERREC_BUNDLE_SOURCES does not allow.",
            hint="Whoever runs the server may list where it leads, too.",
        )
    return address


def url_of(address: Address) -> str:
    """Return the URL of an address: only what was parsed is asked for."""
    query = f"?{address.rest}" if address.rest else ""
    return f"https://{address.place}/{address.path}{query}"


def _write(answer: httpx.Response, source: Address, to: Receiver) -> None:
    check_status(answer.status_code, source)
    length = answer.headers.get("content-length", "")
    total = int(length) if length.isdecimal() else None
    with to.open(source, total) as file:
        for chunk in answer.iter_raw():  # as it comes, so that a slow store can't hide its size
            file.write(chunk)
        file.require_all(total)


def check_status(status: int, source: Address) -> None:
    """Raise the error that an HTTP status of a store means; none for 200."""
    if status in (404, 410):
        raise SourceNotFound(f"there is nothing at {source}.", hint="Check its path.")
    if status in (401, 403):
        raise SourceDenied(source, f"HTTP status {status}")
    if status != 200:
        raise broken(source, f"HTTP status {status}")
