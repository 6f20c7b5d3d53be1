"""A comparison tunes on validation users, continues after an interruption, and leaks nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch import Tensor
from torch.nn import functional

from peterrec.model.errors import MethodUnknown, TaskUnknown
from peterrec.model.files.tensors import read_arrays
from peterrec.model.progress import Progress, no_progress
from peterrec.model.spec import FIRST_ITEM, BackboneSpec
from peterrec.model.study.corpus import shuffled
from peterrec.model.study.networks import TwoTower
from peterrec.model.study.predictions import calibrated, scored
from peterrec.model.study.report import report_of, write_report
from peterrec.model.study.run import Workplace
from peterrec.model.study.schedule import JOURNAL, Effort, Unit, compare
from peterrec.model.study.settings import Axes
from peterrec.model.study.task_data import limit_labels, task_data
from peterrec.model.study.verdict import paired_difference
from peterrec.model.training.finetune.encoders import UserRows
from peterrec.model.training.objectives.classification import ClassificationObjective
from peterrec.service.jobs.packing import pack_task
from tests.model.small_shop import groups
from tests.model.study.small_comparison import (
    SETTINGS,
    shop_corpus,
    workplace,
)

EVERY_METHOD = replace(
    SETTINGS,
    methods=(
        *("peterrec", "reader", "side", "fineall", "finelast", "finecls", "peterzero"),
        *("fineblocks", "fineitems", "reader-noncausal", "auto", "table"),
        *("random", "scratch", "mtl", "dssm", "peterrec-noncausal", "side-noncausal"),
    ),
    axes=Axes(insertions=("serial1",), bottlenecks=(4,), depths=("all", 1, "side")),
    seeds=1,
    rate_trials=1,
    epochs=1,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    return workplace(tmp_path_factory.mktemp("comparison"), SETTINGS)


@pytest.fixture(scope="module")
def units(place) -> list[Unit]:
    return compare(place, Effort(), no_progress)


@pytest.fixture(scope="module")
def report(place, units):
    return report_of(place, units)


def rows_of(report, task: str):
    (table,) = [table for table in report["tables"] if table["task"] == task]
    return {row["method"]: row for row in table["rows"]}


def test_the_rate_with_the_lowest_validation_loss_is_kept_for_all_seeds(units):
    for unit in units:
        losses = {spec: unit.results[spec].get("validation_loss", 0) for spec in unit.trials}
        assert unit.chosen == min(losses, key=losses.__getitem__).rates
        assert [spec.seed for spec in unit.final] == list(unit.seeds)
        assert {spec.rates for spec in unit.final} == {unit.chosen}


def test_methods_that_read_the_history_beat_the_prior(report):
    for task, metric, least in (("group", "accuracy", "prior"), ("next", "mrr@5", "popular")):
        rows = rows_of(report, task)
        prior = rows[least]["metrics"][metric]["mean"]
        assert rows["peterrec-serial2 bottleneck 4"]["metrics"][metric]["mean"] > prior
        assert rows["fineall"]["metrics"][metric]["mean"] > prior


def test_every_table_reports_spread_cost_and_the_prior(report):
    rows = rows_of(report, "group")
    patched, whole = rows["peterrec-serial2 bottleneck 4"], rows["fineall"]
    assert patched["metrics"]["accuracy"]["runs"] == 2
    assert patched["metrics"]["accuracy"]["std"] >= 0
    assert 0 < patched["share"] < whole["share"] == 1
    assert whole["seconds"] > 0
    assert [point["epoch"] for point in whole["curve"]] == list(range(1, len(whole["curve"]) + 1))


def test_metrics_are_recomputed_from_saved_predictions_alone(place, report):
    for row in rows_of(report, "group").values():
        accuracies = [_accuracy(place, key) for key in row["keys"]["shop"]]
        assert row["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    for row in rows_of(report, "next").values():
        kept = [
            read_arrays(place.out / "predictions" / f"{key}-next.safetensors")
            for key in row["keys"]["shop"]
        ]
        for prefix, name in (("", "ranks"), ("sampled_", "sampled_ranks")):
            ranks = [run[name].astype(np.int64) for run in kept]
            gains = [np.where(rank < 5, 1 / (1 + rank), 0).mean() for rank in ranks]
            found = row["metrics"][f"{prefix}mrr@5"]["mean"]
            assert found == pytest.approx(np.mean(gains))


def _accuracy(place: Workplace, key: str) -> float:
    run = read_arrays(place.out / "predictions" / f"{key}-group.safetensors")
    return float((run["outputs"][run["logits"].argmax(1)] == run["targets"]).mean())


def test_saved_predictions_are_of_the_test_users_and_their_true_answers(place, units):
    corpus = shop_corpus()
    test = {corpus.histories.users[i] for i in corpus.split.test.tolist()}
    for unit in units:
        for task in unit.tasks:
            truth = corpus.task(task).labels.by_user
            for result in unit.results.values():
                run = read_arrays(place.out / "predictions" / f"{result['key']}-{task}.safetensors")
                assert set(run["users"].tolist()) == test
                pairs = zip(run["users"].tolist(), run["targets"].tolist(), strict=True)
                assert all(target in truth[user] for user, target in pairs)


def test_a_finished_comparison_trains_nothing_again(place, units):
    seen: list[Progress] = []
    lines = (place.out / JOURNAL).read_text()
    again = compare(place, Effort(), seen.append)
    assert (place.out / JOURNAL).read_text() == lines
    assert [unit.results for unit in again] == [unit.results for unit in units]
    assert not [p for p in seen if p.phase == "comparing" and p.done < p.total]


def test_an_interrupted_comparison_goes_on_and_ends_the_same(place, units, tmp_path):
    half = replace(place, out=tmp_path)
    lines = (place.out / JOURNAL).read_text().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_text("".join(lines[:5]) + lines[5][:20])
    (tmp_path / "backbones").symlink_to(place.out / "backbones")
    seen: list[Progress] = []
    resumed = compare(half, Effort(), seen.append)
    assert len([p for p in seen if p.phase == "comparing"]) == 1 + len(lines) - 5
    for ours, theirs in zip(resumed, units, strict=True):
        assert _metrics(ours) == _metrics(theirs)


def _metrics(unit: Unit):
    return {spec: result["metrics"] for spec, result in unit.results.items()}


def test_after_the_time_limit_nothing_starts_and_the_report_says_what_is_missing(place, tmp_path):
    late = replace(place, out=tmp_path)
    units = compare(late, Effort(time_limit_s=0), no_progress)
    assert not any(unit.results for unit in units)
    text = write_report(late, units)
    assert f"**{sum(unit.planned for unit in units)} runs are missing**" in text


@pytest.mark.slow
def test_processes_give_the_same_results_as_one(place, units, tmp_path):
    (tmp_path / "backbones").symlink_to(place.out / "backbones")
    settings = replace(SETTINGS, tasks=("group",), methods=("fineall",))
    parallel = compare(replace(place, out=tmp_path, settings=settings), Effort(jobs=2), no_progress)
    expected = {
        (unit.variant, spec): result["metrics"]
        for unit in units
        for spec, result in unit.results.items()
    }
    for unit in parallel:
        for spec, result in unit.results.items():
            assert result["metrics"] == expected[unit.variant, spec]


def test_every_method_runs(tmp_path):
    own = workplace(tmp_path, EVERY_METHOD)
    report = report_of(own, compare(own, Effort(), no_progress))
    assert report["unfinished"] == 0
    for task in ("group", "next"):
        rows = rows_of(report, task)
        assert set(rows) == {
            *(
                "prior" if task == "group" else "popular",
                "fineall",
                "finelast",
                "finecls",
                "random",
                "scratch",
                "mtl",
                "dssm",
            ),
            *("fineblocks", "fineitems", "reader bottleneck 4", "reader-noncausal bottleneck 4"),
            *(("auto", "table") if task == "group" else ("auto",)),
            *("peterrec-serial1 bottleneck 4", "peterrec-serial1 top 1 bottleneck 4"),
            *("side bottleneck 4", "peterzero-serial2 bottleneck 4"),
            *("peterrec-serial1-noncausal bottleneck 4", "side-noncausal bottleneck 4"),
            "peterrec-serial1-noncausal top 1 bottleneck 4",
        }
        assert rows["finecls"]["trained_parameters"] == 0
        side = rows["side bottleneck 4"]["trained_parameters"]
        assert 0 < side < rows["scratch"]["trained_parameters"]
        parts = ("fineblocks", "fineitems")
        assert (
            sum(rows[part]["trained_parameters"] for part in parts)
            == (rows["fineall"]["trained_parameters"])
        )
        assert all(row["curve"][0]["epoch"] == 1 for row in rows.values() if "curve" in row)


def test_a_smaller_label_share_trains_on_part_of_the_users_of_a_larger_one():
    corpus = shop_corpus()
    items = list(corpus.histories.items)
    data = task_data(corpus, "group", items, min_label_count=5)
    half, quarter = limit_labels(data, 0.5), limit_labels(data, 0.25)
    assert len(half.train) == pytest.approx(len(data.split.train) / 2, abs=1)
    assert set(quarter.train) < set(half.train) < set(data.split.train)
    assert list(half.test) == list(data.split.test)


def test_a_class_too_rare_among_training_users_is_left_out():
    labels = groups(160)
    rare = dict.fromkeys(list(labels.by_user)[:4], ("rare",))
    corpus = shop_corpus(labels=replace(labels, by_user={**labels.by_user, **rare}))
    data = task_data(corpus, "group", list(corpus.histories.items), min_label_count=5)
    assert data.outputs == ("even", "odd")
    assert data.dropped == 4


def test_shuffled_labels_fall_to_the_prior(tmp_path):
    settings = replace(SETTINGS, tasks=("group",), rate_trials=1, epochs=6)
    own = workplace(tmp_path, settings, shuffled(shop_corpus()))
    rows = rows_of(report_of(own, compare(own, Effort(), no_progress)), "group")
    for row in rows.values():
        assert row["metrics"]["auc"]["mean"] == pytest.approx(0.5, abs=0.2)


def test_differences_are_paired_by_user_and_judged_against_the_papers_finding(place, report):
    (table,) = [table for table in report["tables"] if table["task"] == "group"]
    (verdict,) = table["verdicts"]
    rows = rows_of(report, "group")
    means = [
        rows[method]["metrics"]["accuracy"]["mean"]
        for method in ("peterrec-serial2 bottleneck 4", "fineall")
    ]
    assert verdict["difference"] == pytest.approx(means[0] - means[1], abs=1e-6)
    assert not verdict["holds"]  # a tiny backbone: the patch trains more than a tenth of it
    same = paired_difference(rows["fineall"]["keys"], rows["fineall"]["keys"], "group", place.out)
    assert (same.mean, same.standard_error) == (0, 0)


def test_a_changed_setting_is_another_run(place, units, tmp_path):
    (tmp_path / "backbones").symlink_to(place.out / "backbones")
    (tmp_path / JOURNAL).write_text((place.out / JOURNAL).read_text())
    changed = replace(place, out=tmp_path, settings=replace(SETTINGS, epochs=7))
    results = compare(changed, Effort(time_limit_s=0), no_progress)
    assert not any(unit.results for unit in results)


def test_an_unknown_method_is_refused(place):
    with pytest.raises(MethodUnknown, match="'finesome'"):
        compare(
            replace(place, settings=replace(SETTINGS, methods=("finesome",))), Effort(), no_progress
        )


def test_an_unknown_task_is_refused(place):
    with pytest.raises(TaskUnknown, match="'age'"):
        compare(replace(place, settings=replace(SETTINGS, tasks=("age",))), Effort(), no_progress)


def test_a_reader_s_queries_are_an_axis_and_a_patch_may_have_one(tmp_path):
    axes = Axes(("serial2",), (4,), queries=(0, 2))
    settings = replace(EVERY_METHOD, methods=("peterrec", "reader"), axes=axes, tasks=("group",))
    own = workplace(tmp_path, settings)
    report = report_of(own, compare(own, Effort(), no_progress))
    rows = rows_of(report, "group")
    trained = {name: row.get("trained_parameters") for name, row in rows.items()}
    plain, reader = (
        trained["peterrec-serial2 bottleneck 4"],
        trained["reader bottleneck 4 queries 2"],
    )
    assert trained["peterrec-serial2 bottleneck 4 queries 2"] == plain + reader
    (table,) = report["tables"]
    ahead = {(verdict["method"], verdict["rival"]) for verdict in table["verdicts"]}
    assert ("reader bottleneck 4 queries 2", "peterrec-serial2 bottleneck 4") in ahead


def test_what_a_patch_trains_besides_is_an_axis(tmp_path):
    axes = Axes(("serial2",), (4,), depths=("all",), extras=("auto", "none", "norms", "cls"))
    settings = replace(EVERY_METHOD, methods=("peterrec",), axes=axes, tasks=("group",))
    own = workplace(tmp_path, settings)
    rows = rows_of(report_of(own, compare(own, Effort(), no_progress)), "group")
    counts = {name: row.get("trained_parameters", 0) for name, row in rows.items()}
    plain = counts["peterrec-serial2 bottleneck 4 trains none"]
    assert counts["peterrec-serial2 bottleneck 4 trains norms"] == plain + 2 * 2 * 8
    assert counts["peterrec-serial2 bottleneck 4 trains cls"] == plain + 8
    assert counts["peterrec-serial2 bottleneck 4"] == plain + 2 * 2 * 8 + 8


@pytest.fixture(scope="module")
def of_two_splits(tmp_path_factory):
    """The report of a comparison over two splits of the shop's users."""
    folder = tmp_path_factory.mktemp("splits")
    methods = ("linear", "reader", "fineall")
    settings = replace(SETTINGS, methods=methods, tasks=("group",), rate_trials=1, epochs=1)
    own = workplace(folder, settings, shop_corpus(), shop_corpus(split_seed=1))
    return report_of(own, compare(own, Effort(), no_progress))


def test_several_splits_of_the_users_make_one_table(of_two_splits):
    (table,) = of_two_splits["tables"]
    assert table["splits"] == ["shop", "shop-split1"]
    runs = {row["method"]: row["metrics"]["accuracy"]["runs"] for row in table["rows"]}
    assert runs == {"prior": 2, "linear": 2, "reader bottleneck 4": 4, "fineall": 4}
    for row in table["rows"]:
        assert set(row["keys"]) == {"shop", "shop-split1"}


def test_every_method_is_compared_with_linear_and_fineall_on_the_same_users(of_two_splits):
    rows, (table,) = rows_of(of_two_splits, "group"), of_two_splits["tables"]
    gaps = {(gap["method"], gap["rival"], gap["metric"]): gap for gap in table["gaps"]}
    names = [name for name in rows if name != "linear"]
    assert [key[0] for key in gaps if key[1:] == ("linear", "log_loss")] == names
    for (method, rival, metric), gap in gaps.items():
        means = [rows[name]["metrics"][metric]["mean"] for name in (method, rival)]
        assert gap["mean"] == pytest.approx(means[0] - means[1], abs=1e-6)
        assert gap["low"] <= gap["mean"] <= gap["high"]


def test_a_user_in_two_splits_counts_as_one_observation(place, units):
    (unit,) = [
        unit for unit in units if unit.tasks == ("group",) and unit.variant.method == "fineall"
    ]
    (other,) = [
        unit for unit in units if unit.tasks == ("group",) and unit.variant.method == "peterrec"
    ]
    one, two = ([result["key"] for result in each.results.values()] for each in (unit, other))
    once = paired_difference({"a": one}, {"a": two}, "group", place.out)
    twice = paired_difference({"a": one, "b": one}, {"a": two, "b": two}, "group", place.out)
    assert twice == once  # the same users again say nothing new


def test_the_log_loss_is_that_of_calibrated_probabilities(place, report):
    for row in rows_of(report, "group").values():
        found = []
        for key in row["keys"]["shop"]:
            run = read_arrays(place.out / "predictions" / f"{key}-group.safetensors")
            shares = softmax(run["logits"].astype(np.float64), 1)
            found.append(log_loss(run["targets"], shares, labels=run["outputs"]))
        assert row["metrics"]["log_loss"]["mean"] == pytest.approx(np.mean(found), abs=1e-6)


def test_logits_are_divided_by_the_temperature_that_fits_the_validation_users():
    data = task_data(shop_corpus(), "group", list(shop_corpus().histories.items), 5)
    assert isinstance(data.objective, ClassificationObjective)
    targets = data.objective.targets
    overconfident = 40 * functional.one_hot(targets, len(data.outputs)).double()
    overconfident[::4] = overconfident[::4].flip(1)  # every fourth answer is wrong, and certain

    def scorer(users: UserRows) -> Tensor:
        return overconfident[users.examples]

    logits, rows = scored(calibrated(scorer, data), data, data.split.validation)
    right = (logits.argmax(1) == targets[rows]).double().mean().item()
    assert logits.softmax(1).max(1).values.mean().item() == pytest.approx(right, abs=0.05)


def test_what_finetune_makes_by_default_is_a_method_and_has_the_size_of_its_bundle(tmp_path):
    settings = replace(SETTINGS, methods=("auto", "table", "reader", "finecls"), rate_trials=1)
    own = replace(workplace(tmp_path, settings), pack=pack_task)
    units = compare(own, Effort(), no_progress)
    rows = rows_of(report_of(own, units), "group")
    assert sum(rows["auto"]["parts"].values()) == settings.seeds
    assert rows["table"]["parts"] == {"table": settings.seeds}
    prior = rows["prior"]["metrics"]["log_loss"]["mean"]
    for name in ("auto", "table"):
        assert rows[name]["metrics"]["log_loss"]["mean"] < prior
    for name, row in rows.items():
        if "size_bytes" in row:
            dense = 4 * (row["trained_parameters"] + row["head_parameters"])
            has_bundle = name != "finecls"
            assert (row["size_bytes"] > dense) == has_bundle  # a bundle has a manifest and probes
    assert "- auto chose " in write_report(own, units)


def test_the_two_towers_read_whole_histories():
    spec = BackboneSpec(item_count=9, channels=8, dilations=(1,), max_len=2)
    towers = TwoTower(spec, torch.device("cpu"))
    rows = [np.array([FIRST_ITEM, FIRST_ITEM + 1, FIRST_ITEM + 2]) + oldest for oldest in (0, 3)]
    rows[1][1:] = rows[0][1:]  # only the oldest item differs, which is outside of max_len
    one, other = towers.user_vectors(UserRows(rows, torch.arange(2)))
    assert not torch.equal(one, other)


def test_a_method_without_a_task_of_its_kind_is_said_to_have_no_row(place, tmp_path):
    settings = replace(SETTINGS, methods=("ease", "popular", "linear"), tasks=("group",))
    said: list[str] = []
    compare(replace(place, out=tmp_path, settings=settings), Effort(), no_progress, said.append)
    assert [text for text in said if "has no row" in text] == [
        f"No task here is of a kind that the method {name} is for: it has no row."
        for name in ("ease", "popular")
    ]
