"""The monitoring guide explains what there is, and nothing else."""

import re
from pathlib import Path

from tests.docker.queries import exposed_labels, rules

DOCS = Path(__file__).parent.parent.parent / "docs"
GUIDE = (DOCS / "monitoring.md").read_text(encoding="utf-8")


def test_every_series_is_explained_and_exists():
    exposed = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed_labels()}
    assert set(re.findall(r"`(peterrec_\w+)`", GUIDE)) == exposed


def test_the_runbooks_name_every_alert_and_no_other():
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    listed = (DOCS / "runbooks" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(PeterRec\w+)`", listed)) == alerts
