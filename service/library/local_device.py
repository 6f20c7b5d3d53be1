"""Answers in this process, by the code that answers in a server.

A body as the client sends it is parsed, bound and decoded by a worker's code, and its rows are
scored by the device process's. Only what lies between the processes is missing: the socket, the
queue and the registry.
"""

import copy
import math
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TypeVar

import msgspec
import torch

from peterrec.model.errors import PeterRecError
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.identity import DEFAULT_TENANT, Digest, TaskId, TaskRef
from peterrec.patches.registry.records import TaskEntry
from peterrec.patches.registry.traffic import PROD
from peterrec.service.device.loop import row_results
from peterrec.service.device.queue import QueuedRow
from peterrec.service.device.serving_table import entry_of
from peterrec.service.device.slots import Residency, SlotStore
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import BoundRow, Results
from peterrec.service.predict.filters import ItemFilters
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.kinds import AnyPrediction
from peterrec.service.predict.parse import parse_predict
from peterrec.service.predict.predictor import Predictor, TaskQuestions
from peterrec.service.predict.schemas import FailedRow, PredictResponse
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import TableUpdate, TrafficSeen
from peterrec.service.protocol.sender import NOBODY, Sender
from peterrec.service.protocol.served_task import Role
from peterrec.service.telemetry.events import Event

T = TypeVar("T")

NOT_REGISTERED = 0
"""Version and registry revision in the answer of a bundle that no registry has numbered."""


@dataclass(slots=True)
class _Resident:
    """A bundle on the device, its worker-side view, and how many tasks use it."""

    residency: Residency
    predictor: Predictor
    users: int = 1


class LocalDevice:
    """A backbone on a device of this process, and the bundles that were loaded for it.

    Any thread may call it; calls wait for one another, as one device computes one batch at a time.
    """

    def __init__(self, loaded: LoadedBackbone, device: torch.device) -> None:
        backbone = loaded.backbone
        if device != backbone.embedding.weight.device:
            backbone = copy.deepcopy(backbone).to(device)
        self._store = SlotStore(backbone, sys.maxsize)
        self._vocabulary = ItemVocabulary(loaded.items, backbone.spec.max_len)
        self._resident: dict[Digest, _Resident] = {}
        self._lock = RLock()

    def load(self, bundle: VerifiedBundle) -> None:
        """Load a bundle and run its probes, as a server does; ProbeFailed if they differ."""
        with self._lock:
            known = self._resident.get(bundle.digest)
            if known is not None:
                known.users += 1
                return
            residency = self._store.load(bundle)
            predictor = self._predictor(residency, bundle)
            self._resident[bundle.digest] = _Resident(residency, predictor)

    def free(self, digest: Digest) -> None:
        """Let one user of a bundle go; the last one frees its memory."""
        with self._lock:
            known = self._resident[digest]
            known.users -= 1
            if not known.users:
                del self._resident[digest]
                self._store.free(known.residency)

    def answer(self, digest: Digest, name: str, body: bytes) -> bytes:
        """The answer to the body of ``POST /tasks/{task}/predict``, for a bundle that is loaded.

        Raises the error of the body, or that of the first instance that has no answer.
        """
        instances, parameters = parse_predict(body)
        with self._lock:
            known = self._resident[digest]
            questions = _run(known.predictor.questions(instances, parameters))
            asked = TaskQuestions(_TASK, parameters.version, questions)
            predicted = _run(known.predictor.predict(DEFAULT_TENANT, (asked,), math.inf))
        served, answered = predicted.tasks[0]
        if isinstance(served, PeterRecError):
            raise served
        answers: list[AnyPrediction | FailedRow] = []
        for place, (answer, _) in enumerate(answered):
            if isinstance(answer, PeterRecError):
                raise _placed(answer, place if len(answered) > 1 else None)
            answers.append(answer)
        response = PredictResponse(
            task=name,
            version=NOT_REGISTERED,
            digest=served.digest,
            alias=None,
            role=Role.PINNED,
            kind=served.bundle.kind,
            registry_revision=NOT_REGISTERED,
            request_id="",
            predictions=answers,
        )
        return msgspec.json.encode(response)

    def _predictor(self, residency: Residency, bundle: VerifiedBundle) -> Predictor:
        """A worker's predictor whose table has one task, which this bundle answers."""
        task = TaskEntry.of(TaskRef(DEFAULT_TENANT, _TASK), 0, {PROD: 1}, {1: residency.digest})
        table, catalogs = TaskTable(), Catalogs()
        table.apply(TableUpdate(1, 1, NOT_REGISTERED, True, [entry_of(residency)], [task], [], []))
        if bundle.catalog is not None:
            catalogs.put(residency.digest, bundle.catalog)
        link, filters = _StoreLink(self._store), ItemFilters()
        return Predictor(self._vocabulary, table, link, catalogs, _ignore, filters=filters)


_TASK = TaskId("task")
"""The name of the only task in a local table."""


class _StoreLink:
    """Scores rows at once, instead of sending them to a device process; a ``RowLink``."""

    def __init__(self, store: SlotStore) -> None:
        self._store = store

    async def predict(
        self,
        rows: Sequence[BoundRow],
        deadline: float,
        shadows: Sequence[BoundRow] = (),
        sender: Sender = NOBODY,
    ) -> Results:
        """Results of rows, all in one batch."""
        queued = [
            QueuedRow(0, 0, number, bound.row, deadline, 0.0) for number, bound in enumerate(rows)
        ]
        scores = self._store.score([each.row for each in queued])
        return Results(row_results(queued, scores), [])

    def rebind(self, row: BoundRow) -> BoundRow | None:
        """The row itself: a bundle keeps its residency while it is used."""
        return row

    def send_traffic(self, seen: TrafficSeen) -> None:
        """Ignore counts of traffic, of which there is none."""


def _run(work: Coroutine[object, object, T]) -> T:
    """The result of a coroutine that waits for nothing, but may give others a turn."""
    try:
        while True:
            assert work.send(None) is None, "a local prediction waited"
    except StopIteration as done:
        result: T = done.value
        return result


def _placed(error: PeterRecError, place: int | None) -> PeterRecError:
    if place is not None:
        error.message = f"history {place}: {error.message}"
    return error


def _ignore(event: Event) -> None:
    """Ignore what a server would measure."""
