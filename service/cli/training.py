"""Commands of the training group: pretrain a backbone, fine-tune and evaluate tasks."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.disk import require_writable_file, require_writable_folder
from peterrec.model.documents import Document
from peterrec.model.progress import Progress
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.cli.failures import interruption_keeps
from peterrec.service.cli.parts_text import print_parts
from peterrec.service.cli.ray_options import ON_RAY, RayAddress, needing_ray
from peterrec.service.cli.settings_options import FieldsOf, takes_settings
from peterrec.service.cli.shared_options import AsJson, BackboneFolder, Blocks, Overwrite, Quiet
from peterrec.service.jobs.describing import DescribeOptions
from peterrec.service.jobs.options import (
    INPUT,
    AnswerOptions,
    EventOptions,
    TimeOptions,
    answers_of,
    parse_blocks,
)
from peterrec.service.jobs.tracking.options import TrackOptions

if TYPE_CHECKING:
    from peterrec.service.jobs.train import OnExisting

PATCHED_BLOCKS = frozenset({"blocks"})
"""The field that a command reads itself, as it must know the backbone's number of blocks."""

SPLIT = frozenset({"min_label_count", "max_unknown_share", "validation_share", "test_share"})
"""Fields of fine-tuning's settings that decide which users are evaluated."""


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(takes_settings(pretrain))
    app.command()(takes_settings(finetune))
    app.command()(takes_settings(evaluate))


def pretrain(
    events: EventOptions,
    out: Annotated[Path, typer.Option(help="Backbone folder to write.")],
    settings: PretrainSettings,
    tracking: TrackOptions,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Read no event at this time or later.", rich_help_panel=INPUT
        ),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="Device to compute on.", rich_help_panel="Training"),
    ] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Overwrite = False,
    ray: RayAddress = None,
    ray_processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes of Ray at most, each with a core or a graphics card.",
            rich_help_panel=ON_RAY,
        ),
    ] = 2,
    quiet: Quiet = False,
) -> None:
    """Train a backbone on users' histories, without labels; several processes may share the work.

    torchrun starts them, or Ray, which goes on with those that are left if one is lost. Each
    computes its share of every step.
    """
    if os.environ.get("RANK", "0") == "0":  # only the first process of torchrun writes
        require_writable_folder(out)
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.recording import Recording
    from peterrec.service.jobs.torchrun import place_of
    from peterrec.service.jobs.train import kept_of, run_pretrain

    on_existing = _on_existing(resume, overwrite)
    if ray is not None:
        with needing_ray():
            from peterrec.service.jobs.ray_training import RayPretraining, pretrain_on_ray
        job = RayPretraining(
            address=ray,
            processes=ray_processes,
            uses_gpu=device == "cuda",
            interactions=events.source(until),
            settings=settings,
            out=out,
            on_existing=on_existing,
            tracking=tracking,
            is_quiet=quiet,
        )
        with interruption_keeps(lambda: kept_of(out)):
            _print_backbone(out, *pretrain_on_ray(job))
        return
    with (
        interruption_keeps(lambda: kept_of(out)),
        place_of(device) as place,
        observing(quiet or not place.workers.writes) as observer,
    ):
        trained, fingerprint = run_pretrain(
            events.source(until),
            settings,
            out,
            on_existing,
            observer,
            place,
            Recording(tracking, observer.line, observer.notices),
        )
    if place.workers.writes:
        _print_backbone(out, trained.record, fingerprint)


def _print_backbone(out: Path, record: Document, fingerprint: str) -> None:
    epoch = record["epochs"][record["best_epoch"]]
    rows = {"validation loss": epoch["validation_loss"], **epoch["validation_metrics"]}
    _print_metrics(f"{out}, best epoch {epoch['epoch'] + 1}", rows)
    print(f"backbone {fingerprint}")


def finetune(
    backbone: BackboneFolder,
    events: EventOptions,
    out: Annotated[Path, typer.Option(help="Bundle file to write, FILE.bundle.")],
    answers: AnswerOptions,
    time: TimeOptions,
    settings: Annotated[FinetuneSettings, FieldsOf(FinetuneSettings, without=PATCHED_BLOCKS)],
    descriptions: DescribeOptions,
    tracking: TrackOptions,
    name: Annotated[
        str | None, typer.Option(help="Name in the bundle's manifest; default: the file's name.")
    ] = None,
    blocks: Blocks = "all",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train one task's parts and head on a frozen backbone, and write its bundle."""
    require_writable_file(out)
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.recording import Recording
    from peterrec.service.jobs.train import FinetuneJob, run_finetune

    job = FinetuneJob(
        interactions=events.source(time.end_of_histories),
        answers=answers_of(events, answers, time),
        out=out,
        name=name or out.name.removesuffix(".bundle"),
        overwrite=overwrite,
        descriptions=descriptions,
    )
    with observing(quiet) as observer:
        observer.progress(Progress("loading the backbone"))
        loaded = load_backbone(backbone)
        settings = replace(settings, blocks=parse_blocks(blocks, len(loaded.backbone.blocks)))
        recording = Recording(tracking, observer.line, observer.notices)
        packed = run_finetune(loaded, job, settings, observer, recording)
    task = packed.task
    data = task.record["data"]
    _print_metrics(f"{out}, {data['test_users']} test users", task.metrics)
    print_parts(task.record)
    if "ece" in task.metrics:
        print(f"temperature {task.temperature:.3f}, fitted on the validation users")
    if data["without_history"]:
        print(f"{data['without_history']} users without a known history were left out")


def evaluate(
    backbone: BackboneFolder,
    bundle: Annotated[Path, typer.Option(help="Bundle file to evaluate.")],
    events: EventOptions,
    answers: AnswerOptions,
    time: TimeOptions,
    split: Annotated[dict[str, Any], FieldsOf(FinetuneSettings, only=SPLIT)],
    part: Annotated[
        Literal["all", "test"],
        typer.Option(help="Evaluate all users, or only those that fine-tuning kept apart (test)."),
    ] = "all",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle again, on the users of any files, by the plain forward."""
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.train import EvaluateJob, run_evaluate

    job = EvaluateJob(
        bundle=bundle.read_bytes(),
        interactions=events.source(time.end_of_histories),
        answers=answers_of(events, answers, time),
        part=part,
        **split,
    )
    with observing(quiet) as observer:
        observer.progress(Progress("loading the backbone"))
        metrics, users = run_evaluate(load_backbone(backbone), job, observer)
    if as_json:
        print(json.dumps({"users": users, "metrics": metrics}))
    else:
        _print_metrics(f"{bundle}, {users} users", metrics)


def _on_existing(resume: bool, overwrite: bool) -> "OnExisting":
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if resume:
        return "resume"
    return "overwrite" if overwrite else "refuse"


def _print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """Print each metric next to that of the best answer that ignores the history."""
    prefix = "baseline_"
    has_baseline = any(name.startswith(prefix) for name in metrics)
    table = Table("metric", "value", *(["no history"] if has_baseline else []), title=title)
    for name, value in metrics.items():
        if not name.startswith(prefix):
            baseline = metrics.get(prefix + name)
            shown = [f"{baseline:.4f}" if baseline is not None else ""] if has_baseline else []
            table.add_row(name, f"{value:.4f}", *shown)
    Console(highlight=False).print(table)
