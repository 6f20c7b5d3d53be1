"""Which addresses a webhook may reach: the server must not be a way into its own network.

A tenant chooses the URL, so it may name a service that only this machine can reach, and a name may
resolve to another address each time. So every address that a name has is looked at, and the
connection is made to the one that was looked at.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from urllib.parse import SplitResult, urlsplit

from peterrec.patches.errors import InvalidWebhook
from peterrec.service.errors import WebhookFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST_URL = 2048

MOST_LOOK_UPS = 256
"""Names that are looked up at the same time: at most one of each tenant, in a thread of its own."""

TRANSLATED = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("2001::/32"),
)
"""IPv6 networks whose addresses stand for others, which may be anywhere: NAT64, 6to4, Teredo."""


def split_url(url: str) -> SplitResult:
    """Split a webhook's URL; InvalidWebhook if it can't be one."""
    hint = "Give an https URL with a host, such as https://ci.example/hooks/peterrec."
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise InvalidWebhook(f"the URL is none: {error}.", hint=hint) from error
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidWebhook(
            f"the URL is longer than {LONGEST_URL} characters, or has some that none has.",
            hint=hint,
        )
    if parts.scheme not in ("https", "http") or not host or port == 0:
        raise InvalidWebhook("the URL has no host, or another scheme than https.", hint=hint)
    if parts.username is not None or parts.fragment:
        raise InvalidWebhook(
            "the URL has a user or a fragment.", hint="Put a secret into its path or its query."
        )
    return parts


class Reachable:
    """The addresses that webhooks may reach: public ones, and those of ``networks``."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(each) for each in networks]
        self._resolving: dict[str, asyncio.Future[list[Address]]] = {}

    def check(self, url: str) -> None:
        """Raise InvalidWebhook of a URL that can never be reached, as far as that is known now."""
        parts = split_url(url)
        address = _literal(parts.hostname or "")
        is_own = address is not None and self._is_own(address)
        if parts.scheme == "http" and not self._networks:
            raise InvalidWebhook(
                "the URL is not https.",
                hint="Only networks of PETERREC_WEBHOOK_NETWORKS have http.",
            )
        if address is not None and not (is_own or is_public(address)):
            raise InvalidWebhook(
                f"{address} is no public address.",
                hint="An operator may allow its network: PETERREC_WEBHOOK_NETWORKS.",
            )

    async def address_of(self, tenant: str, parts: SplitResult) -> Address:
        """Return the address to connect to; WebhookFailed if one of the name's is forbidden."""
        host = parts.hostname or ""
        literal = _literal(host)
        found = [literal] if literal is not None else await self._resolve(tenant, host)
        own = [self._is_own(address) for address in found]
        if not all(is_own or is_public(each) for each, is_own in zip(found, own, strict=True)):
            raise WebhookFailed("address_forbidden")
        if parts.scheme == "http" and not own[0]:
            raise WebhookFailed("not_https")
        return found[0]

    async def _resolve(self, tenant: str, host: str) -> list[Address]:
        """Look a name up, one of a tenant at a time: a name server that hangs holds one thread."""
        while (before := self._resolving.get(tenant)) is not None:
            await asyncio.wait([before])
        if len(self._resolving) >= MOST_LOOK_UPS:
            raise WebhookFailed("resolver_busy")
        looking = self._resolving[tenant] = _begin(host)
        looking.add_done_callback(lambda done: self._end(tenant, done))
        return await asyncio.shield(looking)

    def _end(self, tenant: str, looking: asyncio.Future[list[Address]]) -> None:
        del self._resolving[tenant]
        if not looking.cancelled():
            looking.exception()  # mark it as seen: whoever asked may have left

    def _is_own(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Return whether an address is one of the Internet, and stands for no other one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None or any(address in each for each in TRANSLATED):
            return False
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _begin(host: str) -> asyncio.Future[list[Address]]:
    """Look a name up in a thread that does not keep the process from ending: it may hang long."""
    loop = asyncio.get_running_loop()
    looking: asyncio.Future[list[Address]] = loop.create_future()

    def run() -> None:
        try:
            found = _look_up(host)
        except WebhookFailed as error:
            settle = partial(looking.set_exception, error)
        else:
            settle = partial(looking.set_result, found)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle)

    Thread(target=run, name="resolver", daemon=True).start()
    return looking


def _look_up(host: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WebhookFailed("unknown_host") from error
    return [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
