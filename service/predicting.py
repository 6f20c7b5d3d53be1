"""From questions about users to their answers: map, resolve, admit, await, decode.

Every step passes an error through in its own slot, so a bad row never fails its neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model.errors import PeterRecError
from patches.identity import TenantId
from service.answers import ANSWERS, Ranked, Subject
from service.catalogs import Catalogs
from service.device_link import AdmittedRow, DeviceLink
from service.errors import HistoryTooLong, NotARankingTask, UnknownItemsRefused, row_error
from service.events import Emit, ItemsMapped
from service.item_mapping import (
    Catalog,
    ItemId,
    ItemVocabulary,
    MappedHistory,
    UnknownItems,
    map_selection,
)
from service.messages import BundleEntry, Row, RowResult
from service.schemas import MAX_HISTORY_ITEMS, Instance, Parameters, Prediction
from service.task_table import ServedTask, TaskTable

RANKING = "ranking"

Answer = Prediction | PeterRecError
Catalogued = Mapping[str, Catalog | PeterRecError]
"""Catalogs by digest, or why one can't be read."""


@dataclass(frozen=True, slots=True)
class Question:
    """One history, mapped once, and what to answer for it."""

    history: MappedHistory
    ids: Sequence[ItemId]
    top_k: int
    exclude_seen: bool
    exclude: Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    user_id: str | int | None = None


class Asked(NamedTuple):
    """A question and the version that is to answer it."""

    served: ServedTask
    question: Question


class Resolved(NamedTuple):
    """Tasks by one table, in the order they were asked for, and catalogs of those that rank."""

    served: Sequence[ServedTask | PeterRecError]
    catalogs: Catalogued
    registry_revision: int


@dataclass(frozen=True, slots=True)
class Admission:
    """A row ready for the device and what its answer will need."""

    row: AdmittedRow
    subject: Subject


class Predictor:
    """The straight line of a prediction; shared by all routes. Lives on the event loop."""

    def __init__(
        self,
        vocabulary: ItemVocabulary,
        table: TaskTable,
        link: DeviceLink,
        catalogs: Catalogs,
        emit: Emit,
    ) -> None:
        self._vocabulary = vocabulary
        self._table = table
        self._link = link
        self._catalogs = catalogs
        self._emit = emit

    def map_history(self, ids: Sequence[ItemId], policy: UnknownItems) -> MappedHistory:
        """The history as tokens; HistoryTooLong or UnknownItemsRefused if it is refused."""
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
        """What each instance asks, the call's parameters filled in."""
        return [
            given if isinstance(given, PeterRecError) else self._question(given, parameters)
            for given in instances
        ]

    async def resolve(self, tenant: TenantId, tasks: Sequence[str]) -> Resolved:
        """The versions that answer now, all of one table, with the catalogs that they need.

        Reading a catalog takes a while, so the tasks are resolved anew afterwards: between this
        and sending the rows there must be no ``await``.
        """
        held: dict[str, Catalog | PeterRecError] = {}
        while True:
            served = [self._resolve(tenant, task) for task in tasks]
            missing = [
                task.bundle
                for task in served
                if isinstance(task, ServedTask) and not self._is_held(task.bundle, held)
            ]
            if not missing:
                return Resolved(served, held, self._table.revision)
            for bundle in missing:
                held[bundle.digest] = await self._load(bundle)

    def admit(
        self, asked: Sequence[Asked | PeterRecError], catalogs: Catalogued
    ) -> list[Admission | PeterRecError]:
        """Rows bound to the bundles that their tasks resolved to."""
        return [
            each if isinstance(each, PeterRecError) else _admit(*each, catalogs) for each in asked
        ]

    async def answer(
        self, admitted: Sequence[Admission | PeterRecError], deadline: float
    ) -> list[Answer]:
        """Each admission's prediction, or why it has none, in order."""
        rows = [each.row for each in admitted if isinstance(each, Admission)]
        results = iter(await self._link.predict(rows, deadline) if rows else ())
        return [
            _prediction(each.subject, next(results)) if isinstance(each, Admission) else each
            for each in admitted
        ]

    def _question(self, instance: Instance, parameters: Parameters) -> Question | PeterRecError:
        try:
            history = self.map_history(instance.history, parameters.unknown_items)
        except PeterRecError as error:
            return error
        seen = instance.exclude_seen
        return Question(
            history=history,
            ids=instance.history,
            top_k=parameters.top_k if instance.top_k is None else instance.top_k,
            exclude_seen=parameters.exclude_seen if seen is None else seen,
            exclude=instance.exclude,
            candidates=instance.candidates,
            user_id=instance.user_id,
        )

    def _resolve(self, tenant: TenantId, task: str) -> ServedTask | PeterRecError:
        try:
            return self._table.resolve(tenant, task)
        except PeterRecError as error:
            return error

    async def _load(self, bundle: BundleEntry) -> Catalog | PeterRecError:
        try:
            return await self._catalogs.load(bundle)
        except PeterRecError as error:
            return error

    def _is_held(self, bundle: BundleEntry, held: dict[str, Catalog | PeterRecError]) -> bool:
        if bundle.kind != RANKING or bundle.digest in held:
            return True
        catalog = self._catalogs.peek(bundle.digest)
        if catalog is not None:
            held[bundle.digest] = catalog
        return catalog is not None


def _admit(
    served: ServedTask, question: Question, catalogs: Catalogued
) -> Admission | PeterRecError:
    bundle = served.bundle
    if bundle.kind == RANKING:
        return _admit_ranking(bundle, question, catalogs[bundle.digest])
    if question.exclude is not None or question.candidates is not None:
        return NotARankingTask(served.task, bundle.kind)
    row = Row(bundle.handle, question.history.tokens)
    subject = Subject(bundle, question.history, question.user_id, None)
    return Admission(AdmittedRow(row, bundle.digest), subject)


def _admit_ranking(
    bundle: BundleEntry, question: Question, catalog: Catalog | PeterRecError
) -> Admission | PeterRecError:
    if isinstance(catalog, PeterRecError):
        return catalog
    excluded = [*(question.exclude or ()), *(question.ids if question.exclude_seen else ())]
    selection = map_selection(catalog, excluded, question.candidates)
    row = Row(
        bundle.handle,
        question.history.tokens,
        min(question.top_k, bundle.outputs),
        selection.excluded,
        selection.candidates,
    )
    subject = Subject(bundle, question.history, question.user_id, Ranked(catalog, selection))
    return Admission(AdmittedRow(row, bundle.digest), subject)


def _prediction(subject: Subject, result: RowResult) -> Answer:
    if result.error:
        return row_error(result.error, result.detail)
    return ANSWERS[subject.bundle.kind](subject, result)
