"""What tests of canaries, shadows and guards do to a server."""

import httpx
import numpy as np

from peterrec.patches.bundle.bundle import build_bundle, open_bundle
from tests.e2e.conftest import push
from tests.service.random_bundles import ITEMS, Workshop

UNPROBED_OUTPUTS = 130
"""More than probes look at: a few of these columns no probe ever sees."""

HISTORIES = [[ITEMS[(7 * n + step) % 200] for step in range(1 + n % 16)] for n in range(200)]


def broken_bundle(workshop: Workshop, seed: int) -> bytes:
    """A sound classification bundle that gives infinite numbers in columns that no probe sees."""
    contents = open_bundle(workshop.bundle("classification", seed, outputs=UNPROBED_OUTPUTS))
    tensors = {name: np.array(array) for name, array in contents.tensors.items()}
    probed = set(tensors["probe.columns"].tolist())
    first, second = [n for n in range(UNPROBED_OUTPUTS) if n not in probed][:2]
    tensors["head.weight"][first] = 3e38
    tensors["head.weight"][second] = -3e38
    return build_bundle(contents.manifest, tensors)


def opposite_bundle(bundle: bytes) -> bytes:
    """A sound bundle that finds least likely what the given one finds most likely."""
    contents = open_bundle(bundle)
    tensors = {name: np.array(array) for name, array in contents.tensors.items()}
    for name in ("head.weight", "head.bias", "probe.logits"):
        tensors[name] = -tensors[name]
    return build_bundle(contents.manifest, tensors)


def with_two_versions(api: httpx.Client, task: str, first: bytes, second: bytes) -> list[str]:
    """Register two versions, prod names the first; their digests."""
    pushed = [push(api, task, first), push(api, task, second, alias="")]
    return [answer.json()["digest"] for answer in pushed]


def put_traffic(api: httpx.Client, task: str, **traffic: object) -> httpx.Response:
    """Split the task's requests and insist that it worked."""
    answer = api.put(f"/tasks/{task}/traffic", json=traffic)
    assert answer.status_code == 200, answer.text
    return answer


def ask(api: httpx.Client, task: str, user: int, **parameters: object) -> dict[str, object]:
    """A prediction for one user, as the whole answer."""
    instance = {"history": HISTORIES[user % len(HISTORIES)], "user_id": user}
    body = {"instances": [instance], "parameters": parameters}
    answer = api.post(f"/tasks/{task}/predict", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found
