"""The audit trail of a running server: who changed what, when, and from what to what."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from peterrec.model.documents import Document
from peterrec.service.cli.server_options import ApiKey, Url, complete_task, print_table, short
from peterrec.service.cli.shared_options import AsJsonLines
from peterrec.service.errors import ServerRefused
from peterrec.service.jobs.server_calls import DEFAULT_URL, Server, server

SHOWN = 50
"""Changes that the table shows without ``--limit``."""

AUDIT_PATH = "/registry/audit"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(audit)


def audit(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    task: Annotated[
        str | None, typer.Option(autocompletion=complete_task, help="Only changes of this task.")
    ] = None,
    since: Annotated[int, typer.Option(min=0, help="Only changes after this revision.")] = 0,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Show this many changes, the newest ones.",
            show_default="50; with --json all",
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Print changes as they happen, one JSON object per line, until Ctrl-C."
        ),
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Show who changed what; the server keeps about the last 10,000 changes."""
    if follow:
        _follow(url, api_key, task, since)
        return
    parameters = {"format": "ndjson", "since": str(since)} | ({"task": task} if task else {})
    with server(url, api_key) as to:
        lines = to.lines(AUDIT_PATH, parameters)
        _refuse_part_of(lines)
        if since:
            _warn_of_lost_changes(to, since)
    kept = lines[-limit:] if limit else lines
    if as_json:
        for line in kept:
            print(line)
        return
    rows = [_row(json.loads(line)) for line in (kept if limit else kept[-SHOWN:])]
    print_table(("revision", "at", "actor", "action", "task", "what"), rows)


def _refuse_part_of(lines: Sequence[str]) -> None:
    """Raise the error with which the server broke off, if it did."""
    last = json.loads(lines[-1]) if lines else {}
    if "error" in last:
        error = last["error"]
        raise ServerRefused(error["code"], error["message"], error["hint"])


def _warn_of_lost_changes(to: Server, since: int) -> None:
    page = to.get(f"{AUDIT_PATH}?since={since}&limit=1")
    if not page["is_complete"]:
        lost = f"changes {since + 1} to {page['oldest_revision'] - 1}"
        print(f"warning: {lost} are no longer kept.", file=sys.stderr)


def _follow(url: str, api_key: str | None, task: str | None, since: int) -> None:
    with server(url, api_key) as to:
        for entry in to.follow(since or None):
            if task is None or entry.get("task") == task:
                print(json.dumps(entry, ensure_ascii=False), flush=True)


def _row(entry: Document) -> tuple[str, ...]:
    return (
        str(entry["revision"]),
        entry["at"][:19],
        entry["actor"],
        entry["action"],
        entry.get("task", ""),
        " ".join(_what(entry)),
    )


def _what(entry: Document) -> list[str]:
    """What an entry changed, from what to what."""
    words = [f"tenant {entry['tenant']}"] if "tenant" in entry and "task" not in entry else []
    words += [f"{name} {limit}" for name, limit in entry.get("quotas", {}).items()]
    words += [f"weight {entry['weight']:g}"] if entry.get("weight", 1) != 1 else []
    if "alias" in entry:
        words.append(f"{entry['alias']}:")
    if "previous" in entry or "current" in entry:
        words.append(f"{short(entry.get('previous'))} → {short(entry.get('current'))}")
    if "version" in entry:
        words.append(f"(version {entry['version']})")
    if "traffic" in entry or "previous_traffic" in entry:
        words.append(f"traffic {'put' if 'traffic' in entry else 'removed'}")
    if "reason" in entry:
        words.append(f"because {entry['reason']} was exceeded: {_observed(entry['observed'])}")
    return words + [entry[name] for name in ("key_id", "note") if name in entry]


def _observed(seen: Document) -> str:
    divergence = seen.get("divergence")
    parts = [f"{seen['errors']} of {seen['requests']} failed", f"p99 {seen['p99_ms']:.3g} ms"]
    parts += [] if divergence is None else [f"divergence {divergence:.3g}"]
    drop = seen.get("hit_drop")
    parts += [] if drop is None else [f"right {drop:.1%} less often"]
    return f"{short(seen['digest'])}, {', '.join(parts)}"
