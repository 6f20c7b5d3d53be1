"""Traffic that changes under load: nothing is lost, and each answer is its version's own."""

import asyncio
import random

import numpy as np
import pytest

from peterrec.patches.bundle.bundle import digest_of, format_digest
from tests.e2e.conftest import push
from tests.e2e.load import Clients
from tests.e2e.rollouts import put_traffic
from tests.e2e.test_swapping import HISTORIES, TOLERANCE, expected_scores

CLIENTS = 16
CHANGES = 60
SEEDS = (110, 111, 112)
TASK = "split-under-load"


@pytest.mark.timeout(240)
async def test_changing_traffic_under_load_loses_and_mixes_nothing(server, workshop):
    expected = {}
    with server.client() as client:
        for seed in SEEDS:
            bundle = workshop.bundle("classification", seed)
            expected[format_digest(digest_of(bundle))] = expected_scores(workshop, seed)
            push(client, TASK, bundle)
    bodies = [{"instances": [{"history": h, "user_id": n}]} for n, h in enumerate(HISTORIES)]
    clients = Clients(server, f"/tasks/{TASK}/predict", bodies)
    running = asyncio.create_task(clients.run(CLIENTS))
    await asyncio.to_thread(change_repeatedly, server)
    clients.stop()
    await running
    load = clients.load
    assert (load.broken, load.refused, load.statuses) == ([], 0, {200})
    answers = [reply.body["predictions"][0] | {"asked": reply.asked} for reply in load.replies]
    digests = [reply.body["digest"] for reply in load.replies]
    assert set(digests) == set(expected)
    found = [[*answer["scores"].values()] for answer in answers]
    wanted = [expected[d][a["asked"]] for d, a in zip(digests, answers, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def change_repeatedly(server):
    """Aliases, canaries and shadows in any order; every change is served when it is answered."""
    choice = random.Random(5)
    with server.client() as client:
        for _ in range(CHANGES):
            weights = [choice.randrange(1, 10) for _ in range(2)]
            canary = [{"version": choice.choice([1, 2, 3]), "weight": weights[0]}]
            shadow = choice.sample([1, 2, 3], choice.randrange(3))
            put_traffic(client, TASK, prod_weight=weights[1], canary=canary, shadow=shadow)
            client.put(f"/tasks/{TASK}/aliases/prod", json={"version": choice.choice([1, 2, 3])})
            if choice.random() < 0.3:
                assert client.delete(f"/tasks/{TASK}/traffic").status_code == 200
                served = client.post(f"/tasks/{TASK}/predict", json={"history": []}).json()
                assert served["role"] == "prod"
            if choice.random() < 0.3:
                assert client.post(f"/tasks/{TASK}:rollback").status_code == 200
