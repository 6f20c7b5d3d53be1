"""The notebook of the documentation runs from top to bottom and does what it says."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import peterrec
import peterrec_client

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory) -> nbformat.NotebookNode:
    """The notebook with its outputs; a cell that fails, fails here."""
    ground = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": ground}})
    return client.execute()


def test_it_is_kept_without_outputs(notebook):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_it_uses_the_public_interface_only(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    used = set(re.findall(r"\bpeterrec\.(\w+)", text))
    assert used <= set(peterrec.__all__)
    assert set(re.findall(r"\bpeterrec_client\.(\w+)", text)) <= set(peterrec_client.__all__)
    assert re.findall(r"^(?:from|import) peterrec\S*\.", text, flags=re.MULTILINE) == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute, and more on a busy machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that run notebooks
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # as above
def test_it_goes_from_a_frame_to_a_served_task(executed):
    html = [
        output.data["text/html"]
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert any("Backbone" in shown and "fingerprint" in shown for shown in html)
    assert any("accuracy" in shown and "no history" in shown for shown in html)
    errors = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert [output for output in errors if output.output_type == "error"] == []
