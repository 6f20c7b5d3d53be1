"""Tasks with a canary or a shadow: route users, compare answers with prod's, fall back to prod.

Nothing in this module runs for a task whose requests prod answers alone.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from peterrec.model.errors import PeterRecError
from peterrec.service.predict.device_link import BoundRow, Results, RowLink
from peterrec.service.predict.questions import (
    Answer,
    BoundQuestion,
    CatalogsByDigest,
    OtherVersions,
    Question,
    bind,
    decode,
)
from peterrec.service.predict.traffic_counts import TrafficObserver, is_fault
from peterrec.service.protocol.messages import RowResult
from peterrec.service.protocol.served_task import Role, ServedTask, Split

NO_LATENCY_S = 0.0
"""Latency, in seconds, that is counted for a question refused before it reached the device."""


AskRows = Callable[[Sequence[BoundRow]], Awaitable[Results]]
"""Runs rows of a call, and returns their results."""


class Answered(NamedTuple):
    """An answer and the version that gave it; ``by`` is None if no version was asked."""

    answer: Answer
    by: ServedTask | None = None


class TrafficRouter:
    """Routes the questions of tasks with traffic, and settles their answers.

    Lives on the event loop.
    """

    def __init__(self, link: RowLink, observer: TrafficObserver) -> None:
        self._link = link
        self._observer = observer

    def route(
        self, split: Split, prod: ServedTask, question: Question, catalogs: CatalogsByDigest
    ) -> BoundQuestion | PeterRecError:
        """Bind a question to its user's version; to prod if that version can't be asked."""
        answering, shadowing = split.route(prod, question.user(prod.bundle))
        chosen = bind(answering, question, catalogs)
        of_prod = chosen if answering is prod else bind(prod, question, catalogs)
        if isinstance(chosen, PeterRecError):
            self._observer.count(split, answering, chosen, NO_LATENCY_S)
            return of_prod
        bound = [
            of_prod if each is prod else self._bind_shadow(split, each, question, catalogs)
            for each in shadowing
        ]
        shadows = [each for each in bound if isinstance(each, BoundQuestion)]
        fallback = None if answering is prod else of_prod
        return replace(chosen, others=OtherVersions(split, fallback, shadows))

    async def settle(
        self,
        bound: Sequence[BoundQuestion | PeterRecError],
        answered: Sequence[Answered],
        shadows: Sequence[RowResult | None],
        latency_s: float,
        ask: AskRows,
    ) -> list[Answered]:
        """Count and compare the answers; replace those of canaries that failed by prod's.

        ``shadows`` are the results of all shadow rows, in the order of the questions; ``ask`` runs
        further rows of the same call.
        """
        results = iter(shadows)
        settled = list(answered)
        unanswered: dict[int, BoundQuestion] = {}
        for at, (question, given) in enumerate(zip(bound, answered, strict=True)):
            if isinstance(question, PeterRecError) or question.others is None:
                continue
            others = question.others
            of_prod = self._compare(question, others, given.answer, results, latency_s)
            fallback = others.fallback
            if not isinstance(fallback, BoundQuestion) or not _has_failed(given.answer):
                continue
            if of_prod is not None and not _has_failed(of_prod):
                settled[at] = Answered(of_prod, fallback.by)
            else:
                unanswered[at] = fallback
        if unanswered:
            await self._ask_prod(settled, unanswered, ask)
        return settled

    def _bind_shadow(
        self, split: Split, served: ServedTask, question: Question, catalogs: CatalogsByDigest
    ) -> BoundQuestion | PeterRecError:
        bound = bind(served, question, catalogs)
        if isinstance(bound, PeterRecError):
            self._observer.count(split, served, bound, NO_LATENCY_S)
        return bound

    def _compare(
        self,
        question: BoundQuestion,
        others: OtherVersions,
        answer: Answer,
        results: Iterator[RowResult | None],
        latency_s: float,
    ) -> Answer | None:
        """Count the answer and the question's shadows, which come next in ``results``.

        Returns prod's answer, or None if prod did not compute one.
        """
        outcomes: list[tuple[ServedTask, Answer]] = []
        of_prod = answer if question.by.role is Role.PROD else None
        for shadow, result in zip(others.shadows, results, strict=False):
            if result is None:
                continue  # the batch had no room for it
            outcome = decode(shadow.subject, result)
            if shadow.by.role is Role.PROD:
                of_prod = outcome
            else:
                outcomes.append((shadow.by, outcome))
        count, split = self._observer.count, others.split
        compared_with = of_prod if others.fallback is not None else None
        count(split, question.by, answer, latency_s, compared_with)
        for by, outcome in outcomes:
            count(split, by, outcome, latency_s, of_prod)
        return of_prod

    async def _ask_prod(
        self, settled: list[Answered], unanswered: dict[int, BoundQuestion], ask: AskRows
    ) -> None:
        """Ask prod instead of canaries that failed; where prod can't be asked, the error stays."""
        rebound = {at: self._link.rebind(each.row) for at, each in unanswered.items()}
        rows = {at: row for at, row in rebound.items() if row is not None}
        try:
            results = await ask([*rows.values()])
        except PeterRecError:
            return
        for at, result in zip(rows, results.rows, strict=True):
            fallback = unanswered[at]
            settled[at] = Answered(decode(fallback.subject, result), fallback.by)


def _has_failed(answer: Answer) -> bool:
    return isinstance(answer, PeterRecError) and is_fault(answer)
