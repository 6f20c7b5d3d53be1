"""Sums over the rows of one version: percentiles, shares and what two tallies add up to."""

import random

import pytest

from peterrec.service.protocol.served_task import Role
from peterrec.service.protocol.tally import Tally, bucket_of, latency_of


@pytest.mark.parametrize("latency_ms", [0.02, 0.5, 1.0, 7.3, 250.0, 60_000.0])
def test_a_latency_is_exact_within_one_per_cent(latency_ms):
    assert latency_of(bucket_of(latency_ms)) == pytest.approx(latency_ms, rel=0.01)


def test_the_p99_is_what_one_in_a_hundred_exceeds():
    latencies = [n / 1000 for n in range(1, 1001)]
    random.Random(1).shuffle(latencies)
    tally = Tally()
    for latency_s in latencies:
        tally.count(latency_s, is_error=False, diverged=None)
    assert tally.p99_ms() == pytest.approx(990, rel=0.011)
    assert (tally.requests, tally.errors, tally.mean_divergence()) == (1000, 0, None)
    assert Tally().p99_ms() == 0


def test_a_tally_adds_another_one_and_a_workers_message_alike():
    one, other = Tally(), Tally()
    one.count(0.002, is_error=False, diverged=0.5)
    other.count(0.002, is_error=True, diverged=None)
    by_tally, by_message = Tally(), Tally()
    for each in (one, other):
        by_tally.add(each)
        by_message.add(each.seen("a" * 64, Role.CANARY))
    assert by_tally == by_message
    assert (by_tally.requests, by_tally.errors, by_tally.mean_divergence()) == (2, 1, 0.5)
