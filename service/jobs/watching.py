"""What a server does at present, from two readings of its metrics; ``peterrec top`` shows it."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, nan

import httpx

from peterrec.service.errors import ServerUnreachable
from peterrec.service.telemetry.exposition import read_samples

READ_TIMEOUT_S = 5.0
"""Seconds that the metrics may take: those of thousands of tasks are megabytes."""

PREFIX = "peterrec_"

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """All series at a moment (monotonic), by their names without the prefix."""

    at: float
    series: Mapping[str, list[tuple[Labels, float]]]

    def of(self, name: str, **labels: str) -> float:
        """Return the sum of a name's series that have these labels; 0 if there are none."""
        wanted = labels.items()
        return sum(value for each, value in self.series.get(name, ()) if wanted <= each.items())

    def values(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {each[label] for each, _ in self.series.get(name, ()) if label in each}


def parse_metrics(text: str, at: float) -> Reading:
    """Read the text form of the metrics; raises ValueError if it is none."""
    series: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
    for sample in read_samples(text):
        series[sample.name.removeprefix(PREFIX)].append((sample.labels, sample.value))
    return Reading(at, series)


def read_metrics(client: httpx.Client, url: str, token: str | None = None) -> Reading:
    """Fetch the metrics, with a token if they need one.

    Raises ServerUnreachable, also for something else at the address.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        answer = client.get(url, timeout=READ_TIMEOUT_S, headers=headers)
        answer.raise_for_status()
        found = parse_metrics(answer.text, time.monotonic())
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServerUnreachable(
            f"{url} gives no metrics: {error}.",
            hint="Name the metrics of a running server: `peterrec top --metrics-url URL`.",
        ) from error
    if "build_info" not in found.series:
        raise ServerUnreachable(
            f"{url} gives the metrics of something else.",
            hint="Name the metrics of a running server: `peterrec top --metrics-url URL`.",
        )
    return found


def read_readiness(client: httpx.Client, url: str) -> str:
    """Return whether a server is ready, in a few words."""
    try:
        answer = client.get(f"{url.rstrip('/')}/readyz", timeout=READ_TIMEOUT_S)
        found = answer.json()
        reasons = ", ".join(map(str, found["reasons"]))
        state = "ready" if answer.status_code == httpx.codes.OK else "not ready"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return "no answer"
    return f"{state}: {reasons}" if reasons else state


@dataclass(frozen=True, slots=True)
class Load:
    """Requests per second, the share of them that failed, and latencies in seconds."""

    per_s: float
    failed: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What a server did between two readings. Shares are 0 to 1; what is unknown is nan."""

    version: str
    up_s: float
    revision: int
    is_registry_up: bool
    stale_s: float
    all_tasks: Load
    tasks: Mapping[str, Load]
    rejected_per_s: float
    batches_per_s: float
    rows_per_batch: float
    tasks_per_batch: float
    busy: float
    queued_rows: float
    wait_p99_s: float
    bytes_of: Mapping[str, float]
    bundles: float
    registered: float
    restarts: float
    tenants: Mapping[str, float] = field(default_factory=dict)


def compare(before: Reading, after: Reading) -> View:
    """Compare two readings of one server. A server that restarted meanwhile counts from zero."""
    if after.of("start_timestamp_seconds") != before.of("start_timestamp_seconds"):
        before = Reading(before.at, {})
    change = _Change(before, after)
    names = after.values("requests_total", "task")
    batches = change.of("batch_rows_count")
    return View(
        version=next(iter(after.values("build_info", "version")), ""),
        up_s=time.time() - after.of("start_timestamp_seconds"),
        revision=int(after.of("registry_revision")),
        is_registry_up=after.of("registry_up") == 1,
        stale_s=time.time() - (after.of("registry_last_sync_timestamp_seconds") or nan),
        all_tasks=change.load(),
        tasks={name: load for name in names if (load := change.load(task=name)).per_s},
        rejected_per_s=change.per_s("rejected_total"),
        batches_per_s=batches / change.seconds,
        rows_per_batch=change.of("batch_rows_sum") / batches if batches else nan,
        tasks_per_batch=change.of("batch_distinct_tasks_sum") / batches if batches else nan,
        busy=change.per_s("device_busy_seconds_total"),
        queued_rows=after.of("queue_depth"),
        wait_p99_s=change.quantile("queue_duration_seconds", 0.99),
        bytes_of={name: after.of(f"{name}_bytes") for name in ("backbone", "patch", "head")},
        bundles=after.of("resident_bundles"),
        registered=after.of("tasks"),
        restarts=after.of("child_restarts_total"),
        tenants=dict(change.by("tenant_work_total", "tenant")),
    )


class _Change:
    """What was counted between two readings."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self._before = before
        self._after = after
        self.seconds = max(after.at - before.at, 1e-3)

    def of(self, name: str, **labels: str) -> float:
        return max(0.0, self._after.of(name, **labels) - self._before.of(name, **labels))

    def per_s(self, name: str, **labels: str) -> float:
        return self.of(name, **labels) / self.seconds

    def by(self, name: str, label: str) -> Iterator[tuple[str, float]]:
        """Yield how much was counted per second, by the values of a label; none that is zero."""
        for value in self._after.values(name, label):
            if found := self.per_s(name, **{label: value}):
                yield value, found

    def load(self, **labels: str) -> Load:
        requests = self.of("requests_total", **labels)
        answered = self.of("requests_total", outcome="ok", **labels)
        return Load(
            requests / self.seconds,
            (requests - answered) / requests if requests else nan,
            self.quantile("request_duration_seconds", 0.5, **labels),
            self.quantile("request_duration_seconds", 0.99, **labels),
        )

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """Return a quantile of a histogram, linear within its bucket as Prometheus has it."""
        found: dict[float, float] = defaultdict(float)
        for reading, sign in ((self._after, 1), (self._before, -1)):
            for each, value in reading.series.get(f"{name}_bucket", ()):
                if labels.items() <= each.items():
                    found[float(each["le"])] += sign * value
        bounds = sorted(found)
        wanted = share * found[bounds[-1]] if bounds else 0.0
        if not wanted:
            return nan
        low, below = 0.0, 0.0
        for bound in bounds:
            if found[bound] >= wanted:
                inside = (wanted - below) / (found[bound] - below)
                return low if bound == inf else low + (bound - low) * inside
            low, below = bound, found[bound]
        return nan
