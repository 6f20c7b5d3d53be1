"""The audit trail of a running server: who changed what, when, from what to what."""

import json
import sys
from typing import Annotated, Any

import typer

from peterrec.service.cli.server_options import (
    DEFAULT_URL,
    ApiKey,
    Url,
    complete_task,
    print_table,
    server,
    short,
)

SHOWN = 50

Document = dict[str, Any]  # Any: JSON documents, whose shape the server's OpenAPI document tells


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
        int | None, typer.Option(min=1, help="The newest so many.", show_default="50; all as JSON")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens, one JSON object a line.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, for keeping.")
    ] = False,
) -> None:
    """Show who changed what; the server keeps about the last 10,000 changes."""
    if follow:
        _follow(url, api_key, task, since)
        return
    parameters = {"format": "ndjson", "since": str(since)} | ({"task": task} if task else {})
    with server(url, api_key) as client:
        lines, headers = client.lines("/registry/audit", **parameters)
    if headers.get("x-audit-complete") == "false" and since:
        oldest = headers["x-audit-oldest-revision"]
        print(f"warning: changes {since + 1} to {int(oldest) - 1} are lost.", file=sys.stderr)
    kept = lines[-limit:] if limit else lines
    if as_json:
        for line in kept:
            print(line)
        return
    rows = [_row(json.loads(line)) for line in (kept if limit else kept[-SHOWN:])]
    print_table(("revision", "at", "actor", "action", "task", "what"), rows)


def _follow(url: str, api_key: str | None, task: str | None, since: int) -> None:
    parameters = {"since": str(since)} if since else {}
    with server(url, api_key) as client:
        for entry in client.follow("/registry/events", **parameters):
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
    """From what to what, in a few words."""
    words = []
    if "alias" in entry:
        words.append(f"{entry['alias']}:")
    if "previous" in entry or "current" in entry:
        words.append(f"{short(entry.get('previous'))} → {short(entry.get('current'))}")
    if "version" in entry:
        words.append(f"(version {entry['version']})")
    if "traffic" in entry or "previous_traffic" in entry:
        words.append(f"traffic {'put' if 'traffic' in entry else 'removed'}")
    if "reason" in entry:
        words.append(f"since {entry['reason']} was broken: {_observed(entry['observed'])}")
    return words + [entry[name] for name in ("key_id", "note") if name in entry]


def _observed(seen: Document) -> str:
    divergence = seen.get("divergence")
    parts = [f"{seen['errors']} of {seen['requests']} failed", f"p99 {seen['p99_ms']:.3g} ms"]
    parts += [] if divergence is None else [f"divergence {divergence:.3g}"]
    return f"{short(seen['digest'])}, {', '.join(parts)}"
