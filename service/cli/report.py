"""The command that writes a page about a bundle or a backbone."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import typer

from peterrec.service.cli.settings_options import takes_settings
from peterrec.service.cli.shared_options import Overwrite, Quiet
from peterrec.service.jobs.options import (
    INPUT,
    AnswerOptions,
    EventOptions,
    TableOptions,
    TimeOptions,
    answers_of,
)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(takes_settings(report))


def report(
    subject: Annotated[
        Path, typer.Argument(metavar="BUNDLE|BACKBONE", help="A bundle file or backbone folder.")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    tables: TableOptions,
    answers: AnswerOptions,
    time: TimeOptions,
    interactions: Annotated[
        Path | None,
        typer.Option(
            help="Events to measure on: a file, or a folder of files.", rich_help_panel=INPUT
        ),
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(
            help="Backbone folder of a bundle that is to be measured.", rich_help_panel=INPUT
        ),
    ] = None,
    part: Annotated[
        Literal["all", "test"],
        typer.Option(
            help="Measure a bundle on all users, or on those that fine-tuning kept apart (test).",
            rich_help_panel=INPUT,
        ),
    ] = "test",
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Show ten users with their answers.")
    ] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page to send round: how a task or a backbone was trained, how good it is.

    Without data, the page has what the files themselves tell. With --interactions, and for a bundle
    --backbone and the options of its answers, everything is measured on these data.
    """
    from peterrec.service.jobs.reading import observing
    from peterrec.service.jobs.report.write import ReportJob, is_backbone, run_report

    events = None if interactions is None else _events(tables, interactions)
    _require_fitting(is_backbone(subject), events, answers, backbone)
    with observing(quiet) as observer:
        job = ReportJob(
            subject=subject,
            backbone=backbone,
            interactions=None if events is None else events.source(time.end_of_histories),
            answers=None if events is None else answers_of(events, answers, time),
            part=part,
            shows_samples=samples,
            observer=observer,
            notices=observer.notices,
        )
        run_report(job, out, overwrite)
    print(f"report {out}")


def _events(tables: TableOptions, interactions: Path) -> EventOptions:
    values = {each.name: getattr(tables, each.name) for each in fields(tables)}
    return EventOptions(interactions=interactions, **values)


def _require_fitting(
    is_backbone: bool, events: EventOptions | None, answers: AnswerOptions, backbone: Path | None
) -> None:
    """Refuse options that the page would not use."""
    has_answers = answers.labels is not None or answers.targets is not None
    if is_backbone and (has_answers or backbone is not None):
        raise typer.BadParameter("a backbone is measured with --interactions alone")
    if not is_backbone and (events is None) != (backbone is None):
        raise typer.BadParameter("a bundle is measured with both --backbone and --interactions")
    if not is_backbone and events is None and has_answers:
        raise typer.BadParameter("answers need --backbone and --interactions too")
