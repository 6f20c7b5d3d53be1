"""Several admins change one task at once: what happens is one serial history."""

import asyncio
import random
from typing import NamedTuple
from uuid import uuid4

import httpx

from tests.e2e.conftest import push

WRITERS = 8
CHANGES = 12


async def test_every_conditional_change_that_is_accepted_was_made_on_what_its_maker_saw(
    server, api, workshop
):
    task = f"raced-{uuid4().hex[:8]}"
    for seed in (71, 72):
        push(api, task, workshop.bundle("value", seed=seed))
    begun = api.get(f"/tasks/{task}").json()
    made = await race(server, task)
    accepted = sorted(step for step in made if step.status == 200 and step.revision != step.saw)
    events = api.get("/registry/audit", params={"task": task, "since": begun["revision"]}).json()
    assert [event["revision"] for event in events["events"]] == [s.revision for s in accepted]
    assert [s.saw for s in accepted] == [begun["revision"], *(s.revision for s in accepted[:-1])]
    assert {step.status for step in made} <= {200, 409, 412}
    assert len({event["action"] for event in events["events"]}) >= 3
    ended = api.get(f"/tasks/{task}").json()
    assert (ended["aliases"], bool(ended["traffic"])) == replayed(begun, events["events"])


class Step(NamedTuple):
    """The revision that a change made, the one that its maker saw, and the answer's status."""

    revision: int
    saw: int
    status: int


async def race(server, task) -> list[Step]:
    headers = {"Authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=60, trust_env=False
    ) as client:
        writers = [write(client, task, random.Random(number)) for number in range(WRITERS)]
        return [step for steps in await asyncio.gather(*writers) for step in steps]


async def write(client, task, choice) -> list[Step]:
    steps: list[Step] = []
    while sum(step.status == 200 for step in steps) < CHANGES:
        seen = (await client.get(f"/tasks/{task}")).headers["etag"]
        method, path, body = choice.choice(
            [
                ("PUT", "/aliases/prod", {"version": choice.choice([1, 2])}),
                ("PUT", "/aliases/next", {"version": choice.choice([1, 2])}),
                ("PUT", "/traffic", {"prod_weight": choice.randrange(1, 99), "shadow": [1]}),
                ("DELETE", "/traffic", None),
                ("POST", ":rollback", None),
            ]
        )
        answer = await client.request(
            method, f"/tasks/{task}{path}", json=body, headers={"If-Match": seen}
        )
        revision = answer.json().get("registry_revision", 0)
        steps.append(Step(revision, int(seen.strip('"')), answer.status_code))
    return steps


def replayed(begun, events):
    """Aliases, and whether there is traffic, after the trail's changes one after another."""
    aliases, has_traffic = dict(begun["aliases"]), False
    for event in events:
        if event["action"] == "set_alias":
            aliases[event["alias"]] = {"version": event["version"], "digest": event["current"]}
        else:
            aliases = event["aliases"] or aliases
            has_traffic = event["traffic"] is not None
    return aliases, has_traffic
