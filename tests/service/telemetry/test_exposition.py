"""The text form of the metrics, read in small parts."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from peterrec.service.telemetry.exposition import read_samples


@pytest.fixture
def text() -> str:
    """More lines than are read at once, with a family that is cut, and with odd names."""
    registry = CollectorRegistry()
    counter = Counter("asked", "How often.", ["task"], registry=registry)
    took = Histogram("took", "How long.", ["task"], registry=registry)
    Gauge("odd", 'With a "quote" and a \\ in it.', ["of"], registry=registry).labels(
        'a"b\\c\nd}'
    ).set(1)
    for number in range(50):
        counter.labels(f"task-{number}").inc(number)
        took.labels(f"task-{number}").observe(number / 10)
    return generate_latest(registry).decode()


def test_in_parts_it_says_the_same_as_in_one_go(text):
    whole = [each for family in text_string_to_metric_families(text) for each in family.samples]
    found = [(each.name, each.labels, each.value) for each in read_samples(text)]
    assert found == [(each.name, each.labels, each.value) for each in whole]


def test_something_else_is_refused():
    with pytest.raises(ValueError, match="html"):
        list(read_samples("<html>\nnot metrics\n"))
