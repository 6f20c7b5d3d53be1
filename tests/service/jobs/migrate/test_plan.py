"""A recorded training is repeated with its own settings, as far as the new backbone has room."""

from dataclasses import asdict

import pytest

from peterrec.model.spec import BackboneSpec
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.service.errors import TrainingUnrepeatable
from peterrec.service.jobs.migrate.plan import blocks_on, settings_on
from peterrec.service.jobs.report.measured import RecordedTraining
from tests.service.cli.command_line import run

OLD = BackboneSpec(item_count=9, channels=8, dilations=(1, 2, 4), max_len=12)
NEW = BackboneSpec(item_count=7, channels=8, dilations=(1, 2, 4, 8), max_len=12)
SETTINGS = FinetuneSettings(
    kind="value", blocks=(2,), unit="days", seed=3, learning_rate=0.5, parts="blocks,reader"
)


def recorded(**changed):
    return RecordedTraining({**asdict(SETTINGS), **changed}, {}, None, None)


def test_settings_are_those_of_the_record():
    assert settings_on(recorded(), OLD, OLD) == (SETTINGS, ())


def test_settings_that_an_older_bundle_does_not_record_are_named():
    kept = recorded()
    del kept.settings["queries"], kept.settings["learning_rate"]
    settings, defaults = settings_on(kept, OLD, OLD)
    assert defaults == ("lr", "queries")
    assert settings.learning_rate == FinetuneSettings(kind="value").learning_rate


@pytest.mark.parametrize(
    "changed",
    [
        {"colour": "red"},
        {"epochs": 0},
        {"epochs": "many"},
        {"kind": "none-such"},
        {"parts": "roof"},
        {"kind": "tags"},
    ],
)
def test_settings_that_are_not_understood_are_refused(changed):
    with pytest.raises(TrainingUnrepeatable, match="its settings "):
        settings_on(recorded(**changed), OLD, OLD)


@pytest.mark.parametrize(
    ("blocks", "old", "new", "found"),
    [
        (None, 2, 4, None),
        ((0, 1), 2, 4, (0, 1, 2, 3)),
        ((0, 1, 2, 3), 4, 2, (0, 1)),
        ((1,), 2, 4, (3,)),
        ((2, 3), 4, 3, (1, 2)),
        ((0, 2), 4, 3, (0, 2)),
        ((0, 2), 4, 4, (0, 2)),
    ],
)
def test_blocks_are_all_or_the_topmost_or_the_same_of_another_depth(blocks, old, new, found):
    assert blocks_on(blocks, old, new) == found


def test_blocks_that_the_new_backbone_lacks_are_refused():
    with pytest.raises(TrainingUnrepeatable, match="patches the blocks 0, 3"):
        blocks_on((0, 3), 5, 2)


@pytest.mark.parametrize("tasks", ["", " ,"])
def test_naming_nothing_is_no_choice(tasks, tmp_path):
    with pytest.raises(AssertionError, match="name --tasks"):
        run("migrate", "--backbone", tmp_path, "--tasks", tasks, "--out", tmp_path / "out")
