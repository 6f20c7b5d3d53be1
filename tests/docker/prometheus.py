"""A real Prometheus over a running server, with the repository's own rules."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.docker.queries import ROOT, RULES
from tests.e2e.running import RunningServer, free_port
from tests.waiting import eventually

PROMETHEUS = shutil.which("prometheus")
CONFIGURATION = ROOT / "docker" / "prometheus" / "prometheus.yml"
SCRAPE_S = 1
JOB = "peterrec"
EVERY = {"job": JOB, "instance": ".*", "task": ".*", "tenant": ".*"}


def filled(query: str, values: dict[str, str] = EVERY, window: str = "30s") -> str:
    """A query with values for Grafana's variables."""
    query = re.sub(r"\$__(rate_interval|interval|range)\b", window, query)
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], query)


@dataclass
class Prometheus:
    """A running Prometheus, and the file that names what it scrapes."""

    url: str
    targets: Path = Path()

    def ask(self, path: str, **parameters: object) -> Any:  # Any: JSON
        answer = httpx.get(
            f"{self.url}/api/v1/{path}",
            params={name: str(value) for name, value in parameters.items()},
            trust_env=False,
            timeout=30,
        )
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body}"
        return body["data"]

    def samples(self, query: str, window: str = "30s") -> list[dict[str, Any]]:
        """Run an instant query of a dashboard or a rule."""
        data = self.ask("query", query=filled(query, window=window))
        found: list[dict[str, Any]] = data["result"] if data["resultType"] != "scalar" else [data]
        return found

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def scrape(self, servers: Sequence[RunningServer]) -> None:
        """Scrape these servers from now on, and no others."""
        listed = [{"targets": [f"127.0.0.1:{server.metrics_port}" for server in servers]}]
        written = self.targets.with_suffix(".new")
        written.write_text(json.dumps(listed), encoding="utf-8")
        written.replace(self.targets)


@contextmanager
def prometheus_over(
    servers: list[RunningServer], folder: Path, rules: list[Path] = RULES
) -> Iterator[Prometheus]:
    """Scrape servers every second by the repository's configuration, and end it afterwards."""
    assert PROMETHEUS is not None
    configuration = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    scraped = next(each for each in configuration["scrape_configs"] if each["job_name"] == JOB)
    del scraped["dns_sd_configs"]
    scraped["file_sd_configs"] = [{"files": ["targets.json"]}]
    configuration |= {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [scraped],
    }
    folder.mkdir(exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    port = free_port()
    running = Prometheus(f"http://127.0.0.1:{port}", folder / "targets.json")
    running.scrape(servers)
    arguments = [
        PROMETHEUS,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        eventually(lambda: _is_ready(running), 30)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(running: Prometheus) -> bool:
    try:
        return httpx.get(f"{running.url}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
