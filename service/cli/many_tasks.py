"""The command that fine-tunes many tasks in one run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from peterrec.service.cli.training import (
    MODEL,
    BackboneFolder,
    Blocks,
    CutOff,
    Delimiter,
    Insertion,
    Interactions,
    ItemColumn,
    OrderColumn,
    Overwrite,
    Queries,
    Until,
    UserColumn,
    Where,
    interaction_source,
)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command(name="finetune-many")(finetune_many)


def finetune_many(
    backbone: BackboneFolder,
    interactions: Interactions,
    tasks: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="TOML file of tasks and bundles.")
    ],
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    order_column: OrderColumn = None,
    delimiter: Delimiter = ",",
    where: Where = None,
    cut_off: CutOff = None,
    until: Until = None,
    insertion: Annotated[Insertion, typer.Option(rich_help_panel=MODEL)] = Insertion.SERIAL2,
    bottleneck: Annotated[
        int, typer.Option(min=1, help="Summed over branches.", rich_help_panel=MODEL)
    ] = 8,
    cardinality: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL)] = 1,
    blocks: Blocks = "none",
    queries: Queries = 8,
    inner_skip: Annotated[
        bool, typer.Option(help="Published form of parallel2.", rich_help_panel=MODEL)
    ] = False,
    norms: Annotated[
        bool, typer.Option(help="Train patched blocks' second norm.", rich_help_panel=MODEL)
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Train many tasks' patches and heads together, and write a bundle for each."""
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.model.spec import PatchGeometry
    from peterrec.service.jobs.many_jobs import ManyJob, run_finetune_many
    from peterrec.service.jobs.options import parse_blocks
    from peterrec.service.jobs.progress_bar import ProgressBars
    from peterrec.service.jobs.task_file import read_task_file

    loaded = load_backbone(backbone)
    count = len(loaded.backbone.blocks)
    patched = parse_blocks(blocks, count)
    geometry = PatchGeometry(
        insertion=insertion.value,
        bottleneck=bottleneck,
        blocks=patched,
        cardinality=cardinality,
        has_inner_skip=inner_skip,
        has_norms=norms and bool(patched),
        has_cls=0 in patched,
        queries=queries,
    )
    source = interaction_source(
        interactions, user_column, item_column, order_column, delimiter, where
    )
    entries = read_task_file(tasks)
    job = ManyJob(source, entries, tasks.parent, geometry, overwrite, cut_off, until)
    with ProgressBars() as bars:
        trained = run_finetune_many(loaded, job, bars)
    bundle = Column("bundle", no_wrap=True)
    table = Table(bundle, "test users", "metric", "value", "no history", "ECE: raw, calibrated")
    for out, task in trained:
        name = next(iter(task.metrics))
        baseline = task.metrics.get(f"baseline_{name}")
        beside = "" if baseline is None else f"{baseline:.4f}"
        users = str(task.record["data"]["test_users"])
        errors = [task.metrics[n] for n in ("ece_uncalibrated", "ece") if n in task.metrics]
        shown = ", ".join(f"{error:.3f}" for error in errors)
        table.add_row(out.name, users, name, f"{task.metrics[name]:.4f}", beside, shown)
    Console(highlight=False).print(table)
