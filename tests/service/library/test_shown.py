"""What a call of the library shows: in a script, where nobody looks, and in a notebook."""

import nbformat
import pytest
from nbclient import NotebookClient

import peterrec
from peterrec.service.library.shown import watched
from tests.service.library.conftest import FINETUNE

CELL = """
import time
from peterrec.model.progress import Progress
from peterrec.service.library.shown import watched

with watched(None) as seen:
    for done in range(36):
        seen.progress(Progress("counting", done, 36))
        time.sleep(0.1)
    seen.notice("something about the data")
"""


def test_a_script_gets_notices_once_and_no_bars(capsys):
    with watched(None) as seen:
        for _ in range(2):
            seen.notice("something about the data")
    assert capsys.readouterr() == ("", "note: something about the data\n")


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_a_caller_decides_whether_anything_is_shown(progress, shown, capsys):
    with watched(progress) as seen:
        seen.notice("something about the data")
    out, err = capsys.readouterr()
    assert out == ""
    assert ("something about the data" in err) == shown


def test_a_training_without_progress_is_silent(backbone, shop, capfd):
    peterrec.finetune(
        backbone,
        shop.histories,
        kind="classification",
        labels=shop.genders,
        progress=False,
        **FINETUNE,
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that run notebooks
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # as above
def test_a_notebook_shows_a_bar_and_notices():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=100).execute()
    shown = [output["data"] for output in notebook.cells[0].outputs]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert any("something about the data" in data["text/plain"] for data in shown)
