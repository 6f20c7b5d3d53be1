"""Pages about data, tasks and backbones, shown in a notebook and saved as one file."""

import os
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Unpack

from peterrec.model.documents import Document
from peterrec.model.kinds import KINDS
from peterrec.model.scratch import ScratchFolder
from peterrec.service.errors import ArgumentInvalid, OutputExists
from peterrec.service.jobs.data_info import DataInfoJob, describe_data
from peterrec.service.jobs.data_page import page_of
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TimeOptions
from peterrec.service.jobs.report.write import ReportJob, report_page
from peterrec.service.jobs.train import Part
from peterrec.service.library.backbone import Backbone
from peterrec.service.library.inputs import Histories, is_table, listed
from peterrec.service.library.keywords import require_one_of, takes
from peterrec.service.library.option_types import AnswerKeywords, EventKeywords, TimeKeywords
from peterrec.service.library.shown import watched
from peterrec.service.library.sources import (
    answer_options,
    event_options,
    task_answers,
    time_options,
)
from peterrec.service.library.task import Task
from peterrec.service.pages.page import write_page

FRAME_HEIGHT = 720
"""Height of a page within a notebook, in CSS pixels; the page scrolls."""


class ReportKeywords(EventKeywords, AnswerKeywords, TimeKeywords, total=False):
    """Keyword arguments of ``report`` and ``data_info`` that stand for the commands' options."""


class Report:
    """One self-contained HTML page; ``document`` has the figures of ``data_info`` as JSON."""

    def __init__(self, html: str, document: Document | None = None) -> None:
        self.html = html
        self.document: Document = document or {}

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the page into a file that can be sent round."""
        path = Path(out)
        if path.exists() and not overwrite:
            raise OutputExists(f"{path} exists.", hint="Give another path, or overwrite=True.")
        write_page(path, self.html)
        return path

    def _repr_html_(self) -> str:
        page = escape(self.html, quote=True)
        return (
            f'<iframe sandbox srcdoc="{page}" width="100%" height="{FRAME_HEIGHT}" '
            'style="border: 0" title="PeterRec"></iframe>'
        )


@takes(EventOptions, AnswerOptions, TimeOptions)
def data_info(
    interactions: Histories,
    *,
    kind: str | None = None,
    sample: bool = True,
    progress: bool | None = None,
    **options: Unpack[ReportKeywords],
) -> Report:
    """Describe what would be trained on, as ``peterrec data-info`` does: look before you train.

    With ``labels`` or ``targets`` the answers of a task of this ``kind`` are described too.
    ``sample`` shows the history of one user.
    """
    given: dict[str, object] = {**options}
    if kind is not None:
        require_one_of("kind", kind, KINDS)
    data = interactions if is_table(interactions) else listed(interactions)
    events = event_options(data, given)
    answers = answer_options(
        None if is_table(data) else listed(data),
        events.user_column,
        kind or ("ranking" if given.get("targets") is not None else "classification"),
        given,
    )
    with watched(progress) as seen:
        job = DataInfoJob(events, answers, time_options(given), sample)
        found = describe_data(job, seen)
    return Report(page_of(found), found.to_json())


@takes(EventOptions, AnswerOptions, TimeOptions)
def report(
    subject: Task | Backbone,
    interactions: Histories | None = None,
    *,
    part: Part = "test",
    samples: bool = True,
    progress: bool | None = None,
    **options: Unpack[ReportKeywords],
) -> Report:
    """How a task or a backbone was trained and how good it is, as ``peterrec report`` writes it.

    Without ``interactions`` the page has what is recorded. With them, and for a task its answers,
    everything is measured on these data; ``samples`` shows ten users with their answers.
    """
    given: dict[str, object] = {**options}
    if not isinstance(subject, Task | Backbone):
        raise ArgumentInvalid(
            f"{subject!r:.60} is neither a task nor a backbone.",
            hint="Open a file with peterrec.load_bundle, or a folder with peterrec.load_backbone.",
        )
    with ScratchFolder() as folder, watched(progress) as seen:
        own = subject.backbone if isinstance(subject, Task) else subject
        backbone = own.save(folder / "backbone")
        if isinstance(subject, Task):
            path = subject.save(folder / f"{subject.name}.bundle")
        else:
            path = backbone
        job = ReportJob(path, part=part, shows_samples=samples, observer=seen)
        if interactions is None:
            return Report(report_page(job))
        data = interactions if is_table(interactions) else listed(interactions)
        events = event_options(data, given)
        source = events.source(time_options(given).end_of_histories)
        job = replace(job, interactions=source, notices=seen.notices)
        if isinstance(subject, Task):
            answers = task_answers(data, events, subject.kind, given)
            job = replace(job, backbone=backbone, answers=answers)
        return Report(report_page(job))
