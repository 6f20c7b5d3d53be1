"""``peterrec explain`` on a bundle file and on a task of a running server."""

import json
from pathlib import Path

import click
import pytest
from typer.testing import CliRunner

from peterrec.model.errors import HistoriesMissing
from peterrec.service.cli.main import build_app
from peterrec.service.errors import ServerRefused, ServerUnreachable
from peterrec.service.library.backbone import load_backbone
from peterrec.service.library.task import load_bundle
from peterrec_client import Explain
from tests.e2e.conftest import push
from tests.e2e.running import running_server
from tests.service.cli.command_line import run
from tests.service.random_bundles import ITEMS, Workshop

KINDS = ("classification", "tags", "ranking", "value")
HISTORY = [*ITEMS[:5], ITEMS[2], "not known"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a backbone, a bundle of each kind, and events of two users."""
    folder = tmp_path_factory.mktemp("explain")
    workshop = Workshop(folder / "bb")
    for kind in KINDS:
        (folder / f"{kind}.bundle").write_bytes(workshop.bundle(kind, seed=1))
    lines = [f"u1,{item},{at}" for at, item in enumerate(HISTORY)] + ["u2,item-9,0"]
    (folder / "events.csv").write_text("\n".join(["user_id,item_id,at", *lines]) + "\n")
    return folder


def explained(place: Path, kind: str, *arguments: str | Path) -> dict:
    bundle, backbone = place / f"{kind}.bundle", place / "bb"
    found: dict = json.loads(
        run("explain", bundle, *arguments, "--backbone", backbone, "--json", "-q")
    )
    return found


def refusal_of(*arguments: str | Path) -> str:
    result = CliRunner().invoke(build_app(), [str(each) for each in arguments])
    assert result.exit_code == 2
    return click.unstyle(result.stderr).replace("\n", " ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_file_is_explained_as_the_library_explains_it(place, kind):
    found = explained(place, kind, *HISTORY, "-n", "2")
    task = load_bundle(place / f"{kind}.bundle", load_backbone(place / "bb"))
    (expected,) = task.predict([HISTORY], explain=Explain(2), top_k=3)
    assert expected.explanation is not None
    assert found["explanation"]["items_looked_at"] == 5
    assert [each["output"] for each in found["explanation"]["outputs"]] == [
        output.output for output in expected.explanation.outputs
    ]
    for one, other in zip(
        found["explanation"]["outputs"], expected.explanation.outputs, strict=True
    ):
        assert [(i["id"], i["contribution"], i["times"]) for i in one["items"]] == [
            (i.id, i.contribution, i.times) for i in other.items
        ]


def test_the_history_of_a_user_in_a_file_is_the_one_that_its_items_are(place):
    events = ("--interactions", place / "events.csv", "--order-column", "at")
    of_user = explained(place, "value", "--user", "u1", *events)
    assert of_user["explanation"] == explained(place, "value", *HISTORY)["explanation"]


def test_the_options_reach_the_explanation(place):
    found = explained(place, "classification", *HISTORY, "--outputs", "all", "--newest", "2")
    explanation = found["explanation"]
    assert len(explanation["outputs"]) == 3
    assert (explanation["items_looked_at"], explanation["items_left_out"]) == (2, 3)
    assert len(explained(place, "ranking", *HISTORY, "--top-k", "2")["explanation"]["outputs"]) == 2


def test_people_read_a_table_and_what_was_looked_at(place):
    said = run(
        "explain", place / "tags.bundle", *HISTORY, "--backbone", place / "bb", "-n", "1", "-q"
    )
    assert "contribution" in said
    for output in explained(place, "tags", *HISTORY, "-n", "1")["explanation"]["outputs"]:
        (most,) = output["items"]
        assert f"{output['output']} {output['score']:.4f}" in said
        assert f"{most['contribution']:+.4f}" in said
    assert "5 different items looked at (leave_one_out)" in said
    assert "unit: log-odds" in said
    assert "1 without an effect: unknown or too old" in said


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("item-1", "--user", "u1", "--interactions", "events.csv"),
        ("--user", "u1"),
        ("--interactions", "events.csv"),
    ],
)
def test_one_history_has_to_be_given_in_one_way(place, given):
    arguments = ["explain", place / "value.bundle", "--backbone", place / "bb", *given]
    assert "give the items of one user" in refusal_of(*arguments)


def test_a_bundle_file_without_its_backbone_is_told_apart_from_a_task(place):
    assert "needs --backbone" in refusal_of("explain", place / "value.bundle", "item-1")


def test_a_user_that_is_not_in_the_file_is_told(place):
    arguments = [place / "value.bundle", "--backbone", place / "bb", "--user", "u9"]
    with pytest.raises(HistoriesMissing, match="no events of user 'u9'"):
        run("explain", *arguments, "--interactions", place / "events.csv", "-q")


def test_a_server_that_is_away_is_told(place):
    with pytest.raises(ServerUnreachable):
        run("explain", "gender", "item-1", "--url", "http://127.0.0.1:9")


@pytest.mark.slow
def test_a_task_of_a_running_server_is_explained_like_its_bundle(place, tmp_path):
    with running_server(place / "bb", tmp_path, workers=1, max_explain_rows=6) as server:
        with server.client() as client:
            push(client, "value", (place / "value.bundle").read_bytes())
        at = ("--url", server.url, "--api-key", server.key)
        found = json.loads(run("explain", "value", *HISTORY, *at, "--json"))
        with pytest.raises(ServerRefused, match="more than the 6 rows"):
            run("explain", "value", *ITEMS[:9], *at)
    assert found["explanation"] == explained(place, "value", *HISTORY)["explanation"]
    assert found["version"] == 1
