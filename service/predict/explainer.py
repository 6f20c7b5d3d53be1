"""Explanations of answers: the rows that they add, and what is read from the rows' results.

An item's contribution is what an output's score loses when the item is left out of the history.
The answer comes first, as without an explanation. Then the version that gave it gets the history
once as it is, and once without each item that its network reads, as ordinary rows, a few at a time.
What an item table adds to each of these histories, and to those without older items, is one row
more: it follows from the table's weights. A ranking's table moves the user vector, not the scores.
So there the history is run without each item that the table reads, whole.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec import UNSET, structs

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.errors import (
    BundleGone,
    ExplanationTooLarge,
    error_body,
    outcome_of,
    row_error,
)
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.device_link import BoundRow, RowLink
from peterrec.service.predict.explanation import (
    Explain,
    ExplainedOutput,
    Explanation,
    ItemContribution,
    Method,
)
from peterrec.service.predict.item_ids import ItemVocabulary
from peterrec.service.predict.kinds import ANSWERS, Prediction
from peterrec.service.predict.kinds.descriptor import Floats
from peterrec.service.predict.questions import BoundQuestion, CatalogsByDigest, Question
from peterrec.service.predict.removals import Places, Removals
from peterrec.service.predict.turns import Turns
from peterrec.service.protocol.messages import BundleEntry, Row, RowResult
from peterrec.service.protocol.sender import Sender
from peterrec.service.telemetry.events import AnswerExplained, Emit

NUMBERS_AT_ONCE = 4096
"""Tokens and outputs of the rows that are sent at once: other rows wait no longer than for them."""

ROWS_AT_ONCE = 64
"""Rows that are sent at once."""

MAX_SCORES = 1 << 19
"""Most scores (histories times outputs) that are computed for the explanations of a call."""

MAX_NAMED = 10_000
"""Most contributions that the answers of a call name; a worker takes 2 µs to make one."""


class Planned(NamedTuple):
    """What a question asks to be explained, and its history without each item.

    These are of the backbone at the place ``backbone``, that of the version that was asked first.
    """

    explain: Explain
    removals: Removals
    question: Question
    backbone: int


class Outputs(NamedTuple):
    """The outputs that are explained: their names, and their places among a row's numbers.

    ``candidates`` int64 are the catalog indices that a ranking's rows are asked for, ascending.
    """

    names: Sequence[str]
    places: Places
    candidates: bytes | None


TABLE = -1
"""Stands for the row that asks for what an item table adds, among the numbers of histories."""


@dataclass(slots=True, eq=False)
class Work:
    """An answer that is being explained.

    ``scores`` [1 + items, outputs]: row 0 is of the whole history, row 1 + i of that without item
    i. The first ``read`` items are read by the network, so that their histories have to be run; the
    others move a table only, which has been asked for ``added`` [1 + items, K]. ``rows`` counts the
    rows whose results have come.
    """

    bundle: BundleEntry
    planned: Planned
    outputs: Outputs
    scores: Floats
    read: int
    added: Floats | None = None
    rows: int = 0
    error: PeterRecError | None = None

    @property
    def items(self) -> int:
        """The number of items that are looked at."""
        return len(self.scores) - 1

    def needs(self, number: int) -> bool:
        """True if a row has to be run; False for all once something has failed."""
        if self.error is not None or not self.outputs.names:
            return False
        return _adds_scores(self.bundle) if number == TABLE else number <= self.read

    def numbers_of(self, number: int) -> int:
        """Tokens and outputs of a row, about."""
        removals = self.planned.removals
        if number == TABLE:
            return len(removals.tokens) + self.bundle.outputs * len(self.scores)
        tokens = len(removals.tokens)
        if not _moves_users(self.bundle):
            tokens = min(tokens, removals.max_len)
        return tokens + _row_outputs(self.bundle, self.outputs)

    def row(self, number: int) -> BoundRow:
        """Make a row to run."""
        removals, handle = self.planned.removals, self.bundle.handle
        left_out = number - 1 if number > 0 else None
        tokens = removals.window(left_out).tobytes()
        if number == TABLE:
            older = removals.older().tobytes()
            asked = removals.item_tokens[: self.items].tobytes()
            row = Row(handle, tokens, older=older, left_out=asked)
        elif self.outputs.candidates is None:
            row = Row(handle, tokens, is_raw=True)
        else:
            candidates, count = self.outputs.candidates, len(self.outputs.names)
            older = removals.older(left_out).tobytes() if self.bundle.has_table else b""
            row = Row(handle, tokens, count, candidates=candidates, is_raw=True, older=older)
        return BoundRow(row, self.bundle.digest)

    def take(self, number: int, result: RowResult) -> None:
        """Keep a row's result."""
        if result.error:
            self.error = self.error or row_error(result.error, result.detail)
            return
        self.rows += 1
        values = np.frombuffer(result.values, np.float32).astype(np.float64)
        if number == TABLE:
            self.added = values.reshape(len(self.scores), -1)
            return
        if self.outputs.candidates is not None:  # they come best first
            values = values[np.frombuffer(result.indices, np.int64).argsort()]
        self._score(number, values)
        if number == 0 and self.read < self.items:
            self._score(slice(1 + self.read, None), values)

    def _score(self, which: int | slice, logits: Floats) -> None:
        """Keep the scores of the network's logits [K], with what a table adds for each history."""
        added = 0.0 if self.added is None else self.added[which]
        measure = ANSWERS[self.bundle.kind].measure
        found = measure.scores(self.bundle, np.atleast_2d(logits + added))  # [n, K]
        self.scores[which] = found[:, self.outputs.places]

    def explanation(self) -> Explanation:
        """Name the items that moved each output most; nothing if there was an error."""
        removals = self.planned.removals
        within = _within(removals, self.bundle)
        names = self.outputs.names if self.error is None else ()
        return Explanation(
            method=_method(self.bundle),
            unit=self.bundle.unit or ANSWERS[self.bundle.kind].measure.unit,
            items_looked_at=self.items,
            items_without_effect=removals.unread + len(removals.ids) - within,
            items_left_out=within - self.items,
            rows=self.rows,
            outputs=[self._explained(at) for at in range(len(names))],
            error=UNSET if self.error is None else error_body(self.error),
        )

    def _explained(self, output: int) -> ExplainedOutput:
        whole = float(self.scores[0, output])
        moved = whole - self.scores[1:, output]  # [items]
        most = largest(np.abs(moved), self.planned.explain.items)
        removals = self.planned.removals
        return ExplainedOutput(
            output=self.outputs.names[output],
            score=whole + ANSWERS[self.bundle.kind].measure.shift(self.bundle),
            items=[
                ItemContribution(removals.name(item), float(moved[item]), removals.times[item])
                for item in most.tolist()
            ],
        )


class Explainer:
    """Explains the answers of a worker's calls. Lives on the event loop.

    At most ``max_rows`` rows are added to one call. One part of the rows waits for the device at a
    time, whoever asks, and tenants take turns. So other rows never wait for more than that part.
    """

    def __init__(
        self, vocabularies: Sequence[ItemVocabulary], link: RowLink, emit: Emit, max_rows: int
    ) -> None:
        """``vocabularies`` are those of the server's backbones, by their places."""
        self._vocabularies = vocabularies
        self._link = link
        self._emit = emit
        self._max_rows = max_rows
        self._turns = Turns()

    def plan(
        self,
        questions: Sequence[Question | PeterRecError],
        bound: Sequence[BoundQuestion | PeterRecError],
    ) -> dict[int, Planned]:
        """Return what is to be explained, by the question's place.

        Raises ExplanationTooLarge if the explanations of all questions need too many rows.
        """
        planned: dict[int, Planned] = {}
        known: dict[tuple[int, str, int], Removals] = {}  # the tasks of a user share a history
        rows = scores = 0
        for at, (question, each) in enumerate(zip(questions, bound, strict=True)):
            if isinstance(question, PeterRecError) or isinstance(each, PeterRecError):
                continue
            if question.explain is None:
                continue
            bundle = each.by.bundle
            key = id(question.item_ids), question.unknown_items, bundle.backbone
            if key not in known:
                known[key] = self._removals(question, bundle.backbone)
            planned[at] = Planned(question.explain, known[key], question, bundle.backbone)
            rows += 1 + _adds_scores(bundle) + _read(planned[at], bundle)
            scores += (1 + _items(planned[at], bundle)) * _most_outputs(question, bundle)
            if rows > self._max_rows or scores > MAX_SCORES:
                answers = sum(map(_is_explained, questions))
                raise self._refusal(answers, are_rows=rows > self._max_rows)
        return planned

    async def explain(
        self,
        sender: Sender,
        planned: Mapping[int, Planned],
        answered: Sequence[Answered],
        catalogs: CatalogsByDigest,
        deadline: float,
    ) -> list[Answered]:
        """Return the answers, with explanations of the planned ones that are no errors.

        An explanation that fails has its error; the answer stays.
        """
        of_answers = {at: self._as_answered(each, answered[at]) for at, each in planned.items()}
        works = _works(of_answers, answered, catalogs)
        for part in _parts(works.values()):
            try:
                async with self._turns.turn(sender.tenant, deadline):
                    await self._run(part, deadline, sender)
            except PeterRecError as error:
                for work, _ in part:
                    work.error = work.error or error
        explained = list(answered)
        for at, work in works.items():
            given = explained[at]
            assert isinstance(given.answer, Prediction)
            answer = structs.replace(given.answer, explanation=work.explanation())
            explained[at] = given._replace(answer=answer)
            outcome = "ok" if work.error is None else outcome_of(work.error)
            self._emit(AnswerExplained(work.rows, outcome))
        return explained

    def _removals(self, question: Question, place: int) -> Removals:
        vocabulary = self._vocabularies[place]
        return Removals.of(question.item_ids, question.unknown_items, vocabulary)

    def _as_answered(self, planned: Planned, answered: Answered) -> Planned:
        """Read the history again if a version of another backbone has answered: prod may have."""
        if answered.by is None or answered.by.bundle.backbone == planned.backbone:
            return planned
        place = answered.by.bundle.backbone
        removals = self._removals(planned.question, place)
        return planned._replace(removals=removals, backbone=place)

    async def _run(self, part: Sequence[tuple[Work, int]], deadline: float, sender: Sender) -> None:
        """Run rows of some works; raises what the link raises. Sends before the first await."""
        rows: list[BoundRow] = []
        sent: list[tuple[Work, int]] = []
        for work, number in part:
            row = self._link.rebind(work.row(number))
            if row is None:
                work.error = BundleGone()
            else:
                rows.append(row)
                sent.append((work, number))
        if rows:
            found = await self._link.predict(rows, deadline, sender=sender)
            for (work, number), result in zip(sent, found.rows, strict=True):
                work.take(number, result)

    def _refusal(self, answers: int, *, are_rows: bool) -> ExplanationTooLarge:
        """Return the error of a call whose explanations need too many rows, or scores."""
        if not self._max_rows:
            return ExplanationTooLarge(
                "this server gives no explanations.", hint="Send the request without `explain`."
            )
        fewer = "Explain fewer answers in one call"
        if not are_rows:
            return ExplanationTooLarge(
                f"the explanations need more than the {MAX_SCORES} scores that are computed for a "
                "call: one for each item and output.",
                hint=f"{fewer}, or look at the newest items only (`newest`).",
            )
        newest = self._max_rows // answers - 2
        smaller = f'"explain": {{"items": …, "newest": {newest}}} looks at fewer items'
        return ExplanationTooLarge(
            f"the explanations need more than the {self._max_rows} rows that they may add to a "
            f"call: one for each item that is read, in each of {answers} histories, and one or two "
            "for each answer.",
            hint=f"{fewer}; {smaller}." if newest > 0 else f"{fewer}.",
        )


def largest(sizes: Floats, count: int) -> Places:
    """The places of the largest sizes [n], largest first; of equal ones the first.

    Thousands of items need not be sorted to find a few.
    """
    if len(sizes) <= count:
        return (-sizes).argsort(kind="stable")
    least = np.partition(sizes, -count)[-count]
    places = np.flatnonzero(sizes >= least)
    return places[(-sizes[places]).argsort(kind="stable")][:count]


def _is_explained(question: Question | PeterRecError) -> bool:
    return isinstance(question, Question) and question.explain is not None


def _method(bundle: BundleEntry) -> Method:
    if not _adds_scores(bundle):
        return "leave_one_out"
    return "table" if bundle.reach == 0 else "leave_one_out_and_table"


def _within(removals: Removals, bundle: BundleEntry) -> int:
    """The number of items, the first ones, that can move an answer of the bundle."""
    return len(removals.ids) if bundle.has_table else _in_reach(removals, bundle)


def _in_reach(removals: Removals, bundle: BundleEntry) -> int:
    """The number of items, the first ones, whose histories have to be run without them."""
    if _moves_users(bundle):
        return len(removals.ids)
    return removals.within(removals.max_len if bundle.reach is None else bundle.reach)


def _adds_scores(bundle: BundleEntry) -> bool:
    """True if an item table adds to the scores, so that an item's summand can be read from it."""
    return bundle.has_table and not _has_catalog(bundle)


def _moves_users(bundle: BundleEntry) -> bool:
    """True if an item table adds to the user vector, as a ranking's does."""
    return bundle.has_table and _has_catalog(bundle)


def _items(planned: Planned, bundle: BundleEntry) -> int:
    """The number of items that are looked at."""
    return min(_within(planned.removals, bundle), planned.explain.newest or sys.maxsize)


def _read(planned: Planned, bundle: BundleEntry) -> int:
    """The number of items whose histories have to be run."""
    return min(_in_reach(planned.removals, bundle), planned.explain.newest or sys.maxsize)


def _most_outputs(question: Question, bundle: BundleEntry) -> int:
    """The number of outputs that each row has, at most."""
    return min(question.top_k, bundle.outputs) if _has_catalog(bundle) else bundle.outputs


def _row_outputs(bundle: BundleEntry, outputs: Outputs) -> int:
    return bundle.outputs if outputs.candidates is None else len(outputs.names)


def _has_catalog(bundle: BundleEntry) -> bool:
    return KINDS[bundle.kind].has_catalog


def _works(
    planned: Mapping[int, Planned], answered: Sequence[Answered], catalogs: CatalogsByDigest
) -> dict[int, Work]:
    """Make the work for each planned answer that is no error; past MAX_NAMED, one that failed."""
    works: dict[int, Work] = {}
    named = 0
    for at, each in planned.items():
        answer, by = answered[at]
        if isinstance(answer, PeterRecError):
            continue
        assert by is not None
        outputs = _outputs(by.bundle, each.explain, answer, catalogs)
        items = _items(each, by.bundle)
        named += len(outputs.names) * max(1, min(each.explain.items, items))
        if named > MAX_NAMED:
            outputs = Outputs((), np.empty(0, np.int64), None)
        scores = np.zeros((1 + items, len(outputs.names)))
        works[at] = Work(by.bundle, each, outputs, scores, _read(each, by.bundle))
        if named > MAX_NAMED:
            works[at].error = ExplanationTooLarge(
                f"the explanations of a call name at most {MAX_NAMED} contributions, of all items "
                "and outputs together.",
                hint="Ask for fewer items, outputs or answers.",
            )
    return works


def _outputs(
    bundle: BundleEntry, explain: Explain, answer: Prediction, catalogs: CatalogsByDigest
) -> Outputs:
    """Choose the outputs to explain: those that the answer rests on, or all."""
    rests_on = ANSWERS[bundle.kind].measure.rests_on(answer)
    if _has_catalog(bundle):
        assert rests_on is not None
        return _recommended(rests_on, catalogs[bundle.digest])
    names = bundle.labels or (bundle.kind,)
    if explain.outputs == "all" or rests_on is None:
        return Outputs(names, np.arange(len(names)), None)
    places = {name: at for at, name in enumerate(names)}
    return Outputs(rests_on, np.array([places[name] for name in rests_on], np.int64), None)


def _recommended(items: Sequence[str], catalog: Catalog | PeterRecError) -> Outputs:
    assert not isinstance(catalog, PeterRecError)  # it has answered
    indices = np.array([catalog.index_of(item) for item in items], np.int64)
    ascending = np.sort(indices)
    return Outputs(items, ascending.searchsorted(indices), ascending.tobytes())


def _parts(works: Iterable[Work]) -> Iterator[list[tuple[Work, int]]]:
    """Cut the rows of all works into parts that are small, but have one row at least."""
    part: list[tuple[Work, int]] = []
    numbers = 0
    for work, number in _steps(works):
        own = work.numbers_of(number)
        if part and (len(part) == ROWS_AT_ONCE or numbers + own > NUMBERS_AT_ONCE):
            yield part
            part, numbers = [], 0
        part.append((work, number))
        numbers += own
    if part:
        yield part


def _steps(works: Iterable[Work]) -> Iterator[tuple[Work, int]]:
    """Yield the rows to run. Those of one history, for several tasks, follow each other.

    So they share what all tasks compute alike.
    """
    by_history: defaultdict[int, list[Work]] = defaultdict(list)
    for work in works:
        by_history[id(work.planned.removals)].append(work)
    for members in by_history.values():
        for number in range(TABLE, 1 + max(work.read for work in members)):
            for work in members:
                if work.needs(number):
                    yield work, number
