"""Who may do what: keys, scopes, globs."""

import hashlib

import pytest

from peterrec.service.errors import DeviceUnavailable, Forbidden, Unauthenticated
from peterrec.service.http.auth import ANYONE, Authenticator
from peterrec.service.protocol.messages import KeyEntry

SECRET = "prk_0123_abc"


def entry(secret: str, *scopes: str, tenant: str = "acme") -> KeyEntry:
    return KeyEntry("id-" + secret, hashlib.sha256(secret.encode()).hexdigest(), tenant, [*scopes])


@pytest.fixture
def authenticator() -> Authenticator:
    authenticator = Authenticator(is_required=True)
    authenticator.replace_keys([entry(SECRET, "predict:cold-*", "admin:films")])
    return authenticator


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (f"Bearer {SECRET}", ""),
        (f"bearer {SECRET}", ""),
        ("", SECRET),
        (f"Basic {SECRET}", SECRET),
    ],
)
def test_a_key_is_found_in_either_header(authenticator, authorization, api_key):
    principal = authenticator.authenticate(authorization.encode(), api_key.encode())
    assert (principal.tenant, principal.key_id) == ("acme", "id-" + SECRET)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "prk",
        "prk_",
        "prk_0123",
        "prk_0123_",
        "prk_nobody_abc",
        "sk_0123_abc",
        SECRET + "x",
        SECRET[:-1],
        SECRET.upper(),
        "ü",
        "é" * 60,
    ],
)
def test_any_other_text_is_refused(authenticator, secret):
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(f"Bearer {secret}".encode(), b"")


def test_a_scope_covers_the_tasks_its_glob_matches(authenticator):
    principal = authenticator.authenticate(b"", SECRET.encode())
    assert principal.may("predict", "cold-start")
    assert principal.may("admin", "films")
    assert not principal.may("predict", "films")
    assert not principal.may("admin", "cold-start")
    with pytest.raises(Forbidden, match="may not admin task 'cold-start'"):
        principal.require("admin", "cold-start")


def test_a_scope_with_a_glob_is_no_scope_for_everything(authenticator):
    authenticator.replace_keys([entry(SECRET, "admin:*-films")])
    principal = authenticator.authenticate(b"", SECRET.encode())
    with pytest.raises(Forbidden):
        principal.require_everywhere("admin")


def test_admin_does_not_include_predict():
    authenticator = Authenticator(is_required=True)
    authenticator.replace_keys([entry(SECRET, "admin")])
    principal = authenticator.authenticate(b"", SECRET.encode())
    assert not principal.may("predict", "films")
    assert principal.may_everywhere("admin")
    assert not principal.may_everywhere("predict")


def test_a_key_that_was_replaced_is_refused_from_then_on(authenticator):
    authenticator.replace_keys([entry("other", "predict")])
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(b"", SECRET.encode())


def test_everyone_may_do_everything_when_authentication_is_off():
    principal = Authenticator(is_required=False).authenticate(b"", b"")
    assert principal is ANYONE
    principal.require("predict", "films")
    principal.require_everywhere("admin")


def test_a_key_is_not_called_wrong_before_the_keys_are_known():
    with pytest.raises(DeviceUnavailable):
        Authenticator(is_required=True).authenticate(b"", SECRET.encode())
