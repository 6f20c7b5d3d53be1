"""A real server that accepts the tokens of an issuer beside its API keys."""

import pytest

from tests.e2e.conftest import push
from tests.e2e.running import running_server
from tests.service.http.issuer import AUDIENCE, ISSUER, RSA, JwksServer, public, token


def headers(given: bytes) -> dict[str, str]:
    return {"Authorization": given.decode()}


@pytest.mark.timeout(180)
def test_a_service_with_a_token_predicts_for_its_tenant_and_the_issuer_rotates(workshop, tmp_path):
    issuer = JwksServer()
    issuer.publish(public(RSA["one"], "one", "RS256"))
    started = running_server(
        workshop.folder,
        tmp_path,
        workers=2,
        oidc_issuer=ISSUER,
        oidc_audience=AUDIENCE,
        oidc_jwks_url=issuer.url,
    )
    ask = {"history": [1]}
    try:
        with started as server:
            with server.client() as operator:
                unknown = operator.get("/tasks", headers=headers(token()))
                assert (unknown.status_code, unknown.json()["code"]) == (401, "unauthenticated")
                assert operator.put("/tenants/acme", json={}).status_code == 201
            admin = token(scope="admin predict", sub="ci")
            with server.client(admin.decode().removeprefix("Bearer ")) as client:
                push(client, "cold-start", workshop.bundle("value", seed=81))
                push(client, "films", workshop.bundle("value", seed=82))
                trail = client.get("/registry/audit").json()["events"]
                assert {event["actor"] for event in trail if event["task"]} == {"token:ci"}
                assert client.get("/tenants/acme/usage").json()["tasks"]["used"] == 2
                assert client.get("/tenants/default").json()["code"] == "tenant_not_found"
            with server.client(key="") as client:
                own = headers(token(scope="openid predict:cold-*"))
                answer = client.post("/tasks/cold-start/predict", json=ask, headers=own)
                assert answer.status_code == 200
                other = client.post("/tasks/films/predict", json=ask, headers=own)
                assert other.json()["code"] == "forbidden"
                issuer.publish(public(RSA["two"], "two", "RS256"))
                new = headers(token(RSA["two"], "two", scope="predict"))
                for _ in range(8):  # through both workers
                    with server.client(key="") as fresh:
                        answer = fresh.post("/tasks/films/predict", json=ask, headers=new)
                        assert answer.status_code == 200
                answer = client.post("/tasks/films/predict", json=ask, headers=new)
                assert answer.status_code == 200  # so the worker behind this connection knows, too
                late = headers(token(scope="predict", sub="late"))
                answer = client.post("/tasks/films/predict", json=ask, headers=late)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
            with server.client() as operator:
                assert operator.delete("/tenants/acme").status_code == 200
                refused = operator.post("/tasks/films/predict", json=ask, headers=new)
                assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    finally:
        issuer.close()
