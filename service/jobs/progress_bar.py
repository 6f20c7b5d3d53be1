"""Progress of long steps, on stderr: bars on a terminal, and now and then a line elsewhere.

A step that takes less than ``SHOWN_AFTER_S`` leaves no trace. A longer one has a bar with its rate
and remaining time on a terminal, and a plain line every ``LINE_EVERY_S`` in a file, a pipe or a
terminal that cannot move its cursor. Both end with one line that says how long it took.
"""

import math
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from peterrec.model.progress import Progress
from peterrec.service.system.texts import printable

SHOWN_AFTER_S = 2.0
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

    first: Progress
    began: float
    line_at: float
    latest: Progress
    points: deque[tuple[float, int]] = field(default_factory=deque)
    bar: TaskID | None = None

    @classmethod
    def of(cls, first: Progress, now: float) -> Self:
        """A step that begins now. Where nothing is counted, its only line comes early."""
        return cls(first, now, now + (LINE_EVERY_S if first.total else SHOWN_AFTER_S), first)

    def move(self, progress: Progress, now: float) -> None:
        """Take a report; points older than the span of the rate are forgotten."""
        self.latest = progress
        self.points.append((now, progress.done))
        while len(self.points) > 2 and now - self.points[1][0] > RATE_OVER_S:
            self.points.popleft()

    def state(self) -> str:
        """How far the step is, its rate, the remaining time and its latest figure."""
        done, total, unit = self.latest.done, self.latest.total, self.latest.unit
        parts = [_of(done, total, unit)] if total else [_counted(done, unit)] if done else []
        rate = self._rate()
        if rate is not None:
            parts.append(_rate_text(rate, unit))
            if total > done:
                parts.append(f"{duration((total - done) / rate)} left")
        return ", ".join([*parts, self.latest.note] if self.latest.note else parts)

    def result(self, now: float) -> str:
        """What was done, how long it took, and the last figure."""
        done, unit, took = self.latest.done, self.latest.unit, now - self.began
        counted = f"{_counted(done, unit)} in " if done else ""
        new = done - self.first.done
        rate = f", {_rate_text(new / took, unit)}" if new > 0 else ""
        note = f", {self.latest.note}" if self.latest.note else ""
        return f"{self.latest.phase}: {counted}{duration(took)}{rate}{note}"

    def _rate(self) -> float | None:
        """Units a second; None while there are too few reports."""
        if len(self.points) < 2:
            return None
        (start, first), (end, last) = self.points[0], self.points[-1]
        return (last - first) / (end - start) if end > start and last > first else None


class ProgressBars:
    """Shows the step that is under way; an instance can be passed as an ``OnProgress``.

    Reports and lines may come from any thread. With ``is_quiet`` nothing is shown.
    """

    def __init__(self, is_quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._is_quiet = is_quiet
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
            elif self._phase is not None:
                self._clear_bar(self._phase)

    def __call__(self, progress: Progress) -> None:
        """Take a report; a phase that is done, or that another one follows, is ended."""
        if self._is_quiet:
            return
        now = time.monotonic()
        with self._lock:
            if self._phase is None or self._phase.latest.phase != progress.phase:
                self._end_phase()
                self._phase = _Phase.of(progress, now)
            self._phase.move(progress, now)
            if 0 < progress.total <= progress.done:
                self._end_phase()

    def line(self, text: str) -> None:
        """Print a line for a person, above the bar if there is one."""
        if not self._is_quiet:
            with self._lock:
                self._console.print(printable(text), markup=False)

    def _end_phase(self) -> None:
        """End the step that is under way; if it was a long one, say what it took."""
        phase, self._phase = self._phase, None
        if phase is None:
            return
        self._clear_bar(phase)
        now = time.monotonic()
        if now - phase.began >= SHOWN_AFTER_S:
            self._console.print(phase.result(now), markup=False)

    def _clear_bar(self, phase: _Phase) -> None:
        if phase.bar is not None:
            self._bars.stop()
            self._bars.remove_task(phase.bar)

    def _tick(self) -> None:
        """Show the step that is under way, again and again until the bars are over."""
        while not self._is_over.wait(TICK_S):
            with self._lock:
                now = time.monotonic()
                if self._phase is None or now - self._phase.began < SHOWN_AFTER_S:
                    continue
                if self._console.is_interactive or self._console.is_jupyter:
                    self._show_bar(self._phase)
                elif now >= self._phase.line_at:
                    self._show_line(self._phase, now)

    def _show_bar(self, phase: _Phase) -> None:
        latest = phase.latest
        if phase.bar is None:
            self._bars.start()
            phase.bar = self._bars.add_task(latest.phase, total=None, text="")
        total = latest.total or None
        state = phase.state()
        self._bars.update(phase.bar, completed=latest.done, total=total, text=state, refresh=True)

    def _show_line(self, phase: _Phase, now: float) -> None:
        phase.line_at = now + LINE_EVERY_S if phase.latest.done else math.inf
        state = phase.state()
        text = f"{phase.latest.phase}: {state}" if state else f"{phase.latest.phase} …"
        self._console.print(text, markup=False)


def _bars(console: Console) -> Bars:
    """A line of the terminal's width: the step's name, a bar, and the figures."""
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True), markup=False),
        console=console,
        auto_refresh=False,
        expand=True,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def size_text(count: float) -> str:
    """A number of bytes for people, in units of 1000."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} GB" if count >= 1000 else f"{count:.3g} GB"


def duration(seconds: float) -> str:
    """A time for people, such as 7 s, 3:05 or 2:00:41."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _counted(count: int, unit: str) -> str:
    if unit == "bytes":
        return size_text(count)
    return f"{count:,} {unit}".rstrip()


def _of(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{size_text(done)} of {size_text(total)}"
    return f"{done:,}/{total:,} {unit}".rstrip()


def _rate_text(rate: float, unit: str) -> str:
    """Units a second; slow ones a minute or an hour."""
    if unit == "bytes":
        return f"{size_text(rate)}/s"
    for factor, span in ((1, "s"), (60, "min")):
        if rate * factor >= 1:
            return f"{_three_digits(rate * factor)}/{span}"
    return f"{_three_digits(rate * 3600)}/h"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
