"""Options of training: each is written once, with all that the command line needs to know."""

import subprocess
import sys
from dataclasses import fields

import pytest
from pydantic import TypeAdapter, ValidationError

from peterrec.model.training.finetune.settings import FinetuneSettings, LoopSettings
from peterrec.model.training.options import REQUIRED, Option, options_of
from peterrec.model.training.pretrain.settings import PretrainSettings

SETTINGS = (FinetuneSettings, PretrainSettings)
OPTIONS = [option for settings in SETTINGS for option in options_of(settings)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_field_is_an_option(settings: type) -> None:
    assert [option.field for option in options_of(settings)] == [f.name for f in fields(settings)]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.field)
def test_every_option_explains_itself_in_a_sentence(option: Option) -> None:
    assert option.help.endswith(".")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.field)
def test_every_default_is_within_its_options_bounds(option: Option) -> None:
    assert option.minimum is None or option.default >= option.minimum
    assert option.maximum is None or option.default <= option.maximum


def test_only_the_kind_of_a_task_has_no_default() -> None:
    assert [option.name for option in OPTIONS if option.default is REQUIRED] == ["kind"]


def test_what_every_encoder_is_trained_with_is_part_of_fine_tuning() -> None:
    own, whole = (
        {option.name for option in options_of(s)} for s in (LoopSettings, FinetuneSettings)
    )
    assert own < whole


def test_a_document_of_option_names_becomes_settings() -> None:
    given = {"kind": "tags", "lr": 0.1, "norms": False, "blocks": [6, 7]}
    assert TypeAdapter(FinetuneSettings).validate_python(given) == FinetuneSettings(
        "tags", learning_rate=0.1, has_norms=False, blocks=(6, 7)
    )


@pytest.mark.parametrize(
    "wrong", [{"lr": -1}, {"patience": 0}, {"item_dropout": 2}, {"epoch": 3}, {"kind": "tag"}]
)
def test_a_document_with_a_wrong_name_or_value_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TypeAdapter(FinetuneSettings).validate_python({"kind": "tags", **wrong})


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_are_read_without_torch(settings: type) -> None:
    check = f"import sys, {settings.__module__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
