"""Two tenants of one server, made by REST alone, and every operation that one may try on the other.

An operation names the parts of its path by fields of ``Target``, so that the same one is tried on
what exists and on what does not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.conftest import push
from tests.e2e.running import RunningServer


@dataclass(frozen=True)
class Target:
    """What an operation is tried on."""

    task: str
    digest: str
    tenant: str
    key_id: str


@dataclass(frozen=True)
class Operation:
    """One call of the API; ``path`` and texts of ``body`` are filled from a target."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    content: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def send(self, client: httpx.Client, target: Target) -> httpx.Response:
        filled = {name: getattr(target, name) for name in target.__dataclass_fields__}
        body = None if self.body is None else _filled(self.body, filled)
        return client.request(
            self.method,
            self.path.format(**filled),
            json=body,
            content=self.content,
            params=_filled(self.params, filled),
        )


def _filled(value: Any, filled: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return value.format(**filled)
    if isinstance(value, Mapping):
        return {name: _filled(each, filled) for name, each in value.items()}
    return [_filled(each, filled) for each in value] if isinstance(value, list) else value


HISTORY = {"name": "history", "datatype": "BYTES", "shape": [1], "data": ["1"]}
"""One user's history as a tensor."""

TASK_OPERATIONS = (
    Operation("POST", "/tasks/{task}/predict", {"history": [1]}),
    Operation("GET", "/tasks/{task}"),
    Operation("PUT", "/tasks/{task}", {"description": "stolen"}),
    Operation("DELETE", "/tasks/{task}"),
    Operation("GET", "/tasks/{task}/versions"),
    Operation("GET", "/tasks/{task}/versions/1"),
    Operation("GET", "/tasks/{task}/versions/{digest}"),
    Operation("GET", "/tasks/{task}/versions/1/bundle"),
    Operation("GET", "/tasks/{task}/versions/{digest}/bundle"),
    Operation("DELETE", "/tasks/{task}/versions/1"),
    Operation("GET", "/tasks/{task}/aliases"),
    Operation("GET", "/tasks/{task}/aliases/prod"),
    Operation("PUT", "/tasks/{task}/aliases/prod", {"version": 1}),
    Operation("PUT", "/tasks/{task}/aliases/prod", {"digest": "{digest}"}),
    Operation("DELETE", "/tasks/{task}/aliases/prod"),
    Operation("GET", "/tasks/{task}/traffic"),
    Operation("PUT", "/tasks/{task}/traffic", {"prod_weight": 1, "shadow": ["{digest}"]}),
    Operation("DELETE", "/tasks/{task}/traffic"),
    Operation("GET", "/tasks/{task}/availability"),
    Operation("PUT", "/tasks/{task}/availability", {"unavailable": [1]}),
    Operation("DELETE", "/tasks/{task}/availability"),
    Operation("POST", "/tasks/{task}:rollback"),
    Operation("POST", "/tasks/{task}/versions", content=b"no bundle"),
    Operation("POST", "/tasks/{task}/versions/1:probe"),
    Operation(
        "POST", "/tasks/{task}/feedback", {"feedback": [{"prediction_id": "x", "outcome": "a"}]}
    ),
    Operation("POST", "/users/predict", {"history": [1], "tasks": ["{task}"]}),
    Operation("POST", "/tasks/{task}/predict:batch", {"history": [1]}),
    Operation("POST", "/users/predict:batch", {"history": [1]}, params={"tasks": "{task}"}),
    Operation("POST", "/users/vectors", {"history": [1], "parameters": {"task": "{task}"}}),
    Operation("GET", "/registry/audit", params={"format": "ndjson"}),
    Operation("POST", "/v2/models/{task}/infer", {"inputs": [HISTORY]}),
    Operation("POST", "/v2/models/{task}/versions/1/infer", {"inputs": [HISTORY]}),
    Operation("GET", "/v2/models/{task}"),
    Operation("GET", "/v2/models/{task}/versions/{digest}"),
    Operation("GET", "/v2/models/{task}/ready"),
    Operation("GET", "/v2/models/{task}/versions/1/ready"),
    Operation("GET", "/v2/models/{task}/config"),
    Operation("GET", "/v2/models/{task}/versions/1/config"),
    Operation("POST", "/v2/repository/models/{task}/load", {}),
    Operation("POST", "/v2/repository/models/{task}/unload", {}),
)
"""Operations on tasks and what belongs to them."""

KEY_OPERATIONS = (
    Operation("GET", "/keys"),
    Operation("POST", "/keys", {"name": "x", "scopes": ["predict"]}),
    Operation("POST", "/keys/{key_id}:rotate", {"overlap_s": 0}),
    Operation("DELETE", "/keys/{key_id}"),
    Operation("DELETE", "/keys/{key_id}/secrets/1"),
    Operation("GET", "/webhooks"),
    Operation("GET", "/webhooks/x"),
    Operation("PUT", "/webhooks/x", {"url": "https://127.0.0.1/"}),
    Operation("DELETE", "/webhooks/x"),
)
"""Operations on the keys and webhooks of the caller's tenant."""

TENANT_OPERATIONS = (
    Operation("GET", "/tenants/{tenant}"),
    Operation("GET", "/tenants/{tenant}/usage"),
    Operation("PUT", "/tenants/{tenant}", {"description": "stolen", "quotas": {"tasks": 0}}),
    Operation("DELETE", "/tenants/{tenant}"),
    Operation("GET", "/tenants/{tenant}/webhooks"),
    Operation("GET", "/tenants/{tenant}/keys"),
    Operation("POST", "/tenants/{tenant}/keys", {"name": "x", "scopes": ["admin"]}),
    Operation("POST", "/tenants/{tenant}/keys/{key_id}:rotate", {}),
    Operation("DELETE", "/tenants/{tenant}/keys/{key_id}"),
    Operation("DELETE", "/tenants/{tenant}/keys/{key_id}/secrets/1"),
    Operation("POST", "/registry:accept"),
    Operation("GET", "/debug/profile"),
)
"""Operations on a tenant that the path names, and what only operators may do."""

OPERATIONS = (*TASK_OPERATIONS, *KEY_OPERATIONS, *TENANT_OPERATIONS)


@dataclass
class Tenant:
    """A tenant with the task ``films``, and a key with each set of scopes."""

    name: str
    keys: dict[str, dict[str, Any]]
    digest: str = ""

    def secret(self, caller: str) -> str:
        return str(self.keys[caller]["api_key"])


CALLERS: Mapping[str, list[str]] = {
    "admin": ["admin", "predict"],
    "predict": ["predict", "vectors"],
    "admin of some": ["admin:other-*"],
    "predict some": ["predict:other-*", "vectors:other-*"],
    "admin of films": ["admin:films"],
    "predict films": ["predict:films", "vectors:films"],
}
"""The scopes of the keys that each tenant has."""


def make_tenant(operator: httpx.Client, name: str, **body: Any) -> Tenant:
    """Create a tenant and its keys."""
    answer = operator.put(f"/tenants/{name}", json=body)
    assert answer.status_code == 201, answer.text
    made = {caller: make_key(operator, name, *scopes) for caller, scopes in CALLERS.items()}
    return Tenant(name, made)


def make_key(operator: httpx.Client, tenant: str, *scopes: str, **more: Any) -> dict[str, Any]:
    """Create a key of a tenant and return the answer."""
    body = {"name": " ".join(scopes), "scopes": [*scopes], **more}
    answer = operator.post(f"/tenants/{tenant}/keys", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


@contextmanager
def as_caller(server: RunningServer, tenant: Tenant, caller: str) -> Iterator[httpx.Client]:
    """Open a client with one of a tenant's keys."""
    with server.client(tenant.secret(caller)) as client:
        yield client


def push_films(server: RunningServer, tenant: Tenant, bundle: bytes) -> None:
    """Let a tenant push its task ``films`` by its own key."""
    with as_caller(server, tenant, "admin") as client:
        tenant.digest = push(client, "films", bundle).json()["digest"]
