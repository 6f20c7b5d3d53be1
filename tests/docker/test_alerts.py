"""The rules read series that exist, and each alert says what to do."""

import re
import shutil
import subprocess

import pytest

from peterrec.service.settings import Settings
from tests.docker.queries import ROOT, RULES, problems_of, rules

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in rules() if "record" in rule}
RUNBOOKS = ROOT / "docs" / "runbooks"
PARTS = ["What it means", "What to look at", "What to do", "How to know it is over"]
PROMTOOL = shutil.which("promtool")


@pytest.mark.parametrize("name", [*ALERTS, *RECORDED])
def test_every_rule_reads_what_a_server_exposes(name):
    assert problems_of((ALERTS | RECORDED)[name]["expr"]) == []


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_severity_and_a_page_that_says_what_to_do(name):
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert alert["annotations"]["summary"].endswith(".")
    page = (ROOT / alert["annotations"]["runbook"]).read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == PARTS


def test_every_page_belongs_to_an_alert_and_is_listed():
    pages = {path.name for path in RUNBOOKS.glob("*.md")} - {"README.md"}
    linked = {alert["annotations"]["runbook"].rpartition("/")[2] for alert in ALERTS.values()}
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (RUNBOOKS / "README.md").read_text()))
    assert pages == linked == listed


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_name_tells_its_labels_as_prometheus_advises(name):
    level, series, _ = name.split(":")
    assert set(level.split("_")) == {"job"}
    assert series.startswith("peterrec_")


def test_names_are_given_once():
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_the_queues_alarm_lies_at_four_fifths_of_the_default_limit():
    limit = Settings.model_fields["max_queue_rows"].default
    assert f"> {int(limit * 0.8)}" in ALERTS["PeterRecQueueNearLimit"]["expr"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should():
    assert PROMTOOL is not None
    for command in (["check", "rules", *map(str, RULES)], ["test", "rules", "alerts.yml"]):
        done = subprocess.run(
            [PROMTOOL, *command],
            cwd=ROOT / "tests" / "docker",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
