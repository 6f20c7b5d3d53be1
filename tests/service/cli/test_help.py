"""What users read in ``--help`` is reviewed: it changes only together with the kept files."""

import pytest

from tests.service.cli.help_texts import FOLDER, file_of, help_texts

TEXTS = help_texts()
REGENERATE = "run: python -m tests.service.cli.help_texts"


@pytest.mark.parametrize("command", TEXTS)
def test_the_help_of_a_command_is_the_reviewed_one(command):
    file = file_of(command)
    assert file.exists(), REGENERATE
    assert TEXTS[command] == file.read_text(encoding="utf-8"), REGENERATE


def test_no_text_is_kept_of_a_command_that_is_gone():
    assert set(FOLDER.glob("*.txt")) == {file_of(command) for command in TEXTS}, REGENERATE
