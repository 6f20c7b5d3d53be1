"""Every query of every panel and rule has data in a real Prometheus over a real server in use."""

from collections.abc import Iterator

import pytest

from tests.docker.boards import BOARDS
from tests.docker.prometheus import PROMETHEUS, Prometheus, prometheus_over
from tests.docker.queries import rules, selectors_of
from tests.docker.scene import Scene
from tests.e2e.running import running_server
from tests.service.random_bundles import Workshop
from tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]

QUERIES = {
    f"{board.name}: {panel.title} {at}": query.expr
    for board in BOARDS
    for panel in board.panels
    for at, query in enumerate(panel.queries)
}
RULES = {rule.get("alert") or rule["record"]: rule for rule in rules()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A server with everything on it."""
    workshop = Workshop(tmp_path_factory.mktemp("backbone"))
    with running_server(workshop.folder, tmp_path_factory.mktemp("server"), workers=2) as server:
        found = Scene(server, workshop)
        found.prepare()
        yield found


@pytest.fixture(scope="module")
def prometheus(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One over the server, after some traffic and all faults."""
    with prometheus_over([scene.server], tmp_path_factory.mktemp("prometheus")) as running:
        eventually(lambda: _has_all(running, scene), 200)
        yield running


def _has_all(running: Prometheus, scene: Scene) -> bool:
    scene.break_things()
    scene.act(5)
    return all(running.samples(query) for query in QUERIES.values())


@pytest.mark.parametrize("place", QUERIES)
def test_every_panel_has_data(prometheus, place):
    assert prometheus.samples(QUERIES[place])


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_evaluated_and_what_it_reads_is_there(prometheus, name):
    groups = prometheus.ask("rules")["groups"]
    (found,) = [rule for group in groups for rule in group["rules"] if rule["name"] == name]
    assert (found["health"], found.get("lastError")) == ("ok", None)
    for selector in selectors_of(RULES[name]["expr"]):
        assert prometheus.samples(selector.name), selector


def test_a_guard_that_tripped_is_an_alert(prometheus):
    eventually(lambda: "PeterRecGuardTripped" in prometheus.firing(), 30)


def test_a_refused_bundle_is_an_alert(prometheus):
    eventually(lambda: "PeterRecBundleRejected" in prometheus.firing(), 30)


def test_answers_to_other_users_are_a_drift_and_answers_to_the_same_are_none(prometheus, scene):
    """Priors are the tasks' own answers; then one user is everybody."""
    low = 'max by (task) (peterrec_quality_drift_low{task="gender"})'
    assert _highest(prometheus, low) < 0.25
    eventually(lambda: _after_more_of_one_user(prometheus, scene, low) > 0.25, 200)


def _after_more_of_one_user(prometheus: Prometheus, scene: Scene, query: str) -> float:
    scene.act(2, shift=1.0)
    return _highest(prometheus, query)


def _highest(prometheus: Prometheus, query: str) -> float:
    return max(float(each["value"][1]) for each in prometheus.samples(query))
