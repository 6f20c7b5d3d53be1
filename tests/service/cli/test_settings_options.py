"""Options made from settings classes: one field is one option, with its bounds and its default."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from peterrec.model.study.settings import Axes, ComparisonSettings
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import option, options_of
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.cli.compare import compare
from peterrec.service.cli.many_tasks import finetune_many
from peterrec.service.cli.option_tables import with_tables
from peterrec.service.cli.settings_options import FieldsOf, comma_separated, takes_settings
from peterrec.service.cli.training import finetune, pretrain
from peterrec.service.jobs.task_file import TASK_OPTIONS

DOCS = Path(__file__).parents[3] / "docs"
Size = Literal["small", "large"]


@dataclass(frozen=True, slots=True)
class Oven:
    """Settings as a training command has them."""

    heat: Annotated[int, option("Degrees.", "Training", ge=50, le=300)]
    racks: Annotated[tuple[int, ...], option("Racks that are used.", "Model")] = (1, 3)
    is_fan: Annotated[bool, option("Turn the fan on.", "Model", name="fan")] = False
    light: Annotated[bool | None, option("Turn the light on.", "Model")] = None
    size: Annotated[Size | Literal["any"], option("Size of the oven.", "Model")] = "any"
    serial: Annotated[str, option("Not an option.", is_public=False)] = "none"


@dataclass(frozen=True, slots=True)
class Dish:
    """Options that only a command has."""

    name: Annotated[str, typer.Argument(metavar="DISH")]
    salt: Annotated[list[str] | None, typer.Option(help="Kinds of salt.")] = None


def called(command: Any, *arguments: str) -> Any:
    """What a command prints; the result if it is refused."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(takes_settings(command))
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def bake(oven: Oven, dish: Dish, minutes: Annotated[int, typer.Option(min=1)] = 30) -> None:
    print(oven, dish, minutes, sep="\n")


def test_every_public_field_is_an_option_and_the_command_gets_the_object():
    given = ["--heat", "180", "--racks", "2", "--fan", "--no-light", "--size", "large"]
    lines = called(bake, "cake", *given, "--salt", "sea", "--salt", "rock").output.splitlines()
    assert lines == [
        str(Oven(180, (2,), True, False, "large")),
        str(Dish("cake", ["sea", "rock"])),
        "30",
    ]


def test_defaults_are_those_of_the_class():
    lines = called(bake, "cake", "--heat", "180").output.splitlines()
    assert lines[:2] == [str(Oven(180)), str(Dish("cake"))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "Missing option '--heat'"),
        (["--heat", "20"], "Invalid value for '--heat'"),
        (["--heat", "180", "--size", "medium"], "Invalid value for '--size'"),
        (["--heat", "180", "--racks", "1,top"], "--racks '1,top': 'top' is wrong"),
        (["--heat", "180", "--serial", "7"], "No such option"),
    ],
)
def test_a_value_that_the_class_does_not_take_is_a_usage_error(wrong, message):
    refused = called(bake, "cake", *wrong)
    assert refused.exit_code == 2
    assert message in " ".join(refused.output.replace("│", " ").split())


def test_a_command_can_take_some_fields_under_other_names_and_defaults():
    base = Oven(200, racks=(4,), serial="x")

    def toast(
        oven: Annotated[
            Oven, FieldsOf(Oven, without=frozenset({"racks"}), names={"heat": "grill"}, base=base)
        ],
    ) -> None:
        print(oven)

    assert called(toast).output.strip() == str(base)
    assert called(toast, "--grill", "90").output.strip() == str(Oven(90, racks=(4,), serial="x"))
    assert called(toast, "--racks", "1").exit_code == 2


def test_a_command_can_take_fields_as_a_mapping():
    def warm(given: Annotated[dict[str, Any], FieldsOf(Oven, of_panel="Training")]) -> None:
        print(given)

    assert called(warm, "--heat", "60").output.strip() == "{'heat': 60}"


def test_a_list_is_read_with_the_types_of_its_parts():
    kind = tuple[int | Literal["all"], ...]
    assert comma_separated("1, all,2", kind, "depths") == (1, "all", 2)
    assert comma_separated("", kind, "depths") == ()
    with pytest.raises(typer.BadParameter, match=r"--in-depth '1,x': 'x' is wrong"):
        comma_separated("1,x", kind, "in_depth")


def option_names(command: Any) -> set[str]:
    return set(inspect.signature(takes_settings(command)).parameters)


def public(settings: type) -> set[str]:
    return {each.name for each in options_of(settings) if each.is_public}


def test_commands_the_task_file_and_the_comparison_have_the_options_of_the_settings():
    assert public(PretrainSettings) < option_names(pretrain)
    assert public(FinetuneSettings) < option_names(finetune)
    assert public(ComparisonSettings) | public(Axes) < option_names(compare)
    of_tasks = {each.name for each in TASK_OPTIONS}
    assert public(FinetuneSettings) - of_tasks - {"cls"} < option_names(finetune_many)
    assert of_tasks.isdisjoint(option_names(finetune_many))


@pytest.mark.parametrize("name", ["training.md", "compare.md"])
def test_the_tables_of_options_are_what_the_settings_say(name):
    document = (DOCS / name).read_text(encoding="utf-8")
    assert "<!-- options: " in document
    assert document == with_tables(document), (
        "run: python -m peterrec.service.cli.option_tables docs/training.md docs/compare.md"
    )
