"""One command trains the tasks of a file together and writes a bundle for each."""

from pathlib import Path

import pytest

from peterrec.model.data.sample_data import write_sample_data
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.service.errors import OutputExists, TaskFileInvalid
from peterrec.service.jobs.packing import unpack_task
from peterrec.service.jobs.task_file import read_task_file
from tests.service.cli.command_line import run

TASKS = """
[defaults]
epochs = 2
seed = 4

[[tasks]]
out = "bundles/gender.bundle"
kind = "classification"
labels = "shop/users.parquet"
label_column = "gender"

[[tasks]]
out = "bundles/interests.bundle"
name = "what-they-like"
kind = "tags"
labels = "shop/tags.parquet"
label_column = "tag"
lr = 0.02

[[tasks]]
out = "bundles/products.bundle"
kind = "ranking"
targets = "shop/targets.parquet"
target_order_column = "position"
epochs = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shop, a backbone and a file of tasks."""
    folder = tmp_path_factory.mktemp("many")
    write_sample_data(folder / "shop", users=200)
    histories = folder / "shop" / "histories.parquet"
    sizes = ["--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "1"]
    run("pretrain", "--interactions", histories, "--out", folder / "backbone", *sizes)
    (folder / "tasks.toml").write_text(TASKS)
    return folder


def train(place: Path, *options: str, parts: str = "reader") -> str:
    (place / "tasks.toml").write_text(TASKS.replace("epochs = 2", f'epochs = 2\nparts = "{parts}"'))
    return run(
        "finetune-many",
        f"--backbone={place / 'backbone'}",
        f"--interactions={place / 'shop' / 'histories.parquet'}",
        f"--tasks={place / 'tasks.toml'}",
        *("--bottleneck", "4", *options),
    )


def test_every_task_of_the_file_becomes_a_bundle_that_verifies(place):
    output = train(place, "--blocks", "top:1", "--overwrite", parts="blocks")
    loaded = load_backbone(place / "backbone")
    names = {}
    for path in sorted((place / "bundles").glob("*.bundle")):
        manifest = unpack_task(path.read_bytes(), loaded).bundle.manifest
        names[path.name] = (manifest.name, manifest.kind, manifest.patch.blocks)
        assert path.name in output.replace("\n", "")
    assert names == {
        "gender.bundle": ("gender", "classification", (1,)),
        "interests.bundle": ("what-they-like", "tags", (1,)),
        "products.bundle": ("products", "ranking", (1,)),
    }


def test_all_blocks_may_be_patched(place):
    train(place, "--overwrite", parts="blocks")
    loaded = load_backbone(place / "backbone")
    bundle = (place / "bundles" / "gender.bundle").read_bytes()
    assert unpack_task(bundle, loaded).bundle.manifest.patch.blocks == (0, 1)


def test_bundles_that_exist_are_not_overwritten_unasked(place):
    train(place, "--overwrite")
    with pytest.raises(OutputExists, match=r"gender\.bundle"):
        train(place)


def test_defaults_stand_where_a_task_says_nothing_else(tmp_path):
    path = tmp_path / "tasks.toml"
    path.write_text(TASKS)
    entries = read_task_file(path)
    assert [entry.settings.epochs for entry in entries] == [2, 2, 1]
    assert [entry.settings.seed for entry in entries] == [4, 4, 4]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "tasks"),
        ("[[tasks]]\nout = 'a.bundle'", "task 1, field kind"),
        (TASKS + "\nepocs = 3", "task 3, field epocs"),
        (TASKS + "\npatience = 0", "task 3, field patience"),
        (TASKS + "\ntag_separator = 3", "task 3, field tag_separator"),
        (TASKS + "\nqueries = 4", "task 3, field queries"),
        ("epochs = 3\n" + TASKS, "unknown field epochs"),
        (TASKS.replace("products", "gender"), "two tasks write"),
        ("[[tasks", "not a readable TOML"),
    ],
)
def test_a_file_that_is_not_a_list_of_tasks_is_refused_with_the_place(tmp_path, text, reason):
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(TaskFileInvalid, match=reason):
        read_task_file(path)
