"""The log of slow requests, and when a request has a timeline at all."""

import structlog

from peterrec.service.http.asgi import RequestHead
from peterrec.service.http.seeing import SLOW_LINES_PER_S, Finished, Seeing, SlowLines
from peterrec.service.protocol.messages import BatchTimes
from peterrec.service.telemetry.timeline import TIMELINE, Round, Timeline

ABOUT = Finished("acme", ("films",), 2, "json", "ok")


def test_an_overload_writes_few_lines_and_the_next_one_says_how_many_were_left_out():
    now = 100.0
    lines = SlowLines(lambda: now)
    timeline = Timeline("r1", 0.0, None)
    with structlog.testing.capture_logs() as logs:
        for _ in range(50):
            lines.write(timeline, timeline.spent(2.0), ABOUT)
        now = 101.0
        lines.write(timeline, timeline.spent(2.0), ABOUT)
    assert len(logs) == SLOW_LINES_PER_S + 1
    assert logs[-1]["left_out"] == 50 - SLOW_LINES_PER_S


def test_a_line_names_the_stage_that_took_longest_and_the_batches():
    timeline = Timeline("r1", 10.0, None)
    timeline.read_at = 10.1
    times = BatchTimes(7, 12.0, 0.25, 4, 2, {"swap": 1.5})
    timeline.rounds.append(Round(10.25, 12.25, [times]))
    with structlog.testing.capture_logs() as (logs):
        SlowLines().write(timeline, timeline.spent(12.5), ABOUT)
    (line,) = logs
    assert (line["event"], line["reason"], line["swap_ms"]) == ("slow_request", "swap", 1500.0)
    assert (line["tenant"], line["task"], line["batches"]) == ("acme", "films", "7")


def test_by_default_no_request_has_a_timeline_also_after_one_that_asked_for_it():
    seeing = Seeing()
    assert seeing.begin(RequestHead("r1", server_timing=b"1"), 0.0) is not None
    assert TIMELINE.get() is not None
    assert seeing.begin(RequestHead("r2"), 0.0) is None
    assert TIMELINE.get() is None
