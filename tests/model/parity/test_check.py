"""Our network against an independent numpy statement of the published equations."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from peterrec.model.errors import GoldenFolderInvalid
from peterrec.model.parity.case import AdamSettings
from peterrec.model.parity.check import CaseReport, check_folder, order_error, top_items
from peterrec.model.parity.tf_adam import ReferenceAdam
from peterrec.service.cli.main import main
from tests.model.reference_case import (
    ADAM,
    Equations,
    Net,
    complex_step,
    inputs_of,
    loss_of,
    write_case,
    write_npz,
)

FINETUNE = Net("serial2", "finetune", insertion="serial2")
NETS = (
    Net("pretrain3", "causal_pretrain"),
    Net("pretrain5", "causal_pretrain", kernel=5, dilations=(1, 3, 2), channels=10),
    Net("pretrain2", "causal_pretrain", kernel=2, item_size=9),
    Net("cloze3", "noncausal_pretrain", is_causal=False),
    Net("cloze5", "noncausal_pretrain", is_causal=False, kernel=5, shapes=((2, 4), (6, 9))),
    FINETUNE,
    Net("serial2_g3", "finetune", insertion="serial2", cardinality=3, kernel=5),
    Net("serial2_both_ways", "finetune", insertion="serial2", is_causal=False),
    Net("serial1", "finetune", insertion="serial1", kernel=5, target_size=4),
    Net("serial1_g3_both_ways", "finetune", insertion="serial1", cardinality=3, is_causal=False),
    Net("parallel2", "finetune", insertion="parallel2", channels=8, dilations=(1, 4, 1)),
    Net("parallel2_g3", "finetune", insertion="parallel2", cardinality=3, channels=24, kernel=5),
    Net("parallel2_both_ways", "finetune", insertion="parallel2", is_causal=False, kernel=5),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for net in NETS:
        write_case(folder, net)
    return folder


@pytest.fixture(scope="module")
def reports(recorded: Path) -> dict[str, CaseReport]:
    return reports_of(recorded)


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """A folder with the fine-tuning case and a causal pretraining case, free to be damaged."""
    for name in ("serial2", "pretrain3"):
        for file in recorded.glob(f"*_{name}[._]*"):
            if file.stem.removesuffix("_extra").endswith(name):
                shutil.copy(file, tmp_path)
    return tmp_path


def reports_of(folder: Path) -> dict[str, CaseReport]:
    return {report.case: report for report in check_folder(folder)}


def rewrite(path: Path, **changes: NDArray[np.generic] | None) -> None:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    changed = {**arrays, **changes}
    write_npz(path, {name: array for name, array in changed.items() if array is not None})


def change_meta(path: Path, **changes: object) -> None:
    with np.load(path) as archive:
        meta = json.loads(str(archive["meta"]))
    rewrite(path, meta=np.array(json.dumps({**meta, **changes})))


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_network_agrees_with_the_independent_equations(
    reports: dict[str, CaseReport], net: Net
) -> None:
    report = reports[net.name]
    assert (report.problem, report.misses, report.unchecked) == ("", [], ())


def test_every_recorded_array_is_compared(recorded: Path, reports: dict[str, CaseReport]) -> None:
    with np.load(recorded / "case_parallel2_g3.npz") as archive:
        asked = {f"in{i}_{name}" for i in (0, 1) for name in ("itemseq", "pos", "neg", "cand")}
        answers = set(archive.files) - asked - {"meta"}
    compared = {quantity.name for quantity in reports["parallel2_g3"].quantities}
    assert compared == answers | {"frozen"}


@pytest.mark.parametrize("name", ["pretrain5", "serial1_g3_both_ways", "parallel2_g3"])
def test_gradients_by_hand_agree_with_complex_steps(name: str, tmp_path: Path) -> None:
    net = next(net for net in NETS if net.name == name)
    model = write_case(tmp_path, net)
    given = inputs_of(net, np.random.default_rng(5))[0]
    loss_of(model, given)[1]()
    for variable, gradient in model.gradients.items():
        at = tuple(size // 2 for size in gradient.shape)
        stepped = complex_step(model, given, variable, at)
        assert gradient[at] == pytest.approx(stepped, rel=1e-9, abs=1e-12)


PARALLEL = Net("wrong", "finetune", insertion="parallel2")
SERIAL = Net("wrong", "finetune", insertion="serial2")
PRETRAIN = Net("wrong", "causal_pretrain")
PLANTED = [
    ("another epsilon", SERIAL, Equations(eps=1e-5), "in0_hidden"),
    ("the exact form of gelu", SERIAL, Equations(gelu="erf"), "in0_hidden"),
    ("ReLU in the patch", SERIAL, Equations(gelu="relu"), "in0_hidden"),
    ("no inner skip", PARALLEL, Equations(has_inner_skip=False), "in0_user"),
    ("second dilation not doubled", PRETRAIN, Equations(second_dilation=1), "in0_hidden"),
    ("unbiased variance", PRETRAIN, Equations(variance_ddof=1), "in0_hidden"),
    ("id 0 zeroed", PRETRAIN, Equations(zeroes_id_0=True), "in0_hidden"),
    ("no ReLU before softmax", PRETRAIN, Equations(has_relu_before_softmax=False), "in0_loss"),
    ("patch after the norm", SERIAL, Equations(is_patch_after_norm=True), "in0_logits"),
    ("another regulariser", SERIAL, Equations(regularizer=0.01), "in0_loss_reg"),
]


@pytest.mark.parametrize(
    ("net", "equations", "missed"),
    [case[1:] for case in PLANTED],
    ids=[case[0] for case in PLANTED],
)
def test_a_planted_mistake_is_named(
    tmp_path: Path, net: Net, equations: Equations, missed: str
) -> None:
    write_case(tmp_path, net, equations)
    report = reports_of(tmp_path)["wrong"]
    assert missed in [quantity.name for quantity in report.misses]


def test_a_network_of_the_other_direction_is_refused(copied: Path) -> None:
    change_meta(copied / "case_serial2.npz", causal=False)
    assert reports_of(copied)["serial2"].problem or reports_of(copied)["serial2"].misses


def test_the_place_of_epsilon_in_adam_is_noticed(tmp_path: Path) -> None:
    net = replace(SERIAL, adam_eps=1e-5)
    write_case(tmp_path, net)
    assert reports_of(tmp_path)["wrong"].is_met
    write_case(tmp_path, net, Equations(adam_corrects_eps=True))
    assert {quantity.kind for quantity in reports_of(tmp_path)["wrong"].misses} >= {"after"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "array",
    [
        "in0_hidden",
        "in1_user",
        "in0_logits",
        "in0_cand_scores",
        "in0_loss_pair_ce",
        "in1_loss_bpr",
        "in0_loss_reg",
        "grad:target-item/allitem_embeddings_target",
        "after:nextitnet_residual_blockdecoder_layer_1_2/layer_norm2/gamma",
        "adam_losses",
    ],
)
def test_a_changed_number_is_missed_by_name(copied: Path, array: str) -> None:
    path = copied / "case_serial2.npz"
    with np.load(path) as archive:
        changed = archive[array] * np.float32(1.002)
    rewrite(path, **{array: changed})
    assert array in [quantity.name for quantity in reports_of(copied)["serial2"].misses]


def test_a_number_that_is_not_finite_is_missed(copied: Path) -> None:
    path = copied / "case_serial2.npz"
    rewrite(path, in0_loss_reg=np.array(np.nan, np.float32))
    assert [q.name for q in reports_of(copied)["serial2"].misses] == ["in0_loss_reg"]


def test_two_best_candidates_in_the_wrong_order_are_missed(copied: Path) -> None:
    path = copied / "case_serial2.npz"
    with np.load(path) as archive:
        order = archive["in0_cand_top5"][:, ::-1]
    rewrite(path, in0_cand_top5=order)
    assert [q.name for q in reports_of(copied)["serial2"].misses] == ["in0_cand_top5"]


def test_equal_scores_must_keep_index_order() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0]])
    assert order_error("top5", scores, scores, torch.tensor([[1, 2]])) == 0
    assert order_error("top5", scores, scores, torch.tensor([[2, 1]])) == 1


def test_scores_closer_than_rounding_may_change_places() -> None:
    ours, recorded = torch.tensor([[1.0, 3.0, 3.0001]]), torch.tensor([[1.0, 3.0001, 3.0]])
    assert order_error("top5", ours, recorded, torch.tensor([[1, 2]])) == 0
    assert order_error("top5", ours, recorded, torch.tensor([[0, 1]])) == 0.5


def test_a_changed_weight_is_missed(copied: Path) -> None:
    path = copied / "patch_serial2.safetensors"
    weights = load_file(path)
    name = "nextitnet_residual_blockdecoder_layer_1_2/mp_2/mp_conv1_up_0/bias"
    weights[name][0] += 0.01
    save_file(weights, path)
    reports = reports_of(copied)
    assert "in0_hidden" in [quantity.name for quantity in reports["serial2"].misses]
    assert reports["pretrain3"].is_met


@pytest.mark.parametrize(
    "array",
    [
        "in0_itemseq",
        "in1_cand",
        "in0_user",
        "in0_cand_top5",
        "adam_losses",
        "meta",
        "grad:target-item/allitem_embeddings_target",
        "after:target-item/allitem_embeddings_target",
    ],
)
def test_a_missing_array_is_named(copied: Path, array: str) -> None:
    rewrite(copied / "case_serial2.npz", **{array: None})
    report = reports_of(copied)["serial2"]
    assert array in report.problem
    assert "missing" in report.problem


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("in0_hidden", np.zeros((2, 3), np.float32)),
        ("in0_loss_reg", np.zeros((), np.int32)),
        ("in0_itemseq", np.full((4, 9), 1000, np.int32)),
        ("in0_itemseq", np.zeros((4, 9), np.float32)),
        ("in0_pos", np.full((4, 1), -1, np.int32)),
        ("in0_cand", np.zeros((0, 8), np.int32)),
        ("in0_cand_top5", np.full((4, 5), 8, np.int32)),
        ("in0_cand_top5", np.zeros((4, 9), np.int32)),
        ("grad:logits/bias", np.zeros(3, np.float32)),
        ("adam_losses", np.zeros(4, np.float32)),
        ("in0_user", np.array(["text"])),
    ],
)
def test_a_malformed_array_is_named(copied: Path, array: str, value: NDArray[np.generic]) -> None:
    rewrite(copied / "case_serial2.npz", **{array: value})
    assert array.removeprefix("grad:") in reports_of(copied)["serial2"].problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "other"}, "kind 'other'"),
        ({"insertion": "serial9"}, "insertion 'serial9'"),
        ({"patch": None}, "patch is missing"),
        ({"patch": "../patch_serial2.safetensors"}, "not a file name"),
        ({"dilations": "x"}, "not a description"),
        ({"item_size": 0}, "item_size"),
        ({"item_size": 18}, "allitem_embeddings has shape (17, 12), not (18, 12)"),
        ({"channels": 16}, "allitem_embeddings has shape"),
        ({"kernel_size": 5}, "dilated_conv1/weight has shape"),
        ({"dilations": [1, 4]}, "layer_1_4/dilated_conv1/weight is missing"),
        ({"dilations": [1]}, "blocks"),
        ({"cardinality": 3}, "mp_conv1_down_1/weight is missing"),
        ({"adam": {"lr": 0.1}}, "beta1"),
        ({"adam": {**ADAM, "eps": 1e-8, "batch": "in0", "loss": "other"}}, "loss_other"),
        ({"adam": {**ADAM, "eps": 1e-8, "batch": "in7"}}, "in7_itemseq is missing"),
        ({"adam": {**ADAM, "eps": 1e-8, "batch": "first"}}, "batch 'first'"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_named(
    copied: Path, changes: dict[str, object], problem: str
) -> None:
    change_meta(copied / "case_serial2.npz", **changes)
    assert problem in reports_of(copied)["serial2"].problem


@pytest.mark.parametrize("file", ["weights_serial2.safetensors", "patch_serial2.safetensors"])
def test_a_missing_or_unreadable_file_is_named(copied: Path, file: str) -> None:
    (copied / file).write_bytes(b"no tensors")
    assert file in reports_of(copied)["serial2"].problem
    (copied / file).unlink()
    assert f"file {file} is missing" in reports_of(copied)["serial2"].problem


def test_a_cut_off_case_is_named_and_the_others_are_still_checked(copied: Path) -> None:
    path = copied / "case_serial2.npz"
    path.write_bytes(path.read_bytes()[:-200])
    reports = reports_of(copied)
    assert "case_serial2.npz is not a readable npz file" in reports["serial2"].problem
    assert reports["pretrain3"].is_met


def test_a_lost_case_is_known_by_its_files(copied: Path) -> None:
    (copied / "case_serial2.npz").unlink()
    with pytest.raises(GoldenFolderInvalid, match=r"case_serial2\.npz"):
        reports_of(copied)


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GoldenFolderInvalid, match="no case"):
        reports_of(tmp_path)


def test_arrays_we_do_not_know_are_reported_as_unchecked(copied: Path) -> None:
    rewrite(copied / "case_serial2.npz", in0_other=np.zeros(2, np.float32))
    report = reports_of(copied)["serial2"]
    assert report.is_met
    assert report.unchecked == ("in0_other",)


def test_reference_adam_differs_from_torch_only_in_the_place_of_epsilon() -> None:
    settings = AdamSettings(lr=1e-2, beta1=0.9, beta2=0.999, eps=0.0, steps=5, batch="in0")
    start = torch.linspace(-1, 1, 8)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = ReferenceAdam([ours], settings)
    other = torch.optim.Adam([theirs], lr=1e-2, eps=0.0)
    for _ in range(settings.steps):
        ours.grad, theirs.grad = ours.detach() ** 3, theirs.detach() ** 3
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs)
    bent = torch.nn.Parameter(start.clone())
    bent.grad = torch.full((8,), 1e-6)
    ReferenceAdam([bent], replace(settings, eps=1e-6)).step()
    expected = start - 1e-2 * (0.001**0.5 / 0.1) * 1e-7 / (0.001**0.5 * 1e-6 + 1e-6)
    torch.testing.assert_close(bent.detach(), expected)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["peterrec", *arguments])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # the command sets it for its children; undone here
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)


@pytest.mark.slow
def test_check_golden_exits_0_when_all_is_met(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "check-golden", str(recorded)) == 0
    printed = capsys.readouterr().out
    assert f"{len(NETS)} of {len(NETS)} cases met" in printed
    assert "adam_losses" in printed


def test_check_golden_exits_1_and_names_the_miss(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(copied / "case_serial2.npz", in0_loss_reg=np.array(9, np.float32))
    assert run(monkeypatch, "check-golden", str(copied)) == 1
    assert "missed: serial2 in0_loss_reg" in capsys.readouterr().out


def test_check_golden_exits_1_and_names_the_broken_case(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "case_serial2.npz").write_bytes(b"")
    assert run(monkeypatch, "check-golden", str(copied)) == 1
    assert "not run: serial2" in capsys.readouterr().out


def test_check_golden_exits_1_without_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "check-golden", str(tmp_path)) == 1
    assert "golden_folder_invalid" in capsys.readouterr().err


def test_check_golden_prints_json_for_machines(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(copied / "case_serial2.npz", in0_loss_reg=np.array(np.nan, np.float32))
    assert run(monkeypatch, "check-golden", str(copied), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    cases = {case["case"]: case for case in document["cases"]}
    assert not document["is_met"]
    assert cases["pretrain3"]["is_met"]
    missed = [q for q in cases["serial2"]["quantities"] if not q["is_met"]]
    assert [(q["quantity"], q["relative_error"]) for q in missed] == [("in0_loss_reg", None)]


def test_the_best_items_come_first_and_equals_in_catalog_order() -> None:
    scores, items = top_items(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), 3)
    assert items.tolist() == [[1, 3, 2]]
    assert scores.tolist() == [[3.0, 3.0, 2.0]]


def test_a_catalog_smaller_than_the_wish_is_returned_whole() -> None:
    assert top_items(torch.tensor([[1.0, 2.0]]), 10)[1].tolist() == [[1, 0]]
