"""Reads Prometheus' text form of metrics in small parts, also for an event loop."""

from collections.abc import Iterator
from io import StringIO
from itertools import islice

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

LINES_AT_ONCE = 40
"""Lines that are parsed in one go, which takes half a millisecond. Without the line about its type,
a series is no part of a family, but it keeps its own name."""


def read_samples(text: str) -> Iterator[Sample]:
    """Yield all series, little by little; ValueError where something else is found."""
    lines = StringIO(text)
    while part := "".join(islice(lines, LINES_AT_ONCE)):
        families: Iterator[Metric] = iter(text_string_to_metric_families(part))
        for family in families:
            yield from family.samples
