"""Where the time of a request went, by stage, and the spans that are made of it."""

import pytest

from peterrec.service.protocol.messages import BatchTimes
from peterrec.service.telemetry.events import RequestTraced, decode_events, encode_events
from peterrec.service.telemetry.spans import BatchSpans, spans_of_request
from peterrec.service.telemetry.timeline import TIMELINE, Round, Timeline, ids_of_request
from peterrec.service.telemetry.trace_context import TraceContext

TRACE = TraceContext(bytes(15) + b"\1", b"\2" * 8, b"\3" * 8)


def timeline_of(*rounds: Round) -> Timeline:
    timeline = Timeline("r1", 10.0, None)
    timeline.read_at = 10.5
    timeline.rounds += rounds
    return timeline


def event_of(*rounds: Round, span_id: bytes = TRACE.span_id) -> RequestTraced:
    trace = TraceContext(TRACE.trace_id, span_id, TRACE.parent_id)
    about: dict[str, str | int] = {"peterrec.request_id": "r1", "peterrec.outcome": "ok"}
    return RequestTraced("POST /x", trace, 10.0, 16.0, 10.5, [*rounds], about, "worker-1")


def test_the_stages_of_a_request_are_all_of_its_time():
    spent = timeline_of(Round(11.0, 15.0, [BatchTimes(7, 13.0, 1.5, 4, 2)])).spent(16.0)
    assert spent == {
        "receive": 0.5,
        "prepare": 0.5,
        "queue": 2.0,
        "swap": 0.0,
        "kernels": 0.0,
        "head": 0.0,
        "batch": 1.5,
        "answer": 1.5,
    }


def test_what_held_the_device_up_is_taken_off_the_wait_and_never_more_than_it():
    times = BatchTimes(7, 13.0, 1.5, 4, 2, {"swap": 1.25, "kernels": 9.0})
    spent = timeline_of(Round(11.0, 15.0, [times], head_s=0.25)).spent(16.0)
    assert (spent["head"], spent["swap"], spent["kernels"]) == (0.25, 1.25, 0.5)
    assert spent["queue"] == 0.0
    assert sum(spent.values()) == pytest.approx(6.0)


def test_rows_that_no_batch_ran_have_waited_in_the_queue():
    spent = timeline_of(Round(11.0, 15.0)).spent(15.5)
    assert (spent["queue"], spent["batch"], spent["answer"]) == (4.0, 0.0, 0.5)


def test_a_request_that_never_came_whole_was_received_all_the_time():
    assert Timeline("r1", 10.0, None).spent(14.0)["receive"] == 4.0


def test_a_request_refused_after_its_body_was_prepared_for_the_rest():
    assert timeline_of().spent(14.0)["prepare"] == 3.5


def test_further_rounds_for_explanations_count_too():
    first = Round(11.0, 12.0, [BatchTimes(1, 11.0, 1.0, 1, 1)])
    second = Round(12.5, 14.5, [BatchTimes(2, 13.0, 1.0, 1, 1)])
    spent = timeline_of(first, second).spent(15.0)
    assert (spent["batch"], spent["queue"], spent["answer"]) == (2.0, 0.5, 1.5)


def test_a_round_notes_each_batch_once_and_the_longest_wait_for_a_head():
    sent, times = Round(0.0), BatchTimes(1, 1.0, 1.0, 3, 1, head_waits={1: 0.5})
    for place in range(3):
        sent.note(9, times, place)
    assert (sent.batches, sent.epoch, sent.head_s) == ([times], 9, 0.5)


def test_a_log_line_outside_of_requests_names_none_and_within_one_names_its_trace():
    assert ids_of_request() == {}
    token = TIMELINE.set(Timeline("r1", 0.0, TRACE))
    try:
        assert ids_of_request() == {"request_id": "r1", "trace_id": TRACE.trace_id.hex()}
    finally:
        TIMELINE.reset(token)


def test_an_event_of_a_trace_survives_its_way_to_the_supervisor():
    event = event_of(Round(11.0, 15.0, [BatchTimes(7, 13.0, 1.5, 4, 2, {"swap": 1.0}, {0: 0.5})]))
    assert decode_events(encode_events([event])) == [event]


def test_a_batch_of_two_requests_has_one_span_with_a_link_to_each():
    times, spans = BatchTimes(7, 13.0, 1.5, 4, 2), BatchSpans()
    events = [event_of(Round(11.0, 15.0, [times], 3), span_id=bytes([n] * 8)) for n in (1, 2)]
    of_requests = [spans_of_request(event) for event in events]
    for event, of_request in zip(events, of_requests, strict=True):
        spans.note(event, of_request)
    assert not spans.take(also_fresh=False)
    (batch,) = spans.take(also_fresh=True)
    stages = [span for of_request in of_requests for span in of_request if span.name == "batch"]
    assert {link.span_id for link in batch.links} == {span.span_id for span in stages}
    assert {link.span_id for span in stages for link in span.links} == {batch.span_id}


def test_batches_of_two_epochs_are_two_batches():
    times, spans = BatchTimes(7, 13.0, 1.5, 4, 2), BatchSpans()
    for epoch in (3, 4):
        event = event_of(Round(11.0, 15.0, [times], epoch))
        spans.note(event, spans_of_request(event))
    assert len({span.trace_id for span in spans.take(also_fresh=True)}) == 2


def test_the_spans_of_a_request_have_ids_of_their_own():
    rounds = [Round(11.0, 12.0, [BatchTimes(n, 11.0, 1.0, 1, 1) for n in (1, 2)]) for _ in "ab"]
    spans = spans_of_request(event_of(*rounds))
    assert len({span.span_id for span in spans}) == len(spans) == 10
