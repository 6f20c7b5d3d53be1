"""How both clients connect."""

import ssl
from functools import cache
from importlib.metadata import version
from typing import TypedDict

import httpx

DEFAULT_TIMEOUT_S = 5.0

MAX_CONNECTIONS = 100
"""More calls at once wait for a connection. All of them may stay open between calls."""

KEEP_ALIVE_S = 4.0
"""Shorter than servers and balancers keep an idle connection, so that we close it first."""


class HttpOptions(TypedDict):
    """Arguments of ``httpx.Client`` and ``httpx.AsyncClient``."""

    base_url: str
    headers: dict[str, str]
    limits: httpx.Limits
    verify: ssl.SSLContext


def http_options(url: str, api_key: str | None) -> HttpOptions:
    """What both kinds of HTTP client are made with."""
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
    """The trusted authorities, read once: it takes longer than many calls."""
    return httpx.create_ssl_context()
