"""The real device process: it serves what the registry says, also after it was killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from peterrec.patches.bundle.bundle import sign_bundle
from peterrec.patches.bundle.signatures import SigningKey, key_paths
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import Blob, TaskId, TenantId
from peterrec.patches.redis.embedded import EmbeddedRedis
from peterrec.patches.registry.records import VersionSummary
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.service.predict.device_link import BoundRow, DeviceLink
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import BundleEntry, Row, RowResult
from peterrec.service.settings import Settings
from tests.model.random_tasks import random_history
from tests.service.random_bundles import SPEC, Workshop

ACME = TenantId("acme")
PATIENCE_S = 30.0


class Replica:
    """A device process and a worker's link to it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = TaskTable()
        self.changed = asyncio.Event()
        self.link = DeviceLink(
            settings.device_endpoint,
            self.table,
            max_rows=1000,
            on_update=lambda update: self.changed.set(),
        )
        self.start_process()

    def start_process(self) -> None:
        command = [sys.executable, "-m", "tests.service.device_child"]
        environment = {**self.settings.to_environment(), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_S)

    async def served(self, task: str, digest: str) -> BundleEntry:
        """The task's entry once it is served by ``digest``."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self.changed.clear()
                entry = self.table.entry(ACME, task)
                if entry is not None and entry.aliases:
                    served = self.table.resolve(ACME, task).bundle
                    if served.digest == digest:
                        return served
                await self.changed.wait()

    async def ask(self, bundle: BundleEntry, history: list[int]) -> RowResult:
        tokens = np.array(history, np.int32).tobytes()
        rows = [BoundRow(Row(bundle.handle, tokens, top_k=3), bundle.digest)]
        return (await self.link.predict(rows, time.monotonic() + PATIENCE_S)).rows[0]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


def settings_for(workshop: Workshop, folder: Path, redis_url: str, prefix: str) -> Settings:
    return Settings(
        backbone_dir=workshop.folder,
        data_dir=folder / "data",
        redis_url=redis_url,
        redis_prefix=prefix,
        device_endpoint=folder / "device",
        metrics_endpoint=folder / "metrics",
        threads=1,
        log_level="warning",
    )


@pytest.fixture
async def replica(
    workshop: Workshop, tmp_path: Path, redis_url: str, redis_prefix: str
) -> AsyncIterator[Replica]:
    replica = Replica(settings_for(workshop, tmp_path, redis_url, redis_prefix))
    await replica.link.start()
    yield replica
    await replica.link.close()
    assert replica.stop() == 0


async def register(registry: Registry, workshop: Workshop, task: str, seed: int) -> str:
    data = workshop.bundle("classification", seed)
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    digest = await registry.blobs.put(Blob(data))
    await registry.add_version(ACME, TaskId(task), digest, VersionSummary.of(bundle), actor="test")
    return digest


def probabilities(workshop: Workshop, seed: int, history: list[int]) -> np.ndarray:
    logits = workshop.task("classification", seed).logits(history).numpy()
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())


@pytest.mark.slow
async def test_what_another_replica_registers_is_served_with_the_references_answer(
    replica: Replica, registry: Registry, workshop: Workshop
) -> None:
    bundle = await replica.served("gender", await register(registry, workshop, "gender", 1))
    history = random_history(SPEC, 12, 5)
    result = await replica.ask(bundle, history)
    found = np.frombuffer(result.values, np.float32)
    np.testing.assert_allclose(found, probabilities(workshop, 1, history), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
async def test_a_killed_device_process_comes_back_with_everything_it_served(
    replica: Replica, registry: Registry, workshop: Workshop
) -> None:
    digest = await register(registry, workshop, "gender", 1)
    await replica.served("gender", digest)
    replica.kill()
    waiting = asyncio.create_task(
        replica.ask(replica.table.resolve(ACME, "gender").bundle, random_history(SPEC, 3, 1))
    )
    replica.start_process()
    assert (await waiting).error == ""
    await replica.served("gender", digest)


@pytest.mark.slow
async def test_a_deleted_task_leaves_the_table(
    replica: Replica, registry: Registry, workshop: Workshop
) -> None:
    await replica.served("gender", await register(registry, workshop, "gender", 1))
    await registry.delete_task(ACME, TaskId("gender"), actor="test")
    async with asyncio.timeout(PATIENCE_S):
        while replica.table.entry(ACME, "gender") is not None:
            replica.changed.clear()
            await replica.changed.wait()


async def test_a_row_for_a_residency_that_was_never_there_gets_an_error(
    replica: Replica, registry: Registry, workshop: Workshop
) -> None:
    bundle = await replica.served("gender", await register(registry, workshop, "gender", 1))
    gone = BundleEntry(bundle.handle + 1000, bundle.digest, "classification", 3, (), 0.5, "")
    assert (await replica.ask(gone, [])).error == "bundle_gone"


async def test_a_good_upload_is_validated_and_a_bad_one_refused_with_its_reason(
    replica: Replica, registry: Registry, workshop: Workshop, tmp_path: Path
) -> None:
    await replica.served("gender", await register(registry, workshop, "gender", 1))
    good, bad = tmp_path / "good.bundle", tmp_path / "bad.bundle"
    data = workshop.bundle("tags", 2)
    good.write_bytes(data)
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert (await replica.link.validate(str(good), PATIENCE_S)).reasons == []
    refused = await replica.link.validate(str(bad), PATIENCE_S)
    assert "checksum_mismatch" in [reason.code for reason in refused.reasons]


@pytest.mark.slow
async def test_a_server_with_trusted_keys_admits_only_what_one_of_them_signed(
    workshop: Workshop, tmp_path: Path, redis_url: str, redis_prefix: str
) -> None:
    key = SigningKey.generate()
    key.write(*key_paths(tmp_path / "release"))
    settings = settings_for(workshop, tmp_path, redis_url, redis_prefix)
    trusting = settings.model_copy(update={"trusted_keys": tmp_path / "release.pub"})
    unsigned = workshop.bundle("tags", 2)
    signed = sign_bundle(unsigned, [key])
    replica = Replica(trusting)
    await replica.link.start()
    try:
        assert await replica.link.welcomed(PATIENCE_S)
        reasons = {}
        for name, data in {"unsigned": unsigned, "signed": signed}.items():
            (tmp_path / name).write_bytes(data)
            validated = await replica.link.validate(str(tmp_path / name), PATIENCE_S)
            reasons[name] = [reason.code for reason in validated.reasons]
        assert reasons == {"unsigned": ["signature_missing"], "signed": []}
    finally:
        await replica.link.close()
        assert replica.stop() == 0


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
async def test_a_replica_that_restarts_while_redis_is_away_serves_its_last_known_good_copy(
    workshop: Workshop, tmp_path: Path, own_redis: EmbeddedRedis
) -> None:
    replica = Replica(settings_for(workshop, tmp_path, own_redis.url, "peterrec"))
    await replica.link.start()
    redis = open_redis(own_redis.url)
    digest = await register(Registry(redis), workshop, "gender", 1)
    await redis.aclose()
    await replica.served("gender", digest)
    assert replica.stop() == 0
    own_redis.stop()
    replica.changed.clear()
    replica.start_process()
    async with asyncio.timeout(PATIENCE_S):
        await replica.changed.wait()
    bundle = await replica.served("gender", digest)
    assert (await replica.ask(bundle, [])).error == ""
    await replica.link.close()
    assert replica.stop() == 0


def test_no_environment_variable_of_ours_reaches_the_tests() -> None:
    assert [name for name in os.environ if name.startswith("PETERREC_")] == []
