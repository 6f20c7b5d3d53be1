"""With a cut-off in time, nothing that a task is asked for is in what it reads."""

import json
from pathlib import Path

import pytest

from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.tables import TableSource
from peterrec.model.errors import OrderUnreadable
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TimeOptions, answers_of
from peterrec.service.jobs.packing import unpack_task
from tests.service.cli.command_line import run

PRETRAIN = ["--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "1"]
TASKS = """
[[tasks]]
out = "many.bundle"
kind = "ranking"
epochs = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Days 1 to 9: every user takes two old items a day, from day 6 new ones, on day 9 the last."""
    folder = tmp_path_factory.mktemp("shop")
    lines = ["who,what,day"]
    for user in range(60):
        for day in range(1, 10):
            name = "old" if day < 6 else "new" if day < 9 else "last"
            lines += [f"user-{user},{name}-{(user + day * k) % 6},2024-01-0{day}" for k in (1, 2)]
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "tasks.toml").write_text(TASKS)
    run("pretrain", *events(folder), "--until", "2024-01-06", "--out", folder / "bb", *PRETRAIN)
    return folder


def events(folder: Path) -> list[str | Path]:
    columns = ["--user-column", "who", "--item-column", "what", "--order-column", "day"]
    return ["--interactions", folder / "events.csv", *columns]


def test_a_backbone_knows_no_item_from_the_time_on_until_which_it_reads(place):
    assert {item[:3] for item in load_backbone(place / "bb").items} == {"old"}


def event_options(place: Path) -> EventOptions:
    return EventOptions("who", "what", "day", interactions=place / "events.csv")


def test_histories_end_before_the_cut_off_and_targets_begin_with_it(place):
    events, time = event_options(place), TimeOptions("2024-01-06", "2024-01-09")
    read = read_histories(events.source(time.end_of_histories))
    targets = answers_of(events, AnswerOptions(), time).read("ranking").by_user
    assert {item[:3] for item in read.items} == {"old"}
    assert {item[:3] for items in targets.values() for item in items} == {"new"}
    assert len(read.codes) == 60 * 5 * 2


def test_without_a_cut_off_the_sources_stay_as_they_were(place):
    events, own = event_options(place), AnswerOptions(targets=place / "other.csv")
    answers = answers_of(events, own, TimeOptions())
    assert (answers.options, answers.since, answers.before) == (own, None, None)
    table = TableSource(place / "events.csv")
    assert events.source(TimeOptions().end_of_histories) == InteractionSource(
        table, "who", "what", "day"
    )


def test_targets_elsewhere_keep_their_file_and_columns(place):
    own = AnswerOptions(targets=place / "other.csv", answers_where=["what=new-1"])
    answers = answers_of(event_options(place), own, TimeOptions("2024-01-06"))
    assert answers.options == own


def test_a_task_trained_before_a_time_is_measured_after_it(place):
    out = place / "next.bundle"
    common = ["--backbone", place / "bb", *events(place)]
    spans = ["--cut-off", "2024-01-06", "--until", "2024-01-09"]
    run("finetune", *common, "--kind", "ranking", "--out", out, "--epochs", "1", *spans)
    bundle = unpack_task(out.read_bytes(), load_backbone(place / "bb"))
    assert {item[:3] for item in bundle.outputs} == {"new"}
    later = ["--cut-off", "2024-01-07", "--max-unknown-share", "0.5"]
    document = json.loads(run("evaluate", *common, "--bundle", out, *later, "--json"))
    assert document["users"] == 60


def test_many_tasks_are_cut_alike(place):
    common = ["--backbone", place / "bb", *events(place), "--tasks", place / "tasks.toml"]
    run("finetune-many", *common, "--cut-off", "2024-01-06", "--until", "2024-01-09")
    data = (place / "many.bundle").read_bytes()
    assert {item[:3] for item in unpack_task(data, load_backbone(place / "bb")).outputs} == {"new"}


def test_targets_without_times_cannot_be_cut(place):
    own = AnswerOptions(targets=place / "events.csv", target_column="what")
    answers = answers_of(event_options(place), own, TimeOptions("2024-01-06"))
    with pytest.raises(OrderUnreadable, match="`target_order_column`"):
        answers.read("ranking")


def test_a_ranking_is_trained_with_titles_and_attributes(place):
    lines = [f"new-{n},New no. {n},{n % 2}" for n in range(6)]
    (place / "items.csv").write_text("\n".join(["what,name,shelf", *lines]) + "\n")
    common = ("--backbone", place / "bb", *events(place), "--kind", "ranking", "--epochs", "1")
    spans = ("--cut-off", "2024-01-06", "--until", "2024-01-09")
    tables = ("--titles", place / "items.csv", "--attributes", place / "items.csv")
    names = ("--id-column", "what", "--title-column", "name", "--attribute", "shelf")
    out = place / "described.bundle"
    run("finetune", *common, *spans, *tables, *names, "--out", out)
    catalog = unpack_task(out.read_bytes(), load_backbone(place / "bb")).bundle.catalog
    assert catalog is not None
    assert catalog.titles is not None
    found = dict(zip(catalog, catalog.titles, strict=True))
    assert found == {item: f"New no. {item[4:]}" for item in catalog}
    shelves = catalog.attributes["shelf"].numbers
    assert shelves is not None
    assert shelves.tolist() == [int(item[4:]) % 2 for item in catalog]
