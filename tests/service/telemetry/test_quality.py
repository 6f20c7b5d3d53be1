"""Drift with its uncertainty, diversity and outcomes: what a sample of answers says."""

from typing import Any

import msgspec
import numpy as np
import pytest

from peterrec.patches.identity import DEFAULT_TENANT, TaskId, TaskRef
from peterrec.service.protocol.answer_prior import AnswerPrior
from peterrec.service.telemetry.events import (
    AnswersSampled,
    Event,
    FeedbackGiven,
    FeedbackSums,
    RequestFinished,
    TasksChanged,
    decode_events,
    encode_events,
)
from peterrec.service.telemetry.feedback import calibration_error, note
from peterrec.service.telemetry.metrics import MOST_VERSIONS, Metrics
from peterrec.service.telemetry.quality import (
    FEWEST_RANKINGS,
    HALF_LIFE_S,
    RANKINGS,
    TaskQuality,
    drift_of,
)

GENDER = TaskRef(DEFAULT_TENANT, TaskId("gender"))
PRIOR = msgspec.msgpack.encode(AnswerPrior(1000, (500, 500), b"", (0.5,), (500, 500)))


def watched(version: int = 1, outputs=(5, 5), scores=(5, 5), **more: object) -> AnswersSampled:
    given: dict[str, Any] = {
        "answers": 10,
        "cold": 0,
        "items": 100,
        "unknown_items": 0,
        "prior": PRIOR,
        "outputs": [*outputs],
        "scores": [*scores],
        "histories": [],
        "lists": [],
        "listed": [],
        "catalog": 0,
    }
    return AnswersSampled("default", "gender", version, **(given | more))


def metrics_of(*events: Event, version: int = 1) -> Metrics:
    metrics = Metrics()
    metrics.record(TasksChanged(True, [GENDER], [], [("classification", version)]))
    for event in events:
        metrics.record(event)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"peterrec_{name}", labels)


def drawn(random: np.random.Generator, size: int, shares: np.ndarray) -> list[float]:
    """Counts of a sample of users by group."""
    counts: list[float] = random.multinomial(size, shares).tolist()
    return counts


def test_the_index_of_large_samples_is_the_textbooks():
    found = drift_of((500_000, 500_000), (800_000, 200_000), 1_000_000)
    assert found is not None
    expected = 0.3 * np.log(0.8 / 0.5) + (0.2 - 0.5) * np.log(0.2 / 0.5)
    assert found.index == pytest.approx(expected, rel=1e-3)
    assert found.low == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("size", [20, 100, 1000])
def test_samples_of_the_training_itself_show_no_drift(size):
    random = np.random.default_rng(1)
    shares = np.full(10, 0.1)
    found = [
        drift_of(
            random.multinomial(1000, shares).tolist(),
            random.multinomial(size, shares).tolist(),
            size,
        )
        for _ in range(2000)
    ]
    lows = np.array([each.low for each in found if each is not None])
    assert (lows > 0).mean() < 0.08  # 2.5 % on one side, and the tail of a chi-squared
    assert (lows > 0.25).mean() < 0.01


def test_the_lower_bound_lies_below_the_true_drift_in_most_samples():
    random = np.random.default_rng(2)
    q, p = np.full(5, 0.2), np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    true = float(((p - q) * np.log(p / q)).sum())
    found = [drift_of(drawn(random, 2000, q), drawn(random, 300, p), 300) for _ in range(2000)]
    lows = np.array([each.low for each in found if each is not None])
    indices = np.array([each.index for each in found if each is not None])
    assert 0.95 < (lows < true).mean() <= 1
    assert indices.mean() == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(("expected", "seen"), [((5, 5), (0, 0)), ((), ()), ((10,), (3,))])
def test_without_answers_or_groups_there_is_no_index(expected, seen):
    assert drift_of(expected, seen, sum(seen)) is None


def test_old_answers_fade_and_what_they_are_worth_with_them():
    quality = TaskQuality.begin(watched(), 0.0)
    quality.add(watched(outputs=(100, 0)), 0.0)
    quality.add(watched(outputs=(0, 100)), HALF_LIFE_S)
    assert quality.outputs.counts == [50.0, 100.0]
    assert quality.outputs.size == pytest.approx(150**2 / 125)


def test_drift_of_a_task_is_a_gauge_and_begins_anew_with_each_version():
    metrics = metrics_of(watched(outputs=(1000, 0)))
    assert (value(metrics, "quality_drift_low", task="gender", compared="outputs") or 0) > 1
    metrics.record(TasksChanged(False, [GENDER], [], [("classification", 2)]))
    assert value(metrics, "quality_drift_low", task="gender", compared="outputs") is None
    metrics.record(watched(outputs=(1000, 0)))  # late, of the version before
    assert value(metrics, "quality_drift_low", task="gender", compared="outputs") is None
    metrics.record(watched(version=2))
    assert value(metrics, "quality_drift", task="gender", compared="outputs") == 0
    metrics.record(TasksChanged(False, [GENDER], [], [("classification", 1)]))  # rolled back
    metrics.record(watched(version=1, outputs=(1000, 0)))
    assert (value(metrics, "quality_drift_low", task="gender", compared="outputs") or 0) > 1
    assert value(metrics, "task_version", task="gender", kind="classification") == 1


def rankings(histories: range, *, is_same: bool) -> AnswersSampled:
    lists = [0 if is_same else each for each in histories]
    listed = [ranking * 5 + place for ranking in lists for place in range(5)]
    return watched(histories=[*histories], lists=lists, listed=listed, catalog=1000, prior=b"")


def test_one_list_for_everybody_is_seen_and_one_user_who_asks_often_is_none():
    same, different = (TaskQuality.begin(watched(prior=b""), 0.0) for _ in range(2))
    same.add(rankings(range(100), is_same=True), 0.0)
    different.add(rankings(range(100), is_same=False), 0.0)
    assert same.shares()["distinct_lists"] == 0.01
    assert same.shares()["catalog"] == 0.005
    assert different.shares()["distinct_lists"] == 1
    assert different.shares()["catalog"] == 0.5
    often = TaskQuality.begin(watched(prior=b""), 0.0)
    for _ in range(100):
        often.add(rankings(range(1), is_same=True), 0.0)
    assert often.shares()["distinct_lists"] is None  # one history says nothing
    often.add(rankings(range(FEWEST_RANKINGS), is_same=False), 0.0)
    assert often.shares()["distinct_lists"] == 1


def test_what_is_kept_of_a_task_is_bounded():
    quality = TaskQuality.begin(watched(), 0.0)
    for start in range(0, 100_000, 64):
        quality.add(rankings(range(start, start + 64), is_same=False), float(start))
    assert len(quality.rankings) == RANKINGS


def test_outcomes_are_counted_by_version_and_leave_with_the_task():
    sums = FeedbackSums()
    note(sums, 1.0, 0.95)
    note(sums, 0.0, 0.85)
    (event,) = decode_events(encode_events([FeedbackGiven("default", "gender", 3, sums)]))
    metrics = metrics_of(event, event)
    assert value(metrics, "feedback_outcomes_total", task="gender", version="3") == 4
    assert value(metrics, "feedback_hits_total", task="gender", version="3") == 2
    error = value(metrics, "feedback_calibration_error", task="gender", version="3")
    assert error == pytest.approx((0.05 + 0.85) / 2)
    metrics.record(TasksChanged(False, [], [GENDER]))
    assert value(metrics, "feedback_outcomes_total", task="gender", version="3") is None


def test_a_confident_answer_that_is_as_often_right_has_no_calibration_error():
    sums = FeedbackSums()
    for at in range(10):
        note(sums, float(at < 7), 0.7)
    assert calibration_error(sums) == pytest.approx(0.0)


def test_outcomes_of_many_versions_keep_the_newest():
    sums = FeedbackSums(compared=1, hits=1.0)
    numbers = [5, *range(100, 100 + 2 * MOST_VERSIONS), 1]
    metrics = metrics_of(*(FeedbackGiven("default", "gender", each, sums) for each in numbers))
    kept = {
        sample.labels["version"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "peterrec_feedback_hits_total"
    }
    assert kept == {str(each) for each in range(100 + MOST_VERSIONS, 100 + 2 * MOST_VERSIONS)}


def test_a_thousand_tasks_take_fewer_than_twenty_thousand_series():
    """With traffic, failures of a tenth, drift, rankings for half of them, and outcomes of some."""
    tasks = [TaskRef(DEFAULT_TENANT, TaskId(f"task-{number}")) for number in range(1000)]
    kinds = ["classification", "ranking"]
    metrics = Metrics()
    answering: list[tuple[str, int] | None] = [(kinds[at % 2], 1) for at in range(1000)]
    metrics.record(TasksChanged(True, tasks, [], answering))
    for number, (tenant, task) in enumerate(tasks):
        metrics.record(RequestFinished(tenant, task, "ok", 0.01, 1))
        if number % 10 == 0:
            metrics.record(RequestFinished(tenant, task, "deadline", 1.0, 1))
            metrics.record(FeedbackGiven(tenant, task, 1, FeedbackSums(1, 1.0)))
        events = [watched(), rankings(range(FEWEST_RANKINGS), is_same=False)]
        metrics.record(msgspec.structs.replace(events[number % 2], tenant=tenant, task=task))
    series = [sample for family in metrics.registry.collect() for sample in family.samples]
    assert len(series) < 20_000, len(series)
