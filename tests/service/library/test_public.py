"""The public interface: its names, its types, its documentation, and what importing it costs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import peterrec
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import options_of
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.jobs.options import AnswerOptions, EventOptions
from peterrec.service.library import keywords
from peterrec.service.library.keywords import keywords_of

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "python.md"


def test_every_public_name_is_in_the_reference_and_no_other():
    text = GUIDE.read_text(encoding="utf-8").partition("## Reference")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted(peterrec.__all__)


@pytest.mark.parametrize("name", peterrec.__all__)
def test_every_public_name_can_be_imported_and_is_described(name):
    found = getattr(peterrec, name)
    assert isinstance(found, str) or (inspect.getdoc(found) or "").endswith(".")
    assert name in dir(peterrec)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        peterrec.nothing  # noqa: B018


def test_importing_peterrec_imports_nothing_heavy():
    program = (
        "import sys, peterrec\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'pandas', 'sklearn', 'pydantic', 'duckdb'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_types_of_the_keyword_arguments_are_those_of_the_options():
    written = Path(keywords.__file__).with_name("option_types.py").read_text(encoding="utf-8")
    assert written == keywords.option_types()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (peterrec.pretrain, (EventOptions, PretrainSettings)),
        (peterrec.finetune, (EventOptions, AnswerOptions, FinetuneSettings)),
        (peterrec.Task.evaluate, (EventOptions, AnswerOptions)),
        (peterrec.Backbone.evaluate, (EventOptions,)),
    ],
)
def test_a_function_lists_the_commands_options_with_their_defaults(function, options):
    parameters = inspect.signature(function).parameters
    for each in (keyword for cls in options for keyword in keywords_of(cls)):
        assert parameters[each.name].default == each.default


def test_an_estimator_lists_the_options_of_fine_tuning():
    parameters = peterrec.ProfileClassifier().get_params()
    names = {option.name for option in options_of(FinetuneSettings)} - {"kind", "seed"}
    own = {"backbone", "random_state", "device", "progress"}
    assert set(parameters) == names | own
    assert parameters["queries"] == FinetuneSettings(kind="value").queries


def test_a_misspelt_argument_is_a_type_error_with_a_suggestion():
    with pytest.raises(TypeError, match=r"'epohcs'\. Did you mean 'epochs'"):
        peterrec.pretrain([["a"]], epohcs=1)  # type: ignore[call-arg]  # that is the test


def test_the_version_is_the_distributions():
    assert peterrec.__version__ == (ROOT / "VERSION").read_text().strip()
