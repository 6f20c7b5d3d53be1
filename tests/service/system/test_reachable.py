"""Webhooks reach public addresses, and no way into the server's own network."""

import ipaddress

import pytest

from peterrec.patches.errors import InvalidWebhook
from peterrec.service.errors import WebhookFailed
from peterrec.service.system.reachable import LONGEST_URL, Reachable, is_public, split_url

PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946")
OTHERS = (
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1"),
    *("192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1"),
    *("::ffff:8.8.8.8", "64:ff9b::a00:1", "2002:a00:1::1", "2001:0:a00:1::1"),
)
"""Private, shared, local, reserved, for documents, to many, and those that stand for others."""


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", OTHERS)
def test_no_other_address_is(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidWebhook):
        Reachable(()).check(f"https://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "//example.com/", "https://", "https://:443/", "https://[::1"),
        *("gopher://example.com/", "file:///etc/passwd", "https://example.com:70000/"),
        *("https://example.com:0/", "https://me@example.com/", "https://example.com/#part"),
        *("https://example.com/a b", "https://ex\u00e4mple.com/", "https://example.com/\n"),
        "https://example.com/" + LONGEST_URL * "a",
    ],
)
def test_what_is_no_url_of_a_webhook_is_refused(url: str) -> None:
    with pytest.raises(InvalidWebhook):
        split_url(url)


async def test_a_network_of_the_operator_may_be_reached_also_without_tls() -> None:
    own = Reachable(("127.0.0.0/8", "fd00::/8"))
    own.check("http://127.0.0.1:8080/")
    assert str(await own.address_of("acme", split_url("http://127.0.0.1:8080/"))) == "127.0.0.1"
    with pytest.raises(InvalidWebhook):
        own.check("https://10.0.0.1/")
    with pytest.raises(WebhookFailed, match="not_https"):
        await own.address_of("acme", split_url("http://8.8.8.8/"))


async def test_a_name_is_resolved_each_time_and_its_address_looked_at() -> None:
    outside = Reachable(())
    with pytest.raises(WebhookFailed, match="address_forbidden"):
        await outside.address_of("acme", split_url("https://localhost/"))
    with pytest.raises(WebhookFailed, match="unknown_host"):
        await outside.address_of("acme", split_url("https://no-such-host.invalid/"))
    with pytest.raises(WebhookFailed, match="unknown_host"):
        await outside.address_of("acme", split_url(f"https://{70 * 'a'}.invalid/"))
    own = Reachable(("127.0.0.0/8", "::1/128"))
    assert (await own.address_of("acme", split_url("https://localhost/"))).is_loopback
