"""Runbooks lead to the end: the fault is really made, and nothing but the page is followed."""

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.docker.boards import BOARDS
from tests.docker.faults import FAULTS
from tests.docker.following import follow
from tests.docker.hurried import DELAYS, WINDOWS, hurried
from tests.docker.pages import DO, FOLDER, LOOK, OVER, PARTS, panel_of, panels_in, read_page
from tests.docker.prometheus import PROMETHEUS
from tests.docker.queries import problems_of, rules
from tests.docker.stage import Stage, stage_in
from tests.docs.snippets import problems_of as problems_of_blocks

PAGES = {path.stem: read_page(path.stem) for path in sorted(FOLDER.glob("[a-z]*.md"))}
ALERTS = {rule["alert"] for rule in rules() if "alert" in rule}
NOT_MADE = {"PeterRecLateKernels"}
"""Alerts whose fault cannot be made without an error in the server: their page says so."""

QUICK = [name for name, fault in FAULTS.items() if fault.is_quick]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_panels_and_series_that_exist_and_marks_its_blocks(name):
    page = PAGES[name]
    assert [place for place in page.panels if panel_of(*place) is None] == []
    for part in PARTS:
        assert problems_of_blocks(page.blocks[part]) == []
        assert [problems_of(query) for query in page.queries(part)] == [
            [] for _ in page.queries(part)
        ]
    assert page.queries(OVER), "how would a machine know that it is over?"


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_are_run_by_faults_of_that_page(name):
    page = PAGES[name]
    assert page.faults <= {fault.name for fault in FAULTS.values() if fault.page == name}
    for part, mark in ((LOOK, "look"), (OVER, "over")):
        assert {block.about for block in page.blocks[part] if block.mark == "run"} <= {mark}
    assert DO in page.blocks


def test_every_alert_has_a_fault_that_is_really_made_or_a_page_that_says_why_not():
    made = {alert for fault in FAULTS.values() for alert in fault.alerts}
    assert made | NOT_MADE == ALERTS
    assert made & NOT_MADE == set()
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {name for name in FAULTS if f"`{name}`" not in listed} == set()


def test_a_board_and_its_panels_are_read_in_italics_and_code_is_left_out():
    text = "*Engine*: *Busy* and *Rows\nwaiting*. `ps *x*` *Tasks*: *Registrations*.\n"
    block = "```sh\ngrep '[^ ]* peer=[^ ]*'\n```\n"
    assert panels_in(text + block) == [("Engine", "Busy"), ("Engine", "Rows waiting")]
    assert panel_of("Engine", "Made up") is None


def test_hurried_rules_have_shorter_times_in_the_same_order():
    for times in (WINDOWS, DELAYS):
        seconds = [_seconds(time) for time in times]
        shorter = [_seconds(time) for time in times.values()]
        assert seconds == sorted(seconds)
        assert shorter == sorted(shorter)
        assert all(short < long for short, long in zip(shorter, seconds, strict=True))
    for rule in rules():
        assert re.findall(r"\[\d+[mhd]\]", hurried(rule["expr"])) == []
        assert rule.get("for", "1m") in DELAYS


def _seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage_in(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
@pytest.mark.parametrize("name", QUICK)
def test_a_page_leads_to_the_end_of_a_fault_that_was_really_made(stage, name):
    found = follow(stage, FAULTS[name])
    assert found.ended_s > 0


def test_dashboards_have_names_that_pages_can_tell_apart():
    assert len({board.name for board in BOARDS}) == len(BOARDS)
