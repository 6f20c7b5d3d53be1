"""Answers that a worker names and remembers, over a real Redis."""

from pathlib import Path

import pytest

from peterrec.patches.identity import TenantId
from peterrec.patches.registry.registry import Registry, open_redis
from peterrec.service.predict import remembered as module
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.feedback import PredictionIds
from peterrec.service.predict.kinds import Prediction
from peterrec.service.predict.remembered import RememberedAnswers
from tests.service.predict.test_quality import PROD
from tests.service.predict.test_traffic_counts import of_class

ACME = TenantId("acme")
ANSWER = Answered(of_class("F"), PROD)


@pytest.fixture
async def worker(registry: Registry) -> RememberedAnswers:
    worker = RememberedAnswers(PredictionIds(), registry.outcomes)
    await worker.look_for_secret()
    return worker


async def test_workers_of_one_registry_understand_each_other_and_remember_together(
    registry, worker
):
    other = RememberedAnswers(PredictionIds(), registry.outcomes)
    await other.look_for_secret()
    worker.name(ANSWER, "u1", is_shown=False, may_keep=True)
    await worker.recall(ACME, "films", ["u1"])  # sends what waits
    (found,) = await other.recall(ACME, "films", ["u1"])
    assert found is not None
    told = other.ids.read(found).told
    assert (told.version, told.kind) == (3, "classification")
    assert await other.recall(ACME, "books", ["u1"]) == [None]


async def test_an_id_is_shown_and_an_answer_kept_only_if_that_is_asked_for(worker):
    hidden = worker.name(ANSWER, "u1", is_shown=False, may_keep=False).answer
    shown = worker.name(ANSWER, None, is_shown=True, may_keep=True).answer
    assert isinstance(hidden, Prediction)
    assert isinstance(shown, Prediction)
    assert hidden == ANSWER.answer
    assert worker.ids.read(str(shown.prediction_id)).told.version == 3
    assert await worker.recall(ACME, "films", ["u1"]) == [None]


async def test_what_waits_to_be_sent_is_bounded_for_each_tenant(worker, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    for number in range(50):
        worker.name(ANSWER, f"u{number}", is_shown=False, may_keep=True)
    users = [f"u{number}" for number in range(50)]
    found = await worker.recall(ACME, "films", users)
    assert sum(each is not None for each in found) == 10


async def test_while_redis_is_away_answers_have_no_ids_and_are_given_all_the_same(tmp_path: Path):
    registry = Registry(open_redis(f"unix://{tmp_path / 'nowhere'}", retries=0))
    worker = RememberedAnswers(PredictionIds(), registry.outcomes)
    await worker.look_for_secret()
    assert worker.name(ANSWER, "u1", is_shown=True, may_keep=True) == ANSWER
    await registry.close()
