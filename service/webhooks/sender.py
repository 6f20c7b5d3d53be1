"""Sending one change to one webhook, signed as the specification Standard Webhooks says.

https://www.standardwebhooks.com has libraries for receivers in many languages.
"""

import asyncio
import base64
import hmac
import ssl
import time
from urllib.parse import SplitResult

import httpx

from peterrec.patches.registry.webhooks import Webhook
from peterrec.service.errors import WebhookFailed
from peterrec.service.system.reachable import Address, Reachable, split_url

TIMEOUT_S = 5.0
"""Seconds from looking up the host to the first line of its answer."""

GONE = 410
"""The status by which a receiver says that it wants no more."""

USER_AGENT = "PeterRec-Webhooks"


def signed(hook: Webhook, message_id: str, body: bytes, at: int) -> dict[str, str]:
    """Return the headers that prove a message: HMAC-SHA256 of its id, time stamp and body."""
    content = f"{message_id}.{at}.".encode() + body
    signature = base64.b64encode(hmac.digest(hook.key, content, "sha256")).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{signature}",
    }


class HookSender:
    """Posts messages to webhooks. Lives on the event loop.

    Nothing of an answer is read but its status, no redirect is followed, and no proxy or cookie is
    used. No connection is kept: the pool knows connections by address, and two names on one
    address must not share one that was proved for the other.
    """

    def __init__(self, reachable: Reachable, trusted: ssl.SSLContext | None = None) -> None:
        """``trusted`` has the certificates that receivers are proved by; by default, certifi's."""
        self._reachable = reachable
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(
            verify=trusted or True,
            trust_env=False,
            follow_redirects=False,
            timeout=TIMEOUT_S,
            limits=limits,
        )

    async def send(self, hook: Webhook, message_id: str, body: bytes) -> None:
        """Post a message; WebhookFailed unless the receiver takes it in time."""
        headers = signed(hook, message_id, body, int(time.time()))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                parts = split_url(hook.url)
                address = await self._reachable.address_of(hook.tenant, parts)
                status = await self._post(parts, address, headers, body)
        except TimeoutError as error:
            raise WebhookFailed("timeout") from error
        except httpx.HTTPError as error:
            raise WebhookFailed(_reason(error)) from error
        except (httpx.InvalidURL, ValueError) as error:
            raise WebhookFailed("bad_url") from error
        if not 200 <= status < 300:
            raise WebhookFailed(f"http_{status}", is_final=status == GONE)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(
        self, parts: SplitResult, address: Address, headers: dict[str, str], body: bytes
    ) -> int:
        """Connect to the address, ask for the URL's host and prove it; return the status."""
        host = parts.hostname or ""
        url = httpx.URL(parts.geturl()).copy_with(host=str(address))
        request = self._client.build_request(
            "POST",
            url,
            content=body,
            headers={
                "Host": parts.netloc,
                "Content-Type": "application/json",
                "User-Agent": USER_AGENT,
                **headers,
            },
            extensions={"sni_hostname": host},
        )
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return response.status_code


def _reason(error: httpx.HTTPError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "tls_failed"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    return "connect_failed" if isinstance(error, httpx.ConnectError) else "connection_lost"
