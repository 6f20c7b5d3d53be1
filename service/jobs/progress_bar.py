"""Progress of long steps, on stderr: bars on a terminal, and now and then a line elsewhere.

A step that takes less than ``QUIET_S`` leaves no trace, wherever it is shown. A longer one has a bar
with its rate and remaining time on a terminal, and a plain line every ``LINE_EVERY_S`` in a file, a
pipe or a terminal that cannot move its cursor. Both end with one line that says how long it took.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from peterrec.model.progress import Progress

QUIET_S = 2.0
"""Seconds after which a step is shown."""

LINE_EVERY_S = 10.0
"""Seconds between two lines about one step where there are no bars."""

RATE_OVER_S = 15.0
"""Seconds over which the rate is averaged: a step's first second is often slower than the rest."""

TICK_S = 0.25
"""Seconds between two looks at whether a step is to be shown."""


@dataclass(slots=True)
class _Phase:
    """A step that is under way, and how far it was when (times are of ``time.monotonic``)."""

    latest: Progress
    began: float
    points: deque[tuple[float, int]] = field(default_factory=deque)
    line_at: float = 0.0
    bar: TaskID | None = None

    def move(self, progress: Progress, now: float) -> None:
        """Take a report; points older than the span of the rate are forgotten."""
        self.latest = progress
        self.points.append((now, progress.done))
        while len(self.points) > 2 and now - self.points[1][0] > RATE_OVER_S:
            self.points.popleft()

    def rate(self) -> float | None:
        """Units a second; None while there are too few reports."""
        if len(self.points) < 2:
            return None
        (start, first), (end, last) = self.points[0], self.points[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def now(self) -> str:
        """How far the step is, its rate, the remaining time and its latest figure."""
        done, total, unit = self.latest.done, self.latest.total, self.latest.unit
        rate = self.rate()
        parts = []
        if total:
            parts.append(_of(done, total, unit))
        elif done:
            parts.append(_counted(done, unit))
        if rate is not None:
            parts.append(_rate(rate, unit))
            if total > done:
                parts.append(f"{clock((total - done) / rate)} left")
        return ", ".join([*parts, *filter(None, [self.latest.note])])

    def at_end(self, now: float) -> str:
        """What was done and how long it took."""
        done, unit, took = self.latest.done, self.latest.unit, now - self.began
        counted = f"{_counted(done, unit)} in " if done else ""
        rate = f" ({_rate(done / took, unit)})" if done and took else ""
        note = f", {self.latest.note}" if self.latest.note else ""
        return f"{self.latest.phase}: {counted}{clock(took)}{rate}{note}"


class ProgressBars:
    """Shows one step at a time; an instance can be passed as an ``OnProgress``.

    Reports and lines may come from any thread. With ``is_quiet`` nothing is shown at all.
    """

    def __init__(self, is_quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._is_quiet = is_quiet
        self._is_animated = self._console.is_interactive and not self._console.is_dumb_terminal
        self._bars = _bars(self._console)
        self._phase: _Phase | None = None
        self._lock = RLock()
        self._is_over = Event()
        self._ticker = Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if not self._is_quiet:
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._ticker.is_alive():
            self._ticker.join()
        with self._lock:
            if error is None:
                self._end_phase()
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Take a report; a phase that is done, or that another one follows, is ended."""
        if self._is_quiet:
            return
        now = time.monotonic()
        with self._lock:
            if self._phase is None or self._phase.latest.phase != progress.phase:
                self._end_phase()
                self._phase = _Phase(progress, now, line_at=now + LINE_EVERY_S)
            self._phase.move(progress, now)
            if 0 < progress.total <= progress.done:
                self._end_phase()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show that a step without countable parts is under way for the length of the block."""
        self(Progress(name, 0, 0))
        yield
        with self._lock:
            self._end_phase(name)

    def line(self, text: str) -> None:
        """Print a line for a person, above the bar if there is one."""
        if not self._is_quiet:
            with self._lock:
                self._console.print(text, markup=False)

    def _end_phase(self, name: str | None = None) -> None:
        """End the step that is under way, if it has this name; say how long it took."""
        phase = self._phase
        if phase is None or name not in (None, phase.latest.phase):
            return
        self._phase = None
        if phase.bar is not None:
            self._bars.remove_task(phase.bar)
        now = time.monotonic()
        if now - phase.began >= QUIET_S:
            self._console.print(phase.at_end(now), markup=False)

    def _tick(self) -> None:
        """Show the step that is under way, at every tick."""
        while not self._is_over.wait(TICK_S):
            with self._lock:
                if self._phase is not None:
                    self._show(self._phase, time.monotonic())

    def _show(self, phase: _Phase, now: float) -> None:
        if now - phase.began < QUIET_S:
            return
        if self._is_animated:
            self._show_bar(phase)
        elif now >= phase.line_at or (phase.line_at and not phase.latest.total):
            pass

    def _show_bar(self, phase: _Phase) -> None:
        latest = phase.latest
        if phase.bar is None:
            self._bars.start()
            phase.bar = self._bars.add_task(latest.phase, total=None, text="")
        total = latest.total or None
        self._bars.update(phase.bar, completed=latest.done, total=total, text=phase.now())


def _bars(console: Console) -> Bars:
    """A line of the terminal's width: the step's name, a bar, and the figures."""
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True), markup=False),
        console=console,
        expand=True,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def size_text(count: float) -> str:
    """A number of bytes for people, in units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
