"""The command that measures how well a backbone predicts users' next items."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.progress import Progress
from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import AsJson, BackboneFolder, Quiet
from peterrec.service.jobs.options import INPUT, EventOptions

if TYPE_CHECKING:
    from peterrec.model.training.intervals import Estimate
    from peterrec.service.jobs.evaluate_backbone import NextItemQuality


def register(app: typer.Typer) -> None:
    """Add this group's command."""
    app.command()(takes_settings(evaluate_backbone))


def evaluate_backbone(
    backbone: BackboneFolder,
    events: EventOptions,
    part: Annotated[
        Literal["test", "validation"],
        typer.Option(help="Predict each user's newest item (test) or the one before it."),
    ] = "test",
    without_seen: Annotated[
        bool,
        typer.Option("--without-seen", help="Leave a user's earlier items out of the ranking."),
    ] = False,
    max_users: Annotated[
        int | None,
        typer.Option(
            help="Measure on at most this many users, evenly spaced ones.",
            min=1,
            rich_help_panel=INPUT,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a backbone predicts users' next items: leave-one-out, all items ranked."""
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.service.jobs.evaluate_backbone import (
        EvaluateBackboneJob,
        read_output_layer,
        run_evaluate_backbone,
    )
    from peterrec.service.jobs.reading import observing

    job = EvaluateBackboneJob(events.source(), part, without_seen, max_users)
    with observing(quiet) as observer:
        observer.progress(Progress("loading the backbone"))
        loaded = load_backbone(backbone)
        output = read_output_layer(backbone, loaded)
        found = run_evaluate_backbone(loaded, output, job, observer)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        _print(f"{backbone}, {found.part} items of {found.users:,} users", found)


def _print(title: str, found: "NextItemQuality") -> None:
    table = Table("metric", *found.metrics, title=title)
    for name in next(iter(found.metrics.values())):
        table.add_row(name, *(_shown(metrics[name]) for metrics in found.metrics.values()))
    Console(highlight=False).print(table)
    own = (
        "the user's earlier ones left out" if found.without_seen else "the user's earlier ones too"
    )
    print(f"ranked among {found.items:,} items, {own}; in brackets: 95 % of resamples of the users")
    for count, what in (
        (found.unknown, "next items are unknown to the backbone and count as misses"),
        (found.cold, "users have no earlier item that the backbone knows"),
        (found.too_short, "users with fewer than three events were left out"),
    ):
        if count:
            print(f"{count:,} {what}")


def _shown(estimate: "Estimate") -> str:
    """A value with its interval, such as ``0.2811 (0.270–0.293)``."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} ({estimate.low:.3f}–{estimate.high:.3f})"
