"""Commands that show and change who answers: versions, aliases, traffic, and the way back."""

from typing import Annotated, Any

import typer

from peterrec.service.cli.server_options import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    IfMatch,
    Task,
    Url,
    print_json,
    print_table,
    server,
    short,
)

WHOLE = 100
"""Weights read as per cent as long as nobody says what prod's is."""

Document = dict[str, Any]  # Any: JSON documents, whose shape the server's OpenAPI document tells

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="prod is the one that answers.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="Number or digest.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(tasks)
    app.command()(versions)
    app.command()(rollback)
    alias = typer.Typer(help="Names of versions; prod answers.", no_args_is_help=True)
    alias.command("list")(list_aliases)
    alias.command("set")(set_alias)
    alias.command("delete")(delete_alias)
    app.add_typer(alias, name="alias")
    traffic = typer.Typer(help="Canaries, shadows and their guard.", no_args_is_help=True)
    traffic.command("show")(show_traffic)
    traffic.command("set")(set_traffic)
    traffic.command("clear")(clear_traffic)
    app.add_typer(traffic, name="traffic")


def tasks(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tasks of a running server."""
    with server(url, api_key) as client:
        listed = client.get("/tasks")
    if as_json:
        print_json(listed)
        return
    rows = [
        (
            task["task"],
            ", ".join(f"{name} → {a['version']}" for name, a in task["aliases"].items()),
            _traffic_in_brief(task["traffic"]),
            str(task["revision"]),
            task["description"],
        )
        for task in listed
    ]
    print_table(("task", "aliases", "traffic", "revision", "description"), rows)


def versions(
    task: Task, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List a task's versions, oldest first, and who names them."""
    with server(url, api_key) as client:
        found = client.get(_path(task))
    if as_json:
        print_json(found["versions"])
        return
    rows = [
        (
            str(version["version"]),
            ", ".join(_names(found, version["digest"])),
            f"{version['kind']} ({version['outputs']})",
            str(version["size_bytes"]),
            ", ".join(f"{name} {value:.4g}" for name, value in version["metrics"].items()),
            ", ".join(version["signed_by"]),
            f"{version['created_at'][:19]} {version['actor']}",
            short(version["digest"]),
        )
        for version in found["versions"]
    ]
    columns = ("version", "named by", "kind", "bytes", "metrics", "signed by", "registered")
    print_table((*columns, "digest"), rows)


def rollback(
    task: Task,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    alias: Annotated[str, typer.Option(help="Must name a version afterwards.")] = "prod",
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Restore a task's state before, all aliases and the traffic; again: one step further."""
    with server(url, api_key) as client:
        back = client.change("POST", _path(task, f":rollback?alias={alias}"), None, if_match)
    if as_json:
        print_json(back)
        return
    print(f"{task}: {alias} names version {back['version']}; {_traffic_line(back['traffic'])}.")
    print(f"  {back['digest']} at registry revision {back['registry_revision']}")


def list_aliases(
    task: Task, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List the aliases of a task."""
    with server(url, api_key) as client:
        found = client.get(_path(task, "/aliases"))
    if as_json:
        print_json(found)
        return
    rows = [(name, str(each["version"]), each["digest"]) for name, each in sorted(found.items())]
    print_table(("alias", "version", "digest"), rows)


def set_alias(
    task: Task,
    alias: Alias,
    version: Version,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias name a version; prod answers with it when this returns."""
    body = {"version": int(version)} if version.isdecimal() else {"digest": version}
    with server(url, api_key) as client:
        moved = client.change("PUT", _path(task, f"/aliases/{alias}"), body, if_match)
    if as_json:
        print_json(moved)
        return
    print(f"{task}: {alias} names version {moved['version']}; before: {short(moved['previous'])}.")


def delete_alias(
    task: Task,
    alias: Alias,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias name nothing."""
    with server(url, api_key) as client:
        changed = client.change("DELETE", _path(task, f"/aliases/{alias}"), None, if_match)
    if as_json:
        print_json(changed)
    else:
        print(f"{task}: {alias} names nothing.")


def show_traffic(
    task: Task, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show who answers a task."""
    with server(url, api_key) as client:
        found = client.get(_path(task, "/traffic"))
    if as_json:
        print_json(found)
        return
    print_table(("role", "version", "share", "digest"), _traffic_rows(found))
    guard = (found["traffic"] or {}).get("guard")
    if guard:
        print("guard: " + ", ".join(f"{name} {bound}" for name, bound in guard.items() if bound))


def set_traffic(
    task: Task,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    canary: Annotated[
        list[str],
        typer.Option(metavar="VERSION=WEIGHT", help="Answers this share; repeatable."),
    ] = [],  # noqa: B006  # typer copies it
    shadow: Annotated[
        list[str], typer.Option(metavar="VERSION", help="Computes and never answers; repeatable.")
    ] = [],  # noqa: B006  # typer copies it
    prod_weight: Annotated[
        int | None,
        typer.Option(min=0, show_default="what the canaries leave of 100", help="Prod's share."),
    ] = None,
    max_error_share: Annotated[float | None, typer.Option(help="Guard: 0 to 1.")] = None,
    max_p99_ms: Annotated[float | None, typer.Option(help="Guard: latency.")] = None,
    max_divergence: Annotated[float | None, typer.Option(help="Guard: 0 to 1, from prod.")] = None,
    min_requests: Annotated[int, typer.Option(min=1, help="Guard: judge nothing before.")] = 100,
    window_s: Annotated[int, typer.Option(min=1, help="Guard: look back so far.")] = 300,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Split a task's requests; with a bound, a guard ends the split by itself."""
    canaries = [_canary(text) for text in canary]
    left = max(0, WHOLE - sum(each["weight"] for each in canaries))
    body: Document = {
        "prod_weight": left if prod_weight is None else prod_weight,
        "canary": canaries,
        "shadow": shadow,
    }
    bounds = {
        "max_error_share": max_error_share,
        "max_p99_ms": max_p99_ms,
        "max_divergence": max_divergence,
    }
    if any(bound is not None for bound in bounds.values()):
        body["guard"] = {**bounds, "min_requests": min_requests, "window_s": window_s}
    with server(url, api_key) as client:
        changed = client.change("PUT", _path(task, "/traffic"), body, if_match)
    _tell_traffic(task, changed, as_json)


def clear_traffic(
    task: Task,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Let prod answer everything."""
    with server(url, api_key) as client:
        changed = client.change("DELETE", _path(task, "/traffic"), None, if_match)
    _tell_traffic(task, changed, as_json)


def _path(task: str, rest: str = "") -> str:
    from peterrec.service.cli.api_client import task_path

    return task_path(task, rest)


def _canary(text: str) -> Document:
    version, _, weight = text.rpartition("=")
    if not version or not weight.isdecimal():
        raise typer.BadParameter(f"{text!r} is not VERSION=WEIGHT.", param_hint="--canary")
    return {"version": version, "weight": int(weight)}


def _names(task: Document, digest: str) -> list[str]:
    """The aliases and roles of a version."""
    aliases = [name for name, each in task["aliases"].items() if each["digest"] == digest]
    traffic = task["traffic"] or {"canary": [], "shadow": []}
    roles = [role for role in ("canary", "shadow") for v in traffic[role] if v["digest"] == digest]
    return sorted(aliases) + [f"({role})" for role in roles]


def _traffic_rows(found: Document) -> list[tuple[str, str, str, str]]:
    traffic = found["traffic"] or {"prod_weight": 1, "canary": [], "shadow": []}
    total = traffic["prod_weight"] + sum(each["weight"] for each in traffic["canary"])
    prod = found["prod"] or {"version": "none", "digest": None}
    answering = [("prod", prod, traffic["prod_weight"])]
    answering += [("canary", each, each["weight"]) for each in traffic["canary"]]
    rows = [
        (role, str(each["version"]), f"{weight / total:.1%}", short(each["digest"]))
        for role, each, weight in answering
    ]
    return rows + [
        ("shadow", str(each["version"]), "none", short(each["digest"]))
        for each in traffic["shadow"]
    ]


def _traffic_in_brief(traffic: Document | None) -> str:
    if traffic is None:
        return ""
    canaries = [f"canary {each['version']}={each['weight']}" for each in traffic["canary"]]
    shadows = [f"shadow {each['version']}" for each in traffic["shadow"]]
    guarded = ["guarded"] if traffic["guard"] else []
    return ", ".join([f"prod={traffic['prod_weight']}", *canaries, *shadows, *guarded])


def _traffic_line(traffic: Document | None) -> str:
    return _traffic_in_brief(traffic) or "prod answers alone"


def _tell_traffic(task: str, changed: Document, as_json: bool) -> None:
    if as_json:
        print_json(changed)
        return
    before, after = _traffic_line(changed["previous"]), _traffic_line(changed["traffic"])
    print(f"{task}: {after}; before: {before}.")
    print(f"  at registry revision {changed['registry_revision']}")
