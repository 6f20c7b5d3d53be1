"""The command that fine-tunes many tasks in one run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from peterrec.model.progress import Progress
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.service.cli.settings_options import FieldsOf, takes_settings
from peterrec.service.cli.shared_options import BackboneFolder, Blocks, Overwrite, Quiet
from peterrec.service.jobs.options import EventOptions, TimeOptions, parse_blocks
from peterrec.service.jobs.tracking.options import TrackOptions

COMMON = FieldsOf(
    FinetuneSettings, of_panel="Model", without=frozenset({"kind", "has_cls", "blocks"})
)
"""What all tasks of a run share: the patch's place. ``[CLS]`` is trained if block 0 is patched."""


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command(name="finetune-many")(takes_settings(finetune_many))


def finetune_many(
    backbone: BackboneFolder,
    events: EventOptions,
    tasks: Annotated[
        Path,
        typer.Option(help="TOML file of the tasks and their bundles."),
    ],
    time: TimeOptions,
    patch: Annotated[dict[str, Any], COMMON],
    tracking: TrackOptions,
    blocks: Blocks = "all",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train many tasks' parts and heads together, and write a bundle for each."""
    from peterrec.service.jobs.task_file import read_task_file

    entries = read_task_file(tasks)
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.recording import Recording
    from peterrec.service.jobs.train_many import ManyJob, run_finetune_many

    with observing(quiet) as observer:
        observer.progress(Progress("loading the backbone"))
        loaded = load_backbone(backbone)
        patch["blocks"] = parse_blocks(blocks, len(loaded.backbone.blocks))
        job = ManyJob(events, time, entries, tasks.parent, patch, overwrite)
        recording = Recording(tracking, observer.line, observer.notices)
        trained = run_finetune_many(loaded, job, observer, recording)
    bundle = Column("bundle", no_wrap=True)
    errors_of = "ECE: raw, calibrated"
    table = Table(bundle, "parts", "test users", "metric", "value", "no history", errors_of)
    for out, packed in trained:
        task = packed.task
        name = next(iter(task.metrics))
        baseline = task.metrics.get(f"baseline_{name}")
        without_history = "" if baseline is None else f"{baseline:.4f}"
        users = str(task.record["data"]["test_users"])
        errors = [task.metrics[n] for n in ("ece_uncalibrated", "ece") if n in task.metrics]
        shown = ", ".join(f"{error:.3f}" for error in errors)
        value = f"{task.metrics[name]:.4f}"
        parts = "+".join(task.record["parts"]) or "head"
        table.add_row(out.name, parts, users, name, value, without_history, shown)
    Console(highlight=False).print(table)
