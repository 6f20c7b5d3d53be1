"""Tokens (JWT) of an OpenID Connect issuer, as an alternative to API keys.

The issuer publishes the keys by which it signs as a set (JWKS, RFC 7517). Each worker keeps a copy,
so that no request waits for the issuer, except the first ones after a key is new.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import msgspec
import structlog
from cachetools import LRUCache

from peterrec.model.errors import PeterRecError
from peterrec.patches.errors import InvalidName, InvalidScope
from peterrec.patches.identity import DEFAULT_TENANT, TenantId, parse_tenant
from peterrec.patches.registry.api_keys import Scope, parse_scope
from peterrec.service.errors import IssuerUnavailable, SigningKeyUnknown, Unauthenticated
from peterrec.service.system.texts import printable

log = structlog.get_logger()

ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Signatures that are accepted. All are asymmetric: with a shared secret, a public key could pass
for that secret."""

LEEWAY_S = 30
"""Seconds by which the issuer's clock may differ from ours."""

FETCH_TIMEOUT_S = 5.0
"""Seconds that the issuer may take to send its keys."""

FETCH_INTERVAL_S = 1.0
"""Seconds from one fetch to the next at least: anybody can send a token of an unknown key."""

MAX_SET_BYTES = 1 << 20
"""Size of the largest set of keys that is read."""

MAX_TOKEN_BYTES = 8192
"""Size of the longest token that is looked at."""

MAX_CALLER = 96
"""Characters of a token's subject that the audit trail shows."""

TOKENS_KEPT = 4096
"""Verified tokens that are remembered until they expire: verifying one takes 0.24 ms, more than a
small prediction."""

_REQUIRED = ["exp", "iss", "aud", "sub"]


@dataclass(frozen=True, slots=True)
class Issuer:
    """What a token must say, and which of its claims name the tenant and the scopes."""

    issuer: str
    audience: str
    tenant_claim: str
    scope_claim: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. It is refused from ``expires_at`` (Unix time) on."""

    caller: str
    tenant: TenantId
    scopes: tuple[Scope, ...]
    expires_at: float


class SigningKeys:
    """A copy of an issuer's keys, fetched regularly and when a token names one that is not in it.

    If the issuer is unavailable, the copy stays. Lives on the event loop.
    """

    def __init__(self, url: str, refresh_s: float) -> None:
        self._url = url
        self._refresh_s = refresh_s
        self._by_id: dict[str, Mapping[str, Any]] | None = None  # Any: JSON documents
        self._prepared: dict[tuple[str, str], jwt.PyJWK] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at = float("-inf")
        self._regularly: asyncio.Task[None] | None = None
        self.generation = 0

    def start(self) -> None:
        """Begin to fetch the keys now and then regularly."""
        self._regularly = asyncio.create_task(self._fetch_regularly())

    async def close(self) -> None:
        """Stop fetching."""
        tasks = [task for task in (self._regularly, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Fetch the keys, once for all who wait and not more often than ``FETCH_INTERVAL_S``."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    def find(self, header: Mapping[str, object]) -> jwt.PyJWK:
        """Return the key that signed a token with this header; SigningKeyUnknown."""
        if self._by_id is None:
            raise IssuerUnavailable
        key_id, algorithm = header.get("kid"), header["alg"]
        if key_id is None and len(self._by_id) == 1:
            (key_id,) = self._by_id
        if not isinstance(key_id, str) or key_id not in self._by_id:
            raise SigningKeyUnknown
        assert isinstance(algorithm, str), "the caller has looked at it"
        prepared = self._prepared.get((key_id, algorithm))
        if prepared is None:
            prepared = _prepare(self._by_id[key_id], algorithm)
            self._prepared[key_id, algorithm] = prepared
        return prepared

    async def _fetch_regularly(self) -> None:
        while True:
            await self.refresh()
            is_there = self._by_id is not None
            await asyncio.sleep(self._refresh_s if is_there else FETCH_INTERVAL_S)

    async def _fetch(self) -> None:
        await asyncio.sleep(max(0.0, self._fetched_at + FETCH_INTERVAL_S - time.monotonic()))
        self._fetched_at = time.monotonic()
        try:
            found = _read_set(await self._download())
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            log.warning("issuer_unavailable", url=self._url, reason=repr(error)[:200])
            return
        if found != self._by_id:
            self._by_id, self._prepared = found, {}
            self.generation += 1
            log.info("issuer_keys_read", keys=len(found))

    async def _download(self) -> bytes:
        body = bytearray()
        async with (
            asyncio.timeout(FETCH_TIMEOUT_S),
            httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as client,
            client.stream("GET", self._url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_SET_BYTES:
                    raise ValueError(f"more than {MAX_SET_BYTES} bytes")
        return bytes(body)


class TokenVerifier:
    """Verifies tokens of one issuer. Lives on the event loop."""

    def __init__(self, issuer: Issuer, keys: SigningKeys) -> None:
        self._issuer = issuer
        self.keys = keys
        self._verified: LRUCache[bytes, Claims] = LRUCache(TOKENS_KEPT)
        self._generation = 0

    def claims(self, token: bytes) -> Claims:
        """Return what a token says.

        Raises Unauthenticated, SigningKeyUnknown if fetching the issuer's keys may help, and
        IssuerUnavailable as long as they were never fetched.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise _refused(f"it has more than {MAX_TOKEN_BYTES} bytes")
        if self._generation != self.keys.generation:  # a key that was withdrawn counts no more
            self._verified.clear()
            self._generation = self.keys.generation
        digest = hashlib.sha256(token).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = self._verified[digest] = self._verify(token)
        if time.time() >= claims.expires_at:
            raise _refused("it has expired")
        return claims

    def _verify(self, token: bytes) -> Claims:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise _refused("its signature has a form that is not accepted")
            self._look_at_issuer(token)
            payload = jwt.decode(
                token,
                self.keys.find(header),
                algorithms=sorted(ALGORITHMS),
                issuer=self._issuer.issuer,
                audience=self._issuer.audience,
                leeway=LEEWAY_S,
                options={"require": _REQUIRED, "enforce_minimum_key_length": True},
            )
            return self._read(payload)
        except jwt.PyJWTError as error:
            raise _refused(str(error)[:200]) from error
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _refused("it is malformed") from error

    def _look_at_issuer(self, token: bytes) -> None:
        """Refuse a token of another issuer before anybody looks for its key."""
        payload = jwt.decode(token, options={"verify_signature": False})
        if payload.get("iss") != self._issuer.issuer:
            raise _refused("its issuer is not the one that this server trusts")

    def _read(self, payload: Mapping[str, object]) -> Claims:
        name = payload.get(self._issuer.tenant_claim)
        if not isinstance(name, str):
            raise _refused(f"it has no claim {self._issuer.tenant_claim!r} with a tenant")
        try:
            tenant = parse_tenant(name)
        except InvalidName as error:
            raise _refused(error.message) from error
        expires_at = payload["exp"]
        assert isinstance(expires_at, int | float), "jwt.decode has checked it"
        scopes = _scopes(payload.get(self._issuer.scope_claim), tenant)
        caller = printable(str(payload["sub"]))[:MAX_CALLER]
        return Claims(f"token:{caller}", tenant, scopes, float(expires_at) + LEEWAY_S)


def _scopes(claim: object, tenant: TenantId) -> tuple[Scope, ...]:
    """Read the scopes of a claim: a list, or words. What is none of ours is for other services.

    As for keys, an operator's token is one of the tenant ``default``.
    """
    words: Sequence[object] = claim.split() if isinstance(claim, str) else ()
    if isinstance(claim, list):
        words = claim
    found = []
    for word in words:
        with contextlib.suppress(InvalidScope):
            found.append(parse_scope(str(word)))
    is_operators = tenant == DEFAULT_TENANT
    return tuple(scope for scope in found if is_operators or scope.action != "operator")


def _prepare(document: Mapping[str, Any], algorithm: str) -> jwt.PyJWK:  # Any: a JSON document
    if document.get("alg", algorithm) != algorithm:
        raise _refused("its signature has another form than its key")
    return jwt.PyJWK(dict(document), algorithm)


def _read_set(body: bytes) -> dict[str, Mapping[str, Any]]:  # Any: JSON documents
    """Read the keys that sign, by their ids; ValueError if it is no set of keys."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ValueError(f"no JSON object: {error}") from error
    keys = found.get("keys")
    if not isinstance(keys, list):
        raise ValueError("no list of keys")
    signing = [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]
    return {str(key.get("kid", "")): key for key in signing if key.get("kty") != "oct"}


def _refused(why: str) -> PeterRecError:
    return Unauthenticated(f"the token is refused: {why}.", hint="Get a new token.")
