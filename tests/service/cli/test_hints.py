"""Hints name settings, and the command line shows only those that the command at hand has."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from peterrec.model.data.sample_data import write_sample_data
from peterrec.service.cli.hints import (
    Command,
    command_of,
    long_options,
    names_of_settings,
)
from peterrec.service.cli.main import build_app, main
from peterrec.service.jobs.hints import hint_for

ROOT = Path(__file__).parents[3]
ROOT_COMMAND = get_command(build_app())
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OF_CURL = re.compile(r"curl --data-binary @FILE")
SETTING = re.compile(r"`([a-z][a-z_]*)`")
CALL = re.compile(r"peterrec ((?:[a-z-]+ ?)+)(?:[A-Z]+ )*((?:--[a-z-]+(?: [A-Z]+)?,? ?)*)")


def commands(
    command: Command = ROOT_COMMAND, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Command]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, each in inner.items():
        yield from commands(each, (*path, name))


COMMANDS = dict(commands())
API_FIELDS = {"user_id", "instances", "parameters", "task", "tasks", "history", "explain", "source"}
"""Words in backticks that are fields of the HTTP API, which its hints name."""

FILE = {("finetune-many",): ["--tasks"], ("compare",): ["--task-list"]}


def texts_of(node: ast.AST) -> str:
    """All literal parts of an expression, in one text."""
    parts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return " ".join(part for part in parts if isinstance(part, str))


def hints() -> dict[str, str]:
    """The text of every hint in the sources, by its place, without options of another program."""
    found = {}
    for package in ("model", "patches", "service"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "hint":
                    text = OF_CURL.sub("curl", texts_of(node.value))
                    found[f"{path.relative_to(ROOT)}:{node.value.lineno}"] = text
    return found


HINTS = hints()


def test_hints_name_options_only_within_a_call_of_the_command_that_has_them():
    for place, hint in HINTS.items():
        for path, given in CALL.findall(hint):
            options = long_options(command_of(ROOT_COMMAND, path.split()))
            assert set(OPTION.findall(given)) <= set(options), place
        assert not OPTION.findall(CALL.sub("", hint)), place


def test_every_setting_in_a_hint_is_one_of_some_command():
    known = {*names((), []), *API_FIELDS}
    known |= {name for path, file in FILE.items() for name in names(path, file)}
    for place, hint in HINTS.items():
        assert set(SETTING.findall(hint)) <= known, place


def names(path: tuple[str, ...], more: list[str]) -> dict[str, str | None]:
    return names_of_settings(ROOT_COMMAND, [*path, *more])


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_shows_only_options_that_it_has(path):
    shown = " ".join(hint_for(CALL.sub("", hint), names(path, [])) for hint in HINTS.values())
    assert set(OPTION.findall(shown)) <= set(long_options(COMMANDS[path]))


def test_a_sentence_on_an_option_that_the_command_lacks_is_left_out():
    hint = "Check the file. Give `order_column`; or `user_column`. See `peterrec serve`."
    assert hint_for(hint, {"user_column": "--user-column", "order_column": None}) == (
        "Check the file. or --user-column. See `peterrec serve`."
    )
    assert hint_for("It is in `instances`.", {"order_column": None}) == "It is in `instances`."


def test_settings_in_a_file_of_tasks_keep_their_names():
    many = names(("finetune-many",), [])
    assert (many["min_label_count"], many["order_column"]) == (
        "`min_label_count`",
        "--order-column",
    )
    assert names(("compare",), [])["order_column"] == "--order-column"
    assert names(("compare",), ["--task-list", "x.toml"])["order_column"] == "`order_column`"
    assert names(("data-info",), [])["min_label_count"] is None


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_sample_data(folder, users=40)
    (folder / "bad.csv").write_text("user_id,item_id,at\nu,a,soon\n")
    (folder / "semicolons.csv").write_text("user_id;item_id;at\nu;a;1\n")
    (folder / "bare.csv").write_text("u1,a,1\nu2,b,2\n")
    return folder


def printed(capsys: pytest.CaptureFixture[str], monkeypatch, *arguments: object) -> str:
    """What a command that fails prints on stderr."""
    monkeypatch.setattr(sys, "argv", ["peterrec", *map(str, arguments)])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # the command sets it for its children; undone here
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["data-info", "--interactions", "semicolons.csv"], "Give --delimiter ';'"),
        (["data-info", "--interactions", "bare.csv"], "in their order with --columns"),
        (["data-info", "--interactions", "bad.csv", "--order-column", "at"], "--order-column"),
        (["convert", "recbole", "x.inter", "--out", "o"], "Check the path"),
        (
            ["compare", "--out", "o", "--interactions", "semicolons.csv", "--targets", "bad.csv"],
            "Give --delimiter ';'",
        ),
    ],
)
def test_commands_name_their_own_options(shop, capsys, monkeypatch, arguments, hint):
    monkeypatch.chdir(shop)
    assert hint in printed(capsys, monkeypatch, *arguments)
