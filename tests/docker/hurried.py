"""The repository's rules with shorter times, so that an alert fires, and ends, within seconds.

A minute of waiting for a fault to be told, and a quarter of an hour for it to be forgotten, say
nothing that seconds do not. What fires after how long is tested with the real times
(``alerts.yml``). Here every window is replaced by the one of the same place in ``WINDOWS``, every
``for:`` by the one in ``DELAYS``; two thresholds that are times or limits shrink as well.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.docker.queries import RULES

WINDOWS = {
    "1m": "4s",
    "5m": "5s",
    "10m": "8s",
    "15m": "12s",
    "30m": "12s",
    "1h": "15s",
    "6h": "18s",
    "3d": "22s",
    "7d": "120s",
}
"""What each window of a query becomes; Prometheus scrapes every second here."""

DELAYS = {"1m": "2s", "2m": "2s", "5m": "2s", "10m": "3s", "15m": "3s", "30m": "4s", "1h": "4s"}
"""What each ``for:`` becomes."""

QUEUE_ROWS = 512
"""``PETERREC_MAX_QUEUE_ROWS`` of servers under these rules."""

STALE_S = 6
"""Seconds after which a registry counts as stale under these rules."""

_DURATION = re.compile(r"(\[|offset )(\d+[smhd])\b")


def hurried(query: str) -> str:
    """A query with shorter windows, and with the limits of servers that are tried out."""
    query = _DURATION.sub(lambda found: found[1] + WINDOWS[found[2]], query)
    query = query.replace("> 6553", f"> {int(0.8 * QUEUE_ROWS)}")
    return re.sub(r"(timestamp_seconds(?:\{[^}]*\})? >) 60\b", rf"\1 {STALE_S}", query)


def hurried_rules(folder: Path) -> list[Path]:
    """Write the repository's rules with shorter times into a folder, and return the files."""
    folder.mkdir(exist_ok=True)
    files = []
    for path in RULES:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in document["groups"]:
            group["rules"] = [_hurried_rule(rule) for rule in group["rules"]]
        files.append(folder / path.name)
        files[-1].write_text(yaml.safe_dump(document), encoding="utf-8")
    return files


def _hurried_rule(rule: dict[str, Any]) -> dict[str, Any]:  # Any: YAML
    changed = {**rule, "expr": hurried(rule["expr"])}
    if "for" in rule:
        changed["for"] = DELAYS[rule["for"]]
    return changed
