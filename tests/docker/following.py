"""Makes a fault and follows its runbook with nothing but the page, to the end.

``python -m tests.docker.following [FAULT ...]`` follows the named faults, by default all, and
prints a line for each. It needs Prometheus and redis-server, and a quarter of an hour.
"""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.docker.faults import FAULTS, Fault
from tests.docker.hurried import hurried
from tests.docker.pages import DO, LOOK, OVER, Page, panel_of, read_page
from tests.docker.stage import Stage, stage_in
from tests.docs.snippets import Block, Session
from tests.waiting import eventually

FIRES_WITHIN_S = 180.0
ENDS_WITHIN_S = 180.0
HELPERS = 'logs() { cat "$LOG"; }\n'
"""The reader's way to the log; the list of runbooks says what it is elsewhere."""


@dataclass(frozen=True)
class Followed:
    """How long an alert took to fire and to end, under hurried rules."""

    fired_s: float
    ended_s: float


def follow(stage: Stage, fault: Fault, say: Callable[[str], None] = lambda _: None) -> Followed:
    """Make a fault, see its alerts fire, follow the page, and see that it is over."""
    page = read_page(fault.page)
    assert set(fault.alerts) <= set(page.alerts)
    session = Session(stage.folder, stage.variables)
    began = time.monotonic()
    with fault.make(stage) as others_act:
        _wait(lambda: set(fault.alerts) <= stage.prometheus.firing(), FIRES_WITHIN_S, stage, fault)
        fired = time.monotonic()
        say(f"fired after {fired - began:.0f} s: {', '.join(fault.alerts)}")
        _look(stage, page, session, say)
        for block in page.commands(DO, fault.name):
            say(_run(session, block))
        others_act()
        for block in page.commands(OVER, "over"):
            eventually(partial(_succeeds, session, block), ENDS_WITHIN_S)
            say(_run(session, block))
        _wait(lambda: _is_over(stage, page, fault), ENDS_WITHIN_S, stage, fault)
    ended = time.monotonic()
    say(f"over after {ended - fired:.0f} s")
    return Followed(fired - began, ended - fired)


def _look(stage: Stage, page: Page, session: Session, say: Callable[[str], None]) -> None:
    """Look at every panel, ask every query and run every command of *What to look at*."""
    for board, title in page.panels:
        panel = panel_of(board, title)
        assert panel is not None, f"{page.name}: {board} has no panel {title}"
        found = [stage.prometheus.samples(query.expr) for query in panel.queries]
        say(f"{board}: {title}: {len([each for each in found if each])} of {len(found)} have data")
    for query in page.queries(LOOK):
        answer = stage.prometheus.samples(hurried(query))
        assert answer, f"{page.name}: no answer to {query}"
        shown = [(each["metric"], each["value"][1]) for each in answer[:3]]
        say(f"? {query}\n{shown}")
    for block in page.commands(LOOK, "look"):
        say(_run(session, block))


def _is_over(stage: Stage, page: Page, fault: Fault) -> bool:
    left = [query for query in page.queries(OVER) if stage.prometheus.samples(hurried(query))]
    return not left and not set(fault.alerts) & stage.prometheus.firing()


def _run(session: Session, block: Block) -> str:
    printed = session.run(replace(block, text=HELPERS + block.text))
    return f"$ {block.text}{printed}"


def _succeeds(session: Session, block: Block) -> bool:
    try:
        _run(session, block)
    except AssertionError:
        return False
    return True


def _wait(is_so: Callable[[], bool], within_s: float, stage: Stage, fault: Fault) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        firing = stage.prometheus.firing()
        assert time.monotonic() < deadline, f"{fault.name}: {within_s} s, {firing=}"
        time.sleep(0.2)


def main(names: list[str]) -> int:
    """Follow the named faults, and return how many were not followed to their end."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="runbooks-") as folder, stage_in(Path(folder)) as stage:
        for fault in [FAULTS[name] for name in names or FAULTS]:
            print(f"== {fault.name} ({fault.page}): {fault.told}", flush=True)
            try:
                found = follow(stage, fault, lambda text: print(text, flush=True))
                result = f"fired in {found.fired_s:.0f} s, over in {found.ended_s:.0f} s"
            except Exception:  # the others are followed all the same
                traceback.print_exc()
                failed, result = failed + 1, "NOT followed to its end"
            print(f"== {fault.name}: {result}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
