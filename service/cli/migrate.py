"""The command that moves a tenant's tasks to another backbone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peterrec.model.disk import require_writable_folder
from peterrec.model.documents import Document
from peterrec.service.cli.failures import interruption_keeps
from peterrec.service.cli.guard_options import GuardOptions, MaxErrorShare
from peterrec.service.cli.server_options import (
    AllowNewOutputs,
    ApiKey,
    Url,
    print_json,
    print_table,
)
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import AsJson, Quiet, task_names
from peterrec.service.errors import TasksNotMigrated
from peterrec.service.jobs.hints import hint_for
from peterrec.service.jobs.options import INPUT
from peterrec.service.jobs.server_calls import DEFAULT_URL, server

if TYPE_CHECKING:
    from peterrec.service.jobs.migrate.plan import DataPlaces

NAMES = {
    name: f"--{name.replace('_', '-')}"
    for name in ("old_backbone", "data", "sources", "tolerance", "max_unknown_share")
}
"""How this command writes the settings that the hints of its reasons name."""

FINGERPRINT = 12
"""Characters of a backbone's fingerprint that are shown."""


@dataclass(frozen=True, slots=True)
class CanaryGuard(GuardOptions):
    """The guard of new versions: it always bounds failures."""

    max_error_share: MaxErrorShare = 0.01


def register(app: typer.Typer) -> None:
    """Add this group's command."""
    app.command()(takes_settings(migrate))


def migrate(
    backbone: Annotated[Path, typer.Option(help="Folder of the backbone to move to.")],
    out: Annotated[
        Path, typer.Option(help="Folder of new bundles, the report, and what is finished.")
    ],
    *,
    old_backbone: Annotated[
        list[Path],
        typer.Option(
            help="Folder of a backbone to move from, by which the old versions are measured; "
            "repeatable."
        ),
    ] = [],  # noqa: B006  # typer copies it
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,…", help="Tasks to move, or all.")
    ] = None,
    glob: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Also the tasks whose names match it.")
    ] = None,
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            help="Folder in or below which the recorded files are looked for; repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = [],  # noqa: B006  # typer copies it
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="File that says where the data of some tasks are, and how they are read.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    max_unknown_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fail if a larger share of items is unknown to the backbone; default: as "
            "recorded.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it. Without it nothing is changed or written.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            help="Share of its metric that a new version may lose; a worse one is not registered.",
        ),
    ] = 0.05,
    weight: Annotated[
        int, typer.Option(min=1, max=99, help="Per cent of the users that a new version answers.")
    ] = 5,
    guard: CanaryGuard,
    sign_key: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Sign new bundles with this private key; repeatable."),
    ] = [],  # noqa: B006  # typer copies it
    allow_new_outputs: AllowNewOutputs = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train tasks again on another backbone, compare, and register them as guarded canaries.

    First it only says what it would do. With --apply it does; the same command goes on after a
    kill, and with the tasks that failed.
    """
    names = task_names(tasks)
    if not names and not glob:
        raise typer.BadParameter("name --tasks (or all), or a --glob of tasks")
    if apply:
        require_writable_folder(out)
    from peterrec.patches.bundle.signatures import SigningKey
    from peterrec.service.jobs.migrate.data_places import DataFinder
    from peterrec.service.jobs.migrate.journal import Journal
    from peterrec.service.jobs.migrate.plan import Backbones, Planner
    from peterrec.service.jobs.migrate.report import report_of
    from peterrec.service.jobs.migrate.run import REPORT, CanaryOptions, run_migrate
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.score.bundles import TaskChoice

    keys = tuple(map(SigningKey.read, sign_key))
    choice = TaskChoice(names, glob or None)
    going_on = "The same command goes on from where it was."
    with (
        interruption_keeps(lambda: going_on),
        server(url, api_key) as to,
        observing(quiet) as observer,
    ):
        backbones = Backbones.read(backbone, old_backbone)
        planner = Planner(
            to,
            backbones,
            _places(data, sources),
            DataFinder(observer),
            observer,
            max_unknown_share,
        )
        if not apply:
            journal = Journal.read(out, backbones.new.fingerprint, mends=False)
            report = report_of(backbones, [], planner.plan(choice, journal))
        else:
            options = CanaryOptions(weight, guard.body() or {}, tolerance, allow_new_outputs, keys)
            moved = run_migrate(out, planner, choice, options)
            report = report_of(backbones, moved, [])
    _print(report, as_json=as_json, is_applied=apply)
    left = [each["task"] for each in report["tasks"] if each["outcome"] in LEFT]
    if apply and left:
        raise TasksNotMigrated(left, str(out / REPORT))


LEFT = ("worse", "blocked", "failed")
"""Outcomes of tasks that are where they were."""


def _places(data: list[Path], sources: Path | None) -> "DataPlaces":
    from peterrec.service.jobs.migrate.data_places import look_below
    from peterrec.service.jobs.migrate.plan import DataPlaces
    from peterrec.service.jobs.migrate.sources_file import read_sources

    if sources is None:
        return DataPlaces(look_below(data))
    return DataPlaces(look_below(data), read_sources(sources), sources.parent)


def _print(report: Document, *, as_json: bool, is_applied: bool) -> None:
    if as_json:
        print_json(report)
        return
    rows = [_row(each) for each in report["tasks"]]
    if is_applied:
        columns = ("task", "from", "to", "metric", "old", "new", "difference, 95 %", "outcome")
        print_table(columns, [moved for _, moved in rows])
    else:
        print_table(("task", "kind", "from", "data", "outcome"), [planned for planned, _ in rows])
    for each in report["tasks"]:
        if each["reason"] is not None:
            reason = each["reason"]
            hint = hint_for(reason["hint"], NAMES)
            print(f"{each['task']}: {reason['code']}: {reason['message']}\n  {hint}")
    if not is_applied:
        count = sum(each["outcome"] == "planned" for each in report["tasks"])
        print(f"{count} of {len(rows)} tasks would be trained; nothing was changed.")


def _row(each: Document) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A task's rows in the tables of a plan and of what was done."""
    before, after, figures = each["from"], each["to"], each["comparison"]
    version = f"{before['version'] or '–'}"
    start = f"{version} on {before['backbone'][:FINGERPRINT]}" if before["backbone"] else version
    training = each["training"] or {"data": {}}
    planned = (
        each["task"],
        each["kind"] or "–",
        start,
        ", ".join(training["data"].values()) or "–",
        each["outcome"],
    )
    numbers = ("–", "–", "–", "–") if figures is None else _figures(figures)
    weight = f" ({after['weight']} %)" if after["weight"] else ""
    return planned, (
        each["task"],
        start,
        f"{after['version'] or '–'}",
        *numbers,
        f"{each['outcome']}{weight if each['outcome'] == 'canary' else ''}",
    )


def _figures(found: Document) -> tuple[str, str, str, str]:
    old, new, gap = (_number(found[name]) for name in ("old", "new", "difference"))
    ends = [_number(found[name]) for name in ("low", "high")]
    within = f" ({ends[0]} to {ends[1]})" if found["low"] is not None else ""
    return f"{found['metric']}, {found['users']:,} users", old, new, f"{gap}{within}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
