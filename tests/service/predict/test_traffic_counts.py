"""What workers count of a canary and a shadow, and how far answers differ from prod's."""

import asyncio

import pytest

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId
from peterrec.patches.registry.traffic import Canary, Traffic
from peterrec.service.errors import NotARankingTask, row_error
from peterrec.service.predict.kinds import divergence
from peterrec.service.predict.kinds.classification import ClassPrediction
from peterrec.service.predict.kinds.ranking import RankedItem, RankingPrediction
from peterrec.service.predict.kinds.tags import Tag, TagsPrediction
from peterrec.service.predict.kinds.value import ValuePrediction
from peterrec.service.predict.traffic_counts import TrafficObserver
from peterrec.service.protocol.messages import TrafficSeen
from peterrec.service.protocol.served_task import Role, ServedTask, Split
from tests.service.messages import DIGEST_A, DIGEST_B, USED, bundle_entry
from tests.waiting import soon

REF = TaskRef(TenantId("acme"), TaskId("films"))
PROD = ServedTask("acme", "films", 1, "prod", bundle_entry(1, DIGEST_A))
CANARY = ServedTask("acme", "films", 2, None, bundle_entry(2, DIGEST_B), Role.CANARY)
TRAFFIC = Traffic(1, (Canary(Digest(DIGEST_B), 1),))
SPLIT = Split(REF, TRAFFIC, 7, {Digest(DIGEST_B): CANARY}, ())


def of_class(label: str) -> ClassPrediction:
    return ClassPrediction(label=label, scores={"F": 0.5, "M": 0.5}, **USED)


def of_tags(*labels: str) -> TagsPrediction:
    tags = [Tag(label, 0.9) for label in labels]
    return TagsPrediction(tags=tags, scores=dict.fromkeys("abcd", 0.9), threshold=0.5, **USED)


def of_items(*ids: str) -> RankingPrediction:
    return RankingPrediction(items=[RankedItem(i, 1.0) for i in ids], filtered=0, **USED)


def of_value(value: float) -> ValuePrediction:
    return ValuePrediction(value=value, **USED)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (of_class("F"), of_class("F"), 0),
        (of_class("F"), of_class("M"), 1),
        (of_tags("a", "b"), of_tags("b", "c"), 0.5),
        (of_items("1", "2"), of_items("2", "1"), 0),
        (of_items("1", "2"), of_items("2", "3"), 0.5),
        (of_items(*map(str, range(20))), of_items(*map(str, range(10))), 0),
        (of_value(2), of_value(4), 0.5),
        (of_value(2), of_class("F"), 1),
    ],
)
def test_answers_diverge_as_their_kind_defines(first, second, expected):
    assert divergence(first, second) == expected == divergence(second, first)


async def test_sums_of_many_rows_go_out_in_one_message():
    sent: list[TrafficSeen] = []
    observer = TrafficObserver(sent.append)
    observer.count(SPLIT, PROD, of_class("F"), 0.002)
    observer.count(SPLIT, CANARY, of_class("M"), 0.002, of_class("F"))
    observer.count(SPLIT, CANARY, row_error("row_failed"), 0.004, of_class("F"))
    await soon(lambda: bool(sent))
    (seen,) = sent
    assert (seen.tenant, seen.task, seen.traffic_revision) == ("acme", "films", 7)
    by_role = {version.role: version for version in seen.versions}
    assert (by_role["prod"].digest, by_role["prod"].requests) == (DIGEST_A, 1)
    canary = by_role["canary"]
    assert (canary.requests, canary.errors, canary.compared, canary.divergence) == (2, 1, 1, 1)
    await asyncio.sleep(0)
    assert len(sent) == 1


@pytest.mark.parametrize(
    "refusal", [NotARankingTask("films", "tags"), row_error("queue_full")], ids=lambda e: e.code
)
async def test_errors_that_no_version_has_caused_are_not_counted(refusal: PeterRecError):
    sent: list[TrafficSeen] = []
    observer = TrafficObserver(sent.append)
    observer.count(SPLIT, CANARY, refusal, 0.0)
    observer.count(SPLIT, PROD, of_class("F"), 0.001)
    await soon(lambda: bool(sent))
    assert [version.role for version in sent[0].versions] == ["prod"]
