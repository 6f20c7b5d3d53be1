"""A bundle records how its data were read, and nothing of the machine on which they were."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from peterrec.service.errors import TrainingUnrepeatable
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TimeOptions, answers_of
from peterrec.service.jobs.task_data import TaskData, data_of, record_of

EVENTS = EventOptions(
    interactions=Path("shop/events.csv"),
    item_column="product",
    order_column="time",
    delimiter="semicolon",
    columns="user_id,product,time",
    missing=["NULL"],
    where=["shop=toys"],
)
LABELS = AnswerOptions(labels=Path("shop/users.csv"), label_column="gender")


def record(
    events: EventOptions = EVENTS,
    answers: AnswerOptions = LABELS,
    time: TimeOptions = TimeOptions(),
    delimiter: str | None = None,
):
    data = TaskData(events, answers, time, delimiter)
    return record_of(data.histories_source, data.answers_source)


def test_what_is_recorded_reads_the_same_data_again():
    time = TimeOptions(until="2026-01-01")
    assert data_of(record(time=time, delimiter="tab")) == TaskData(EVENTS, LABELS, time, "tab")


def test_later_events_of_the_same_table_are_read_as_targets_again():
    time = TimeOptions(cut_off="2025-06-01", until="2026-01-01")
    found = data_of(record(answers=AnswerOptions(), time=time))
    assert found.histories_source == EVENTS.source("2025-06-01")
    assert found.answers_source == answers_of(EVENTS, AnswerOptions(), time)


def test_defaults_are_not_recorded():
    kept = record(EventOptions(interactions=Path("events.csv")))
    assert kept == {
        "interactions": "events.csv",
        "labels": "shop/users.csv",
        "label_column": "gender",
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/ann/secret-project/shop/events.csv", "shop/events.csv"),
        ("../../ann/shop/events.csv", "ann/shop/events.csv"),
        ("shop/2026/events.csv", "shop/2026/events.csv"),
        ("/events.csv", "events.csv"),
    ],
)
def test_a_record_has_only_the_end_of_a_path(given, kept):
    events = replace(EVENTS, interactions=Path(given))
    assert record(events)["interactions"] == kept


def test_the_current_folder_is_recorded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = record(replace(EVENTS, interactions=Path()))["interactions"]
    assert kept.endswith(tmp_path.name)


def test_data_in_memory_are_not_recorded():
    table = pa.table({"user_id": ["a"], "product": ["b"], "time": [1]})
    assert record(replace(EVENTS, interactions=table)) is None
    assert record(answers=replace(LABELS, labels=table)) is None


@pytest.mark.parametrize(
    "record",
    [{}, {"interactions": 3}, {"interactions": "a.csv", "colour": "red"}, {"labels": "a.csv"}],
)
def test_a_record_that_is_none_is_refused(record):
    with pytest.raises(TrainingUnrepeatable, match="how its data are read is not understood"):
        data_of(record)
