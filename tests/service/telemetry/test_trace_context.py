"""Which requests are traced: what the caller says, a share of the others, and a limit for all."""

import pytest

from peterrec.service.telemetry.trace_context import Sampler, read_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01".encode()
UNSAMPLED = f"00-{TRACE}-{SPAN}-00".encode()


def test_a_traced_caller_is_continued():
    context = Sampler(0).choose(SAMPLED, 0.0)
    assert context is not None
    assert (context.trace_id.hex(), context.parent_id.hex()) == (TRACE, SPAN)
    assert context.span_id != context.parent_id


@pytest.mark.parametrize("share", [0, 1])
def test_a_caller_that_does_not_trace_is_followed_whatever_the_share(share):
    assert Sampler(share).choose(UNSAMPLED, 0.0) is None
    assert Sampler(share).choose_late(UNSAMPLED, 0.0) is None


def test_a_request_without_a_parent_begins_a_trace_by_the_share():
    assert Sampler(0).choose(b"", 0.0) is None
    context = Sampler(1).choose(b"", 0.0)
    assert context is not None
    assert (len(context.trace_id), len(context.span_id), context.parent_id) == (16, 8, b"")


def test_a_slow_request_is_traced_although_the_share_left_it_out():
    assert Sampler(0).choose_late(b"", 0.0) is not None


@pytest.mark.parametrize(
    "header",
    [
        b"nonsense",
        SAMPLED + b"-more",
        SAMPLED.upper(),
        b"ff" + SAMPLED[2:],
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        SAMPLED + b"\n",
        SAMPLED + b", " + UNSAMPLED,
    ],
)
def test_what_is_no_traceparent_is_as_none(header):
    assert read_traceparent(header) is None


def test_a_later_version_of_the_standard_may_say_more():
    parent = read_traceparent(b"01" + SAMPLED[2:] + b"-more")
    assert parent is not None
    assert parent.is_sampled


def test_a_caller_that_traces_everything_gets_no_more_than_the_limit():
    sampler = Sampler(0, most_per_s=10, burst=5)
    at = sampler._at
    assert sum(sampler.choose(SAMPLED, at) is not None for _ in range(100)) == 5
    assert sampler.left_out == 95
    assert sum(sampler.choose(SAMPLED, at + 0.35) is not None for _ in range(100)) == 3
