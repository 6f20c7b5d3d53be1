"""The work of ``peterrec report``: read what there is, measure what the data allow, and write."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.interactions import InteractionSource, histories_of, read_events
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.statistics import DataInfo, describe_events
from peterrec.model.disk import read_bytes, require_writable_file, write_text
from peterrec.model.documents import Document
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.files.tensors import read_tensors
from peterrec.model.progress import Progress
from peterrec.model.training.next_items import is_of_other_data
from peterrec.model.training.training_file import (
    TRAINING_FILE,
    TrainingLog,
    log_of,
    read_training_file,
)
from peterrec.patches.bundle.bundle import read_manifest
from peterrec.patches.identity import digest_of
from peterrec.service.errors import OutputExists, ReportSubjectUnknown
from peterrec.service.jobs.data_page import charts_of, summary_table, time_parts
from peterrec.service.jobs.options import Answers
from peterrec.service.jobs.packing import unpack_task
from peterrec.service.jobs.report import backbone as of_backbone
from peterrec.service.jobs.report import task as of_task
from peterrec.service.jobs.report.curves import training_section
from peterrec.service.jobs.report.kinds import REPORTS
from peterrec.service.jobs.report.measured import (
    MeasuredTask,
    examples_of,
    measure_task,
    recorded_training,
)
from peterrec.service.jobs.report.next_items import predict_last_items
from peterrec.service.jobs.train import OUTPUT_LAYER, Part
from peterrec.service.pages.page import Section, Text, page

MAKES_MORE = {
    "task": "With --backbone, --interactions and the options of the answers (such as --labels and "
    "--label-column), this page also has metrics beside simple baselines with intervals, metrics "
    "by history length and by class, what is mistaken for what, calibration, and sample users.",
    "backbone": "With --interactions, this page also has a summary of the data, and next-item "
    "metrics beside popularity, with intervals, by history length and by popularity.",
}
"""What data would add to the page of each sort."""

PERSONAL = "This page shows ids and items of single users. --no-samples leaves them out."


@dataclass(frozen=True, slots=True)
class ReportJob:
    """What to report on, and the data to measure it on, if there are any.

    ``subject`` is a bundle or a backbone folder. A bundle is measured if ``backbone``,
    ``interactions`` and ``answers`` are given, a backbone if ``interactions`` are. ``notices`` are
    read after the data: what the observer was told while they were read.
    """

    subject: Path
    backbone: Path | None = None
    interactions: InteractionSource | None = None
    answers: Answers | None = None
    part: Part = "test"
    shows_samples: bool = True
    observer: ReadingObserver = SILENT
    notices: Sequence[str] = ()


def is_backbone(subject: Path) -> bool:
    """True for a backbone folder, False for a bundle; refused if it is neither."""
    if (subject / SPEC).is_file():
        return True
    if subject.is_file():
        return False
    what = "is a folder without a backbone" if subject.is_dir() else "does not exist"
    raise ReportSubjectUnknown(
        f"{subject} {what}.", hint="Give a bundle, or a folder written by `peterrec pretrain`."
    )


def run_report(job: ReportJob, out: Path, overwrite: bool) -> None:
    """Write the page."""
    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists.", hint="Give another `out`, or `overwrite`.")
    require_writable_file(out)
    write_text(out, report_page(job))


def report_page(job: ReportJob) -> str:
    """The page as HTML."""
    return _backbone_page(job) if is_backbone(job.subject) else _task_page(job)


def _task_page(job: ReportJob) -> str:
    data = read_bytes(job.subject)
    file = of_task.BundleFile(job.subject, read_manifest(data), digest_of(data))
    manifest = file.manifest
    about, history = of_task.about_section(file), of_task.history_section(file)
    recorded = of_task.recorded_section(file)
    title = f"{manifest.name}: a {manifest.kind} task"
    if job.backbone is None or job.interactions is None or job.answers is None:
        lead = [Text(MAKES_MORE["task"], is_notice=True)]
        return page(title, [about, recorded, history], lead)
    loaded = load_backbone(job.backbone)
    task = unpack_task(data, loaded)
    events = read_events(job.interactions, job.observer)
    histories = histories_of(events)
    labels = job.answers.read(manifest.kind, job.observer)
    settings = recorded_training(manifest).split_settings(manifest.kind)
    examples = examples_of(loaded, histories, labels, settings)
    tested = measure_task(task, examples, job.part == "test", job.observer.progress)
    lead = [*_differing(file, histories, labels), _measured(tested)]
    shows_samples = job.shows_samples and manifest.kind in REPORTS
    lead += [Text(PERSONAL, is_notice=True)] if shows_samples else []
    job.observer.progress(Progress("computing intervals"))
    measured = of_task.measured_sections(tested, job.shows_samples)
    info = _data_section(job, describe_events(events, job.observer.progress))
    return page(title, [about, *measured, info, history, recorded], lead)


def _measured(tested: MeasuredTask) -> Text:
    is_whole = len(tested.rows) == len(tested.examples.users)
    which = "of the given data" if is_whole else "that fine-tuning kept apart for the test"
    return Text(f"Measured on the {len(tested.rows):,} users {which}.")


def _differing(
    file: of_task.BundleFile, histories: Histories, labels: UserLabels
) -> Iterator[Text]:
    """A warning if the bundle was trained on other data than the given ones."""
    found = {"histories_digest": histories.digest(), "labels_digest": labels.digest()}
    recorded = file.recorded.data
    differing = [
        name.removesuffix("_digest")
        for name, digest in found.items()
        if name in recorded and recorded[name] != digest
    ]
    if differing:
        yield Text(
            f"The {' and '.join(differing)} are not those of the training. Users of the test part "
            "may have been trained on; the metrics are those of these data.",
            is_notice=True,
        )


def _backbone_page(job: ReportJob) -> str:
    loaded = load_backbone(job.subject)
    log = _backbone_log(job.subject, loaded.record)
    about = of_backbone.about_section(loaded)
    history = _history(log)
    recorded = of_backbone.recorded_section(loaded.record, log)
    after = [history, *([recorded] if recorded else [])]
    title = f"{job.subject.absolute().name}: a backbone"
    if job.interactions is None:
        return page(title, [about, *after], [Text(MAKES_MORE["backbone"], is_notice=True)])
    events = read_events(job.interactions, job.observer)
    info = _data_section(job, describe_events(events, job.observer.progress))
    measured, notices = _next_items(loaded, job, histories_of(events))
    return page(title, [about, *measured, info, *after], notices)


def _backbone_log(folder: Path, record: Document) -> TrainingLog | None:
    """The lines of a backbone's training, which have its warnings, or else what its record says.

    The lines of a run that was to replace the backbone and did not end are not taken for its own.
    """
    recorded, lines = log_of(record), read_training_file(folder / TRAINING_FILE)
    if lines is None or lines.ended is None:
        return recorded
    if recorded is None or recorded.of_part("train") == lines.of_part("train"):
        return lines
    return recorded


def _history(log: TrainingLog | None) -> Section:
    if log is None:
        text = "There is no record of the training, so no learning curves."
        return Section("How it was trained", [Text(text, is_notice=True)])
    return training_section(log, "mrr@5")


def _next_items(
    loaded: LoadedBackbone, job: ReportJob, histories: Histories
) -> tuple[list[Section], list[Text]]:
    path = job.subject / OUTPUT_LAYER
    if not path.exists():
        text = f"There is no {OUTPUT_LAYER}, which scores items, so no next-item metrics."
        return [], [Text(text, is_notice=True)]
    found = predict_last_items(loaded, read_tensors(path), histories, job.observer.progress)
    if found is None:
        text = "No validation user of these data has two known items, so no next-item metrics."
        return [], [Text(text, is_notice=True)]
    notices = []
    if is_of_other_data(loaded.record, histories):
        text = "These are not the data of the training; validation users may have been trained on."
        notices.append(Text(text, is_notice=True))
    job.observer.progress(Progress("computing intervals"))
    return of_backbone.next_item_sections(found), notices


def _data_section(job: ReportJob, info: DataInfo) -> Section:
    """A summary of the events that were given, and what was noticed while they were read."""
    notices = [Text(notice, is_notice=True) for notice in job.notices]
    parts = [*notices, summary_table(info), *charts_of(info)]
    if job.interactions is not None and info.times is not None:
        parts += time_parts(job.interactions.order_column, info.times)
    return Section("The data", parts)
