"""What each kind of head reports for its logits, and that every side knows the same kinds."""

import math

import pytest
import torch

from peterrec.model.kinds import KINDS, Kind, kinds_in
from peterrec.model.training.objectives import OBJECTIVES
from peterrec.service.predict.kinds import ANSWERS
from peterrec_client import kinds as client_kinds

LOG2 = math.log(2)

TABLES = {
    "model/kinds": KINDS,
    "model/training/objectives": OBJECTIVES,
    "service/predict/kinds": ANSWERS,
    "peterrec_client/kinds": client_kinds.KINDS,
}


@pytest.mark.parametrize("kind", sorted(set().union(*TABLES.values())))
def test_every_side_knows_every_kind_of_head(kind):
    assert [folder for folder, table in TABLES.items() if kind not in table] == []


def test_there_are_four_kinds_of_head():
    assert [*KINDS] == ["classification", "ranking", "tags", "value"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_one_name_on_the_wire_and_in_all_tables(kind):
    assert ANSWERS[kind].prediction.__struct_config__.tag == kind
    assert client_kinds.KINDS[kind].__struct_config__.tag == kind


def test_a_module_with_a_kind_is_found_by_its_file_alone(tmp_path, monkeypatch):
    package = tmp_path / "some_kinds"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shared.py").write_text("NUMBER = 1")
    (package / "toy.py").write_text("KIND = 'a toy'")
    monkeypatch.syspath_prepend(tmp_path)
    assert kinds_in("some_kinds", [str(package)]) == {"toy": "a toy"}


def scores_of(kind: str, logits: torch.Tensor) -> torch.Tensor:
    return KINDS[kind].scores(logits)


def test_classification_is_a_softmax_over_all_classes():
    logits = torch.tensor([[0.0, LOG2], [0.0, 0.0]])
    scores = scores_of("classification", logits)
    torch.testing.assert_close(scores[0], torch.tensor([1 / 3, 2 / 3]))


def test_tags_are_independent_sigmoids():
    scores = scores_of("tags", torch.tensor([[0.0, math.log(3)]]))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.75]]))


@pytest.mark.parametrize("kind", ["ranking", "value"])
def test_rankings_and_values_report_the_logits_themselves(kind):
    logits = torch.tensor([[1.0, 2.0]])
    assert torch.equal(scores_of(kind, logits), logits)


@pytest.mark.parametrize(
    ("kind", "has_labels", "has_catalog", "has_threshold"),
    [
        ("classification", True, False, False),
        ("tags", True, False, True),
        ("ranking", False, True, False),
        ("value", False, False, False),
    ],
)
def test_a_kind_says_what_its_bundle_carries(kind, has_labels, has_catalog, has_threshold):
    found: Kind = KINDS[kind]
    assert (found.has_labels, found.has_catalog) == (has_labels, has_catalog)
    assert found.has_threshold == has_threshold
