"""The commands say what they learn from, and refuse what teaches nothing, before they train."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.errors import HistoriesMissing, PeterRecError, TooFewClasses, TooFewItems
from peterrec.patches.bundle.bundle import read_manifest
from peterrec.service.cli.main import build_app

USERS = 200
PRETRAIN = ("--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "1")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(error: type[PeterRecError], *arguments: object) -> str:
    with pytest.raises(error) as found:
        run(*arguments)
    assert "learning rate" not in str(found.value)
    return str(found.value)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_sample_data(folder, users=USERS)
    users = pq.read_table(folder / "users.parquet")
    number = list(range(USERS))
    columns = {
        "rare": ["rare" if row % 25 == 0 else "usual" for row in number],
        "large": [20240000000 + row % 10 for row in number],
        "constant": ["x"] * USERS,
        "user_number": [str(row) for row in number],
    }
    for name, values in columns.items():
        users = users.append_column(name, pa.array(values))
    pv.write_csv(users, folder / "users.csv")
    return folder


@pytest.fixture(scope="module")
def backbone(shop: Path) -> Path:
    run("pretrain", "--interactions", shop / "histories.parquet", "--out", shop / "bb", *PRETRAIN)
    return shop / "bb"


def task(command: str, shop: Path, column: str, *options: object) -> tuple[object, ...]:
    data = ("--interactions", shop / "histories.parquet", "--labels", shop / "users.csv")
    return (command, "--backbone", shop / "bb", *data, "--label-column", column, *options)


def finetune(shop: Path, column: str, kind: str, *options: object) -> tuple[object, ...]:
    out = ("--out", shop / f"{column}.bundle", "--overwrite", "--epochs", 1)
    return task("finetune", shop, column, "--kind", kind, *out, *options)


def test_finetune_prints_the_classes_and_warns_of_small_ones(backbone, shop):
    done = run(*finetune(shop, "rare", "classification"))
    assert "200 users in 2 classes: 'usual' 192 (96.0%), 'rare' 8 (4.0%)." in done.stderr
    assert "Fewer than 20 users have the class 'rare' (8)" in done.stderr
    notes = json.loads(read_manifest(shop / "rare.bundle").provenance.notes or "")
    assert notes["data"]["answers"] in done.stderr
    assert notes["data"]["warnings"]
    assert all(f"note: {warning}" in done.stderr for warning in notes["data"]["warnings"])


def test_evaluate_says_what_it_measures_on_and_repeats_large_values(backbone, shop):
    tuned = run(*finetune(shop, "large", "value"))
    assert "from 20240000000 to 20240000009" in tuned.stderr
    manifest = read_manifest(shop / "large.bundle")
    assert manifest.head.shift == pytest.approx(20240000004.5, abs=0.5)
    given = ("--bundle", shop / "large.bundle", "--part", "test", "--json")
    done = run(*task("evaluate", shop, "large", *given))
    assert "20 users with 10 different values" in done.stderr
    found = json.loads(done.stdout)["metrics"]
    assert found == pytest.approx({name: manifest.metrics[name] for name in found}, abs=1e-4)
    assert found["rmse"] < 10


def test_finetune_many_names_the_task_of_each_line(backbone, shop):
    tasks = "".join(
        f'[[tasks]]\nout = "many-{column}.bundle"\nkind = "{kind}"\nlabels = "users.csv"\n'
        f'label_column = "{column}"\nepochs = 1\n'
        for column, kind in (("gender", "classification"), ("large", "value"))
    )
    (shop / "tasks.toml").write_text(tasks)
    data = ("--backbone", backbone, "--interactions", shop / "histories.parquet")
    done = run("finetune-many", *data, "--tasks", shop / "tasks.toml", "--overwrite")
    assert "many-gender: " in done.stderr
    assert "many-large: " in done.stderr


def test_a_constant_column_is_refused_with_its_place(backbone, shop):
    text = refused(TooFewClasses, *finetune(shop, "constant", "classification"))
    assert "users.csv" in text
    assert "have the label 'x'" in text


def test_other_ids_are_refused_with_ids_of_both_tables(backbone, shop):
    given = ("--user-column", "user_number")
    histories = pq.read_table(shop / "histories.parquet")
    renamed = ["user_number" if name == "user_id" else name for name in histories.column_names]
    pq.write_table(histories.rename_columns(renamed), shop / "renamed.parquet")
    arguments = list(finetune(shop, "gender", "classification", *given))
    arguments[arguments.index(shop / "histories.parquet")] = shop / "renamed.parquet"
    text = refused(HistoriesMissing, *arguments)
    assert "'0', '1', '2'" in text
    assert "'user-00000'" in text


def test_pretraining_on_one_item_is_refused_and_nothing_is_left(tmp_path):
    rows = "".join(f"u{row % 30},i\n" for row in range(300))
    (tmp_path / "events.csv").write_text("user_id,item_id\n" + rows)
    given = ("--interactions", tmp_path / "events.csv", "--out", tmp_path / "bb", *PRETRAIN)
    assert "one item, 'i'" in refused(TooFewItems, "pretrain", *given)
    assert not (tmp_path / "bb" / "spec.json").exists()


def test_pretraining_says_what_is_doubtful(tmp_path):
    rows = "".join(f"u{row % 60},i{row % 7 % 3}\n" for row in range(600))
    (tmp_path / "events.csv").write_text("user_id,item_id\n" + rows)
    given = ("--interactions", tmp_path / "events.csv", "--out", tmp_path / "bb", *PRETRAIN)
    done = run("pretrain", *given)
    assert "note: There are only 3 items" in done.stderr
    record = json.loads((tmp_path / "bb" / "training.json").read_text())
    assert all(f"note: {text}" in done.stderr for text in record["data"]["warnings"])


def test_compare_refuses_a_task_before_anything_is_trained(shop, tmp_path):
    shutil.copy(shop / "users.csv", tmp_path)
    given = ("--interactions", shop / "histories.parquet", "--out", tmp_path / "out", "--no-plots")
    labels = ("--labels", tmp_path / "users.csv", "--label-column", "constant")
    with pytest.raises(TooFewClasses, match="'x'"):
        run("compare", *given, *labels, "--methods", "finecls")
    assert not (tmp_path / "out" / "backbones").exists()
