"""``data-info``: one screen, a page to send on, a picture, and JSON."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peterrec.model.errors import PictureUnwritable, ValueMissing
from peterrec.service.cli.main import build_app
from tests.service.pages.reading_html import PageReader

HOSTILE = "<script>alert(1)</script>"

EVENTS = f"""user_id,item_id,at,shop
u,a,1700000000,x
u,b,1700086400,
u,{HOSTILE},1700172800,x
v,a,1700345600,y
w,日本語,1700345600,x
w,a,1700432000,y
"""
LABELS = "user_id,plan\nu,free\nv,paid\nw,free\nz,paid\nq,\n"


@pytest.fixture
def shop(tmp_path) -> Path:
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "part-1.csv").write_text(EVENTS, encoding="utf-8")
    (folder / "notes.txt").write_text("not a table")
    (folder / "_SUCCESS").touch()
    (tmp_path / "labels.csv").write_text(LABELS)
    return tmp_path


def options(shop: Path, *more: str | Path) -> list[str]:
    given = ("data-info", "--interactions", shop / "events", "--order-column", "at", *more)
    return [str(each) for each in given]


def labelled(shop: Path, *more: str | Path) -> list[str]:
    return options(shop, "--labels", shop / "labels.csv", "--label-column", "plan", *more)


def run(arguments: list[str]):
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_the_screen_says_everything_in_80_columns_and_45_lines(shop):
    lines = run(labelled(shop)).stdout.splitlines()
    text = "\n".join(lines)
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    for part in (
        r"files +1 file, \d+ bytes: ",
        r"left out .*notes\.txt",
        r"rows +6$",
        r"users +3, 1 of them with one event",
        r"items +4, 3 of them with one event",
        r"time +2023-11-14 22:13:20 to 2023-11-19 22:13:20, 5\.0 days",
        r"column at: epoch seconds, UTC, 1700000000 to 1700432000",
        r"ties +0 events",
        r"duplicates +0 events",
        r"missing +shop 1 \(16\.7%\)",
        r"missing +plan 1 \(20\.0%\)",
        r"history lengths: median 2, mean 2\.0",
        r"4 users, 2 different answers",
        r"1 of them without a history",
        r"1 users without an answer",
        r"free +2 ████████",
        r"user w, oldest first",
        r"2023-11-18 22:13:20  日本語",
    ):
        assert re.search(part, text, re.MULTILINE), (part, text)


def test_the_files_line_and_what_was_left_out_are_told_on_stderr(shop):
    result = run(options(shop))
    assert re.search(r"^read 1 file, \d+ bytes: .*events$", result.stderr, re.MULTILINE)
    assert "notes.txt" in result.stderr
    assert run(options(shop, "--quiet")).stderr == ""


def test_a_page_has_all_parts_fetches_nothing_and_escapes_ids(shop):
    page = shop / "pages" / "data.html"
    run(labelled(shop, "--html", page, "--quiet"))
    html = page.read_text(encoding="utf-8")
    read = PageReader(html)
    assert "script" not in read.tags
    assert HOSTILE in "".join(read.texts["th"] + read.texts["td"] + read.texts["text"])
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert read.texts["h2"] == [
        *("Files", "Summary", "Users and items", "Time", "Answers", "One history"),
    ]
    assert read.tags.count("svg") == 5
    assert "日本語" in html
    assert "share it only" in html


def test_no_sample_leaves_the_person_out_of_page_screen_and_json(shop):
    page = shop / "data.html"
    screen = run(labelled(shop, "--no-sample", "--html", page, "--quiet")).stdout
    document = json.loads(run(labelled(shop, "--no-sample", "--json", "--quiet")).stdout)
    assert "oldest first" not in screen
    assert document["sample"] is None
    assert "One history" not in page.read_text(encoding="utf-8")


def test_json_has_the_files_the_missing_values_and_the_answers(shop):
    document = json.loads(run(labelled(shop, "--json", "--quiet")).stdout)
    (events, labels) = document["files"]
    assert (events["files"], events["size_bytes"]) == (1, len(EVENTS.encode()))
    assert any("notes.txt" in name for name in events["left_out"])
    assert document["tables"][0]["missing"] == {"user_id": 0, "item_id": 0, "at": 0, "shop": 1}
    assert document["tables"][1]["missing"] == {"user_id": 0, "plan": 1}
    assert document["answers"]["frequent"][0] == {"value": "free", "count": 2, "share": 0.5}
    assert document["answers"]["with_history"] == 3
    assert document["sample"]["events"][0]["item"] == "日本語"
    assert labels["files"] == 1


def test_a_cut_off_shows_the_targets_that_come_after_it(shop):
    document = json.loads(run(options(shop, "--cut-off", "1700345600", "--json", "-q")).stdout)
    assert document["events"] == 3
    assert document["answers"]["users"] == 2
    assert document["answers"]["with_history"] == 0
    assert "histories end before 1700345600" in run(options(shop, "--cut-off", "1700345600")).stdout


def test_filters_are_applied_and_the_rows_of_the_whole_table_told(shop):
    screen = run(options(shop, "--where", "shop=x")).stdout
    assert "6, 3 events used" in screen


def test_data_that_training_would_refuse_tell_their_missing_values_first(shop):
    (shop / "events" / "part-2.csv").write_text("user_id,item_id,at,shop\nu,,1700000000,x\n")
    result = CliRunner().invoke(build_app(), options(shop))
    assert isinstance(result.exception, ValueMissing)
    assert "missing values: item_id 1" in result.stderr


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_drawn_in_either_form_of_any_ids(shop, suffix, start):
    plot = shop / "pictures" / f"data.{suffix}"
    run(labelled(shop, "--plot", plot))
    assert plot.read_bytes().startswith(start)


def test_a_picture_of_another_form_is_refused_before_the_data_are_read(shop):
    with pytest.raises(PictureUnwritable, match=r"data\.pdf"):
        run(["data-info", "--interactions", "no-such-file", "--plot", str(shop / "data.pdf")])


def test_one_event_is_enough_for_every_form(tmp_path):
    (tmp_path / "one.csv").write_text("user_id,item_id\nu,a\n")
    given = ["data-info", "--interactions", str(tmp_path / "one.csv"), "--quiet"]
    out = ["--plot", str(tmp_path / "x.png"), "--html", str(tmp_path / "x.html")]
    assert "order        that of the rows" in run([*given, *out]).stdout


def test_it_runs_without_a_display(shop):
    command = [sys.executable, "-P", "-m", "peterrec", *labelled(shop, "--html", shop / "x.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_no_display())
    assert done.returncode == 0, done.stderr


def _no_display() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "DISPLAY"}
