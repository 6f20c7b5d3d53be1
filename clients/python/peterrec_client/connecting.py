"""Connection settings that both clients use."""

import ssl
from functools import cache
from importlib.metadata import version
from typing import TypedDict

import httpx

DEFAULT_TIMEOUT_S = 5.0
"""Seconds for a prediction or another read with all its retries, unless the caller sets a limit."""

MAX_CONNECTIONS = 100
"""Connections per client. Further concurrent calls wait; idle connections stay open."""

KEEP_ALIVE_S = 4.0
"""Seconds that an idle connection is kept: less than servers and balancers keep it, so that the
client closes it first and never sends on a connection that is being closed."""


class HttpOptions(TypedDict):
    """Arguments of ``httpx.Client`` and ``httpx.AsyncClient``."""

    base_url: str
    headers: dict[str, str]
    limits: httpx.Limits
    verify: ssl.SSLContext


def http_options(url: str, api_key: str | None) -> HttpOptions:
    """Build the arguments of both HTTP clients."""
    headers = {"User-Agent": f"peterrec-client/{version('peterrec-client')}"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": url,
        "headers": headers,
        "limits": httpx.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEP_ALIVE_S,
        ),
        "verify": _tls(),
    }


@cache
def _tls() -> ssl.SSLContext:
    """Trusted certificate authorities, read only once: reading takes longer than many calls."""
    return httpx.create_ssl_context()
