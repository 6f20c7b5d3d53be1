"""The monitoring guide explains what there is, and nothing else."""

import re
from pathlib import Path

from tests.docker.queries import exposed_labels, rules

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")


def test_every_series_is_explained_and_exists():
    exposed = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed_labels()}
    assert set(re.findall(r"`(peterrec_\w+)`", GUIDE)) == exposed


def test_every_alert_has_its_first_response():
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert set(re.findall(r"`(PeterRec\w+)`", GUIDE)) == alerts
