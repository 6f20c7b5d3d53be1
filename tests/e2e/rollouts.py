"""Steps that tests of canaries, shadows and guards make on a server."""

import httpx
import numpy as np

from peterrec.patches.bundle.bundle import build_bundle, open_bundle
from tests.e2e.conftest import push
from tests.service.random_bundles import ITEMS, Workshop

UNPROBED_OUTPUTS = 130
"""Number of classes: more than probes record, so that probes skip a few of the columns."""

HISTORIES = [[ITEMS[(7 * n + step) % 200] for step in range(1 + n % 16)] for n in range(200)]


def broken_bundle(workshop: Workshop, seed: int) -> bytes:
    """Make a valid classification bundle with infinite outputs in columns that probes skip."""
    contents = open_bundle(workshop.bundle("classification", seed, outputs=UNPROBED_OUTPUTS))
    tensors = {name: np.array(array) for name, array in contents.tensors.items()}
    probed = set(tensors["probe.columns"].tolist())
    first, second = [n for n in range(UNPROBED_OUTPUTS) if n not in probed][:2]
    tensors["head.weight"][first] = 3e38
    tensors["head.weight"][second] = -3e38
    return build_bundle(contents.manifest, tensors)


def opposite_bundle(bundle: bytes) -> bytes:
    """Make a valid bundle whose order of outputs is the reverse of the given bundle's."""
    contents = open_bundle(bundle)
    tensors = {name: np.array(array) for name, array in contents.tensors.items()}
    for name in ("head.weight", "head.bias", "probe.logits"):
        tensors[name] = -tensors[name]
    return build_bundle(contents.manifest, tensors)


def with_two_versions(api: httpx.Client, task: str, first: bytes, second: bytes) -> list[str]:
    """Register two versions, point prod at the first, and return their digests."""
    pushed = [push(api, task, first), push(api, task, second, alias="")]
    return [answer.json()["digest"] for answer in pushed]


def put_traffic(api: httpx.Client, task: str, **traffic: object) -> httpx.Response:
    """Set the task's traffic and assert that it was accepted."""
    answer = api.put(f"/tasks/{task}/traffic", json=traffic)
    assert answer.status_code == 200, answer.text
    return answer


def ask(api: httpx.Client, task: str, user: int, **parameters: object) -> dict[str, object]:
    """Request a prediction for one user and return the whole answer."""
    instance = {"history": HISTORIES[user % len(HISTORIES)], "user_id": user}
    body = {"instances": [instance], "parameters": parameters}
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found
