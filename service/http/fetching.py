"""Bundles that the server fetches itself, from the addresses that its settings allow."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from peterrec.patches.identity import Digest, TenantId, format_digest
from peterrec.service.errors import (
    InternalError,
    SourceBusy,
    SourceRefused,
    SourceTooSlow,
    fetch_error,
)
from peterrec.service.http.upload import new_upload
from peterrec.service.sources.address import Address, allowed_by
from peterrec.service.sources.child import FetchOrder, FetchOutcome
from peterrec.service.system.program import peterrec

log = structlog.get_logger()

MOST_OF_TENANT = 2
MOST_OF_ALL = 4
"""Bundles that one worker fetches at a time. A fetch costs a process and the disk of a bundle, and
its caller only a line of text."""

START_TIMEOUT_S = 60.0
"""Seconds in which the child must have begun; it takes one, but more on a machine that is busy."""

KEPT_WORDS = 2000
"""Characters of what a failed child wrote that go to the log."""


@dataclass(frozen=True, slots=True)
class BundleSources:
    """From where a worker fetches bundles, for how long, and how many for whom just now."""

    prefixes: tuple[str, ...] = ()
    timeout_s: float = 120.0
    running: Counter[TenantId] = field(default_factory=Counter)

    def require_allowed(self, source: Address, tenant: TenantId) -> None:
        """SourceRefused unless a tenant's bundles may be fetched from there.

        A run of MLflow is looked up if any artifacts of MLflow are allowed; where it leads is
        checked then.
        """
        if not self.prefixes:
            raise SourceRefused(
                "this server fetches no bundles.",
                hint="Push the bytes: `peterrec push` fetches them itself. Whoever runs the server "
                "may set PETERREC_BUNDLE_SOURCES.",
            )
        is_run = source.scheme == "runs"
        looks_up = any(each.lower().startswith("mlflow-artifacts:") for each in self.prefixes)
        if not (looks_up if is_run else allowed_by(self.prefixes, tenant)(source)):
            raise SourceRefused(
                f"this server does not fetch {source} for tenant {tenant}.",
                hint="Whoever runs the server may add its folder to PETERREC_BUNDLE_SOURCES.",
            )

    @contextmanager
    def turn(self, tenant: TenantId) -> Iterator[None]:
        """Count a fetch; SourceBusy if there are as many as may be."""
        if self.running[tenant] >= MOST_OF_TENANT:
            raise SourceBusy(self.running[tenant], "this tenant")
        if self.running.total() >= MOST_OF_ALL:
            raise SourceBusy(self.running.total(), "all tenants")
        self.running[tenant] += 1
        try:
            yield
        finally:
            self.running[tenant] -= 1
            if not self.running[tenant]:
                del self.running[tenant]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A bundle to fetch: ``text`` is its address as the caller wrote it, with any signature."""

    text: str
    source: Address
    digest: Digest | None
    tenant: TenantId
    limit_bytes: int


@asynccontextmanager
async def fetched_file(wanted: Wanted, sources: BundleSources, folder: Path) -> AsyncIterator[Path]:
    """Fetch a bundle into a file that exists within the context; errors named ``Source…``."""
    sources.require_allowed(wanted.source, wanted.tenant)
    with sources.turn(wanted.tenant):
        spool = new_upload(folder)
        try:
            await asyncio.to_thread(spool.mkdir)
            file = spool / "bundle"
            await _run(wanted, sources, file)
            yield file
        finally:
            await asyncio.to_thread(shutil.rmtree, spool, ignore_errors=True)


async def _run(wanted: Wanted, sources: BundleSources, file: Path) -> None:
    """Have a child process fetch; it is killed at the deadline, or if the caller leaves."""
    order = FetchOrder(
        wanted.text,
        str(file),
        wanted.limit_bytes,
        sources.prefixes,
        wanted.tenant,
        None if wanted.digest is None else format_digest(wanted.digest),
    )
    process = await asyncio.create_subprocess_exec(
        *peterrec("run-fetch"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await process.stdout.readline()
        async with asyncio.timeout(sources.timeout_s):
            said, complaints = await process.communicate(msgspec.json.encode(order) + b"\n")
    except TimeoutError:
        raise SourceTooSlow(wanted.source, sources.timeout_s) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = complaints.decode(errors="replace")[-KEPT_WORDS:]
        log.error("fetch_failed", source=str(wanted.source), code=process.returncode, said=words)
        raise InternalError
    outcome = msgspec.json.decode(said, type=FetchOutcome)
    if outcome.code:
        raise fetch_error(outcome.code, outcome.message, outcome.hint)
