"""Baselines stand first in the tables, tuned on validation users, and need no backbone."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from peterrec.model.errors import MethodUnknown
from peterrec.model.files.tensors import read_arrays
from peterrec.model.progress import no_progress
from peterrec.model.study.backbones import backbone_at, ensure_backbone, items_of
from peterrec.model.study.markdown import cells_of, header_of
from peterrec.model.study.plots import draw_plots
from peterrec.model.study.report import report_of, write_report
from peterrec.model.study.run import Workplace
from peterrec.model.study.schedule import Effort, Unit, compare
from peterrec.model.study.verdict import paired_difference
from peterrec.model.training.baselines import rankings
from peterrec.service.jobs.compare import rich_tables
from tests.model.study.small_comparison import SETTINGS, shop_corpus, workplace
from tests.model.study.test_comparison import rows_of

ONLY_BASELINES = replace(SETTINGS, methods=("ease", "popular", "linear", "item-knn"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    return workplace(tmp_path_factory.mktemp("baselines"), ONLY_BASELINES)


@pytest.fixture(scope="module")
def units(place) -> list[Unit]:
    return compare(place, Effort(), no_progress)


@pytest.fixture(scope="module")
def report(place, units):
    return report_of(place, units)


def by_scikit_learn(strength: float) -> tuple[np.ndarray, float, list[str]]:
    """What scikit-learn answers to the test users, its validation loss, and the users."""
    corpus = shop_corpus()
    labels = corpus.task("group").labels.by_user
    parts = [
        sorted((corpus.histories.users[i], " ".join(corpus.histories.items_of(i))) for i in part)
        for part in (corpus.split.train, corpus.split.validation, corpus.split.test)
    ]
    users, texts = zip(*(zip(*part, strict=True) for part in parts), strict=True)
    answers = [[labels[user][0] for user in own] for own in users]
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(vectorizer.fit_transform(texts[0]), answers[0])
    validation, test = (model.predict_proba(vectorizer.transform(each)) for each in texts[1:])
    return test, log_loss(answers[1], validation), list(users[2])


def test_linear_is_scikit_learn_with_the_strength_that_validation_users_choose(place, report):
    row = rows_of(report, "group")["linear"]
    tuning = row["tuning"]["shop"]
    losses = {trial["C"]: by_scikit_learn(trial["C"])[1] for trial in tuning["trials"]}
    for trial in tuning["trials"]:
        assert trial["validation_loss"] == pytest.approx(losses[trial["C"]], abs=1e-6)
    assert tuning["rates"] == {"C": min(losses, key=losses.__getitem__)}
    expected, _, users = by_scikit_learn(tuning["rates"]["C"])
    (key,) = row["keys"]["shop"]
    run = read_arrays(place.out / "predictions" / f"{key}-group.safetensors")
    order = np.argsort(run["users"])
    assert run["users"][order].tolist() == users
    logits = run["logits"][order].astype(np.float64)
    temperature = logit(expected[:, 1]) / (logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(temperature, temperature[0], rtol=1e-5)  # no other change


def test_each_kind_of_task_has_its_baselines_first_and_each_runs_once(report):
    assert [row["method"] for row in report["tables"][0]["rows"]] == ["prior", "linear"]
    names = ["popular", "ease", "linear", "item-knn"]
    assert [row["method"] for row in report["tables"][1]["rows"]] == names
    assert report["unfinished"] == 0
    for table in report["tables"]:
        for row in table["rows"]:
            assert row["metrics"][table["primary"]]["runs"] == 1


def test_baselines_beat_the_prior_where_the_history_tells(report):
    group, following = rows_of(report, "group"), rows_of(report, "next")
    prior = group["prior"]["metrics"]["accuracy"]["mean"]
    assert group["linear"]["metrics"]["accuracy"]["mean"] > prior
    popular = following["popular"]["metrics"]["mrr@5"]["mean"]
    for name in ("item-knn", "ease", "linear"):
        assert following[name]["metrics"]["mrr@5"]["mean"] > popular


def test_the_strength_of_a_ranking_has_the_best_primary_metric_of_the_validation_users(report):
    for name in ("item-knn", "ease", "linear"):
        row = rows_of(report, "next")[name]
        tuning = row["tuning"]["shop"]
        losses = [trial["validation_loss"] for trial in tuning["trials"]]
        assert all(0 <= loss <= 1 for loss in losses)
        best = tuning["trials"][losses.index(min(losses))]
        assert tuning["rates"].items() <= best.items()


def test_sizes_count_what_must_be_kept_to_answer(report):
    corpus = shop_corpus()
    train = corpus.histories.select(corpus.split.train)
    items, targets = len(np.unique(train.codes)), 8
    group, following = rows_of(report, "group"), rows_of(report, "next")
    assert group["linear"]["trained_parameters"] == items + 1 + items
    assert group["linear"]["size_bytes"] == 4 * (2 * items + 1)
    assert following["ease"]["trained_parameters"] == items * targets
    assert following["linear"]["trained_parameters"] == items * targets + targets + items
    neighbours = following["item-knn"]
    pairs = neighbours["trained_parameters"] - targets
    assert 0 < pairs <= items * targets
    assert neighbours["size_bytes"] == 8 * pairs + 4 * targets


def test_a_table_shows_what_was_tuned_and_no_share_of_a_backbone(report):
    table = report["tables"][1]
    row = rows_of(report, "next")["ease"]
    cells = dict(zip(header_of(table), cells_of(table, row), strict=True))
    assert cells["tuned"].startswith("λ ")
    assert cells["share"] == ""
    assert cells["trained"] == f"{row['trained_parameters']:,}"
    assert cells["KB"] == f"{row['size_bytes'] / 1000:,.0f}"


def test_every_metric_has_a_title_of_its_own(report):
    group, following = (header_of(table) for table in report["tables"])
    assert group[1:5] == ["accuracy", "macro-F1", "AUC", "log-loss"]
    assert following[1:4] == ["MRR@5", "HR@5", "NDCG@5"]
    sampled = [title for title in following if title.endswith("of 100 *(sampled)*")]
    assert [title.split()[0] for title in sampled] == ["MRR@5", "HR@5", "NDCG@5"]


def test_no_backbone_is_pretrained_for_them(place, report):
    assert not (place.out / "backbones").exists()


def test_pictures_have_baselines_where_they_have_points(report, tmp_path):
    names = {path.name for path in draw_plots(report, tmp_path)}
    assert "shop-group-bytes.svg" in names
    assert "shop-group-epochs.svg" not in names  # nothing has epochs
    assert "<!-- linear -->" in (tmp_path / "shop-group-bytes.svg").read_text()


def test_a_finished_comparison_of_baselines_computes_nothing_again(place, units):
    again = compare(place, Effort(time_limit_s=0), no_progress)
    assert [unit.results for unit in again] == [unit.results for unit in units]


def test_items_known_without_a_backbone_are_those_of_the_backbone(tmp_path):
    ensure_backbone(tmp_path / "backbone", shop_corpus(), SETTINGS, is_causal=True)
    items = tuple(backbone_at(tmp_path / "backbone").items)
    assert items == items_of(shop_corpus(), SETTINGS)


def test_patches_are_judged_against_the_baselines_within_each_user(tmp_path):
    settings = replace(
        SETTINGS,
        methods=("peterrec-noncausal", "linear", "ease"),
        seeds=1,
        rate_trials=1,
        epochs=1,
    )
    own = workplace(tmp_path, settings)
    report = report_of(own, compare(own, Effort(), no_progress))
    patch = "peterrec-serial2-noncausal bottleneck 4"
    pairs = [(each["method"], each["rival"]) for each in report["tables"][0]["verdicts"]]
    assert pairs == [(patch, "linear")]
    pairs = [(each["method"], each["rival"]) for each in report["tables"][1]["verdicts"]]
    assert pairs == [(patch, "popular"), (patch, "linear"), (patch, "ease")]
    rows = rows_of(report, "group")
    (verdict,) = report["tables"][0]["verdicts"]
    means = [rows[name]["metrics"]["accuracy"]["mean"] for name in (patch, "linear")]
    assert verdict["difference"] == pytest.approx(means[0] - means[1], abs=1e-6)
    same = paired_difference(rows["linear"]["keys"], rows["linear"]["keys"], "group", own.out)
    assert (same.mean, same.standard_error) == (0, 0)


def test_fewer_labels_are_fewer_for_baselines_too(tmp_path):
    settings = replace(
        ONLY_BASELINES, methods=("linear",), label_shares=(0.25, 1.0), tasks=("group",)
    )
    own = workplace(tmp_path, settings)
    rows = rows_of(report_of(own, compare(own, Effort(), no_progress)), "group")
    assert rows["linear labels 25%"]["users"]["train"] < rows["linear"]["users"]["train"]


def test_a_baseline_too_large_for_the_memory_is_left_out_and_the_table_says_why(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(rankings, "MOST_EQUATIONS", 10)
    settings = replace(ONLY_BASELINES, methods=("item-knn", "ease"), tasks=("next",))
    own = workplace(tmp_path, settings)
    units = compare(own, Effort(), no_progress)
    (table,) = report_of(own, units)["tables"]
    assert [row["method"] for row in table["rows"]] == ["popular", "item-knn"]
    (left_out,) = table["left_out"]
    assert left_out["method"] == "ease"
    assert left_out["failed"] == "comparison_baseline_too_large"
    assert "- ease has no row: the method ease would solve" in write_report(own, units)
    (shown,) = rich_tables(report_of(own, units))
    assert "ease has no row" in str(shown.caption)


@pytest.mark.parametrize("name", ["linear-noncausal", "item-knn-serial2", "item"])
def test_a_baseline_has_no_backbone_to_choose(place, name):
    other = replace(place, settings=replace(ONLY_BASELINES, methods=(name,)))
    with pytest.raises(MethodUnknown, match=name):
        compare(other, Effort(), no_progress)


def test_every_metric_of_a_baseline_is_a_number(report):
    for table in report["tables"]:
        for row in table["rows"]:
            assert all(math.isfinite(each["mean"]) for each in row["metrics"].values())
