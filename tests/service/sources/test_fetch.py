"""Bundles fetched from real stores on this machine."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from peterrec.model.progress import Progress
from peterrec.patches.identity import digest_of
from peterrec.service.errors import (
    SourceDenied,
    SourceDigestMismatch,
    SourceInvalid,
    SourceLibraryMissing,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SourceUnreachable,
)
from peterrec.service.sources.address import allowed_by, parse_address
from peterrec.service.sources.fetch import fetch
from peterrec.service.sources.receiving import Receiver, library
from tests.service.sources.servers import (
    PASSWORD,
    USER,
    HttpsServer,
    free_port,
    https_server,
    mlflow_server,
    oci_registry,
    s3_server,
)

CONTENT = bytes(range(256)) * 9000
LIMIT = len(CONTENT)


@pytest.fixture(autouse=True)
def bare_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def store(tmp_path, monkeypatch):
    folder = tmp_path / "https"
    folder.mkdir()
    with https_server(folder) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))
        yield server


def fetched(address: str, folder: Path, *prefixes: str, limit_bytes: int = LIMIT, digest=None):
    """The bytes at an address; with prefixes, as a server that allows these fetches it."""
    to = Receiver(folder / "fetched", limit_bytes)
    if prefixes:
        to = replace(to, may_reach=allowed_by(prefixes, "shop"))
    fetch(parse_address(address), to, digest)
    return to.file.read_bytes()


def test_a_bundle_comes_over_https_with_its_progress(store: HttpsServer, tmp_path):
    store.files["/a.bundle"] = CONTENT
    told: list[Progress] = []
    to = Receiver(tmp_path / "fetched", LIMIT, on_progress=told.append)
    fetch(parse_address(f"{store.url}/a.bundle?token=1"), to, digest_of(CONTENT))
    assert to.file.read_bytes() == CONTENT
    assert (told[-1].done, told[-1].total) == (LIMIT, LIMIT)
    assert store.asked == ["/a.bundle?token=1"]


def test_another_digest_than_the_expected_one_is_refused(store, tmp_path):
    store.files["/a.bundle"] = CONTENT
    with pytest.raises(SourceDigestMismatch) as refused:
        fetched(f"{store.url}/a.bundle", tmp_path, digest=digest_of(b"other"))
    assert digest_of(CONTENT) in refused.value.message


def test_a_certificate_of_nobody_known_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SourceUnreachable, match="certificate is not trusted"):
        fetched(f"{store.url}/a.bundle", tmp_path)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (401, SourceDenied),
        (403, SourceDenied),
        (206, SourceUnreachable),
        (500, SourceUnreachable),
        (304, SourceUnreachable),
    ],
)
def test_a_status_is_told_by_its_error(store, tmp_path, status, error):
    store.statuses["/a"] = status
    with pytest.raises(error) as refused:
        fetched(f"{store.url}/a?sig=secret", tmp_path)
    assert "secret" not in str(refused.value)


def test_a_broken_transfer_is_no_bundle(store, tmp_path):
    store.files["/a"] = CONTENT
    store.cut.add("/a")
    with pytest.raises(SourceUnreachable):
        fetched(f"{store.url}/a", tmp_path)


def test_more_than_the_limit_is_refused_whether_told_or_not(store, tmp_path):
    store.files["/told"] = CONTENT
    store.endless.add("/untold")
    for path in ("/told", "/untold"):
        with pytest.raises(SourceTooLarge):
            fetched(f"{store.url}{path}", tmp_path, limit_bytes=20)
        assert (tmp_path / "fetched").stat().st_size <= 20 if path == "/untold" else True


def test_a_redirect_is_followed_within_the_prefix_and_never_out_of_it(store, tmp_path):
    store.files |= {"/rec/a": CONTENT, "/other/a": b"another tenant's"}
    store.redirects |= {
        "/rec/near": "a",
        "/rec/absolute": f"{store.url}/rec/a",
        "/rec/out": "/other/a",
        "/rec/up": "../other/a",
        "/rec/plain": f"http://127.0.0.1:{store.port}/rec/a",
        "/rec/file": "file:///etc/passwd",
        "/rec/user": f"https://a:b@127.0.0.1:{store.port}/rec/a",
        "/rec/metadata": "https://169.254.169.254/rec/a",
        "/rec/round": "/rec/round",
    }
    prefix = f"{store.url}/rec/"
    for path in ("near", "absolute"):
        assert fetched(f"{prefix}{path}", tmp_path, prefix) == CONTENT
    for path in ("out", "up", "plain", "file", "user", "metadata"):
        with pytest.raises(SourceRefused):
            fetched(f"{prefix}{path}", tmp_path, prefix)
    with pytest.raises(SourceUnreachable, match="redirects"):
        fetched(f"{prefix}round", tmp_path, prefix)
    assert "/other/a" not in store.asked


def test_a_host_that_is_away_is_unreachable(tmp_path, monkeypatch):
    away = f"127.0.0.1:{free_port()}"
    with pytest.raises(SourceUnreachable):
        fetched(f"https://{away}/a", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{away}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(SourceUnreachable):
        fetched("s3://models/a", tmp_path)
    with pytest.raises(SourceUnreachable):
        fetched(f"oci://{away}/a:1", tmp_path)


def test_a_missing_library_names_its_extra():
    with pytest.raises(SourceLibraryMissing, match=r"peterrec-serving\[s3\]"):
        library("a_library_that_is_not_there", "s3", "s3")


def test_a_bundle_comes_from_s3(tmp_path, monkeypatch):
    with s3_server(tmp_path) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(SourceDenied, match="no credentials"):
            fetched("s3://models/shop/a.bundle", tmp_path)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        import boto3

        client = boto3.session.Session().client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="shop/a ü?.bundle".replace(" ", "+"), Body=CONTENT)
        assert fetched("s3://models/shop/a+ü?.bundle", tmp_path) == CONTENT
        with pytest.raises(SourceTooLarge):
            fetched("s3://models/shop/a+ü?.bundle", tmp_path, limit_bytes=LIMIT - 1)
        for missing in ("s3://models/shop/b", "s3://nobodys/a"):
            with pytest.raises(SourceNotFound):
                fetched(missing, tmp_path)


def test_a_bundle_comes_from_an_oci_registry_by_tag_and_by_digest(tmp_path):
    with oci_registry(tmp_path) as registry:
        digest = registry.put("shop/gender", "v1", {"gender.bundle": CONTENT})
        registry.put("shop/gender", "two", {"a.bundle": b"a", "notes.txt": b"n"})
        registry.put("shop/gender", "many", {"a.bundle": b"a", "b.bundle": b"b"})
        at = f"oci://{registry.place}/shop/gender"
        assert fetched(f"{at}:v1", tmp_path) == CONTENT
        assert fetched(f"{at}@{digest}", tmp_path, f"{at}") == CONTENT
        assert fetched(f"{at}:two", tmp_path) == b"a"
        with pytest.raises(SourceInvalid, match="2 files, 2 of them"):
            fetched(f"{at}:many", tmp_path)
        with pytest.raises(SourceTooLarge):
            fetched(f"{at}:v1", tmp_path, limit_bytes=LIMIT - 1)
        for missing in (f"{at}:v2", f"{at}@sha256:{'0' * 64}", f"{at}s:v1"):
            with pytest.raises(SourceNotFound):
                fetched(missing, tmp_path)


def test_what_a_registry_gives_is_checked_against_its_digest(tmp_path):
    with oci_registry(tmp_path) as registry:
        registry.put("shop/gender", "v1", {"gender.bundle": CONTENT})
        stored = tmp_path / "images/docker/registry/v2/blobs/sha256"
        name = digest_of(CONTENT)
        (stored / name[:2] / name / "data").write_bytes(CONTENT[::-1])
        with pytest.raises(SourceDigestMismatch):
            fetched(f"oci://{registry.place}/shop/gender:v1", tmp_path)


def test_a_closed_oci_registry_is_read_with_the_credentials_of_docker(tmp_path, monkeypatch):
    with oci_registry(tmp_path, is_closed=True) as registry:
        registry.put("shop/gender", "v1", {"gender.bundle": CONTENT})
        address = f"oci://{registry.place}/shop/gender:v1"
        with pytest.raises(SourceDenied):
            fetched(address, tmp_path)
        told = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        docker = Path.home() / ".docker"
        docker.mkdir()
        (docker / "config.json").write_text(json.dumps({"auths": {registry.place: {"auth": told}}}))
        assert fetched(address, tmp_path) == CONTENT


@pytest.mark.slow
@pytest.mark.timeout(400)  # the start of MLflow
def test_a_bundle_comes_from_a_run_of_mlflow_and_from_nowhere_else(tmp_path, monkeypatch):
    import mlflow

    with mlflow_server(tmp_path) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        client = mlflow.MlflowClient(url)
        run = client.create_run("0").info.run_id
        (tmp_path / "a.bundle").write_bytes(CONTENT)
        client.log_artifact(run, str(tmp_path / "a.bundle"), "model")
        at = f"runs:/{run}/model"
        assert fetched(f"{at}/a.bundle", tmp_path) == CONTENT
        assert fetched(f"{at}/a.bundle", tmp_path, "mlflow-artifacts:/0/") == CONTENT
        kept = f"mlflow-artifacts:/0/{run}/artifacts/model/a.bundle"
        assert fetched(kept, tmp_path, "mlflow-artifacts:/0/") == CONTENT
        with pytest.raises(SourceRefused):
            fetched(f"{at}/a.bundle", tmp_path, "mlflow-artifacts:/1/")
        with pytest.raises(SourceInvalid, match="folder"):
            fetched(at, tmp_path)
        with pytest.raises(SourceTooLarge):
            fetched(f"{at}/a.bundle", tmp_path, limit_bytes=LIMIT - 1)
        for missing in (f"{at}/b.bundle", f"runs:/{'0' * 32}/a.bundle"):
            with pytest.raises(SourceNotFound):
                fetched(missing, tmp_path)
        secret = tmp_path / "secret"
        secret.mkdir()
        (secret / "a.bundle").write_bytes(b"of this machine")
        elsewhere = client.create_experiment("elsewhere", secret.as_uri())
        strange = client.create_run(elsewhere).info
        Path(strange.artifact_uri.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
        with pytest.raises(SourceRefused):
            fetched(f"runs:/{strange.run_id}/a.bundle", tmp_path, "mlflow-artifacts:/")


def test_a_run_without_a_tracking_server_is_told_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SourceUnreachable, match="no tracking server") as refused:
        fetched("runs:/0af3/a.bundle", tmp_path)
    assert "MLFLOW_TRACKING_URI" in refused.value.hint
