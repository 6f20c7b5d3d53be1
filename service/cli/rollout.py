"""Commands that show and change which version answers: aliases, traffic and rollback."""

from typing import Annotated
from urllib.parse import quote

import typer

from peterrec.model.documents import Document
from peterrec.service.cli.guard_options import GuardOptions
from peterrec.service.cli.server_options import (
    AllowNewOutputs,
    ApiKey,
    IfMatch,
    Task,
    Url,
    print_json,
    print_table,
    short,
)
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import AsJson
from peterrec.service.jobs.server_calls import (
    DEFAULT_URL,
    outputs_parameter,
    server,
    task_path,
)

WHOLE = 100
"""Sum of all weights if ``--prod-weight`` is not given, so that canaries' weights are per cent."""


Alias = Annotated[
    str, typer.Argument(metavar="ALIAS", help="Name of the alias; prod is the one that answers.")
]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="Number or digest of the version.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(tasks)
    app.command()(versions)
    app.command()(rollback)
    alias = typer.Typer(
        help="Show and change aliases, the names of versions; prod is the one that answers.",
        no_args_is_help=True,
    )
    alias.command("list")(list_aliases)
    alias.command("set")(set_alias)
    alias.command("delete")(delete_alias)
    app.add_typer(alias, name="alias")
    traffic = typer.Typer(
        help="Show and change canaries, shadows and their guard.", no_args_is_help=True
    )
    traffic.command("show")(show_traffic)
    traffic.command("set")(takes_settings(set_traffic))
    traffic.command("clear")(clear_traffic)
    app.add_typer(traffic, name="traffic")


def tasks(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tasks of a running server."""
    with server(url, api_key) as to:
        listed = to.get("/tasks")
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
    """List a task's versions, oldest first, with their aliases."""
    with server(url, api_key) as to:
        found = to.get(task_path(task))
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
    alias: Annotated[
        str,
        typer.Option(help="Skip earlier states in which this alias names no version."),
    ] = "prod",
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Restore a task's previous state, all aliases and the traffic.

    Repeating the command goes back one more step.
    """
    with server(url, api_key) as to:
        back = to.change(
            "POST", task_path(task, ":rollback"), if_match=if_match, params={"alias": alias}
        )
    if as_json:
        print_json(back)
        return
    print(f"{task}: {alias} names version {back['version']}; {_traffic_line(back['traffic'])}.")
    print(f"  {back['digest']} at registry revision {back['registry_revision']}")
    _print_if_not_served(back)
    if back["new_outputs"]:
        print(f"  its answers have other outputs than before: {'; '.join(back['new_outputs'])}.")


def list_aliases(
    task: Task, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List the aliases of a task."""
    with server(url, api_key) as to:
        found = to.get(task_path(task, "/aliases"))
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
    allow_new_outputs: AllowNewOutputs = False,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version; if it is prod, that version answers when this returns."""
    body = {"version": int(version)} if version.isdecimal() else {"digest": version}
    with server(url, api_key) as to:
        moved = to.change(
            "PUT",
            task_path(task, f"/aliases/{quote(alias, safe='')}"),
            body,
            if_match=if_match,
            params=outputs_parameter(allow_new_outputs=allow_new_outputs),
        )
    if as_json:
        print_json(moved)
        return
    print(f"{task}: {alias} names version {moved['version']}; before: {short(moved['previous'])}.")
    _print_if_not_served(moved)


def delete_alias(
    task: Task,
    alias: Alias,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Delete an alias; its version stays."""
    with server(url, api_key) as to:
        changed = to.change(
            "DELETE", task_path(task, f"/aliases/{quote(alias, safe='')}"), if_match=if_match
        )
    if as_json:
        print_json(changed)
    else:
        print(f"{task}: {alias} names nothing.")


def show_traffic(
    task: Task, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show which versions answer a task, and with what shares."""
    with server(url, api_key) as to:
        found = to.get(task_path(task, "/traffic"))
    if as_json:
        print_json(found)
        return
    print_table(("role", "version", "share", "digest"), _traffic_rows(found))
    guard = (found["traffic"] or {}).get("guard")
    if guard:
        print("guard: " + ", ".join(f"{name} {bound}" for name, bound in guard.items() if bound))


def set_traffic(
    task: Task,
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    canary: Annotated[
        list[str],
        typer.Option(
            metavar="VERSION=WEIGHT",
            help="Let this version answer a share of the users; repeatable.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    shadow: Annotated[
        list[str],
        typer.Option(
            metavar="VERSION",
            help="Let this version compute every answer and return none; repeatable.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    prod_weight: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="100 minus the canaries' weights",
            help="Weight of the version named prod.",
        ),
    ] = None,
    guard: GuardOptions,
    allow_new_outputs: AllowNewOutputs = False,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """Split a task's requests among versions; with a limit (--max-…), a guard can end the split."""
    canaries = [_canary(text) for text in canary]
    left = max(0, WHOLE - sum(each["weight"] for each in canaries))
    body: Document = {
        "prod_weight": left if prod_weight is None else prod_weight,
        "canary": canaries,
        "shadow": shadow,
    }
    if (bounds := guard.body()) is not None:
        body["guard"] = bounds
    with server(url, api_key) as to:
        changed = to.change(
            "PUT",
            task_path(task, "/traffic"),
            body,
            if_match=if_match,
            params=outputs_parameter(allow_new_outputs=allow_new_outputs),
        )
    _print_traffic(task, changed, as_json)


def clear_traffic(
    task: Task,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    if_match: IfMatch = None,
    as_json: AsJson = False,
) -> None:
    """End the split: let prod answer everything."""
    with server(url, api_key) as to:
        changed = to.change("DELETE", task_path(task, "/traffic"), if_match=if_match)
    _print_traffic(task, changed, as_json)


def _canary(text: str) -> Document:
    version, _, weight = text.rpartition("=")
    if not version or not weight.isdecimal():
        raise typer.BadParameter(f"{text!r} is not VERSION=WEIGHT.", param_hint="--canary")
    return {"version": version, "weight": int(weight)}


def _names(task: Document, digest: str) -> list[str]:
    """The aliases of a version, and its roles in the traffic in parentheses."""
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


def _print_traffic(task: str, changed: Document, as_json: bool) -> None:
    if as_json:
        print_json(changed)
        return
    before, after = _traffic_line(changed["previous"]), _traffic_line(changed["traffic"])
    print(f"{task}: {after}; before: {before}.")
    print(f"  at registry revision {changed['registry_revision']}")
    _print_if_not_served(changed)


def _print_if_not_served(changed: Document) -> None:
    if not changed["is_served"]:
        print(
            "  this server has not loaded it and answers as before; GET /tasks/… shows what serves."
        )
