"""Hot swap under load: no request is lost, no answer is a mixture of two versions."""

import asyncio

import numpy as np
import pytest

from peterrec.model.kinds import KINDS
from peterrec.patches.bundle.bundle import digest_of, format_digest
from tests.e2e.conftest import push
from tests.e2e.load import Clients
from tests.service.random_bundles import ITEMS

CLIENTS = 64
SWAPS = 200
SEEDS = range(100, 108)
TASK = "swapped"
HISTORIES = [[ITEMS[(7 * n + step) % 200] for step in range(n)] for n in range(16)]
TOLERANCE = 1e-5


def expected_scores(workshop, seed):
    """Scores [histories, classes] by the plain reference."""
    task = workshop.task("classification", seed)
    kind = KINDS["classification"]
    rows = [[4 + ITEMS.index(item) for item in history] for history in HISTORIES]
    return np.stack([kind.scores(task.logits(row).unsqueeze(0))[0].numpy() for row in rows])


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_re_registering_under_load_loses_and_mixes_nothing(server, workshop):
    bundles = [workshop.bundle("classification", seed) for seed in SEEDS]
    expected = {
        format_digest(digest_of(bundle)): expected_scores(workshop, seed)
        for bundle, seed in zip(bundles, SEEDS, strict=True)
    }
    with server.client() as client:
        push(client, TASK, bundles[-1])
    clients = Clients(server, f"/tasks/{TASK}/predict", [{"history": h} for h in HISTORIES])
    running = asyncio.create_task(clients.run(CLIENTS))
    pushed = await asyncio.to_thread(register_repeatedly, server, bundles)
    clients.stop()
    await running
    load = clients.load
    assert (load.broken, load.refused, load.statuses) == ([], 0, {200})
    assert {reply.body["digest"] for reply in load.replies} == set(expected)
    assert max(reply.body["registry_revision"] for reply in load.replies) >= pushed
    found = [[*reply.body["predictions"][0]["scores"].values()] for reply in load.replies]
    wanted = [expected[reply.body["digest"]][reply.asked] for reply in load.replies]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def register_repeatedly(server, bundles):
    """Push the bundles in turn; every answer after a push must be the pushed version's."""
    revision = 0
    with server.client() as client:
        for turn in range(SWAPS):
            body = push(client, TASK, bundles[turn % len(bundles)]).json()
            served = client.post(f"/tasks/{TASK}/predict", json={"history": []}).json()
            assert served["digest"] == body["digest"]
            revision = body["registry_revision"]
    return revision
