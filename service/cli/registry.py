"""Commands for operators of the registry: they connect to its Redis, not to a server."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.disk import require_writable_file
from peterrec.patches.identity import format_digest
from peterrec.service.cli.bundle_text import print_rows
from peterrec.service.cli.shared_options import AsJson, AsJsonLines, Quiet
from peterrec.service.jobs.progress_bar import ProgressBars
from peterrec.service.system.texts import printable

if TYPE_CHECKING:
    from peterrec.patches.backup.importing import ImportMode
    from peterrec.patches.backup.restoring import Restorable
    from peterrec.patches.registry.records import RegistryEvent
    from peterrec.patches.registry.registry import Registry

Result = TypeVar("Result")

RedisUrl = Annotated[
    str | None,
    typer.Option(
        envvar="PETERREC_REDIS_URL",
        help="URL of the registry's Redis.",
        show_default="the embedded one in the data directory",
    ),
]
Prefix = Annotated[
    str, typer.Option(envvar="PETERREC_REDIS_PREFIX", help="First part of every key in Redis.")
]
DataDir = Annotated[
    Path,
    typer.Option(
        envvar="PETERREC_DATA_DIR", metavar="DIR", help="Data directory with an embedded Redis."
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Folder with the copies of a server's registry, and its bundles.",
        show_default="cache in the data directory",
    ),
]
DEFAULT_PREFIX = "peterrec"
DEFAULT_DATA_DIR = Path("data")
CLI_ACTOR = "cli"
"""The actor that the audit trail names for changes by these commands."""


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    group = typer.Typer(
        help="Inspect, clean up, export, import and restore the registry in Redis.",
        no_args_is_help=True,
    )
    group.command()(status)
    group.command()(gc)
    group.command("export")(export)
    group.command("import")(import_)
    group.command()(restore)
    group.command()(accept)
    group.command()(audit)
    app.add_typer(group, name="registry")


def status(
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the registry's contents and the state of its Redis; exit 1 if there are warnings."""
    with registry_address(redis_url, data_dir) as url:
        found = in_registry(url, redis_prefix, _status)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        rows = [(name, value) for name, value in found.items() if name != "warnings"]
        lines = [(name.replace("_", " "), f"{value}") for name, value in rows]
        lines += [("warning", warning) for warning in _texts(found["warnings"])]
        print_rows(Console(highlight=False), lines)
    if found["warnings"]:
        raise typer.Exit(1)


def gc(
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be freed.")
    ] = False,
    grace_s: Annotated[
        int, typer.Option(min=0, help="Keep bundles that a version named within this many seconds.")
    ] = 3600,
    as_json: AsJson = False,
) -> None:
    """Free bundles that no version names any more, and uploads that were abandoned."""
    with registry_address(redis_url, data_dir) as url:
        found = in_registry(
            url,
            redis_prefix,
            lambda registry: registry.blobs.collect(dry_run=dry_run, grace_s=grace_s),
        )
    if as_json:
        document = {"blobs": found.blobs, "size_bytes": found.size_bytes, "is_dry_run": dry_run}
        print(json.dumps(document))
        return
    verb = "Would free" if dry_run else "Freed"
    print(f"{verb} {found.blobs} bundles, {found.size_bytes} bytes.")


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive to write (.tar).")],
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the whole registry into one archive; the registry may be changed meanwhile."""
    from peterrec.patches.backup.exporting import export_archive

    require_writable_file(file)
    with registry_address(redis_url, data_dir) as url, ProgressBars(quiet) as bars:
        manifest = in_registry(
            url, redis_prefix, lambda registry: export_archive(registry.store, file, bars)
        )
    if as_json:
        found = {"file": str(file), "revision": manifest.revision, "blobs": manifest.blob_count}
        print(json.dumps({**found, "size_bytes": manifest.size_bytes}))
        return
    print(f"Wrote {file}: revision {manifest.revision}, {manifest.blob_count} bundles,")
    print(f"  {manifest.size_bytes} bytes. It holds the digests of API keys: keep it safe.")


def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Archive to read (.tar)."),
    ],
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    mode: Annotated[
        str,
        typer.Option(
            help="empty: import only into an empty registry; replace: discard its contents first."
        ),
    ] = "empty",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Import an archive: it is checked completely, then takes effect in one step."""
    from peterrec.patches.backup.importing import import_archive

    chosen = _mode(mode)
    with registry_address(redis_url, data_dir, may_create=True) as url, ProgressBars(quiet) as bars:
        revision = in_registry(
            url,
            redis_prefix,
            lambda registry: import_archive(registry.store, file, chosen, CLI_ACTOR, bars),
        )
    if as_json:
        print(json.dumps({"file": str(file), "revision": revision}))
    else:
        print(f"Imported {file}: the registry is at revision {revision}.")


def restore(
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    cache: CacheDir = None,
    number: Annotated[
        int, typer.Option("--copy", min=0, help="Copy to restore: 0 is the newest.")
    ] = 0,
    mode: Annotated[
        str,
        typer.Option(
            help="empty: restore only into an empty Redis; replace: discard its contents first."
        ),
    ] = "empty",
    write: Annotated[
        bool, typer.Option("--write", help="Do it; without this, only show what would be done.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put a lost registry back from a server's copy: a dry run, unless --write is given."""
    from peterrec.patches.backup.restoring import restorable
    from peterrec.patches.backup.restoring import restore as put_back

    chosen = _mode(mode)
    folder = cache or data_dir / "cache"

    async def run(registry: "Registry") -> dict[str, object]:
        found = await restorable(registry.store, folder, number)
        shown = await _restoration(registry, found)
        if write:
            with ProgressBars(quiet or as_json) as bars:
                shown["restored_revision"] = await put_back(
                    registry.store, found, chosen, CLI_ACTOR, bars
                )
        return shown

    with registry_address(redis_url, data_dir, may_create=True) as url:
        found = in_registry(url, redis_prefix, run)
    if as_json:
        print(json.dumps({**found, "copies": _copies(folder)}, indent=1))
        return
    _print_restoration(found, folder, is_written=write)


def accept(
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    cache: CacheDir = None,
    write: Annotated[
        bool, typer.Option("--write", help="Do it; without this, only show what would be lost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let all servers follow what Redis holds now, although they know a registry that it lost."""
    from peterrec.patches.errors import NoCopy, RegistryLost
    from peterrec.patches.registry.local_copy import BlobCache

    folder = cache or data_dir / "cache"
    known = BlobCache(folder).load_snapshot() if folder.is_dir() else None
    if known is None:
        raise NoCopy(str(folder))

    async def run(registry: "Registry") -> dict[str, object]:
        found = await registry.feed.snapshot()
        shown: dict[str, object] = {
            "lost_revision": known.revision,
            "found_revision": found.revision,
            "tasks_given_up": len(known.tasks.keys() - found.tasks.keys()),
            "keys_given_up": len(known.keys.keys() - found.keys.keys()),
            "is_lost": False,
        }
        try:
            await registry.feed.snapshot(known)
        except RegistryLost:
            shown["is_lost"] = True
        if write and shown["is_lost"]:
            shown["accepted_revision"] = await registry.accept(
                known.position, found.position, CLI_ACTOR
            )
        return shown

    with registry_address(redis_url, data_dir, may_create=True) as url:
        found = in_registry(url, redis_prefix, run)
    if as_json:
        print(json.dumps(found))
        return
    _print_acceptance(found)


def audit(
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    since: Annotated[int, typer.Option(min=0, help="Only changes after this revision.")] = 0,
    as_json: AsJsonLines = False,
) -> None:
    """Show who changed what; the oldest changes are dropped after about 10,000 newer ones."""
    with registry_address(redis_url, data_dir) as url:
        if as_json:
            in_registry(url, redis_prefix, lambda registry: _print_lines(registry, since))
            return
        events = in_registry(url, redis_prefix, lambda registry: registry.feed.events(since))
    table = Table("revision", "at", "actor", "action", "task", "what")
    for event in events:
        at = event.at.isoformat(timespec="seconds")
        task = f"{event.tenant}/{event.task}" if event.task else ""
        table.add_row(
            str(event.revision), at, printable(event.actor), event.action, task, _what(event)
        )
    Console(highlight=False, markup=False).print(table)


async def _status(registry: "Registry") -> dict[str, object]:
    from peterrec.patches.registry.health import server_info

    facts = await server_info(registry.store)
    snapshot = await registry.feed.snapshot()
    blobs, unused = await registry.blobs.totals(), await registry.blobs.collect(dry_run=True)
    return {
        "revision": snapshot.revision,
        "tasks": len(snapshot.tasks),
        "tasks_with_traffic": sum(task.traffic is not None for task in snapshot.tasks.values()),
        "tenants": len(await registry.tenants.list()),
        "keys": len(snapshot.keys),
        "bundles": blobs.blobs,
        "bundle_bytes": blobs.size_bytes,
        "collectable_bundles": unused.blobs,
        "collectable_bytes": unused.size_bytes,
        "oldest_audit_revision": await registry.feed.oldest_event(),
        **{f"server_{name}": value for name, value in asdict(facts).items()},
        "warnings": list(facts.warnings()),
    }


async def _print_lines(registry: "Registry", since: int) -> None:
    from peterrec.patches.registry.serialization import event_document

    oldest = await registry.feed.oldest_event()
    if oldest > since + 1:
        lost = f"changes {since + 1} to {oldest - 1} are no longer kept."
        print(f"warning: {lost}", file=sys.stderr)
    while events := await registry.feed.events(since):
        for event in events:
            print(json.dumps(event_document(event), ensure_ascii=False))
        since = events[-1].revision


def _mode(text: str) -> "ImportMode":
    from peterrec.patches.backup.importing import ImportMode

    try:
        return ImportMode(text)
    except ValueError as error:
        raise typer.BadParameter("use empty or replace.", param_hint="--mode") from error


async def _restoration(registry: "Registry", found: "Restorable") -> dict[str, object]:
    """Describe what a restoration puts back, and what Redis holds now."""
    there = await registry.feed.snapshot()
    return {
        "revision": found.revision,
        "saved_at": _time(found.state.saved_at),
        **found.counts,
        "left_out": found.left_out,
        "found_revision": there.revision,
        "found_tasks": len(there.tasks),
        "found_keys": len(there.keys),
    }


def _copies(folder: Path) -> list[dict[str, object]]:
    from peterrec.patches.backup.restoring import copies_in

    return [
        {
            "copy": number,
            "revision": state.position.revision,
            "saved_at": _time(state.saved_at),
            **state.counts,
        }
        for number, (_, state) in enumerate(copies_in(folder))
    ]


def _print_restoration(found: dict[str, object], folder: Path, *, is_written: bool) -> None:
    print(f"Copy of revision {found['revision']}, of {found['saved_at']}:")
    print(f"  {found['tasks']} tasks with {found['versions']} versions, {found['keys']} API keys,")
    print(f"  {found['tenants']} tenants, {found['changes']} changes of the audit trail;")
    print(f"  {found['bundles']} bundles ({found['bundle_bytes']} bytes) that Redis lacks.")
    for text in _texts(found["left_out"]):
        print(f"  left out, as its bundle is missing: {printable(text)}")
    print("  A copy never has: when keys were used last, and bundles that no alias named.")
    if is_written:
        print(f"Restored: the registry is at revision {found['restored_revision']}.")
        return
    if found["found_revision"]:
        print(f"Redis holds revision {found['found_revision']} with {found['found_tasks']} tasks")
        print(f"  and {found['found_keys']} API keys, which --mode replace would discard.")
    else:
        print("Redis holds no registry at this prefix.")
    for each in _copies(folder):
        print(f"Copy {each['copy']}: revision {each['revision']}, of {each['saved_at']}.")
    print("Nothing was written. Repeat it with --write.")


def _print_acceptance(found: dict[str, object]) -> None:
    if not found["is_lost"]:
        print(f"Nothing is lost: Redis holds revision {found['found_revision']}.")
        return
    print(f"Servers know revision {found['lost_revision']}, Redis holds {found['found_revision']}.")
    print(f"{found['tasks_given_up']} tasks and {found['keys_given_up']} API keys are given up.")
    if "accepted_revision" in found:
        print(f"Accepted: the registry is at revision {found['accepted_revision']}.")
    else:
        print("Nothing was written. Repeat it with --write, or see `peterrec registry restore`.")


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _what(event: "RegistryEvent") -> str:
    """What an event changed, from what to what."""
    parts = [f"tenant {event.tenant}"] if event.tenant and not event.task else []
    if event.quotas:
        parts += [f"{name} {limit}" for name, limit in event.quotas.limits().items()]
    if event.weight not in (None, 1):
        parts.append(f"weight {event.weight:g}")
    if event.alias:
        parts.append(f"{event.alias}:")
    if event.previous or event.current:
        digests = (event.previous, event.current)
        parts.append(" → ".join(format_digest(d)[:19] if d else "nothing" for d in digests))
    if event.version:
        parts.append(f"(version {event.version})")
    if event.traffic or event.previous_traffic:
        parts.append(f"traffic {'put' if event.traffic else 'removed'}")
    if event.reason:
        parts.append(f"because {event.reason} was exceeded")
    parts += [text for text in (event.key_id, event.note) if text]
    return " ".join(parts)


def _texts(found: object) -> list[str]:
    assert isinstance(found, list)
    return [str(text) for text in found]


def in_registry(url: str, prefix: str, work: Callable[["Registry"], Awaitable[Result]]) -> Result:
    """Run ``work`` with the registry at this URL."""
    from peterrec.patches.registry.registry import Registry, open_redis

    async def run() -> Result:
        registry = Registry(open_redis(url), prefix)
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


@contextmanager
def registry_address(
    redis_url: str | None, data_dir: Path, *, may_create: bool = False
) -> Iterator[str]:
    """The URL of Redis: the given one, or the embedded one, started unless a server runs it."""
    from peterrec.patches.errors import RegistryUnavailable
    from peterrec.patches.redis.embedded import EmbeddedRedis, running_url

    folder = data_dir / "redis"
    running = redis_url or running_url(folder)
    if running is not None:
        yield running
        return
    if not folder.exists() and not may_create:
        raise RegistryUnavailable(
            f"there is no registry in {data_dir}.", hint="Give `redis_url` or another `data_dir`."
        )
    redis = EmbeddedRedis(folder)
    try:
        yield redis.start()
    finally:
        redis.stop()
