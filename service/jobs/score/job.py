"""The job of ``peterrec score``: what is scored, pinned and checked, and then the run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.documents import Document
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.model.progress import Progress
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.journal_lines import alone_in
from peterrec.service.jobs.score.bundles import Pinned, TaskChoice, verified_tasks
from peterrec.service.jobs.score.journal import STATE_FOLDER, Journal
from peterrec.service.jobs.score.parts import remove_output
from peterrec.service.jobs.score.run import (
    MANY_UNKNOWN,
    VECTORS_FOLDER,
    RayPlace,
    Report,
    RunOptions,
    finish,
    report_of,
    run_score,
)
from peterrec.service.jobs.score.scorer import Scorer, ScorerOptions, block_users_of
from peterrec.service.jobs.score.source import UserSource, user_source
from peterrec.service.system.descriptors import raise_descriptor_limit

OnExisting = Literal["refuse", "resume", "overwrite"]
Vectors = Literal["parquet", "npy"]

BUNDLES = "bundles"
"""Folder of the copies of a run's bundles, beside its journal."""


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What is scored, by what, and where to.

    ``events`` says how a table of events at a path is read. ``pin`` chooses the versions and copies
    their bundles into a folder; a run that goes on asks it again only if they are not those of a
    registry, which has moved on meanwhile.
    """

    users: str
    events: Callable[[Path], InteractionSource]
    history_column: str | None
    backbone: Path
    out: Path
    choice: TaskChoice
    pin: Callable[[Path], Pinned]
    is_of_registry: bool
    scorer: ScorerOptions
    part_rows: int
    vectors: Vectors | None = None
    on_existing: OnExisting = "refuse"
    ray: RayPlace | None = None


def run_job(job: ScoreJob, observer: ReadingObserver) -> Report:
    """Score all users, or those that an earlier run has left."""
    raise_descriptor_limit()  # a part has one open file for each task
    with (
        alone_in(job.out, STATE_FOLDER),
        user_source(job.users, job.events, job.history_column, observer) as source,
    ):
        journal = _journal(job)
        report = _run(job, source, journal, observer)
    if report.unknown_share > MANY_UNKNOWN:
        observer.notice(
            f"{report.unknown_share:.0%} of the items are unknown to the backbone: are they "
            "written as in its training?"
        )
    return report


def _journal(job: ScoreJob) -> Journal:
    """The journal of the output, which is new unless the run goes on."""
    journal = Journal.read(job.out)
    if journal.header is not None and job.on_existing == "resume":
        journal.require_files(job.out, VECTORS_FOLDER if job.vectors == "npy" else "")
        return journal
    has_tables = any(job.out.glob("task=*/part-*.parquet"))
    if job.on_existing != "overwrite":
        if journal.header is not None or has_tables:
            raise OutputExists(
                f"{job.out} has an earlier run.",
                hint="Go on with it by `resume`, or begin anew with `overwrite`.",
            )
        return journal
    folders = [path.name for path in job.out.glob("task=*")]
    remove_output(job.out, [*folders, VECTORS_FOLDER], STATE_FOLDER)
    return Journal.read(job.out)


def _run(job: ScoreJob, source: UserSource, journal: Journal, observer: ReadingObserver) -> Report:
    observer.progress(Progress("loading the backbone and the bundles"))
    loaded = load_backbone(job.backbone)
    copies = job.out / STATE_FOLDER / BUNDLES
    pinned = _pinned(job, journal, copies)
    tasks = verified_tasks(pinned, copies, loaded)
    journal.begin(_header(job, source, pinned, loaded.fingerprint))
    if journal.is_complete:
        observer.notice(f"{job.out} is complete already.")
        return report_of(journal)
    options = RunOptions(job.out, job.part_rows, job.vectors)
    about = {"registry_revision": pinned.revision, "backbone": loaded.fingerprint}
    if job.ray is None:
        observer.progress(Progress("loading the bundles and compiling kernels"))
        scorer = Scorer(loaded, tasks, job.scorer)
        return run_score(scorer, source, journal, options, about, observer)
    from peterrec.service.jobs.score.on_ray import ScoringRun, score_on_ray

    channels = loaded.backbone.spec.channels
    run = ScoringRun(
        users=job.users if "://" in job.users else str(source.path.absolute()),
        events=job.events,
        history_column=job.history_column,
        backbone=job.backbone.absolute(),
        copies=copies.absolute(),
        pinned=pinned,
        scorer=job.scorer,
        options=replace(options, out=job.out.absolute()),
        about=about,
        finished=journal.rows,
        block_users=block_users_of(tasks, channels, job.scorer),
        cores=job.ray.cores,
    )
    score_on_ray(run, job.ray, journal, source.total_rows(), observer)
    return finish(journal, options)


def _pinned(job: ScoreJob, journal: Journal, copies: Path) -> Pinned:
    if job.choice.is_empty:
        return Pinned()
    if journal.header is not None and job.is_of_registry:
        return Pinned.from_json(journal.header["tasks"])
    return job.pin(copies)


def _header(job: ScoreJob, source: UserSource, pinned: Pinned, fingerprint: str) -> Document:
    """What may not change while a run goes on, by the words of a message."""
    return {
        "users": source.url,
        "files": source.identity["files"],
        "columns": _columns(source),
        "tasks": pinned.to_json(),
        "choice of tasks": [[*job.choice.names], job.choice.pattern],
        "backbone": fingerprint,
        "scores": asdict(job.scorer),
        "vectors": job.vectors,
        "part_rows": job.part_rows,
    }


def _columns(source: UserSource) -> Document:
    events, table = source.events, source.events.table
    return {
        "form": source.form,
        "user": events.user_column,
        "item": events.item_column,
        "history": source.history_column,
        "order": events.order_column,
        "until": events.before,
        "delimiter": table.delimiter,
        "names": table.columns and [*table.columns],
        "where": [str(condition) for condition in table.where],
        "missing": [*table.missing],
    }
