"""A worker looks at a sample of its answers, and no request waits for it."""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import MalformedRequest, NotARankingTask
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.device_link import BoundRow
from peterrec.service.predict.feedback import PredictionIds, compare
from peterrec.service.predict.item_ids import MappedHistory
from peterrec.service.predict.kinds.descriptor import Subject
from peterrec.service.predict.quality import MOST_CALLS, MOST_ROWS, AnswerSampler
from peterrec.service.predict.questions import BoundQuestion
from peterrec.service.protocol.answer_prior import AnswerPrior
from peterrec.service.protocol.messages import Row
from peterrec.service.protocol.served_task import Role, ServedTask
from peterrec.service.telemetry.events import AnswersSampled, FeedbackSums
from tests.service.messages import DIGEST_A, DIGEST_B, bundle_entry
from tests.service.predict.test_traffic_counts import of_class, of_items, of_tags, of_value

IDS = PredictionIds(b"s" * 32)
PRIOR = msgspec.msgpack.encode(AnswerPrior(10, (5, 5), b"", (0.4, 0.6), (3, 3, 4)))
PROD = ServedTask("acme", "films", 3, "prod", replace(bundle_entry(1, DIGEST_A), prior=PRIOR))


def question(by: ServedTask, user: int = 0) -> BoundQuestion:
    history = MappedHistory(user.to_bytes(4), 1, 0, [], is_truncated=False, is_cold=False)
    row = BoundRow(Row(1, history.tokens), by.bundle.digest)
    return BoundQuestion(by, row, Subject(by.bundle, history, None, None))


def sampler_of(*, sees_sensitive: bool = False) -> tuple[AnswerSampler, list[AnswersSampled]]:
    events: list[Any] = []
    return AnswerSampler(events.append, sees_sensitive=sees_sensitive), events


def as_kind(kind: str, labels: tuple[str, ...] = ()) -> ServedTask:
    return ServedTask("acme", "films", 3, "prod", bundle_entry(1, DIGEST_A, kind, labels))


async def test_answers_are_counted_by_output_and_by_score():
    sampler, events = sampler_of()
    answers = [of_class("F"), of_class("M"), of_class("M")]
    for answer in answers:
        sampler.see([question(PROD)], [Answered(answer, PROD)])
    sampler.send()
    (event,) = events
    assert (event.tenant, event.task, event.version) == ("acme", "films", 3)
    assert (event.answers, event.outputs, event.scores) == (3, [1, 2], [0, 3, 0])
    sampler.send()
    assert len(events) == 1  # nothing is told twice


async def test_a_task_that_is_deleted_and_made_anew_is_counted_apart():
    """Its first version has the number of the old task's, and may be of another kind."""
    sampler, events = sampler_of()
    anew = replace(as_kind("value"), bundle=bundle_entry(2, DIGEST_B, "value", ()))
    sampler.see([question(PROD)], [Answered(of_class("F"), PROD)])
    sampler.see([question(anew)], [Answered(of_value(1.0), anew)])
    sampler.send()
    assert [event.answers for event in events] == [1, 1]


async def test_cold_answers_are_counted_apart_and_unknown_items_are():
    sampler, events = sampler_of()
    cold = replace(of_class("F"), cold=True, used_items=0, unknown_items=4)
    sampler.see([question(PROD)], [Answered(cold, PROD)])
    sampler.send()
    (event,) = events
    assert (event.cold, event.items, event.unknown_items, event.outputs) == (1, 4, 4, [0, 0])


@pytest.mark.parametrize("role", [Role.CANARY, Role.PINNED])
async def test_only_prods_answers_are_looked_at(role):
    sampler, events = sampler_of()
    by = replace(PROD, role=role)
    sampler.see([question(by)], [Answered(of_class("F"), by)])
    refused: PeterRecError = NotARankingTask("films", "classification")
    sampler.see([refused], [Answered(refused)])
    sampler.send()
    assert events == []


@pytest.mark.parametrize("sees_sensitive", [True, False])
async def test_sensitive_tasks_are_left_out_unless_that_is_allowed(sees_sensitive):
    sampler, events = sampler_of(sees_sensitive=sees_sensitive)
    by = replace(PROD, is_sensitive=True)
    sampler.see([question(by)], [Answered(of_class("F"), by)])
    sampler.send()
    assert bool(events) is sees_sensitive


async def test_a_flood_is_sampled_and_a_quiet_neighbour_is_still_seen():
    """Ninety of a hundred calls are the flood's, and so is about that much of what is looked at."""
    sampler, events = sampler_of()
    quiet = replace(PROD, task="quiet")
    for _ in range(200):
        for number in range(100):
            by = PROD if number else quiet
            sampler.see([question(by)] * 256, [Answered(of_class("F"), by)] * 256)
        sampler.look()
    sampler.send()
    seen = {event.task: event.answers for event in events}
    assert sum(seen.values()) == 200 * MOST_CALLS * MOST_ROWS
    assert seen["quiet"] / sum(seen.values()) == pytest.approx(0.01, abs=0.005)


async def test_one_answer_costs_a_request_less_than_a_microsecond_or_so():
    """An append: the bound is generous, so that a busy machine does not break it."""
    sampler, _ = sampler_of()
    bound, answered = [question(PROD)], [Answered(of_class("F"), PROD)]
    fastest = min(_seconds(sampler, bound, answered) for _ in range(50))
    assert fastest / 100 < 10e-6


def _seconds(sampler, bound, answered) -> float:
    began = time.perf_counter()
    for _ in range(100):
        sampler.see(bound, answered)
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("by", "answer", "outcome", "hit"),
    [
        (PROD, of_class("F"), "F", 1.0),
        (PROD, of_class("F"), "M", 0.0),
        (as_kind("tags", tuple("abcd")), of_tags("a", "b"), ["b", "c"], 1 / 3),
        (as_kind("tags", tuple("abcd")), of_tags(), [], 1.0),
        (as_kind("ranking"), of_items("1", "2"), 2, 1.0),
        (as_kind("ranking"), of_items("1", "2"), ["3", "4"], 0.0),
    ],
)
def test_an_outcome_is_compared_with_what_the_id_says(by, answer, outcome, hit):
    told = IDS.read(_id(answer, by)).told
    assert told.is_of("acme", "films")
    assert not told.is_of("other", "films")
    sums = FeedbackSums()
    assert compare(told, outcome, sums) == pytest.approx(hit)
    assert sums.compared == 1
    assert sums.hits == pytest.approx(hit)
    assert bool(sums.bins) is (by is PROD)  # only a class has the probability that it is right


def test_the_outcome_of_a_value_is_a_number_whose_error_is_summed():
    told = IDS.read(_id(of_value(2.5), as_kind("value"))).told
    sums = FeedbackSums()
    assert compare(told, 3, sums) is None
    assert (sums.measured, sums.error) == (1, 0.5)


@pytest.mark.parametrize(
    ("by", "answer", "outcome"),
    [
        (as_kind("value"), of_value(1.0), "3"),
        (as_kind("value"), of_value(1.0), float("nan")),
        (PROD, of_class("F"), 0.5),
        (PROD, of_class("F"), []),
    ],
)
def test_an_outcome_of_another_form_is_refused(by, answer, outcome):
    with pytest.raises(MalformedRequest, match="outcome"):
        compare(IDS.read(_id(answer, by)).told, outcome, FeedbackSums())


@pytest.mark.parametrize("text", ["", "x", "é", "AAAA", "%%%", "k" * 5000])
def test_what_is_no_id_is_refused(text):
    with pytest.raises(MalformedRequest, match="prediction_id"):
        IDS.read(text)


def test_an_id_of_which_one_bit_is_changed_is_refused():
    text = _id(of_class("F"), PROD)
    content = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedRequest):
            IDS.read(urlsafe_b64encode(changed).decode())


def test_an_id_of_another_registry_is_refused_and_so_is_any_before_the_secret_is_known():
    text = _id(of_class("F"), PROD)
    assert PredictionIds(b"s" * 32).read(text).told == IDS.read(text).told
    for stranger in (PredictionIds(b"t" * 32), PredictionIds()):
        with pytest.raises(MalformedRequest):
            stranger.read(text)
    assert PredictionIds().of(Answered(of_class("F"), PROD)) is None


def test_equal_answers_have_different_ids():
    assert len({IDS.read(_id(of_class("F"), PROD)).mark for _ in range(100)}) == 100


def test_the_id_of_the_longest_ranking_is_short():
    answer = of_items(*(f"{number}{'x' * 1000}" for number in range(1000)))
    assert len(_id(answer, as_kind("ranking"))) < 1000


def test_a_user_has_another_mark_at_each_task_and_under_each_secret():
    of = PredictionIds.mark_of_user
    tasks = [of(IDS, "acme", "films", "u1"), of(IDS, "acme", "books", "u1")]
    found = {*tasks, of(IDS, "acme", "films", "u2"), of(PredictionIds(b"t" * 32), "a", "f", "u1")}
    assert len(found) == 4
    assert of(IDS, "acme", "films", 7) == of(IDS, "acme", "films", "7")


def _id(answer, by) -> str:
    found = IDS.of(Answered(answer, by))
    assert found is not None
    return found
