"""What is refused before an explanation begins, and what is left if it ends early."""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from peterrec.model.errors import PeterRecError
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.patches.identity import DEFAULT_TENANT, Blob, TaskId, TaskRef
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.device.loop import row_results
from peterrec.service.device.queue import QueuedRow
from peterrec.service.device.serving_table import entry_of
from peterrec.service.device.slots import SlotStore
from peterrec.service.errors import BundleGone, ExplanationTooLarge, QueueFull
from peterrec.service.predict.catalogs import Catalogs
from peterrec.service.predict.device_link import BoundRow, Results
from peterrec.service.predict.explainer import MAX_SCORES, NUMBERS_AT_ONCE, ROWS_AT_ONCE, largest
from peterrec.service.predict.explanation import Explain, Explanation
from peterrec.service.predict.item_ids import ItemId, ItemVocabulary
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.predictor import Predictor, TaskQuestions
from peterrec.service.predict.schemas import Instance, Parameters
from peterrec.service.predict.task_table import TaskTable
from peterrec.service.protocol.messages import TrafficSeen
from peterrec.service.protocol.sender import NOBODY, Sender
from peterrec.service.telemetry.events import AnswerExplained, Event
from tests.service.messages import full_update
from tests.service.random_bundles import ITEMS as NAMES
from tests.service.random_bundles import Workshop

ITEMS: list[ItemId] = [*NAMES]
TASK = TaskRef(DEFAULT_TENANT, TaskId("task"))


class Link:
    """Scores the rows of each call on a device of this process; ``before`` is run before each.

    ``calls`` has the rows of each, and ``most_raw`` says how many calls of explanations were
    waiting at one time. Without ``is_there`` the bundle has left the device.
    """

    def __init__(self, store: SlotStore) -> None:
        self._store = store
        self.calls: list[Sequence[BoundRow]] = []
        self.before: Callable[[], None] = lambda: None
        self.is_there = True
        self.running_raw = self.most_raw = 0

    async def predict(
        self,
        rows: Sequence[BoundRow],
        deadline: float,
        shadows: Sequence[BoundRow] = (),
        sender: Sender = NOBODY,
    ) -> Results:
        self.before()
        self.calls.append(rows)
        self.running_raw += rows[0].row.is_raw
        self.most_raw = max(self.most_raw, self.running_raw)
        queued = [QueuedRow(0, 0, at, each.row, deadline, 0.0) for at, each in enumerate(rows)]
        await asyncio.sleep(0)
        self.running_raw -= rows[0].row.is_raw
        return Results(row_results(queued, self._store.score([each.row for each in queued])), [])

    def rebind(self, row: BoundRow) -> BoundRow | None:
        return row if self.is_there else None

    def send_traffic(self, seen: TrafficSeen) -> None:
        raise AssertionError("there is no traffic")


class Place:
    """A predictor with one task, whose device is in this process."""

    def __init__(self, workshop: Workshop, bundle: bytes, max_rows: int) -> None:
        store = SlotStore(workshop.loaded.backbone, sys.maxsize)
        verified = verify_bundle(
            Blob(bundle), backbone=workshop.identity, limits=BundleLimits(), trusted_keys=None
        )
        residency = store.load(verified)
        table = TaskTable()
        entry = TaskEntry.of(TASK, 1, {"prod": 1}, {1: residency.digest})
        table.apply(full_update(1, [entry_of(residency)], [entry]))
        self.link = Link(store)
        self.events: list[Event] = []
        vocabulary = ItemVocabulary(NAMES, workshop.spec.max_len)
        self.predictor = Predictor(
            vocabulary, table, self.link, Catalogs(), self.events.append, max_rows
        )

    async def ask(self, *instances: Instance, explain: Explain | int = 5) -> list[Prediction]:
        questions = await self.predictor.questions(instances, Parameters(explain=explain))
        asked = TaskQuestions("task", None, questions)
        predicted = await self.predictor.predict(DEFAULT_TENANT, [asked], time.monotonic() + 60)
        answers = [each.answer for each in predicted.tasks[0].answers]
        assert not any(isinstance(answer, PeterRecError) for answer in answers)
        return [answer for answer in answers if isinstance(answer, Prediction)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def place(workshop: Workshop) -> Place:
    return Place(workshop, workshop.bundle("classification", seed=1), max_rows=100)


def explanation_of(answer: Prediction) -> Explanation:
    assert isinstance(answer.explanation, Explanation)
    return answer.explanation


async def test_as_many_rows_are_added_as_may_be_and_none_if_more_are_needed(place: Place) -> None:
    fitting = [Instance(ITEMS[:19])] * 5
    for answer in await place.ask(*fitting):
        assert explanation_of(answer).rows == 20
    sent = len(place.link.calls)
    with pytest.raises(ExplanationTooLarge, match="more than the 100 rows"):
        await place.ask(*fitting, Instance([]))
    assert len(place.link.calls) == sent


async def test_instances_without_an_explanation_need_none_of_the_rows(place: Place) -> None:
    plain = Instance(ITEMS[:19], explain=0)
    answers = await place.ask(*[Instance(ITEMS[:19])] * 5, *[plain] * 50)
    assert len(answers) == 55


async def test_rows_are_sent_a_few_at_a_time_after_the_answer(place: Place) -> None:
    await place.ask(*[Instance(ITEMS[:19])] * 5)
    answers, *parts = [len(rows) for rows in place.link.calls]
    assert answers == 5
    assert sum(parts) == 100
    assert max(parts) <= ROWS_AT_ONCE
    assert len(parts) > 1


async def test_the_rows_of_one_history_for_several_tasks_are_run_together(place: Place) -> None:
    history, policy = ITEMS[:19], Parameters(explain=3)
    asked = [
        TaskQuestions("task", None, await place.predictor.questions([Instance(history)], policy))
        for _ in range(4)
    ]
    await place.predictor.predict(DEFAULT_TENANT, asked, time.monotonic() + 60)
    tokens = [each.row.tokens for rows in place.link.calls[1:] for each in rows]
    assert len(tokens) == 80
    assert [len({*tokens[at : at + 4]}) for at in range(0, 80, 4)] == [1] * 20


async def test_parts_of_long_rows_have_fewer(workshop: Workshop) -> None:
    outputs = NUMBERS_AT_ONCE // 4
    place = Place(workshop, workshop.bundle("tags", 1, outputs=outputs), max_rows=100)
    (answer,) = await place.ask(Instance(ITEMS[:5]), explain=Explain(1))
    assert explanation_of(answer).rows == 6
    assert [len(rows) for rows in place.link.calls[1:]] == [3, 3]


async def test_too_many_scores_are_refused_before_anything_is_run(workshop: Workshop) -> None:
    outputs, answers = 4096, 7
    bundle = workshop.bundle("classification", 1, outputs=outputs)
    place = Place(workshop, bundle, max_rows=1000)
    instances = [Instance(ITEMS[:20])] * answers
    newest = MAX_SCORES // outputs // answers - 1
    with pytest.raises(ExplanationTooLarge, match="more than the 524288 scores"):
        await place.ask(*instances, explain=Explain(1, newest=newest + 1))
    assert place.link.calls == []
    for answer in await place.ask(*instances, explain=Explain(1, newest=newest)):
        assert explanation_of(answer).items_looked_at == newest


async def test_a_part_that_finds_no_room_leaves_the_answer_and_what_failed_is_told(
    place: Place,
) -> None:
    def refuse_the_third() -> None:
        if len(place.link.calls) == 2:
            raise QueueFull

    place.link.before = refuse_the_third
    plain = await place.ask(*[Instance(ITEMS[:19])] * 5, explain=0)
    place.link.calls.clear()
    answers = await place.ask(*[Instance([*ITEMS[:19]]) for _ in range(5)])
    explanations = [explanation_of(answer) for answer in answers]
    failed = [each for each in explanations if each.error]
    assert [each.rows for each in explanations if not each.error] == [20] * (5 - len(failed))
    assert 0 < len(failed) < 5
    for each in failed:
        assert each.error
        assert (each.error.code, each.error.retryable, each.outputs) == ("queue_full", True, [])
    assert len(plain) == len(answers)
    outcomes = [event for event in place.events if isinstance(event, AnswerExplained)]
    assert [event.outcome for event in outcomes].count("rejected") == len(failed)


async def test_a_bundle_that_has_left_is_told_in_the_explanation(place: Place) -> None:
    def leave() -> None:
        place.link.is_there = False

    place.link.before = leave
    (answer,) = await place.ask(Instance(ITEMS[:19]))
    error = explanation_of(answer).error
    assert error
    assert error.code == BundleGone.code
    assert len(place.link.calls) == 1


async def test_callers_take_turns_part_by_part(place: Place) -> None:
    await asyncio.gather(*(place.ask(Instance(ITEMS[:20]), explain=1) for _ in range(10)))
    assert len([rows for rows in place.link.calls if rows[0].row.is_raw]) == 10
    assert place.link.most_raw == 1


@pytest.mark.parametrize("count", [1, 3, 10, 100])
def test_the_largest_are_found_in_order_and_of_equal_ones_the_first(count: int) -> None:
    draw = random.Random(1)
    for length in (1, 2, 9, 50):
        sizes = [draw.choice([0.0, 0.5, 1.0, draw.random()]) for _ in range(length)]
        expected = sorted(range(length), key=lambda at: -sizes[at])[:count]
        assert largest(np.array(sizes), count).tolist() == expected


def test_an_empty_history_has_no_largest() -> None:
    assert largest(np.empty(0), 5).tolist() == []
