"""The device process stores a pushed bundle, from one reading of the upload."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peterrec.patches.identity import Digest, digest_of
from peterrec.patches.registry.registry import Registry
from peterrec.service.errors import ErrorBody, problem_of, push_error
from peterrec.service.protocol.messages import Validated
from tests.patches.redis_servers import is_stored
from tests.service.random_bundles import Workshop
from tests.service.replicas import DeviceThread, Replica
from tests.waiting import soon

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
async def replica(
    workshop: Workshop, tmp_path: Path, redis_url: str, redis_prefix: str
) -> AsyncIterator[Replica]:
    replica = Replica(DeviceThread(), workshop, tmp_path / "replica", redis_url, redis_prefix)
    await replica.open()
    await soon(lambda: replica.link.is_connected)
    yield replica
    await replica.close()


async def pushed(replica: Replica, pipe: Path, bundle: bytes, *, store: bool) -> Validated:
    """Validate a bundle that comes through a pipe, which can be read only once."""
    os.mkfifo(pipe)
    writing = asyncio.create_task(asyncio.to_thread(pipe.write_bytes, bundle))
    answer = await replica.link.validate(str(pipe), TIMEOUT_S, store=store)
    await writing
    return answer


async def test_a_bundle_that_can_be_read_only_once_is_validated_and_stored(
    replica: Replica, registry: Registry, workshop: Workshop, tmp_path: Path
) -> None:
    bundle = workshop.bundle("classification", 1)
    answer = await pushed(replica, tmp_path / "pipe", bundle, store=True)
    assert answer.reasons == []
    assert answer.digest == digest_of(bundle)
    assert (await registry.blobs.get(Digest(answer.digest))).data == bundle


async def test_a_bundle_that_is_only_validated_is_not_stored(
    replica: Replica, registry: Registry, workshop: Workshop, tmp_path: Path
) -> None:
    bundle = workshop.bundle("classification", 2)
    answer = await pushed(replica, tmp_path / "pipe", bundle, store=False)
    assert answer.reasons == []
    assert not await is_stored(registry, digest_of(bundle))


async def test_a_bundle_that_is_refused_is_not_stored(
    replica: Replica, registry: Registry, workshop: Workshop, tmp_path: Path
) -> None:
    bundle = workshop.bundle("classification", 3)[:-8]
    answer = await pushed(replica, tmp_path / "pipe", bundle, store=True)
    assert "truncated" in {reason.code for reason in answer.reasons}
    assert (await registry.blobs.totals()).blobs == 0


async def test_a_mistake_of_ours_is_an_answer_at_once_with_an_id(
    replica: Replica, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await replica.link.validate("a path with \0", TIMEOUT_S, store=True)
    problem = problem_of(
        push_error(answer.category, [ErrorBody(r.code, r.message, r.hint) for r in answer.reasons]),
        "x",
    )
    assert (problem.status, problem.code) == (500, "bundle_not_judged")
    (reason,) = answer.reasons
    assert reason.code == "internal_fault"
    found = re.search(r"fault ([0-9a-f]{8})", reason.message)
    assert found is not None
    assert found[1] in capfd.readouterr().out


@pytest.mark.parametrize(
    ("code", "category", "status"),
    [
        ("registry_unavailable", "unavailable", 503),
        ("registry_read_only", "unavailable", 503),
        ("registry_denied", "unavailable", 503),
        ("registry_full", "no_room", 507),
        ("registry_failed", "internal", 500),
    ],
)
def test_a_good_bundle_that_could_not_be_stored_keeps_the_registry_s_error(
    code: str, category: str, status: int
) -> None:
    reason = ErrorBody(code, "Redis does not answer.", "Repeat it later.")
    problem = problem_of(push_error(category, [reason]), "x")
    assert (problem.status, problem.code) == (status, code)
    assert (problem.detail, problem.hint) == (reason.message, reason.hint)
