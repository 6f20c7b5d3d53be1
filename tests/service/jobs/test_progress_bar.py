"""Progress on a terminal, in a pipe, and when nothing is to be shown."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

from peterrec.model.progress import Progress
from peterrec.service.jobs.progress_bar import duration, size_text

PROGRAM = """
import sys, time
from peterrec.model.progress import Progress
from peterrec.service.jobs import progress_bar
from peterrec.service.jobs.progress_bar import ProgressBars
progress_bar.SHOWN_AFTER_S, progress_bar.LINE_EVERY_S, progress_bar.TICK_S = 0.2, 0.4, 0.05

with ProgressBars(is_quiet="quiet" in sys.argv) as bars:
    bars(Progress("a short step", 1, 2))
    bars(Progress("compiling kernels"))
    time.sleep(0.5)
    for done in range(60):
        bars(Progress("training", done, 100, f"loss {done}", "batches"))
        time.sleep(0.01)
        if done == 40:
            bars.line("note: a user called [red]\\x1b[31m")
            print("a result")
    for done in range(1, 41):
        bars(Progress("reading a table of a long name", done * 10**6, 4 * 10**7, "", "bytes"))
        time.sleep(0.01)
print("the end")
"""


def environment(**changes: str) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "TERM": "xterm-256color", **changes}


def piped(*arguments: str, **changes: str) -> tuple[str, str]:
    """What the program writes to stdout and stderr if both are pipes."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, env=environment(**changes))
    return done.stdout.decode(), done.stderr.decode()


def on_terminal(*arguments: str, **changes: str) -> str:
    """What the program writes to a terminal of 80 columns, control codes included."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(COLUMNS="80", **changes),
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the program has closed the terminal
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode()


def shown_lines(terminal: str) -> list[str]:
    """The texts between two movements of the cursor, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture(scope="module")
def pipes() -> tuple[str, str]:
    return piped()


@pytest.fixture(scope="module")
def terminal() -> str:
    return on_terminal()


def test_a_pipe_gets_a_line_now_and_then_and_one_at_the_end_of_a_step(pipes):
    _, told = pipes
    lines = told.splitlines()
    assert lines[0] == "compiling kernels …"
    assert re.fullmatch(r"compiling kernels: \d+ s", lines[1])
    assert any(
        re.fullmatch(r"training: \d+/100 batches, [\d.]+/s, \d+ s left, loss \d+", line)
        for line in lines
    )
    assert any(
        re.fullmatch(r"training: 59 batches in 1 s, [\d.]+/s, loss 59", line) for line in lines
    )
    assert re.fullmatch(r"reading .*: 40 MB in \d s, [\d.]+ MB/s", lines[-1])
    assert "\x1b[2K" not in told


def test_a_short_step_leaves_no_trace(pipes, terminal):
    assert "short" not in pipes[1]
    assert "short" not in terminal


def test_lines_for_people_are_printed_as_they_are_and_results_go_to_stdout(pipes):
    out, told = pipes
    assert out.splitlines() == ["a result", "the end"]
    assert "note: a user called [red]\\x1b[31m" in told


def test_a_terminal_gets_bars_with_rate_and_remaining_time_within_its_width(terminal):
    lines = shown_lines(terminal)
    assert any("/100 batches" in line and "/s, " in line and " left" in line for line in lines)
    assert any("MB of 40 MB" in line for line in lines)
    assert max(len(line) for line in lines if "━" in line) <= 80
    assert terminal.rindex("\x1b[?25h") > terminal.rindex("\x1b[?25l")  # the cursor is back


def test_lines_printed_beside_a_bar_stay_whole(terminal):
    lines = shown_lines(terminal)
    assert "a result" in lines
    assert any(line.startswith("note: a user called [red]") for line in lines)
    assert lines[-1] == "the end"


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines():
    written = on_terminal(TERM="dumb")
    assert "━" not in written
    assert "\x1b[2K" not in written
    assert "compiling kernels …" in shown_lines(written)


def test_no_color_keeps_the_bars_but_not_their_colours():
    written = on_terminal(NO_COLOR="1")
    assert "━" in written
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", written)


@pytest.mark.parametrize("run", [lambda: piped("quiet")[1], lambda: on_terminal("quiet")])
def test_quiet_shows_results_only(run):
    assert shown_lines(run()) in ([], ["a result", "the end"])


def test_nothing_counted_is_a_phase_by_its_name():
    assert Progress("loading") == Progress("loading", 0, 0, "", "")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (12_400_000, "12.4 MB"),
        (999_700, "1 MB"),
        (1_234_567_890, "1.23 GB"),
        (12_345_678_901_234, "12,346 GB"),
    ],
)
def test_sizes_are_told_in_powers_of_1000(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00"), (3725, "1:02:05")]
)
def test_times_are_told_in_seconds_minutes_and_hours(seconds, text):
    assert duration(seconds) == text
