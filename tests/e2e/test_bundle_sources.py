"""Bundles that a server fetches, and bundles that the command fetches and pushes."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from peterrec.patches.identity import digest_of, format_digest
from peterrec_client import BundleSource, Client, Forbidden
from tests.e2e.running import Start, running_server
from tests.service.sources.servers import https_server, s3_server

LIMIT = 1_000_000
TIMEOUT_S = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with https_server(tmp_path_factory.mktemp("https")) as server:
        yield server


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def server(workshop, store, buckets, tmp_path_factory):
    """A server that fetches from a folder of each tenant, and from nowhere else."""
    environment = {
        "SSL_CERT_FILE": str(store.authority),
        "AWS_ENDPOINT_URL_S3": buckets,
        "AWS_ACCESS_KEY_ID": "the-id-of-the-server",
        "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-server",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with running_server(
            workshop.folder,
            tmp_path_factory.mktemp("fetching"),
            workers=1,
            start=Start(within_s=120),
            bundle_size_limit_bytes=LIMIT,
            bundle_source_timeout_s=TIMEOUT_S,
            bundle_sources=f"{store.url}/rec/{{tenant}}/,s3://models/{{tenant}}/",
        ) as server:
            yield server


@pytest.fixture
def api(server):
    with server.client() as client:
        yield client


def ask(api, source: str, task: str = "fetched", **more):
    return api.post(f"/tasks/{task}/versions", json={"source": source, **more})


def test_a_server_fetches_a_bundle_and_the_audit_trail_says_where_from(
    server, api, store, workshop
):
    bundle = workshop.bundle("classification", seed=11)
    store.files["/rec/default/a.bundle"] = bundle
    address = f"{store.url}/rec/default/a.bundle"
    digest = format_digest(digest_of(bundle))
    answer = ask(api, f"{address}?signature=secret", digest=digest)
    assert (answer.status_code, answer.json()["digest"]) == (201, digest), answer.text
    assert api.post("/tasks/fetched/predict", json={"history": [1]}).json()["digest"] == digest
    trail = api.get("/registry/audit", params={"format": "ndjson", "task": "fetched"}).text
    assert f"fetched from {address}" in trail
    assert "secret" not in trail + server.log
    assert [*(server.folder / "data" / "spool").iterdir()] == []


def test_a_server_fetches_from_s3_with_its_own_credentials(api, buckets, workshop, monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", buckets)
    session = boto3.session.Session("id", "secret", region_name="us-east-1")
    client = session.client("s3")
    client.create_bucket(Bucket="models")
    client.put_object(
        Bucket="models", Key="default/a.bundle", Body=workshop.bundle("value", seed=12)
    )
    assert ask(api, "s3://models/default/a.bundle", "from-s3").status_code == 201
    missing = ask(api, "s3://models/default/b.bundle", "from-s3")
    assert (missing.status_code, missing.json()["code"]) == (404, "source_not_found")
    assert "the-id-of-the-server" not in missing.text


def test_addresses_that_are_not_allowed_are_refused_and_never_asked(api, store):
    store.files["/rec/other/a.bundle"] = b"another tenant's"
    store.redirects["/rec/default/out"] = "/rec/other/a.bundle"
    before = len(store.asked)
    for source in (
        f"{store.url}/rec/other/a.bundle",
        f"{store.url}/rec/default2/a.bundle",
        "https://127.0.0.1:1/rec/default/a",
        "s3://models/other/a",
        "oci://127.0.0.1:5000/default/a:1",
        "runs:/0af3/a",
    ):
        refused = ask(api, source)
        assert (refused.status_code, refused.json()["code"]) == (403, "source_refused"), source
        assert refused.json()["hint"]
    assert len(store.asked) == before
    assert ask(api, f"{store.url}/rec/default/out").json()["code"] == "source_refused"
    assert store.asked[before:] == ["/rec/default/out"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"source": "file:///etc/passwd"}, "source_invalid"),
        ({"source": "https://a:secret@127.0.0.1/rec/default/a"}, "source_invalid"),
        ({"source": "https://127.0.0.1/rec/default/../other/a"}, "source_invalid"),
        ({"source": ""}, "malformed_request"),
        ({"source": 1}, "malformed_request"),
        ({"source": "s3://models/default/a", "digest": "abc"}, "invalid_digest"),
        ({"source": "s3://models/default/a", "key": "secret"}, "malformed_request"),
        ({}, "malformed_request"),
        (["s3://models/default/a"], "malformed_request"),
    ],
)
def test_a_body_that_names_no_bundle_is_malformed(api, body, code):
    refused = api.post("/tasks/fetched/versions", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, code), refused.text
    assert "secret" not in refused.text


def test_a_body_that_is_no_json_or_too_long_is_refused(api):
    headers = {"content-type": "application/json; charset=utf-8"}
    broken = api.post("/tasks/fetched/versions", content=b'{"source', headers=headers)
    assert (broken.status_code, broken.json()["code"]) == (400, "malformed_request")
    long = api.post("/tasks/fetched/versions", content=b" " * 20_000, headers=headers)
    assert (long.status_code, long.json()["code"]) == (413, "body_too_large")


def test_what_goes_wrong_while_fetching_is_told(server, api, store, workshop):
    bundle = workshop.bundle("classification", seed=13)
    at = f"{store.url}/rec/default"
    store.files |= {
        "/rec/default/large": bytes(LIMIT + 1),
        "/rec/default/broken": bundle,
        "/rec/default/text": b"hello " * 100,
        "/rec/default/good": bundle,
    }
    store.cut.add("/rec/default/broken")
    store.statuses["/rec/default/closed"] = 403
    expected = {
        "large": (413, "source_too_large"),
        "broken": (503, "source_unreachable"),
        "text": (413, "bundle_too_large"),
        "closed": (403, "source_denied"),
        "nothing": (404, "source_not_found"),
    }
    for name, (status, code) in expected.items():
        refused = ask(api, f"{at}/{name}", "wrong")
        assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    other = ask(api, f"{at}/good", "wrong", digest=format_digest(digest_of(b"other")))
    assert (other.status_code, other.json()["code"]) == (422, "source_digest_mismatch")
    assert api.get("/tasks/wrong").status_code == 404
    assert [*(server.folder / "data" / "spool").iterdir()] == []


@pytest.mark.slow
def test_a_slow_store_costs_a_bounded_time_and_few_turns(server, api, store):
    """A tenant has two fetches at a time; both end at the limit of time, with their processes."""
    store.endless.add("/rec/default/slow")
    address = f"{store.url}/rec/default/slow"
    with ThreadPoolExecutor(3) as threads:
        began = time.monotonic()
        answers = [*threads.map(lambda _: ask(api, address, "slow"), range(3))]
    codes = sorted(answer.json()["code"] for answer in answers)
    assert codes == ["source_busy", "source_too_slow", "source_too_slow"]
    assert time.monotonic() - began >= TIMEOUT_S
    assert {answer.status_code for answer in answers} == {429, 504}
    assert not [child for child in server.children() if "run-fetch" in child.cmdline()]
    assert [*(server.folder / "data" / "spool").iterdir()] == []


def test_a_server_without_prefixes_fetches_nothing(workshop, tmp_path):
    with (
        running_server(workshop.folder, tmp_path, workers=1) as server,
        Client(server.url, server.key) as client,
        pytest.raises(Forbidden) as refused,
    ):
        client.push("fetched", BundleSource("s3://models/default/a"))
    assert refused.value.code == "source_refused"
    assert "peterrec push" in refused.value.hint


def test_the_client_lets_the_server_fetch(server, store, workshop):
    bundle = workshop.bundle("tags", seed=14)
    store.files["/rec/default/tags.bundle"] = bundle
    with Client(server.url, server.key) as client:
        source = BundleSource(f"{store.url}/rec/default/tags.bundle")
        assert client.push("by-client", source).digest == format_digest(digest_of(bundle))


def push(server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peterrec", "push", *arguments]
    command += ["--url", server.url, "--api-key", server.key, "--task", "by-command"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_the_command_fetches_what_the_server_may_not_and_pushes_it(
    server, api, store, workshop, monkeypatch
):
    bundle = workshop.bundle("tags", seed=15)
    store.files["/mine/tags.bundle"] = bundle
    monkeypatch.setenv("SSL_CERT_FILE", str(store.authority))
    address = f"{store.url}/mine/tags.bundle"
    wrong = push(server, address, "--digest", format_digest(digest_of(b"other")))
    assert wrong.returncode == 1
    assert "source_digest_mismatch" in wrong.stderr
    done = push(server, f"{address}?token=secret", "--digest", digest_of(bundle))
    assert done.returncode == 0, done.stderr
    trail = api.get("/registry/audit", params={"format": "ndjson", "task": "by-command"}).text
    assert f"from {address}, as the caller says" in trail
    assert "secret" not in trail + server.log


def test_the_command_says_what_is_no_address(server):
    refused = push(server, "http://127.0.0.1/a.bundle")
    assert refused.returncode == 1
    assert "source_invalid" in refused.stderr
