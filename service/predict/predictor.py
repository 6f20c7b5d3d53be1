"""Predictions, from questions about users to their answers, in one call.

A call resolves tasks to versions, binds each question to a version as a row, sends the rows to the
device and decodes the results. Each question carries its own error through all steps, so a bad one
never fails the others.
"""

import asyncio
import math
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from itertools import count, product
from typing import NamedTuple, TypeVar

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.model.spec import MAX_HISTORY_ITEMS
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.identity import Digest, TenantId
from peterrec.service.errors import (
    DeadlineExceeded,
    DeviceUnavailable,
    HistoryTooLong,
    UnknownItemsRefused,
    VersionWithoutTask,
)
from peterrec.service.predict.canary import Answered, TrafficRouter
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import BoundRow, RowLink
from peterrec.service.predict.explainer import Explainer
from peterrec.service.predict.explanation import asked_for
from peterrec.service.predict.filters import ItemFilters, Wanted
from peterrec.service.predict.item_ids import (
    History,
    ItemId,
    ItemVocabulary,
    MappedHistory,
    Readings,
    UnknownItems,
)
from peterrec.service.predict.loop_shares import current_call, waiting
from peterrec.service.predict.pace import Pace
from peterrec.service.predict.quality import AnswerSampler
from peterrec.service.predict.questions import (
    BoundQuestion,
    Question,
    bind,
    decode,
    selection_key,
)
from peterrec.service.predict.schemas import Instance, Parameters
from peterrec.service.predict.task_table import TaskTable, VersionName
from peterrec.service.predict.traffic_counts import TrafficObserver
from peterrec.service.predict.user_vectors import VectorInstance, VectorsAsked, VectorsFound
from peterrec.service.protocol.messages import VECTOR, BundleEntry, Row, RowResult, plain
from peterrec.service.protocol.sender import INTERACTIVE, Sender
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import Emit, ItemsMapped

Result = TypeVar("Result")

FEW_ROWS = 8
"""Results that are decoded at once, even while tenants share the event loop."""

BIND_ATTEMPTS = 3
"""Times that rows are bound in several steps, between which the table of tasks may change."""


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

    Explanations add at most ``max_explain_rows`` rows to a call. ``sampler`` sees all answers.
    """

    def __init__(
        self,
        vocabulary: ItemVocabulary,
        table: TaskTable,
        link: RowLink,
        catalogs: Catalogs,
        emit: Emit,
        max_explain_rows: int = sys.maxsize,
        filters: ItemFilters | None = None,
        sampler: AnswerSampler | None = None,
        others: Sequence[ItemVocabulary] = (),
    ) -> None:
        """``others`` are the vocabularies of further backbones, by which other tasks read."""
        self._vocabularies = (vocabulary, *others)
        self._table = table
        self._link = link
        self._catalogs = catalogs
        self._filters = filters or ItemFilters()
        self._emit = emit
        self._sampler = sampler
        self._router = TrafficRouter(link, TrafficObserver(link.send_traffic))
        self._explainer = Explainer(self._vocabularies, link, emit, max_explain_rows)

    def may_sample(self, *, is_sensitive: bool) -> bool:
        """Whether answers of a task may be looked at, and outcomes of them be counted."""
        return self._sampler is not None and self._sampler.may_see(is_sensitive=is_sensitive)

    def map_history(self, ids: Sequence[ItemId], policy: UnknownItems) -> History:
        """Map a history to tokens; raise HistoryTooLong or UnknownItemsRefused.

        With several backbones it is mapped later, as only the tasks' versions say by which.
        """
        if len(self._vocabularies) == 1:
            return self._read_by(0, ids, policy)
        _require_short(ids)
        return Readings(ids, policy)

    def _read_by(
        self, place: int, ids: Sequence[ItemId], policy: UnknownItems, *, is_counted: bool = True
    ) -> MappedHistory:
        """Map a history by the vocabulary of one backbone; raise as ``map_history``."""
        _require_short(ids)
        history = self._vocabularies[place].map_history(ids, policy)
        if is_counted:
            self._emit(ItemsMapped(len(ids), history.unknown_items))
        if policy == "error" and history.unknown_items:
            raise UnknownItemsRefused(
                f"the backbone does not know {history.unknown_items} of the history's items, "
                f"for instance {history.unknown[0]!r:.80}.",
                hint='Leave them out, or send unknown_items "drop" or "map".',
            )
        return history

    async def questions(
        self, instances: Sequence[Instance | PeterRecError], parameters: Parameters
    ) -> list[Question | PeterRecError]:
        """Make a question of each instance, with the call's parameters as defaults."""
        pace = Pace()
        questions: list[Question | PeterRecError] = []
        for given in instances:
            if isinstance(given, PeterRecError):
                questions.append(given)
            else:
                questions.append(self._question(given, parameters))
            if pace.is_due:
                await pace.rest()
        return questions

    async def predict(
        self,
        tenant: TenantId,
        asked: Sequence[TaskQuestions],
        deadline: float,
        priority: int = INTERACTIVE,
    ) -> Predicted:
        """Answer the questions of one call. ``deadline`` is on ``time.monotonic``, or infinite.

        Raises DeviceUnavailable, QueueFull or ExplanationTooLarge for all of them together, and
        DeadlineExceeded if the time is over before rows are sent; every other error is the answer
        of one question.
        """
        catalogs: dict[str, Catalog | PeterRecError] = {}
        for attempt in count():  # until nothing is missing in the table as it is now
            served = self._resolve_all(tenant, asked)
            missing = self._missing(served, catalogs)
            for bundle in missing:
                catalogs[bundle.digest] = await _in_time(self._read_catalog(bundle), deadline)
            if missing or (
                catalogs and await self._select(tenant, served, asked, catalogs, deadline)
            ):
                continue
            if len(self._vocabularies) > 1 and await self._read_by_all(served, asked):
                continue
            table = self._table.epoch, self._table.version
            bound = await self._bind_all(served, asked, catalogs, may_rest=attempt < BIND_ATTEMPTS)
            if table == (self._table.epoch, self._table.version):
                break
        # Nothing else runs from here until the link has the rows: a bundle may leave the device
        # once the worker has acknowledged a table without it; rows sent before that still run.
        revision = self._table.revision
        questions = [question for each in asked for question in each.questions]
        planned = self._explainer.plan(questions, bound)
        sender = Sender(tenant, priority)
        answered = await self._answer(bound, deadline, sender)
        if self._sampler is not None:
            self._sampler.see(bound, answered)
        if planned:
            answered = await self._explainer.explain(sender, planned, answered, catalogs, deadline)
        answers = iter(answered)
        tasks = [
            TaskAnswers(version, [next(answers) for _ in each.questions])
            for version, each in zip(served, asked, strict=True)
        ]
        return Predicted(tasks, revision)

    async def not_in_catalog(
        self, tenant: TenantId, task: str, items: Sequence[str]
    ) -> list[str] | None:
        """Return the items that are not in the catalog of a task's prod; None if none answers."""
        served = self._resolve(tenant, task, None)
        if isinstance(served, PeterRecError) or not KINDS[served.bundle.kind].has_catalog:
            return None
        catalog = self._catalogs.peek(served.bundle.digest)
        found = catalog or await self._read_catalog(served.bundle)
        if isinstance(found, PeterRecError):
            return None
        return await asyncio.to_thread(_unknown_in, found, items)

    async def vectors(
        self,
        sender: Sender,
        asked: VectorsAsked,
        instances: Sequence[VectorInstance | PeterRecError],
        deadline: float,
        place: int = 0,
    ) -> VectorsFound:
        """Return the user vectors of some histories.

        ``place`` is that of the backbone if no task is named. Raises the error of the task, if one
        is named, or those that ``predict`` raises.
        """
        tenant = TenantId(sender.tenant)
        if asked.task is None and asked.version is not None:
            raise VersionWithoutTask
        if not self._table.epoch:
            raise DeviceUnavailable
        served = self._resolve_named(tenant, asked)
        while True:
            at = place if served is None else served.bundle.backbone
            histories = await self._mapped_all(at, instances, asked.unknown_items)
            # after the rests: rows are bound by the table as it is now
            served = self._resolve_named(tenant, asked)
            if served is None or served.bundle.backbone == at:
                break
        bundle = None if served is None else served.bundle
        handle, digest = (plain(at), "") if bundle is None else (bundle.handle, bundle.digest)
        mapped = [each for each in histories if isinstance(each, MappedHistory)]
        rows = [Row(handle, each.tokens, VECTOR, candidates=b"") for each in mapped]  # no ranking
        bound = [BoundRow(row, Digest(digest)) for row in rows]
        revision = self._table.revision
        results = (await self._link.predict(bound, deadline, (), sender)).rows if bound else []
        return VectorsFound(served, histories, results, revision, at)

    def _resolve_named(self, tenant: TenantId, asked: VectorsAsked) -> ServedTask | None:
        if asked.task is None:
            return None
        return self._table.resolve(tenant, asked.task, asked.version)

    async def _mapped_all(
        self, place: int, instances: Sequence[VectorInstance | PeterRecError], policy: UnknownItems
    ) -> list[MappedHistory | PeterRecError]:
        """Map histories by the vocabulary of one backbone."""
        histories: list[MappedHistory | PeterRecError] = []
        pace = Pace()
        for each in instances:
            if isinstance(each, PeterRecError):
                histories.append(each)
            else:
                histories.append(self._mapped(place, each.history, policy))
            if pace.is_due:
                await pace.rest()
        return histories

    def _mapped(
        self,
        place: int,
        ids: Sequence[ItemId],
        policy: UnknownItems,
        *,
        is_counted: bool = True,
    ) -> MappedHistory | PeterRecError:
        try:
            return self._read_by(place, ids, policy, is_counted=is_counted)
        except PeterRecError as error:
            return error

    async def _read_by_all(
        self, served: Sequence[ServedTask | PeterRecError], asked: Sequence[TaskQuestions]
    ) -> bool:
        """Map the histories by the backbones of all versions; True if other work ran.

        The table may have changed then. Only what prod reads counts in the metrics.
        """
        pace, has_rested = Pace(), False
        for version, each in zip(served, asked, strict=True):
            if isinstance(version, PeterRecError):
                continue
            for bundle, question in product(_bundles(version), each.questions):
                if isinstance(question, PeterRecError):
                    continue
                history, place = question.history, bundle.backbone
                if not isinstance(history, Readings) or place in history.by:
                    continue
                is_prod = place == version.bundle.backbone
                history.by[place] = self._mapped(
                    place, history.ids, history.unknown_items, is_counted=is_prod
                )
                if pace.is_due:
                    await pace.rest()
                    has_rested = True
        return has_rested

    async def _answer(
        self, bound: Sequence[BoundQuestion | PeterRecError], deadline: float, sender: Sender
    ) -> list[Answered]:
        """Send the rows, wait for their results and decode them. Sends before the first await."""
        rows = [each.row for each in bound if isinstance(each, BoundQuestion)]
        if not rows:
            return [Answered(each) for each in bound if isinstance(each, PeterRecError)]
        others = [each.others for each in bound if isinstance(each, BoundQuestion) and each.others]
        shadows = [shadow.row for each in others for shadow in each.shadows] if others else ()
        started = time.monotonic()
        found = await self._link.predict(rows, deadline, shadows, sender)
        if len(rows) > FEW_ROWS:
            call = current_call()
            if call is not None and call.is_shared:
                await call.rest()  # a batch answers many such calls at the same moment
        answered = await _decode_all(bound, found.rows)
        if not others:
            return answered
        latency_s = time.monotonic() - started
        ask = partial(self._link.predict, deadline=deadline, sender=sender)
        return await self._router.settle(bound, answered, found.shadows, latency_s, ask)

    async def _bind_all(
        self,
        served: Sequence[ServedTask | PeterRecError],
        asked: Sequence[TaskQuestions],
        catalogs: Mapping[str, Catalog | PeterRecError],
        *,
        may_rest: bool,
    ) -> list[BoundQuestion | PeterRecError]:
        """Bind all questions, by the table as it was at first; other work runs in between."""
        pace, bound = Pace(), list[BoundQuestion | PeterRecError]()
        for version, each in zip(served, asked, strict=True):
            for question in each.questions:
                if may_rest and pace.is_due:
                    await pace.rest()
                bound.append(self._bind(version, question, catalogs))
        return bound

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
            where=parameters.where if instance.where is None else instance.where,
            has_titles=parameters.titles,
        )

    async def _select(
        self,
        tenant: TenantId,
        served: Sequence[ServedTask | PeterRecError],
        asked: Sequence[TaskQuestions],
        catalogs: Mapping[str, Catalog | PeterRecError],
        deadline: float,
    ) -> bool:
        """Map the items of questions to catalogs, of which there are some; True if other work ran.

        The table may have changed then.
        """
        pace, has_rested = Pace(), False
        for version, each in zip(served, asked, strict=True):
            if isinstance(version, PeterRecError):
                continue
            for bundle, question in product(_bundles(version), each.questions):
                catalog = catalogs.get(bundle.digest)
                if not isinstance(catalog, Catalog) or isinstance(question, PeterRecError):
                    continue
                key = selection_key(version, bundle)
                if question.where is None and version.availability is None:
                    question.select(key, catalog)
                elif key not in question.selections:
                    wanted = Wanted(bundle.digest, question.where, version.availability)
                    found = self._filters.peek(tenant, wanted)
                    if found is None:
                        making = self._filters.make(tenant, wanted, catalog)
                        found = await _in_time(making, deadline)
                        has_rested = True
                    question.select(key, catalog, found)
                if pace.is_due:
                    await pace.rest()
                    has_rested = True
        return has_rested

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


def _require_short(ids: Sequence[ItemId]) -> None:
    if len(ids) > MAX_HISTORY_ITEMS:
        raise HistoryTooLong(
            f"the history has {len(ids)} items, at most {MAX_HISTORY_ITEMS} are accepted.",
            hint="Send the newest ones.",
        )


async def _in_time(work: Coroutine[None, None, Result], deadline: float) -> Result:
    """Return the result of work that other calls may hold up, or raise DeadlineExceeded."""
    if deadline == math.inf:
        return await work
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            with waiting():
                return await work
    except TimeoutError as error:
        raise DeadlineExceeded from error


def _unknown_in(catalog: Catalog, items: Sequence[str]) -> list[str]:
    return [item for item in items if catalog.index_of(item) is None]


async def _decode_all(
    bound: Sequence[BoundQuestion | PeterRecError], rows: Sequence[RowResult]
) -> list[Answered]:
    """Decode the results of the questions that have a row, in order."""
    pace, results = Pace(), iter(rows)
    answered: list[Answered] = []
    for each in bound:
        if isinstance(each, BoundQuestion):
            answered.append(Answered(decode(each.subject, next(results)), each.by))
        else:
            answered.append(Answered(each))
        if pace.is_due:
            await pace.rest()
    return answered


def _bundles(task: ServedTask) -> list[BundleEntry]:
    """Every bundle that may be asked for the task: prod's, canaries' and shadows'."""
    if task.split is None:
        return [task.bundle]
    others = (*task.split.canaries.values(), *task.split.shadows)
    return [task.bundle, *(other.bundle for other in others)]
