"""Options of input tables: what commands and task files pass to the readers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from peterrec.model.data.interactions import read_histories
from peterrec.model.errors import ColumnMissing, DelimiterInvalid, OrderUnreadable, PeterRecError
from peterrec.service.cli.main import build_app
from peterrec.service.errors import AnswersNotGiven
from peterrec.service.jobs.options import (
    AnswerOptions,
    EventOptions,
    TimeOptions,
    answers_of,
)
from peterrec.service.jobs.task_file import read_task_file


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def by_user(events: EventOptions) -> dict[str, tuple[str, ...]]:
    histories = read_histories(events.source())
    return {user: histories.items_of(i) for i, user in enumerate(histories.users)}


def test_events_without_a_header_are_read_by_the_names_that_are_given(tmp_path):
    path = put(tmp_path / "clicks.txt", "2;u;b\n1;u;a\n")
    events = EventOptions(
        interactions=path, order_column="t", delimiter="semicolon", columns="t,user_id,item_id"
    )
    assert by_user(events) == {"u": ("a", "b")}


def test_labels_without_a_header_have_names_of_their_own(tmp_path):
    events = EventOptions(interactions=put(tmp_path / "e.csv", "user_id,item_id\nu,a\n"))
    labels = put(tmp_path / "labels.tsv", "u\tyes\nv\tno\n")
    given = AnswerOptions(labels=labels, label_column="y", answers_columns="user_id,y")
    answers = answers_of(events, given, TimeOptions()).read("classification")
    assert answers.by_user == {"u": ("yes",), "v": ("no",)}


def test_targets_after_a_cut_off_are_in_the_same_form_as_the_events(tmp_path):
    path = put(tmp_path / "e.csv", "u|a|1\nu|b|2\n")
    events = EventOptions(
        interactions=path, order_column="t", delimiter="pipe", columns="user_id,item_id,t"
    )
    time = TimeOptions(cut_off="2")
    assert answers_of(events, AnswerOptions(), time).read("ranking").by_user == {"u": ("b",)}


@pytest.mark.parametrize(
    ("kind", "given", "error", "hint"),
    [
        ("classification", AnswerOptions(), AnswersNotGiven, "`labels` and `label_column`"),
        ("ranking", AnswerOptions(), AnswersNotGiven, "`targets`"),
        (
            "classification",
            AnswerOptions(labels=Path("bare.csv"), label_column="y"),
            ColumnMissing,
            "`answers_columns`",
        ),
        (
            "ranking",
            AnswerOptions(targets=Path("bad.csv"), target_order_column="t"),
            OrderUnreadable,
            "`target_order_column`",
        ),
    ],
)
def test_hints_name_the_settings_of_answers(tmp_path, monkeypatch, kind, given, error, hint):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "bare.csv", "1,yes\n2,no\n")
    put(tmp_path / "bad.csv", "user_id,item_id,t\nu,a,soon\n")
    events = EventOptions(interactions=tmp_path / "e.csv")
    with pytest.raises(error) as caught:
        answers_of(events, given, TimeOptions()).read(kind)
    assert hint in caught.value.hint


def test_a_task_files_delimiter_is_read_as_the_option_is(tmp_path):
    put(tmp_path / "labels.csv", "user_id\tlabel\nu\tyes\nv\tno\n")
    text = '[[tasks]]\nout = "a.bundle"\nkind = "classification"\nlabels = "labels.csv"\n'
    text += 'label_column = "label"\ndelimiter = "{}"\n'
    events = EventOptions(interactions=tmp_path / "e.csv")
    for name in ("tab", r"\\t", r"\t"):
        (entry,) = read_task_file(put(tmp_path / "tasks.toml", text.format(name)))
        answers = answers_of(events, entry.answers.within(tmp_path), TimeOptions(), entry.delimiter)
        assert answers.read("classification").by_user == {"u": ("yes",), "v": ("no",)}
    (entry,) = read_task_file(put(tmp_path / "tasks.toml", text.format("tabs")))
    with pytest.raises(DelimiterInvalid):
        answers_of(events, entry.answers.within(tmp_path), TimeOptions(), entry.delimiter).read(
            "classification"
        )


def run(*arguments: object) -> str:
    """What a command prints; its error, if it fails with one of ours."""
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build_app(), given)
    if isinstance(result.exception, PeterRecError):
        raise result.exception
    return result.output


def test_recboles_columns_may_have_other_names(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    text = "who:token\twhat:token\twhen:float\tkind:token\n"
    text += "u\ta\t2\tbuy\nu\tb\t1\tbuy\nu\tc\t3\tview\n"
    put(folder / "shop.inter", text)
    columns = ("--user-column", "who", "--item-column", "what", "--order-column", "when")
    where = ("--where", "kind=buy")
    printed = run("convert", "recbole", folder, "--out", tmp_path / "out", *columns, *where)
    assert "2 events of 1 users on 2 items" in printed
    histories = EventOptions(interactions=tmp_path / "out" / "histories.parquet")
    assert by_user(histories) == {"u": ("b",)}


def test_the_columns_of_other_data_sets_are_known(tmp_path):
    printed = run("convert", "movielens", tmp_path, "--out", tmp_path / "out", "--columns", "a,b")
    assert "are for recbole" in printed
