"""Predictions, from questions about users to their answers, in one call.

A call resolves tasks to versions, binds each question to a version as a row, sends the rows to the
device and decodes the results. Each question carries its own error through all steps, so a bad one
never fails the others.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.model.spec import MAX_HISTORY_ITEMS
from peterrec.patches.identity import TenantId
from peterrec.service.errors import HistoryTooLong, UnknownItemsRefused
from peterrec.service.predict.canary import Answered, TrafficRouter
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import RowLink
from peterrec.service.predict.explainer import Explainer
from peterrec.service.predict.explanation import asked_for
from peterrec.service.predict.item_ids import (
    Catalog,
    ItemId,
    ItemVocabulary,
    MappedHistory,
    UnknownItems,
)
from peterrec.service.predict.questions import (
    BoundQuestion,
    Question,
    bind,
    decode,
)
from peterrec.service.predict.schemas import Instance, Parameters
from peterrec.service.predict.task_table import TaskTable, VersionName
from peterrec.service.predict.traffic_counts import TrafficObserver
from peterrec.service.protocol.messages import BundleEntry
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import Emit, ItemsMapped


class TaskQuestions(NamedTuple):
    """What a call asks one task. Without ``version``, the task's prod and traffic answer.

    A question that is an error already keeps its place and becomes its own answer.
    """

    task: str
    version: VersionName | None
    questions: Sequence[Question | PeterRecError]


class TaskAnswers(NamedTuple):
    """The answers of one task, in the order of its questions.

    ``served`` is the version that the task resolved to, or the error why there is none; each answer
    is that error then.
    """

    served: ServedTask | PeterRecError
    answers: list[Answered]


class Predicted(NamedTuple):
    """The answers of all tasks of a call, in order, all resolved by one revision of the table."""

    tasks: list[TaskAnswers]
    registry_revision: int


class Predictor:
    """Answers questions about users; shared by all routes. Lives on the event loop.

    Explanations add at most ``max_explain_rows`` rows to a call.
    """

    def __init__(
        self,
        vocabulary: ItemVocabulary,
        table: TaskTable,
        link: RowLink,
        catalogs: Catalogs,
        emit: Emit,
        max_explain_rows: int = sys.maxsize,
    ) -> None:
        self._vocabulary = vocabulary
        self._table = table
        self._link = link
        self._catalogs = catalogs
        self._emit = emit
        self._router = TrafficRouter(link, TrafficObserver(link.send_traffic))
        self._explainer = Explainer(vocabulary, link, emit, max_explain_rows)

    def map_history(self, ids: Sequence[ItemId], policy: UnknownItems) -> MappedHistory:
        """Map a history to tokens; raise HistoryTooLong or UnknownItemsRefused."""
        if len(ids) > MAX_HISTORY_ITEMS:
            raise HistoryTooLong(
                f"the history has {len(ids)} items, at most {MAX_HISTORY_ITEMS} are accepted.",
                hint="Send the newest ones.",
            )
        history = self._vocabulary.map_history(ids, policy)
        self._emit(ItemsMapped(len(ids), history.unknown_items))
        if policy == "error" and history.unknown_items:
            raise UnknownItemsRefused(
                f"the backbone does not know {history.unknown_items} of the history's items, "
                f"for instance {history.unknown[0]!r:.80}.",
                hint='Leave them out, or send unknown_items "drop" or "map".',
            )
        return history

    def questions(
        self, instances: Sequence[Instance | PeterRecError], parameters: Parameters
    ) -> list[Question | PeterRecError]:
        """Make a question of each instance, with the call's parameters as defaults."""
        return [
            given if isinstance(given, PeterRecError) else self._question(given, parameters)
            for given in instances
        ]

    async def predict(
        self, tenant: TenantId, asked: Sequence[TaskQuestions], deadline: float
    ) -> Predicted:
        """Answer the questions of one call. ``deadline`` is on ``time.monotonic``.

        Raises DeviceUnavailable, QueueFull or ExplanationTooLarge for all of them together; every
        other error is the answer of one question.
        """
        catalogs: dict[str, Catalog | PeterRecError] = {}
        served = self._resolve_all(tenant, asked)
        while missing := self._missing(served, catalogs):
            for bundle in missing:
                catalogs[bundle.digest] = await self._read_catalog(bundle)
            served = self._resolve_all(tenant, asked)  # the table may have changed meanwhile
        # No await from here until the link has the rows: a bundle may leave the device once the
        # worker has acknowledged a table without it, and rows sent before that are still run.
        revision = self._table.revision
        bound = [
            self._bind(version, question, catalogs)
            for version, each in zip(served, asked, strict=True)
            for question in each.questions
        ]
        questions = [question for each in asked for question in each.questions]
        planned = self._explainer.plan(questions, bound)
        answered = await self._answer(bound, deadline)
        if planned:
            answered = await self._explainer.explain(tenant, planned, answered, catalogs, deadline)
        answers = iter(answered)
        tasks = [
            TaskAnswers(version, [next(answers) for _ in each.questions])
            for version, each in zip(served, asked, strict=True)
        ]
        return Predicted(tasks, revision)

    async def _answer(
        self, bound: Sequence[BoundQuestion | PeterRecError], deadline: float
    ) -> list[Answered]:
        """Send the rows, wait for their results and decode them. Sends before the first await."""
        rows = [each.row for each in bound if isinstance(each, BoundQuestion)]
        if not rows:
            return [Answered(each) for each in bound if isinstance(each, PeterRecError)]
        others = [each.others for each in bound if isinstance(each, BoundQuestion) and each.others]
        shadows = [shadow.row for each in others for shadow in each.shadows] if others else ()
        started = time.monotonic()
        found = await self._link.predict(rows, deadline, shadows)
        results = iter(found.rows)
        answered = [
            Answered(decode(each.subject, next(results)), each.by)
            if isinstance(each, BoundQuestion)
            else Answered(each)
            for each in bound
        ]
        if not others:
            return answered
        latency_s = time.monotonic() - started
        return await self._router.settle(bound, answered, found.shadows, latency_s, deadline)

    def _bind(
        self,
        served: ServedTask | PeterRecError,
        question: Question | PeterRecError,
        catalogs: Mapping[str, Catalog | PeterRecError],
    ) -> BoundQuestion | PeterRecError:
        if isinstance(served, PeterRecError):
            return served
        if isinstance(question, PeterRecError):
            return question
        if served.split is None:
            return bind(served, question, catalogs)
        return self._router.route(served.split, served, question, catalogs)

    def _question(self, instance: Instance, parameters: Parameters) -> Question | PeterRecError:
        try:
            history = self.map_history(instance.history, parameters.unknown_items)
        except PeterRecError as error:
            return error
        seen = instance.exclude_seen
        explain = parameters.explain if instance.explain is None else instance.explain
        return Question(
            history=history,
            item_ids=instance.history,
            top_k=parameters.top_k if instance.top_k is None else instance.top_k,
            exclude_seen=parameters.exclude_seen if seen is None else seen,
            exclude=instance.exclude,
            candidates=instance.candidates,
            user_id=instance.user_id,
            unknown_items=parameters.unknown_items,
            explain=asked_for(explain),
        )

    def _resolve_all(
        self, tenant: TenantId, asked: Sequence[TaskQuestions]
    ) -> list[ServedTask | PeterRecError]:
        return [self._resolve(tenant, each.task, each.version) for each in asked]

    def _resolve(
        self, tenant: TenantId, task: str, version: VersionName | None
    ) -> ServedTask | PeterRecError:
        try:
            return self._table.resolve(tenant, task, version)
        except PeterRecError as error:
            return error

    def _missing(
        self,
        served: Sequence[ServedTask | PeterRecError],
        catalogs: dict[str, Catalog | PeterRecError],
    ) -> list[BundleEntry]:
        """Ranking bundles whose catalogs must be read first; those in memory enter ``catalogs``."""
        return [
            bundle
            for task in served
            if isinstance(task, ServedTask)
            for bundle in _bundles(task)
            if KINDS[bundle.kind].has_catalog and not self._is_at_hand(bundle.digest, catalogs)
        ]

    def _is_at_hand(self, digest: str, catalogs: dict[str, Catalog | PeterRecError]) -> bool:
        if digest in catalogs:
            return True
        catalog = self._catalogs.peek(digest)
        if catalog is not None:
            catalogs[digest] = catalog
        return catalog is not None

    async def _read_catalog(self, bundle: BundleEntry) -> Catalog | PeterRecError:
        try:
            return await self._catalogs.read(bundle)
        except PeterRecError as error:
            return error


def _bundles(task: ServedTask) -> list[BundleEntry]:
    """Every bundle that may be asked for the task: prod's, canaries' and shadows'."""
    if task.split is None:
        return [task.bundle]
    others = (*task.split.canaries.values(), *task.split.shadows)
    return [task.bundle, *(other.bundle for other in others)]
