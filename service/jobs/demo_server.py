"""The demo beside a server that runs already, as in the compose file: its steps, each done once.

One call makes the data and the backbone, which the server needs before it can start. Another one
fine-tunes the tasks, pushes them and goes on asking, so that metrics and dashboards show traffic.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

import peterrec_client
from peterrec.model.files.backbone_info import SPEC
from peterrec.service.errors import DemoFailed
from peterrec.service.jobs.demo import (
    PREDICTION_TIMEOUT_S,
    SHOP,
    TOP_K,
    DemoServer,
    bundle_of,
    finetune,
    make_data,
    pretrain,
    step,
)
from peterrec.service.system.program import peterrec

READY_TIMEOUT_S = 600.0
"""Longest start of the server: it may compile its kernels on a machine that trains."""

PAUSE_AFTER_FAILURE_S = 1.0
"""Seconds until the next question after one that failed."""

MOST_REFUSALS = 20
"""Times that a server may not know the key yet: it learns of new ones within seconds."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The server to fill: its URL, and the Redis of its registry, where the first key is made."""

    url: str
    redis_url: str
    requests_per_s: float


def make_backbone(out: Path, backbone: Path) -> None:
    """Make the sample shop in ``out/data`` and its backbone, unless there is one.

    A backbone gets its files when all are complete, so one that is there is whole.
    """
    console = Console()
    data = out / "data"
    if (backbone / SPEC).exists():
        if not data.exists():
            raise DemoFailed(f"{backbone} is a backbone of your own, which the demo leaves alone.")
        console.print(f"{backbone} is there already: nothing to do.", highlight=False)
        return
    shutil.rmtree(data, ignore_errors=True)  # of a start that was broken off
    recipe = make_data(None, data, console)
    pretrain(recipe, data, backbone, console)


def fill_server(out: Path, backbone: Path, neighbour: Neighbour) -> None:
    """Fine-tune and push each task that the server lacks; then ask it, until a signal ends this."""
    console = Console()
    make_backbone(out, backbone)
    data = out / "data"
    for task in SHOP.tasks:
        bundle = bundle_of(task, out)
        if not bundle.exists():
            finetune(task, SHOP, data, backbone, bundle, console)
    kept = out / "api-key"
    server = DemoServer(neighbour.url, _key(kept, neighbour.redis_url))
    with peterrec_client.Client(server.url, server.api_key) as client:
        try:
            _wait_until_accepted(client)
        except DemoFailed:
            kept.unlink(
                missing_ok=True
            )  # the registry may be another one: the next start has a key
            raise
        served = {each.task for each in client.tasks()}
        for task in SHOP.tasks:
            if task.name not in served:
                step(console, "push", bundle_of(task, out), "--task", task.name, server=server)
        rate = f"{neighbour.requests_per_s:g} times a second"
        console.print(f"\nServed on {server.url}; asking {rate}.", highlight=False)
        _ask_forever(client, _histories(data), neighbour.requests_per_s)


def _key(kept: Path, redis_url: str) -> str:
    """Return the demo's key of this registry, which is made the first time and kept in a file."""
    if kept.exists():
        return kept.read_text(encoding="ascii")
    scopes = ("--scope", "admin", "--scope", "predict")
    command = peterrec("keys", "create", "--redis-url", redis_url, "--name", "demo", *scopes)
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise DemoFailed("`peterrec keys create` failed; its message is above.")
    key = made.stdout.strip()
    with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key)
    return key


def _wait_until_accepted(client: peterrec_client.Client) -> None:
    """Wait until the server is ready and knows the key."""
    deadline, refusals = time.monotonic() + READY_TIMEOUT_S, 0
    while True:
        try:
            client.tasks()
            return
        except peterrec_client.PeterRecError as error:
            refusals += isinstance(error, peterrec_client.Unauthenticated)
            if time.monotonic() > deadline or refusals > MOST_REFUSALS:
                raise DemoFailed(f"the server did not accept the demo: {error}") from error
        time.sleep(PAUSE_AFTER_FAILURE_S)


def _histories(data: Path) -> list[list[str]]:
    """Every user's items, oldest first."""
    events = pq.read_table(data / "histories.parquet", columns=["user_id", "position", "item_id"])
    found: dict[str, list[str]] = {}
    for row in events.sort_by([("user_id", "ascending"), ("position", "ascending")]).to_pylist():
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return [*found.values()]


def _ask_forever(
    client: peterrec_client.Client, histories: Sequence[Sequence[str]], requests_per_s: float
) -> None:
    chance = random.Random(0)  # noqa: S311  # which user is asked about is no secret
    while True:
        began = time.monotonic()
        history = chance.choice(histories)
        try:
            length = chance.randint(1, len(history))
            client.predict_user(history[:length], top_k=TOP_K, timeout_s=PREDICTION_TIMEOUT_S)
        except peterrec_client.PeterRecError as error:
            print(f"not answered: {error}", flush=True)
            time.sleep(PAUSE_AFTER_FAILURE_S)
        time.sleep(max(0.0, 1 / requests_per_s - (time.monotonic() - began)))
