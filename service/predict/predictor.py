"""From questions about users to their answers: map, resolve, admit, await, decode.

Every step passes an error through in its own slot, so a bad row never fails its neighbours.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.patches.identity import TenantId
from peterrec.service.errors import HistoryTooLong, UnknownItemsRefused
from peterrec.service.predict.canary import Answered, Splitter
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.item_ids import (
    Catalog,
    ItemId,
    ItemVocabulary,
    MappedHistory,
    UnknownItems,
)
from peterrec.service.predict.rows import (
    Admission,
    Catalogued,
    Question,
    admit,
    prediction,
)
from peterrec.service.predict.schemas import MAX_HISTORY_ITEMS, Instance, Parameters
from peterrec.service.predict.task_table import TaskTable, VersionName
from peterrec.service.predict.traffic_counts import TrafficObserver
from peterrec.service.protocol.messages import BundleEntry
from peterrec.service.protocol.served_task import ServedTask
from peterrec.service.telemetry.events import Emit, ItemsMapped


class Wanted(NamedTuple):
    """A task that is asked for, and by which version, if not by whom its traffic gives."""

    task: str
    version: VersionName | None = None


class Asked(NamedTuple):
    """A question and the version that is to answer it."""

    served: ServedTask
    question: Question


class Resolved(NamedTuple):
    """Tasks by one table, in the order they were asked for, and catalogs of those that rank."""

    served: Sequence[ServedTask | PeterRecError]
    catalogs: Catalogued
    registry_revision: int


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
        self._splitter = Splitter(link, TrafficObserver(link.tell))

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

    async def resolve(self, tenant: TenantId, tasks: Sequence[Wanted]) -> Resolved:
        """The versions that answer now, all of one table, with the catalogs that they need.

        Reading a catalog takes a while, so the tasks are resolved anew afterwards: between this
        and sending the rows there must be no ``await``.
        """
        held: dict[str, Catalog | PeterRecError] = {}
        while True:
            served = [self._resolve(tenant, wanted) for wanted in tasks]
            missing = [
                bundle
                for task in served
                if isinstance(task, ServedTask)
                for bundle in _bundles(task)
                if not self._is_held(bundle, held)
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
            each if isinstance(each, PeterRecError) else self._admit(*each, catalogs)
            for each in asked
        ]

    async def answer(
        self, admitted: Sequence[Admission | PeterRecError], deadline: float
    ) -> list[Answered]:
        """Each admission's prediction, or why it has none, in order."""
        rows = [each.row for each in admitted if isinstance(each, Admission)]
        if not rows:
            return [Answered(each) for each in admitted if isinstance(each, PeterRecError)]
        beside = [each.beside for each in admitted if isinstance(each, Admission) and each.beside]
        silent = [quiet.row for each in beside for quiet in each.silent] if beside else ()
        started = time.monotonic()
        found = await self._link.predict(rows, deadline, silent)
        results = iter(found.rows)
        answered = [
            Answered(prediction(each.subject, next(results)), each.by)
            if isinstance(each, Admission)
            else Answered(each)
            for each in admitted
        ]
        if not beside:
            return answered
        latency_s = time.monotonic() - started
        return await self._splitter.settle(admitted, answered, found.silent, latency_s, deadline)

    def _admit(
        self, served: ServedTask, question: Question, catalogs: Catalogued
    ) -> Admission | PeterRecError:
        if served.split is None:
            return admit(served, question, catalogs)
        return self._splitter.admit(served.split, served, question, catalogs)

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

    def _resolve(self, tenant: TenantId, wanted: Wanted) -> ServedTask | PeterRecError:
        try:
            return self._table.resolve(tenant, *wanted)
        except PeterRecError as error:
            return error

    async def _load(self, bundle: BundleEntry) -> Catalog | PeterRecError:
        try:
            return await self._catalogs.load(bundle)
        except PeterRecError as error:
            return error

    def _is_held(self, bundle: BundleEntry, held: dict[str, Catalog | PeterRecError]) -> bool:
        if not KINDS[bundle.kind].has_catalog or bundle.digest in held:
            return True
        catalog = self._catalogs.peek(bundle.digest)
        if catalog is not None:
            held[bundle.digest] = catalog
        return catalog is not None


def _bundles(task: ServedTask) -> list[BundleEntry]:
    """Every bundle that may be asked for the task."""
    if task.split is None:
        return [task.bundle]
    others = (*task.split.canaries.values(), *task.split.shadows)
    return [task.bundle, *(other.bundle for other in others)]
