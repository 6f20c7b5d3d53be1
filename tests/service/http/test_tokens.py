"""Tokens of an issuer: verified by its keys, which a real HTTP server publishes and rotates."""

import asyncio
import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator

import pytest
from cryptography.hazmat.primitives import serialization

from peterrec.patches.registry.api_keys import Scope
from peterrec.service.errors import (
    DeviceUnavailable,
    IssuerUnavailable,
    Unauthenticated,
)
from peterrec.service.http import tokens
from peterrec.service.http.auth import Authenticator
from peterrec.service.http.tokens import Issuer, SigningKeys, TokenVerifier
from peterrec.service.protocol.messages import KeyEntry
from tests.service.http.issuer import (
    AUDIENCE,
    CURVE,
    EDWARDS,
    ISSUER,
    RSA,
    WEAK,
    JwksServer,
    payload,
    public,
    token,
)
from tests.waiting import soon


@pytest.fixture
def issuer() -> Iterator[JwksServer]:
    server = JwksServer()
    server.publish(public(RSA["one"], "one", "RS256"))
    yield server
    server.close()


@pytest.fixture
async def authenticator(issuer: JwksServer) -> AsyncIterator[Authenticator]:
    keys = SigningKeys(issuer.url, refresh_s=3600)
    found = Authenticator(
        is_required=True,
        verifier=TokenVerifier(Issuer(ISSUER, AUDIENCE, "tenant", "scope"), keys),
    )
    found.replace_keys([])
    found.replace_tenants(["acme"])
    await keys.refresh()
    yield found
    await keys.close()


async def test_a_token_says_who_calls_of_which_tenant_and_what_may_be_done(authenticator):
    caller = await authenticator.identify(token(), b"")
    assert (caller.key_id, caller.tenant) == ("token:ann", "acme")
    assert caller.scopes == (Scope("predict", "cold-*"), Scope("admin", "films"))
    assert authenticator.is_valid(caller)


@pytest.mark.parametrize("scopes", [["predict", "admin"], "predict admin", "predict  x admin"])
async def test_scopes_are_a_list_or_words(authenticator, scopes):
    caller = await authenticator.identify(token(scope=scopes), b"")
    assert caller.scopes == (Scope("predict"), Scope("admin"))


def _shown(value: object) -> object:
    """A claim in the name of a test, which must be the same in every process: without the time."""
    return "a time" if isinstance(value, int) and value > 1 else value


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": None},
        {"exp": int(time.time()) - 120},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": int(time.time()) + 3600},
        {"sub": None},
        {"tenant": None},
        {"tenant": "rival"},
        {"tenant": "../acme"},
        {"tenant": ["acme"]},
        {"tenant": 1},
    ],
    ids=lambda claims: str({name: _shown(value) for name, value in claims.items()}),
)
async def test_a_token_that_is_not_for_us_is_refused(authenticator, claims):
    with pytest.raises(Unauthenticated):
        await authenticator.identify(token(**claims), b"")


async def test_one_of_several_audiences_may_be_ours(authenticator):
    await authenticator.identify(token(aud=["x", AUDIENCE]), b"")


@pytest.mark.parametrize(
    "forged",
    [
        lambda: token(RSA["two"]),
        lambda: token(RSA["two"], "two"),
        lambda: token(RSA["one"], "one", "RS256")[:-8] + b"AAAAAAAA",
        lambda: b"Bearer " + unsigned("none", b""),
        lambda: b"Bearer " + unsigned("None", b""),
        lambda: b"Bearer " + confused(),
        lambda: b"Bearer " + unsigned("RS256", b"x" * 256),
        lambda: b"Bearer a.b.c",
        lambda: b"Bearer .." + b"." * 100,
        lambda: b"Bearer \xff\xfe.\xff.\xff",
        lambda: b"Bearer " + b"a" * 20_000,
        lambda: b"Bearer " + b64(b"[" * 5000) + b".e30.AA",
        lambda: b"Bearer " + b64(b'{"alg": "RS256", "kid": {}}') + b"." + b64(b"{}") + b".AA",
        lambda: b"Bearer " + b64(b'{"alg": ["RS256"]}') + b".e30.AA",
        lambda: token(CURVE, "one", "ES256"),
        lambda: token(RSA["one"], "one", "PS256") + b"A",
    ],
)
async def test_a_forged_token_is_refused(authenticator, forged):
    with pytest.raises(Unauthenticated):
        await authenticator.identify(forged(), b"")


def b64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def unsigned(algorithm: str, signature: bytes) -> bytes:
    head = b64(json.dumps({"alg": algorithm, "kid": "one"}).encode())
    return b".".join([head, b64(json.dumps(payload()).encode()), b64(signature)])


def confused() -> bytes:
    """Signed by the public key as if it were a shared secret."""
    pem = (
        RSA["one"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    head = b64(json.dumps({"alg": "HS256", "kid": "one"}).encode())
    signed = head + b"." + b64(json.dumps(payload()).encode())
    return signed + b"." + b64(hmac.new(pem, signed, hashlib.sha256).digest())


@pytest.mark.parametrize(
    ("key", "algorithm"), [(CURVE, "ES256"), (EDWARDS, "EdDSA"), (RSA["two"], "PS384")]
)
async def test_other_kinds_of_keys_are_accepted(authenticator, issuer, key, algorithm):
    issuer.publish(public(key, "k", algorithm))
    await authenticator.identify(token(key, "k", algorithm), b"")


async def test_a_key_for_one_algorithm_does_not_sign_by_another(authenticator, issuer):
    issuer.publish(public(RSA["one"], "k", "RS256", alg="RS256"))
    await authenticator.identify(token(RSA["one"], "k", "RS256"), b"")
    with pytest.raises(Unauthenticated, match="another form than its key"):
        await authenticator.identify(token(RSA["one"], "k", "RS512"), b"")


@pytest.mark.filterwarnings("ignore:.*key")
async def test_a_short_key_is_refused(authenticator, issuer):
    issuer.publish(public(WEAK, "weak", "RS256"))
    with pytest.raises(Unauthenticated):
        await authenticator.identify(token(WEAK, "weak"), b"")


async def test_a_shared_secret_in_the_set_signs_nothing(authenticator, issuer):
    secret = "s" * 64
    issuer.publish({"kty": "oct", "kid": "s", "k": b64(secret.encode()).decode(), "alg": "HS256"})
    with pytest.raises(Unauthenticated):
        await authenticator.identify(token(secret, "s", "HS256"), b"")


async def test_a_token_without_a_key_id_is_by_the_only_key(authenticator, issuer):
    await authenticator.identify(token(name=None), b"")
    issuer.publish(public(RSA["one"], "one", "RS256"), public(RSA["two"], "two", "RS256"))
    await authenticator.identify(token(RSA["two"], "two"), b"")
    with pytest.raises(Unauthenticated):
        await authenticator.identify(token(name=None), b"")


async def test_a_new_key_of_the_issuer_is_fetched_when_a_token_names_it(authenticator, issuer):
    issuer.publish(public(RSA["one"], "one", "RS256"), public(RSA["two"], "two", "RS256"))
    before = issuer.calls
    callers = [authenticator.identify(token(RSA["two"], "two", sub=f"u{n}"), b"") for n in range(9)]
    assert {caller.key_id for caller in await asyncio.gather(*callers)} == {
        f"token:u{n}" for n in range(9)
    }
    assert issuer.calls == before + 1
    await authenticator.identify(token(), b"")


async def test_a_key_that_the_issuer_withdraws_counts_no_more(authenticator, issuer):
    given = token()
    await authenticator.identify(given, b"")
    issuer.publish(public(RSA["two"], "two", "RS256"))
    await authenticator.identify(token(RSA["two"], "two"), b"")  # has the keys fetched
    with pytest.raises(Unauthenticated):
        await authenticator.identify(given, b"")


async def test_tokens_of_unknown_keys_do_not_flood_the_issuer(authenticator, issuer):
    before, started = issuer.calls, time.monotonic()
    calls = [authenticator.identify(token(RSA["two"], f"k{n}"), b"") for n in range(50)]
    assert all(
        isinstance(e, Unauthenticated) for e in await asyncio.gather(*calls, return_exceptions=True)
    )
    fetched = issuer.calls - before
    assert 1 <= fetched <= 2 + (time.monotonic() - started) / tokens.FETCH_INTERVAL_S


async def test_a_token_of_another_issuer_makes_nobody_fetch(authenticator, issuer):
    before = issuer.calls
    with pytest.raises(Unauthenticated, match="issuer"):
        await authenticator.identify(token(RSA["two"], "two", iss="https://evil.example"), b"")
    assert issuer.calls == before


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"keys": {}}'),
        (200, b'{"keys": [' + b" " * (1 << 20) + b"]}"),
        (302, b""),
    ],
)
async def test_the_last_keys_stay_while_the_issuer_is_away(authenticator, issuer, status, body):
    issuer.status, issuer.body = status, body
    with pytest.raises(Unauthenticated):
        await authenticator.identify(token(RSA["two"], "two"), b"")
    await authenticator.identify(token(), b"")


async def test_a_token_is_asked_to_come_again_before_the_first_keys_are_there():
    keys = SigningKeys("http://127.0.0.1:1/keys", refresh_s=3600)
    verifier = TokenVerifier(Issuer(ISSUER, AUDIENCE, "tenant", "scope"), keys)
    authenticator = Authenticator(is_required=True, verifier=verifier)
    with pytest.raises(DeviceUnavailable):
        await authenticator.identify(token(), b"")
    authenticator.replace_keys([])
    authenticator.replace_tenants(["acme"])
    with pytest.raises(IssuerUnavailable):
        await authenticator.identify(token(), b"")


async def test_the_first_keys_are_fetched_until_the_issuer_answers(issuer):
    issuer.status = 503
    keys = SigningKeys(issuer.url, refresh_s=3600)
    keys.start()
    await soon(lambda: issuer.calls > 0)
    issuer.status = 200
    await soon(lambda: keys.generation > 0)
    await keys.close()


async def test_a_token_ends_while_it_is_remembered(authenticator, monkeypatch):
    monkeypatch.setattr(tokens, "LEEWAY_S", 0)
    given = token(exp=int(time.time()) + 1)
    caller = await authenticator.identify(given, b"")
    await asyncio.sleep(max(0.0, caller.expires_at - time.time()))
    with pytest.raises(Unauthenticated, match="expired"):
        await authenticator.identify(given, b"")
    assert not authenticator.is_valid(caller)


async def test_tokens_of_a_deleted_tenant_are_refused(authenticator):
    given = token()
    caller = await authenticator.identify(given, b"")
    authenticator.replace_tenants([])
    with pytest.raises(Unauthenticated, match="tenant does not exist"):
        await authenticator.identify(given, b"")
    assert not authenticator.is_valid(caller)


async def test_only_tokens_of_the_operators_tenant_are_operators(authenticator):
    scope = "predict operator"
    assert not (await authenticator.identify(token(scope=scope), b"")).is_operator
    assert (await authenticator.identify(token(scope=scope, tenant="default"), b"")).is_operator


async def test_api_keys_are_accepted_beside_tokens(authenticator):
    secret = b"prk_0123_abc"
    entry = KeyEntry("0123", hashlib.sha256(secret).hexdigest(), "acme", ["predict"])
    authenticator.replace_keys([entry])
    assert (await authenticator.identify(b"", secret)).key_id == "0123"
    await authenticator.identify(token(), b"")


async def test_a_subject_cannot_forge_the_trail(authenticator):
    caller = await authenticator.identify(token(sub="a\n\x1b[31m" + "x" * 500), b"")
    assert len(caller.key_id) <= len("token:") + tokens.MAX_CALLER
    assert caller.key_id.isprintable()
