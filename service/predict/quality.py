"""Looks at a sample of the answers, between requests, and tells the metrics what it saw.

A request pays for one append. Four times a second the answers that were taken are counted, and
every few seconds the counts are sent; nothing of a single answer is kept after that.
"""

import asyncio
import random
from bisect import bisect_right
from collections.abc import Sequence
from zlib import crc32

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.kinds import ANSWERS, Prediction
from peterrec.service.predict.kinds.descriptor import Sampled
from peterrec.service.predict.questions import BoundQuestion
from peterrec.service.protocol.answer_prior import AnswerPrior
from peterrec.service.protocol.messages import BundleEntry, Handle
from peterrec.service.protocol.served_task import Role, ServedTask
from peterrec.service.telemetry.events import AnswersSampled, Emit

LOOK_INTERVAL_S = 0.25
SEND_INTERVAL_S = 5.0

MOST_CALLS = 64
"""Calls whose answers are looked at in one go, each as likely as any other: with ``MOST_ROWS`` they
take the event loop for two milliseconds at most."""

MOST_ROWS = 8
"""Answers of one call that are looked at, evenly spread."""

MOST_TASKS = 2000
"""Tasks that are counted between two sendings."""

MOST_LISTS = 64
"""Rankings of a task that are told apart between two sendings."""

BEST_ITEMS = 5
"""The best items of a ranking that are compared; the last one of a shorter ranking fills it up."""

Bound = Sequence[BoundQuestion | PeterRecError]


class AnswerSampler:
    """Samples the answers of prods. Lives on the event loop.

    Tasks that their owners marked as sensitive are left out unless ``sees_sensitive``.
    """

    def __init__(self, emit: Emit, *, sees_sensitive: bool = False) -> None:
        self._emit = emit
        self._sees_sensitive = sees_sensitive
        self._taken: list[tuple[Bound, Sequence[Answered]]] = []
        self._calls = 0  # since the last look
        self._sums: dict[tuple[str, str, int, Handle], _Sums] = {}

    def see(self, bound: Bound, answered: Sequence[Answered]) -> None:
        """Take the answers of a call, or leave them out if there are many calls."""
        self._calls += 1
        if self._calls == 1:
            asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self.look)
        if self._calls <= MOST_CALLS:
            self._taken.append(_spread(bound, answered))
        elif (at := int(random.random() * self._calls)) < MOST_CALLS:  # noqa: S311  # a sample
            self._taken[at] = _spread(bound, answered)

    def look(self) -> None:
        """Count the answers that were taken."""
        taken, self._taken, self._calls = self._taken, [], 0
        if taken and not self._sums:
            asyncio.get_running_loop().call_later(SEND_INTERVAL_S, self.send)
        for bound, answered in taken:
            for question, (answer, by) in zip(bound, answered, strict=True):
                if isinstance(answer, Prediction) and by is not None and self._may_see(by):
                    assert isinstance(question, BoundQuestion)
                    self._count(question, answer, by)

    def send(self) -> None:
        """Tell what was counted since the last time."""
        self.look()
        sums, self._sums = self._sums, {}
        for (tenant, task, version, _), each in sums.items():
            self._emit(each.event(tenant, task, version))

    def may_see(self, *, is_sensitive: bool) -> bool:
        """Whether the settings allow to look at a task's answers."""
        return self._sees_sensitive or not is_sensitive

    def _may_see(self, by: ServedTask) -> bool:
        return by.role is Role.PROD and self.may_see(is_sensitive=by.is_sensitive)

    def _count(self, question: BoundQuestion, answer: Prediction, by: ServedTask) -> None:
        key = (by.tenant, by.task, by.version, by.bundle.handle)  # a task may be made anew
        sums = self._sums.get(key)
        if sums is None:
            if len(self._sums) == MOST_TASKS:
                return
            sums = self._sums[key] = _Sums(by.bundle)
        sums.count(question, answer)


def _spread(bound: Bound, answered: Sequence[Answered]) -> tuple[Bound, Sequence[Answered]]:
    step = -(-len(answered) // MOST_ROWS)
    return (bound, answered) if step < 2 else (bound[::step], answered[::step])


class _Sums:
    """What was counted of one version."""

    def __init__(self, bundle: BundleEntry) -> None:
        self._bundle = bundle
        self._prior = AnswerPrior.unpacked(bundle.prior)
        self._sampled: Sampled[Prediction] | None = ANSWERS[bundle.kind].sampled
        self._has_catalog = KINDS[bundle.kind].has_catalog
        prior = self._prior
        self._number = {} if not (prior and prior.outputs) else _numbers(bundle.labels)
        self._outputs = [0] * (len(prior.outputs) if prior else 0)
        self._scores = [0] * (len(prior.scores) if prior else 0)
        self._answers = self._cold = self._items = self._unknown_items = 0
        self._rankings: dict[int, list[int]] = {}  # by history

    def count(self, question: BoundQuestion, answer: Prediction) -> None:
        """Count an answer; one that rests on no item says nothing of the users."""
        self._answers += 1
        self._items += answer.used_items + answer.unknown_items
        self._unknown_items += answer.unknown_items
        if answer.cold:
            self._cold += 1
            return
        ranked, sampled = question.subject.ranked, self._sampled
        if sampled is None or (ranked is not None and _is_narrowed(question)):
            return
        says = sampled.says(answer)
        if self._prior is not None:
            self._compare(self._prior, says, sampled.score(answer))
        if self._has_catalog and says and len(self._rankings) < MOST_LISTS:
            best = [*says[:BEST_ITEMS], *[says[-1]] * (BEST_ITEMS - len(says))]
            listed = [crc32(item.encode("utf-8", "surrogatepass")) for item in best]
            self._rankings[crc32(question.subject.history.tokens)] = listed

    def _compare(self, prior: AnswerPrior, says: Sequence[str], score: float | None) -> None:
        if prior.outputs:
            for name in says:
                self._outputs[prior.group_of(self._number[name])] += 1
        if prior.scores and score is not None:
            self._scores[bisect_right(prior.bounds, score)] += 1

    def event(self, tenant: str, task: str, version: int) -> AnswersSampled:
        """Make the event that tells it."""
        return AnswersSampled(
            tenant=tenant,
            task=task,
            version=version,
            answers=self._answers,
            cold=self._cold,
            items=self._items,
            unknown_items=self._unknown_items,
            prior=self._bundle.prior,
            outputs=self._outputs,
            scores=self._scores,
            histories=[*self._rankings],
            lists=[hash(tuple(listed)) for listed in self._rankings.values()],
            listed=[item for listed in self._rankings.values() for item in listed],
            catalog=self._bundle.outputs if self._has_catalog else 0,
        )


def _numbers(labels: Sequence[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)}


def _is_narrowed(question: BoundQuestion) -> bool:
    """Whether the request says what may be recommended: then it is not the bundle's choice."""
    ranked = question.subject.ranked
    assert ranked is not None
    selection = ranked.selection
    return selection.candidates is not None or selection.matching is not None
