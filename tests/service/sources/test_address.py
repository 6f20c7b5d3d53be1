"""Addresses of bundles, and the prefixes that allow them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peterrec.service.errors import SourceInvalid
from peterrec.service.sources.address import (
    Address,
    allowed_by,
    is_address,
    parse_address,
    parse_prefix,
)

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://A.example:443/x/y.bundle", Address("https", "a.example", "x/y.bundle")),
        ("https://a.example:8443/x?sig=1", Address("https", "a.example:8443", "x", "sig=1")),
        ("HTTPS://[::1]:99/x", Address("https", "[::1]:99", "x")),
        ("https://a.example/group%2Fname/x", Address("https", "a.example", "group%2Fname/x")),
        ("s3://models/shop/a.bundle", Address("s3", "models", "shop/a.bundle")),
        ("s3://models/odd?#%key", Address("s3", "models", "odd?#%key")),
        ("oci://h.example:5000/a/b:1.0", Address("oci", "h.example:5000", "a/b", ":1.0")),
        (f"oci://h.example/a@{DIGEST}", Address("oci", "h.example", "a", f"@{DIGEST}")),
        ("runs:/0af3/model/a.bundle", Address("runs", "", "0af3/model/a.bundle")),
        ("mlflow-artifacts:/1/a", Address("mlflow-artifacts", "", "1/a")),
    ],
)
def test_an_address_is_read_into_its_parts(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.bundle",
        "http://a.example/x",
        "file:///etc/passwd",
        "ftp://a.example/x",
        "https:/a.example/x",
        "https://",
        "https:///x",
        "https://a.example",
        "https://a.example/",
        "https://a.example/x/",
        "https://a.example/x#y",
        "https://user:secret@a.example/x",
        "https://a.example@b.example/x",
        "https://a.example:0/x",
        "https://a.example:70000/x",
        "https://a.example./x",
        "https://ä.example/x",
        "https://a.example\\@b.example/x",
        "https://a.example/x y",
        "https://a.example/x\n",
        "https://a.example/a/../x",
        "https://a.example/a/%2e%2E/x",
        "https://a.example/a/%252e%252e/x",
        "https://a.example/a%2f..%2fx",
        "https://a.example/a/..%5cx",
        "https://a.example/a/..;v=1/x",
        "https://a.example/./x",
        "s3://models",
        "s3://models/",
        "s3://models/shop/../x",
        "s3://arn:aws:s3:us-east-1:1:accesspoint/x",
        "s3://key:secret@models/x",
        "oci://h.example/a",
        "oci://h.example/A:1",
        "oci://h.example/a:1/../b:2",
        "oci://h.example/a/../b:2",
        "oci://h.example/a@sha256:12",
        "runs:/0af3",
        "runs://server/0af3/x",
        "runs:/../x",
        "runs:/0af3/../x",
        "mlflow-artifacts://server:5000/1/x",
        "https://a.example/" + "x" * 5000,
    ],
)
def test_what_is_no_address_is_refused_without_what_may_be_secret(text):
    with pytest.raises(SourceInvalid) as refused:
        parse_address(text)
    assert "secret" not in str(refused.value)


def test_an_address_is_shown_without_its_query():
    shown = str(parse_address("https://a.example/x.bundle?X-Amz-Signature=secret"))
    assert shown == "https://a.example/x.bundle"
    assert "secret" not in repr(parse_address("https://a.example/x?secret"))
    for text in ("s3://models/a", "oci://h.example/a:1", "runs:/0af3/a", "mlflow-artifacts:/1/a"):
        assert str(parse_address(text)) == text


PREFIXES = (
    "https://a.example/rec/",
    "s3://models/{tenant}",
    "oci://h.example/{tenant}/",
    "mlflow-artifacts:/12/",
)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("https://a.example/rec/x", True),
        ("https://A.EXAMPLE:443/rec/x?sig=1", True),
        ("https://a.example/record/x", False),
        ("https://a.example/REC/x", False),
        ("https://a.example/%72ec/x", False),
        ("https://a.example:8443/rec/x", False),
        ("https://a.example.evil.example/rec/x", False),
        ("s3://models/shop/a", True),
        ("s3://models/shop2/a", False),
        ("s3://models/other/a", False),
        ("s3://models2/shop/a", False),
        ("oci://h.example/shop/a:1", True),
        ("oci://h.example/shop:1", True),
        ("oci://h.example/other/a:1", False),
        ("mlflow-artifacts:/12/0af3/artifacts/a", True),
        ("mlflow-artifacts:/123/0af3/artifacts/a", False),
        ("runs:/0af3/a", False),
    ],
)
def test_a_prefix_allows_what_is_in_its_folder_and_nothing_beside(text, is_allowed):
    assert allowed_by(PREFIXES, "shop")(parse_address(text)) == is_allowed


def test_a_tenant_whose_name_a_store_can_not_have_is_allowed_nothing_there():
    may_reach = allowed_by(("oci://h.example/{tenant}/",), "Shop")
    assert not may_reach(parse_address("oci://h.example/shop/a:1"))


@given(st.text(alphabet="ab./%25eE2f;\\?#@:{}", max_size=24))
def test_no_address_leaves_the_folder_of_its_tenant(tail):
    """Whatever follows the prefix: the path, decoded as often as one likes, stays under it."""
    try:
        address = parse_address(f"https://a.example/shop/{tail}")
    except SourceInvalid:
        return
    assert allowed_by(("https://a.example/{tenant}/",), "shop")(address)
    assert not {".", ".."} & {*address.path.replace("%2e", ".").replace("%2f", "/").split("/")}


@pytest.mark.parametrize(
    "text",
    [
        "runs:/",
        "http://a.example/",
        "https://{tenant}.example/",
        "https://{tenant}.example/{tenant}/",
        "oci://{tenant}:5000/a",
        "oci://h.example/a:1",
        "https://a.example/?x=1",
        "*",
        "s3://",
    ],
)
def test_what_can_be_no_prefix_is_refused(text):
    with pytest.raises(SourceInvalid):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["s3://models", "s3://models-{tenant}/", "mlflow-artifacts:/"])
def test_a_whole_store_may_be_a_prefix(text):
    parse_prefix(text)


def test_a_file_is_no_address():
    assert not is_address("runs/a.bundle")
    assert not is_address("/data/a.bundle")
    assert is_address("RUNS:/0af3/a.bundle")
