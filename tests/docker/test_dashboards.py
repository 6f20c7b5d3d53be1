"""The dashboards read series that exist and lie on the page without overlap."""

import json
import re
from collections.abc import Iterator
from itertools import combinations

import pytest

from tests.docker.boards import FOLDER, written
from tests.docker.queries import problems_of, selectors_of

DASHBOARDS = {
    path.name: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.json"))
}
COLUMNS = 24


def queries() -> Iterator[tuple[str, str]]:
    """Where each query stands, and the query."""
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}: {panel['title']} {target['refId']}", target["expr"]
        for annotation in dashboard["annotations"]["list"]:
            yield f"{name}: annotation {annotation['name']}", annotation["expr"]


QUERIES = dict(queries())


@pytest.mark.parametrize("place", QUERIES)
def test_every_query_reads_what_a_server_exposes(place):
    assert problems_of(QUERIES[place]) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("peterrec_made_up_total", "there is no series"),
        ('rate(peterrec_requests_total{user="x"}[$__rate_interval])', "no label user"),
        ('peterrec_requests_total{outcome=~"ok|fine"}', "never fine"),
        ("sum by (color) (peterrec_tasks)", "labelled by color"),
    ],
)
def test_a_query_for_what_nobody_exposes_is_found(query, problem):
    assert any(problem in found for found in problems_of(query))


def test_a_query_that_is_no_promql_is_found():
    with pytest.raises(ValueError, match=r"\w"):
        problems_of("sum(rate(peterrec_tasks[5m])")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_of_their_own_titles_and_descriptions(name):
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    told = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["title"] and panel["description"] for panel in told)
    assert len({panel["title"] for panel in told}) == len(told)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_lie_on_the_page_side_by_side(name):
    boxes = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]
    assert all(box["x"] >= 0 and box["x"] + box["w"] <= COLUMNS for box in boxes)
    overlapping = [
        (one, other)
        for one, other in combinations(boxes, 2)
        if one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    ]
    assert overlapping == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_everything_reads_from_the_chosen_source_and_job(name):
    dashboard = DASHBOARDS[name]
    parts = [*dashboard["panels"], *dashboard["templating"]["list"]]
    parts += [*dashboard["annotations"]["list"]]
    parts += [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert {p["datasource"]["uid"] for p in parts if "datasource" in p} == {"${datasource}"}
    of_board = [query for place, query in QUERIES.items() if place.startswith(name)]
    selectors = [selector for query in of_board for selector in selectors_of(query)]
    assert [each for each in selectors if each.labels.get("job") != "$job"] == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_are_declared_and_read_labels_that_exist(name):
    dashboard = DASHBOARDS[name]
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        inside = variable["query"].removeprefix("label_values(").removesuffix(")")
        series, _, label = inside.rpartition(", ")
        assert problems_of(f"sum by ({label}) ({series})") == []
    of_board = [query for place, query in QUERIES.items() if place.startswith(name)]
    used = set(re.findall(r"\$(?!__)(\w+)", " ".join(of_board)))
    assert used <= declared


def test_the_files_are_what_the_code_writes():
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert files == written(), "run python -m tests.docker.boards"


def test_dashboards_have_uids_of_their_own():
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert uids
    assert len(set(uids)) == len(uids)
