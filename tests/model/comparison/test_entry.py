"""Where only torch, numpy and safetensors are installed, a prepared comparison runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.comparison.errors import PlottingMissing
from model.comparison.plots import draw_plots
from tests.model.comparison.small_comparison import SETTINGS, workplace

ROOT = Path(__file__).parents[3]

WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from model.comparison.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def test_the_core_needs_neither_arrow_nor_pydantic_nor_matplotlib(tmp_path):
    place = workplace(tmp_path, SETTINGS)
    (place.prepared / "settings.json").write_text(json.dumps(SETTINGS.to_json()))
    absent = "pyarrow,pydantic,typer,rich,matplotlib,fastapi,redis"
    options = ["--set", "seeds=1", "--set", "rate_trials=1", "--set", 'methods=["finecls"]']
    command = [sys.executable, "-c", WITHOUT, absent, str(place.prepared), str(place.out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| finecls |" in (place.out / "comparison.md").read_text()


def test_pictures_without_matplotlib_are_refused_with_a_hint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlottingMissing, match=r"peterrec-serving\[compare\]"):
        draw_plots({"tables": []}, tmp_path)
