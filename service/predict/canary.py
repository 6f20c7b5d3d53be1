"""Answers of a task with traffic: chosen by user, compared with prod, and given by prod if need be.

Nothing here runs for a task whose requests prod answers alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from peterrec.model.errors import PeterRecError
from peterrec.service.predict.device_link import DeviceLink
from peterrec.service.predict.rows import (
    Admission,
    Answer,
    Beside,
    Catalogued,
    Question,
    admit,
    prediction,
)
from peterrec.service.predict.traffic_counts import TrafficObserver, is_fault
from peterrec.service.protocol.messages import RowResult
from peterrec.service.protocol.served_task import Role, ServedTask, Split

NO_TIME_S = 0.0
"""Latency of what was refused before it reached the device."""


class Answered(NamedTuple):
    """An answer and the version that gave it, if one did."""

    answer: Answer
    by: ServedTask | None = None


class Splitter:
    """Admits and settles the rows of tasks with traffic. Lives on the event loop."""

    def __init__(self, link: DeviceLink, observer: TrafficObserver) -> None:
        self._link = link
        self._observer = observer

    def admit(
        self, split: Split, prod: ServedTask, question: Question, catalogs: Catalogued
    ) -> Admission | PeterRecError:
        """The row of the version that is this user's; prod's if that one can't be asked."""
        answering, silent = split.cast(prod, question.user)
        chosen = admit(answering, question, catalogs)
        of_prod = chosen if answering is prod else admit(prod, question, catalogs)
        if isinstance(chosen, PeterRecError):
            self._observer.count(split, answering, chosen, NO_TIME_S)
            return of_prod
        beside = [
            of_prod if each is prod else self._admit_silent(split, each, question, catalogs)
            for each in silent
        ]
        rows = [each for each in beside if isinstance(each, Admission)]
        return replace(chosen, beside=Beside(split, None if answering is prod else of_prod, rows))

    async def settle(
        self,
        admitted: Sequence[Admission | PeterRecError],
        answered: Sequence[Answered],
        silent: Sequence[RowResult | None],
        latency_s: float,
        deadline: float,
    ) -> list[Answered]:
        """Count and compare what came back; where a canary failed, prod's answers."""
        results = iter(silent)
        settled = list(answered)
        unanswered: dict[int, Admission] = {}
        for at, (row, given) in enumerate(zip(admitted, answered, strict=True)):
            if isinstance(row, PeterRecError) or row.beside is None:
                continue
            prods = self._compare(row, row.beside, given.answer, results, latency_s)
            instead = row.beside.prod
            if not isinstance(instead, Admission) or not _has_failed(given.answer):
                continue
            if prods is not None and not _has_failed(prods):
                settled[at] = Answered(prods, instead.by)
            else:
                unanswered[at] = instead
        if unanswered:
            await self._ask_prod(settled, unanswered, deadline)
        return settled

    def _admit_silent(
        self, split: Split, served: ServedTask, question: Question, catalogs: Catalogued
    ) -> Admission | PeterRecError:
        admission = admit(served, question, catalogs)
        if isinstance(admission, PeterRecError):
            self._observer.count(split, served, admission, NO_TIME_S)
        return admission

    def _compare(
        self,
        row: Admission,
        beside: Beside,
        answer: Answer,
        results: Iterator[RowResult | None],
        latency_s: float,
    ) -> Answer | None:
        """Count the answer and the silent ones, which are next in ``results``; prod's answer."""
        outcomes: list[tuple[ServedTask, Answer]] = []
        prods = answer if row.by.role is Role.PROD else None
        for quiet, result in zip(beside.silent, results, strict=False):
            if result is None:
                continue  # the batch had no room for it
            outcome = prediction(quiet.subject, result)
            if quiet.by.role is Role.PROD:
                prods = outcome
            else:
                outcomes.append((quiet.by, outcome))
        count, split = self._observer.count, beside.split
        count(split, row.by, answer, latency_s, prods if beside.prod is not None else None)
        for by, outcome in outcomes:
            count(split, by, outcome, latency_s, prods)
        return prods

    async def _ask_prod(
        self, settled: list[Answered], unanswered: dict[int, Admission], deadline: float
    ) -> None:
        """Ask prod in the canary's place; if that can't be, the canary's error stays."""
        renewed = {at: self._link.renewed(each.row) for at, each in unanswered.items()}
        rows = {at: row for at, row in renewed.items() if row is not None}
        try:
            results = await self._link.predict([*rows.values()], deadline)
        except PeterRecError:
            return
        for at, result in zip(rows, results.rows, strict=True):
            instead = unanswered[at]
            settled[at] = Answered(prediction(instead.subject, result), instead.by)


def _has_failed(answer: Answer) -> bool:
    return isinstance(answer, PeterRecError) and is_fault(answer)
