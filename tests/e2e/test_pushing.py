"""Bundles over REST: validated before they serve, refused with every reason."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from tests.e2e.conftest import BUNDLE_LIMIT, push
from tests.patches.bundles import BundleRecipe, make_bundle, make_parts
from tests.service.random_bundles import GEOMETRY, Workshop

TASK = "guarded"


@pytest.fixture(scope="module")
def guarded(server, workshop):
    """A task whose version of seed 5 must keep serving whatever is pushed."""
    with server.client() as client:
        return push(client, TASK, workshop.bundle("classification", seed=5)).json()


def flipped(bundle: bytes) -> bytes:
    at = len(bundle) - 40
    return bundle[:at] + bytes([bundle[at] ^ 1]) + bundle[at + 1 :]


def with_tensor(workshop: Workshop, **changed: np.ndarray) -> bytes:
    recipe = BundleRecipe(
        kind="classification", backbone=workshop.identity, geometry=GEOMETRY, name="x"
    )
    return make_parts(recipe).with_tensors(**changed).encode()


def zipped_checkpoint() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


BAD = {
    "a flipped byte": (lambda w: flipped(w.bundle("classification", 6)), 422, "checksum_mismatch"),
    "a cut file": (lambda w: w.bundle("classification", 6)[:-100], 422, None),
    "NaN": (
        lambda w: with_tensor(w, head__bias=np.full(3, np.nan, np.float32)),
        422,
        "tensor_not_finite",
    ),
    "a wrong shape": (
        lambda w: with_tensor(w, head__bias=np.zeros(4, np.float32)),
        422,
        "tensor_shape",
    ),
    "another backbone": (lambda w: make_bundle("classification"), 422, "backbone_mismatch"),
    "other numbers than its probes": (lambda w: with_tensor(w), 422, None),
    "a pickle": (lambda w: pickle.dumps({"weights": [1.0]}), 415, "unsafe_format"),
    "a zipped pickle": (lambda w: zipped_checkpoint(), 415, "unsafe_format"),
    "text": (lambda w: b"hello " * 100, 413, "header_too_large"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_bundle_is_refused_with_reasons_and_the_old_version_serves(
    api, guarded, workshop, what
):
    make, status, reason = BAD[what]
    answer = api.post(f"/tasks/{TASK}/versions", content=make(workshop))
    assert answer.status_code == status, answer.text
    reasons = answer.json()["reasons"]
    assert reasons
    assert all(each["code"] and each["message"] for each in reasons)
    assert reason is None or reason in [each["code"] for each in reasons]
    served = api.post(f"/tasks/{TASK}/predict", json={"history": [1]}).json()
    assert served["digest"] == guarded["digest"]
    assert len(api.get(f"/tasks/{TASK}/versions").json()) == 1


def test_a_bundle_that_is_wrong_in_two_ways_is_told_both(api, guarded, workshop):
    bundle = with_tensor(
        workshop, head__bias=np.zeros(4, np.float32), patch__up=np.full((4, 4, 16), np.inf, "<f4")
    )
    answer = api.post(f"/tasks/{TASK}/versions", content=bundle)
    assert {"tensor_shape", "tensor_not_finite"} <= {r["code"] for r in answer.json()["reasons"]}


def test_an_empty_body_is_malformed(api):
    answer = api.post(f"/tasks/{TASK}/versions", content=b"")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_the_same_bundle_again_is_the_same_version(api, workshop):
    bundle = workshop.bundle("tags", seed=7)
    first = api.post("/tasks/again/versions", content=bundle)
    second = api.post("/tasks/again/versions", content=bundle)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()


def test_a_dry_run_judges_and_changes_nothing(api, workshop):
    bundle = workshop.bundle("value", seed=8)
    answer = api.post("/tasks/dry/versions", content=bundle, params={"validate_only": "true"})
    assert answer.status_code == 200
    assert answer.json()["version"] is None
    assert answer.json()["summary"]["kind"] == "value"
    assert api.get("/tasks/dry").status_code == 404
    refused = api.post(
        "/tasks/dry/versions", content=flipped(bundle), params={"validate_only": "true"}
    )
    assert refused.status_code == 422


def test_a_push_tells_what_was_registered(api, workshop):
    answer = push(api, "told", workshop.bundle("classification", seed=9, outputs=4))
    body = answer.json()
    assert (body["task"], body["version"], body["alias"]) == ("told", 1, "prod")
    assert body["summary"]["outputs"] == 4
    assert answer.headers["etag"] == f'"{body["registry_revision"]}"'


def test_no_upload_is_left_behind(server, api, guarded, workshop):
    api.post(f"/tasks/{TASK}/versions", content=b"x" * 100_000)
    assert [*(server.folder / "data" / "spool").iterdir()] == []


def test_a_bundle_beyond_the_limit_is_refused_before_it_is_read(api):
    told = api.post("/tasks/t/versions", content=bytes(BUNDLE_LIMIT + 1))
    streamed = api.post("/tasks/t/versions", content=iter([bytes(BUNDLE_LIMIT), b"x"]))
    assert (told.status_code, told.json()["code"]) == (413, "body_too_large")
    assert (streamed.status_code, streamed.json()["code"]) == (413, "body_too_large")
