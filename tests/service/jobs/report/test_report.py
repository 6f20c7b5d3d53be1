"""A report's numbers can be computed again, and its page fetches and runs nothing."""

import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.data.splits import split_users
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.patches.bundle.bundle import read_manifest
from peterrec.service.cli.main import build_app
from peterrec.service.errors import OutputExists, ReportSubjectUnknown
from peterrec.service.jobs.packing import unpack_task
from peterrec.service.jobs.report.kinds import REPORTS
from peterrec.service.jobs.report.kinds.classification import confusion_of, targets_of
from peterrec.service.jobs.report.kinds.ranking import coverage_of
from peterrec.service.jobs.report.measured import (
    LINEAR,
    PRIOR,
    MeasuredTask,
    examples_of,
    measure_task,
    recorded_training,
)
from peterrec.service.jobs.report.task import metric_estimates
from tests.service.cli.command_line import run
from tests.service.pages.reading_html import PageReader

KINDS = ("classification", "tags", "ranking", "value")
KEPT = Path(__file__).parents[3] / "kept"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop, a backbone, and a bundle of each kind."""
    folder = tmp_path_factory.mktemp("report")
    write_sample_data(folder / "shop", users=200)
    sizes = ["--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "2"]
    run("pretrain", *events(folder), "--out", folder / "backbone", *sizes, "-q")
    quick = ["--epochs", "2", "--parts", "reader", "-q"]
    for kind in KINDS:
        data = ["--backbone", folder / "backbone", *events(folder), *answers(kind, folder)]
        run("finetune", *data, "--kind", kind, "--out", folder / f"{kind}.bundle", *quick)
    return folder


def events(folder: Path) -> list[str | Path]:
    return ["--interactions", folder / "shop" / "histories.parquet", "--order-column", "position"]


def answers(kind: str, folder: Path) -> list[str | Path]:
    shop = folder / "shop"
    by_kind: dict[str, list[str | Path]] = {
        "classification": ["--labels", shop / "users.parquet", "--label-column", "age_group"],
        "tags": ["--labels", shop / "tags.parquet", "--label-column", "tag"],
        "ranking": ["--targets", shop / "targets.parquet", "--target-order-column", "position"],
        "value": ["--labels", shop / "users.parquet", "--label-column", "monthly_spend"],
    }
    return by_kind[kind]


def page_of(kind: str, place: Path, *options: str) -> str:
    """The page of a bundle that is measured on the data of its training; it is written once."""
    out = place / f"{kind}{''.join(options)}.html"
    if not out.exists():
        data = ["--backbone", place / "backbone", *events(place), *answers(kind, place)]
        run("report", place / f"{kind}.bundle", "--out", out, *data, "-q", *options)
    return out.read_text(encoding="utf-8")


def measured(kind: str, place: Path) -> MeasuredTask:
    """A bundle's answers to the users that its page measures."""
    from peterrec.model.data.interactions import InteractionSource, read_histories, read_targets
    from peterrec.model.data.labels import LabelSource, read_labels, read_tags, read_values
    from peterrec.model.data.tables import TableSource

    shop = place / "shop"
    source = InteractionSource(TableSource(shop / "histories.parquet"), order_column="position")
    if kind == "ranking":
        targets = TableSource(shop / "targets.parquet")
        labels = read_targets(InteractionSource(targets, order_column="position"))
    else:
        columns = {"classification": "age_group", "tags": "tag", "value": "monthly_spend"}
        table = TableSource(shop / ("tags.parquet" if kind == "tags" else "users.parquet"))
        column = LabelSource(table, columns[kind])
        labels = {
            "classification": lambda: read_labels(column),
            "tags": lambda: read_tags(column),
            "value": lambda: read_values(column),
        }[kind]()
    loaded = load_backbone(place / "backbone")
    task = unpack_task((place / f"{kind}.bundle").read_bytes(), loaded)
    settings = recorded_training(task.bundle.manifest).split_settings(task.bundle.manifest.kind)
    examples = examples_of(loaded, read_histories(source), labels, settings)
    return measure_task(task, examples, is_test_part=True, on_progress=lambda progress: None)


def cells(html: str) -> list[list[str]]:
    """The rows of all tables, as texts."""
    rows = [row.split("</tr>")[0] for row in html.split("<tr>")[1:]]
    return [
        [unescape(cell.split(">", 1)[1].split("</t")[0]) for cell in row.split("<t")[1:]]
        for row in rows
    ]


def row_of(html: str, name: str) -> list[str]:
    return next(row for row in cells(html) if row and row[0] == name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_metrics_on_the_data_of_the_training_are_those_of_the_manifest(kind, place):
    html = page_of(kind, place)
    manifest = read_manifest(place / f"{kind}.bundle")
    found = metric_estimates(measured(kind, place), REPORTS[kind])
    for name, estimate in found["this task"].items():
        if name in manifest.metrics:
            assert estimate.value == pytest.approx(manifest.metrics[name], abs=1e-5), name
            prior = found[PRIOR][name].value
            assert prior == pytest.approx(manifest.metrics[f"baseline_{name}"], abs=1e-5), name
        shown = f"{estimate.value:.3f}"
        assert any(cell.startswith(shown) for cell in row_of(html, name)[1:2]) or (
            row_of(html, f"{name} (less is better)")[1].startswith(shown)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_interval_contains_its_metric_and_is_within_its_bounds(kind, place):
    for metrics in metric_estimates(measured(kind, place), REPORTS[kind]).values():
        for estimate in metrics.values():
            assert estimate.low is None or estimate.low <= estimate.value
            assert estimate.high is None or estimate.value <= estimate.high


def test_the_gain_over_no_history_is_the_difference_of_the_two_metrics(place):
    found = metric_estimates(measured("value", place), REPORTS["value"])
    for name, gain in found["gain"].items():
        difference = found["this task"][name].value - found[PRIOR][name].value
        assert gain.value == pytest.approx(difference)


def test_a_confusion_matrix_has_every_measured_user_once_and_the_hits_on_its_diagonal(place):
    task = measured("classification", place)
    counts = confusion_of(task)
    assert counts.sum() == len(task.rows)
    right = [task.outputs.index(answer[0]) for answer in task.answers]
    assert counts.sum(1).tolist() == np.bincount(right, minlength=len(task.outputs)).tolist()
    best = task.predictions.argmax(1).tolist()
    hits = sum(one == other for one, other in zip(best, right, strict=True))
    assert np.trace(counts) == hits
    assert right == targets_of(task).tolist()


def test_classes_that_are_counted_together_keep_every_user(place):
    task = measured("classification", place)
    together = confusion_of(task, np.array([0, 1, 1, 1]))
    alone = confusion_of(task)
    assert together.tolist() == [
        [alone[0, 0], alone[0, 1:].sum()],
        [alone[1:, 0].sum(), alone[1:, 1:].sum()],
    ]


@pytest.mark.parametrize("kind", ["classification", "tags"])
def test_the_calibration_errors_are_those_of_the_manifest(kind, place):
    html = page_of(kind, place)
    metrics = read_manifest(place / f"{kind}.bundle").metrics
    assert row_of(html, "without the temperature")[1] == f"{metrics['ece_uncalibrated']:.3f}"
    with_it = next(row for row in cells(html) if row[0].startswith("with the temperature"))
    assert with_it[1] == f"{metrics['ece']:.3f}"


def test_groups_by_history_length_add_up_to_the_measured_users(place):
    html = page_of("classification", place)
    part = html.split("By length of the history")[1].split("<section")[0]
    groups = cells(part)[1:]
    task = measured("classification", place)
    assert sum(int(row[1]) for row in groups) == len(task.rows)
    share = sum(int(row[1]) * float(row[2].split()[0]) for row in groups) / len(task.rows)
    accuracy = metric_estimates(task, REPORTS["classification"])["this task"]["accuracy"].value
    assert share == pytest.approx(accuracy, abs=1e-3)


def test_the_test_part_is_the_one_that_fine_tuning_kept_apart(place):
    task = measured("tags", place)
    seed = read_manifest(place / "tags.bundle").provenance.seed
    assert task.rows.tolist() == split_users(task.examples.users, 0.1, 0.1, seed).test.tolist()


def test_coverage_counts_the_items_that_anybody_is_recommended(place):
    task = measured("ranking", place)
    assert task.best is not None
    recommended = {item for row in task.best[:, :5].tolist() for item in row}
    assert coverage_of(task, 5) == len(recommended) / len(task.outputs)
    assert coverage_of(task, 5) <= coverage_of(task, 20) <= 1


def test_a_linear_model_stands_beside_the_task(place):
    task = measured("classification", place)
    found = metric_estimates(task, REPORTS["classification"])
    assert found[LINEAR]["accuracy"].value > found[PRIOR]["accuracy"].value


@pytest.mark.parametrize("kind", KINDS)
def test_ten_users_are_shown_with_their_answers_unless_that_is_refused(kind, place):
    task = measured(kind, place)
    users = {task.examples.users[row] for row in task.rows.tolist()}
    html = page_of(kind, place)
    shown = [row for row in cells(html) if row and row[0] in users]
    assert len(shown) == 10
    right = {task.examples.users[row]: task.examples.answers[row] for row in task.rows.tolist()}
    for user, _, _, answer, _ in shown:
        assert answer.split(" and ")[0].split(", ")[0] in right[user]
    without = page_of(kind, place, "--no-samples")
    assert not any(user in without for user in users)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_one_file_that_fetches_and_runs_nothing(kind, place):
    html = page_of(kind, place)
    reader = PageReader(html)
    assert all(reference.startswith("#") for reference in reader.references)
    assert "script" not in reader.tags
    assert "://" not in html
    assert len(reader.ids) == len(set(reader.ids))


def test_a_bundle_without_data_has_what_it_was_recorded_with_and_says_what_is_missing(
    place, tmp_path
):
    run("report", place / "classification.bundle", "--out", tmp_path / "r.html", "-q")
    html = (tmp_path / "r.html").read_text()
    metrics = read_manifest(place / "classification.bundle").metrics
    shown = row_of(html, "accuracy")
    assert shown[1:] == [f"{metrics['accuracy']:.3f}", f"{metrics['baseline_accuracy']:.3f}"]
    assert "Validation accuracy" in html
    assert "--label-column" in html
    assert row_of(html, "1")[1]  # the first epoch


def test_a_backbone_is_told_with_and_without_data(place, tmp_path):
    run("report", place / "backbone", "--out", tmp_path / "without.html", "-q")
    run("report", place / "backbone", *events(place), "--out", tmp_path / "with.html", "-q")
    record = json.loads((place / "backbone" / "training.json").read_text())
    best = record["epochs"][record["best_epoch"]]["validation_metrics"]
    without, measured = ((tmp_path / f"{n}.html").read_text() for n in ("without", "with"))
    assert row_of(without, "mrr@5")[1] == f"{best['mrr@5']:.3f}"
    assert "--interactions" in without
    assert len(row_of(measured, "hr@20")) == 4
    assert "Most frequent items" in measured
    assert "://" not in measured


@pytest.mark.parametrize("bundle", sorted(KEPT.glob("*.bundle")), ids=lambda path: path.stem)
def test_a_bundle_of_an_earlier_version_has_a_page_without_learning_curves(bundle, tmp_path):
    run("report", bundle, "--out", tmp_path / "report.html", "-q")
    html = (tmp_path / "report.html").read_text()
    assert f"There is no {bundle.stem}.training.jsonl beside the bundle" in html
    assert "Recorded metrics" in html


def test_a_backbone_of_an_earlier_version_has_its_learning_curves_and_is_measured(tmp_path):
    data = ("--interactions", KEPT / "events.csv", "--order-column", "day")
    run("report", KEPT / "backbone", *data, "--out", tmp_path / "report.html", "-q")
    html = (tmp_path / "report.html").read_text()
    assert "Epochs" in html
    assert len(row_of(html, "mrr@5")) == 4


def test_lines_of_another_training_are_not_taken_for_those_of_the_bundle(place, tmp_path):
    for name in ("tags.bundle", "tags.training.jsonl"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    lines = (tmp_path / "tags.training.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    lines[-1] = json.dumps({**last, "seconds": last["seconds"] + 1})
    (tmp_path / "tags.training.jsonl").write_text("\n".join(lines) + "\n")
    run("report", tmp_path / "tags.bundle", "--out", tmp_path / "r.html", "-q")
    assert "is that of another training" in (tmp_path / "r.html").read_text()


def test_lines_of_a_killed_run_are_not_taken_for_those_of_the_backbone(place, tmp_path):
    for file in (place / "backbone").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lines = (tmp_path / "training.jsonl").read_text().splitlines()
    record = json.loads((tmp_path / "training.json").read_text())
    (tmp_path / "training.jsonl").write_text(lines[0] + "\n")
    run("report", tmp_path, "--out", tmp_path / "r.html", "-q")
    html = (tmp_path / "r.html").read_text()
    assert f"{len(record['epochs'])} epochs in" in html
    assert "has not ended" not in html


def test_other_data_than_those_of_the_training_are_pointed_out(place, tmp_path):
    write_sample_data(tmp_path / "shop", users=150, seed=5)
    data = [*events(tmp_path), *answers("tags", tmp_path), "--part", "all"]
    bundle, backbone = place / "tags.bundle", place / "backbone"
    run("report", bundle, "--backbone", backbone, *data, "--out", tmp_path / "r.html", "-q")
    html = (tmp_path / "r.html").read_text()
    assert "The histories and labels are not those of the training." in html
    assert "Measured on the 150 users of the given data." in html


def test_ids_and_labels_that_look_like_html_are_texts_on_the_page(tmp_path):
    evil = '<script>alert("1")</script>'
    lines = ["user_id,item_id"]
    labels = ["user_id,side"]
    for user in range(60):
        name = f'"<b onmouseover=""x"">{user}</b>"'
        for item in range(6):
            sign = evil.replace('"', '""')
            lines.append(f'{name},"{sign}{(user % 2) * 5 + item % 5}"')
        labels.append(f'{name},"<img src=x onerror=alert({user % 2})>"')
    (tmp_path / "events.csv").write_text("\n".join(lines))
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    source = ["--interactions", tmp_path / "events.csv"]
    sizes = ["--channels", "8", "--dilations", "1", "--max-len", "8", "--epochs", "1"]
    run("pretrain", *source, "--out", tmp_path / "bb", *sizes, "-q")
    task = ["--backbone", tmp_path / "bb", *source]
    task += ["--labels", tmp_path / "labels.csv", "--label-column", "side"]
    kind = ["--kind", "classification", "--epochs", "1"]
    run("finetune", *task, *kind, "--out", tmp_path / "t.bundle", "-q")
    run("report", tmp_path / "t.bundle", *task, "--out", tmp_path / "r.html", "-q")
    html = (tmp_path / "r.html").read_text()
    reader = PageReader(html)
    assert not {"script", "img", "b"} & set(reader.tags)
    assert any("onerror" in text for text in reader.texts["td"])


def test_a_page_is_replaced_only_when_asked(place, tmp_path):
    command = ("report", place / "backbone", "--out", tmp_path / "r.html", "-q")
    run(*command)
    with pytest.raises(OutputExists, match=r"r\.html exists"):
        run(*command)
    run(*command, "--overwrite")


def test_what_is_neither_bundle_nor_backbone_is_refused(tmp_path):
    with pytest.raises(ReportSubjectUnknown, match="is a folder without a backbone"):
        run("report", tmp_path, "--out", tmp_path / "r.html")
    with pytest.raises(ReportSubjectUnknown, match="does not exist"):
        run("report", tmp_path / "absent.bundle", "--out", tmp_path / "r.html")


@pytest.mark.parametrize(
    ("subject", "options", "message"),
    [
        ("tags.bundle", ["--interactions", "x.csv"], "both --backbone and --interactions"),
        ("tags.bundle", ["--labels", "x.csv"], "answers need --backbone"),
        ("backbone", ["--labels", "x.csv"], "measured with --interactions alone"),
    ],
)
def test_options_that_the_page_would_not_use_are_refused(
    subject, options, message, place, tmp_path
):
    out = str(tmp_path / "r.html")
    arguments = ["report", str(place / subject), "--out", out, *options]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_notes_that_are_anybodys_text_give_the_default_shares(place):
    manifest = read_manifest(place / "tags.bundle")
    for notes in ("no JSON", "[1]", '{"settings": {"test_share": 7, "validation_share": "x"}}'):
        provenance = manifest.provenance.model_copy(update={"notes": notes})
        changed = manifest.model_copy(update={"provenance": provenance})
        settings = recorded_training(changed).split_settings("tags")
        assert (settings.validation_share, settings.test_share) == (0.1, 0.1)
