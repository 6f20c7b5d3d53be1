"""The command that scores a whole user base."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from peterrec.model.disk import require_writable_folder
from peterrec.patches.identity import DEFAULT_TENANT, parse_tenant
from peterrec.service.cli.ray_options import ON_RAY, RayAddress, needing_ray
from peterrec.service.cli.registry import (
    DEFAULT_DATA_DIR,
    DEFAULT_PREFIX,
    DataDir,
    Prefix,
    RedisUrl,
    in_registry,
    registry_address,
)
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import (
    AsJson,
    BackboneFolder,
    Overwrite,
    Quiet,
    task_names,
)
from peterrec.service.jobs.options import INPUT, TableOptions

if TYPE_CHECKING:
    from peterrec.service.jobs.score.bundles import Pinned
    from peterrec.service.jobs.score.run import Report

OUTPUT = "Output"
TASKS = "Tasks"


def register(app: typer.Typer) -> None:
    """Add this group's command."""
    app.command()(takes_settings(score))


def score(
    users: Annotated[
        str,
        typer.Option(
            metavar="PATH|URL",
            help="Users: Parquet, CSV or JSON lines, a folder of them, or a URL (s3://, gs://, "
            "https:// …). One row per user with a list of items, or one row per event.",
            rich_help_panel=INPUT,
        ),
    ],
    backbone: BackboneFolder,
    out: Annotated[
        Path,
        typer.Option(help="Folder to write: a folder task=NAME for each.", rich_help_panel=OUTPUT),
    ],
    table: TableOptions,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="Tasks to score, or all.", rich_help_panel=TASKS),
    ] = None,
    glob: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Also the tasks whose names match it.", rich_help_panel=TASKS
        ),
    ] = None,
    bundles: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Bundle file, or a folder of them, instead of a registry; repeatable. A task is "
            "named as its file.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    redis_url: RedisUrl = None,
    redis_prefix: Prefix = DEFAULT_PREFIX,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    tenant: Annotated[
        str, typer.Option(help="Whose tasks of the registry.", rich_help_panel=TASKS)
    ] = DEFAULT_TENANT,
    history_column: Annotated[
        str | None,
        typer.Option(
            help="Column with a list of items in each row.",
            show_default="history, if there is one; else rows are events",
            rich_help_panel=INPUT,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Read no event at this time or later.", rich_help_panel=INPUT
        ),
    ] = None,
    top_k: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Items that a ranking names.", rich_help_panel=OUTPUT),
    ] = 10,
    vectors: Annotated[
        Literal["parquet", "npy"] | None,
        typer.Option(
            help="Also write the backbone's user vectors: as Parquet, or as client_ids.npy and "
            "float16 embeddings.npy.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    part_rows: Annotated[
        int,
        typer.Option(min=1, help="Users in one file of the output.", rich_help_panel=OUTPUT),
    ] = 1 << 18,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to compute on.")] = "cpu",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Type of the device's products.")
    ] = "float32",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished part, if there is one.")
    ] = False,
    overwrite: Overwrite = False,
    ray: RayAddress = None,
    ray_actors: Annotated[
        int,
        typer.Option(min=1, help="Actors at most, each with a backbone.", rich_help_panel=ON_RAY),
    ] = 2,
    ray_cores: Annotated[
        int,
        typer.Option(
            min=1, help="Cores of each actor; on cuda, a card instead.", rich_help_panel=ON_RAY
        ),
    ] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Answer many tasks for a whole user base, from files to files, without a server.

    A killed run goes on with --resume: it writes each user and task exactly once.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    names = task_names(tasks)
    if not names and not glob and vectors is None:
        raise typer.BadParameter("name --tasks (or all), a --glob of tasks, or --vectors")
    require_writable_folder(out)
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.score.bundles import TaskChoice, pin_files, pin_in_registry
    from peterrec.service.jobs.score.job import ScoreJob, run_job
    from peterrec.service.jobs.score.run import RayPlace
    from peterrec.service.jobs.score.scorer import ScorerOptions
    from peterrec.service.system.logs import LogStyle, configure_logs

    if ray is not None:
        with needing_ray():
            import peterrec.service.jobs.score.on_ray  # noqa: F401  # refused before anything is read
    choice = TaskChoice(names, glob or None)

    def pin(folder: Path) -> "Pinned":
        if bundles is not None:
            return pin_files(bundles, choice, folder)
        owner = parse_tenant(tenant)
        with registry_address(redis_url, data_dir) as url:
            return in_registry(
                url, redis_prefix, lambda found: pin_in_registry(found, owner, choice, folder)
            )

    job = ScoreJob(
        users=users,
        events=lambda path: table.source_of(path, until),
        history_column=history_column,
        backbone=backbone,
        out=out,
        choice=choice,
        pin=pin,
        is_of_registry=bundles is None,
        scorer=ScorerOptions(device, precision, top_k, vectors is not None),
        part_rows=part_rows,
        vectors=vectors,
        on_existing="resume" if resume else "overwrite" if overwrite else "refuse",
        ray=None if ray is None else RayPlace(ray, ray_actors, ray_cores),
    )
    if device == "cuda":
        configure_logs(LogStyle("warning"), "score")  # kernels that are compiled are no news here
    with observing(quiet) as observer:
        report = run_job(job, observer)
    _print(report, out, as_json=as_json)


def _print(report: "Report", out: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"out": str(out), **asdict(report)}))
        return
    from peterrec.model.training.objectives.summary import counted

    users = counted(report.rows - report.bad, "user")
    print(f"{out}: scored {users}, in {counted(report.parts, 'part')}")
    if report.bad:
        print(f"{counted(report.bad, 'bad row')}, with reasons: {out / '_bad_rows'}")
    if report.unknown:
        print(f"{report.unknown_share:.1%} of the items are unknown to the backbone")
