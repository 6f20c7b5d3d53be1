"""What the library trains is what the commands train."""

import json
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import peterrec
from peterrec.model.errors import PathMissing
from peterrec.patches.bundle.bundle import open_bundle
from peterrec.patches.errors import BundleRejected
from peterrec.service.errors import ArgumentInvalid, OutputExists, TaskUnpackable
from peterrec.service.jobs.train import OUTPUT_LAYER
from tests.service.cli.command_line import run
from tests.service.library.conftest import FINETUNE, PRETRAIN

COMMANDS_PRETRAIN = ["--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "1"]
COMMANDS_FINETUNE = ["--bottleneck", "4", "--epochs", "1"]


def contents_of(bundle: bytes) -> tuple[dict[str, bytes], dict[str, object]]:
    """Tensors and manifest, without the times at which and in which it was made."""
    contents = open_bundle(bundle)
    manifest = contents.manifest.model_dump(mode="json")
    made = manifest["provenance"]
    notes = json.loads(made.pop("notes"))
    del made["created_at"], notes["seconds"]
    tensors = {name: np.array(tensor).tobytes() for name, tensor in contents.tensors.items()}
    return tensors, {**manifest, "notes": notes}


@pytest.fixture(scope="module")
def folder(shop, tmp_path_factory) -> Path:
    """A backbone folder that the command wrote."""
    out = tmp_path_factory.mktemp("backbones") / "command"
    run(
        *("pretrain", "--interactions", shop.path("histories"), "--order-column", "position"),
        *("--out", out, *COMMANDS_PRETRAIN),
    )
    return out


def test_pretraining_gives_the_commands_backbone(folder, shop, tmp_path):
    out = tmp_path / "bb"
    backbone = peterrec.pretrain(
        shop.path("histories"), order_column="position", out=out, **PRETRAIN
    )
    assert backbone.fingerprint == peterrec.load_backbone(folder).fingerprint
    assert {file.name for file in out.iterdir()} == {file.name for file in folder.iterdir()}
    same = ["backbone.safetensors", "spec.json", "vocabulary.json", OUTPUT_LAYER]
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in same)


def test_a_backbone_is_measured_as_by_the_command(folder, backbone, shop):
    data = ("--interactions", shop.path("interactions"), "--order-column", "position")
    command = ("evaluate-backbone", "--backbone", folder, *data, "--part", "validation")
    expected = json.loads(run(*command, "--max-users", "50", "--json", "-q"))
    for each in (backbone, pickle.loads(pickle.dumps(peterrec.load_backbone(folder)))):
        found = each.evaluate(
            shop.path("interactions"), order_column="position", part="validation", max_users=50
        )
        assert found == expected
    with pytest.raises(ArgumentInvalid, match="part='train' is unknown"):
        backbone.evaluate([["a", "b", "c"]], part="train")


def test_a_backbone_in_memory_is_saved_like_one_that_was_written(folder, backbone, tmp_path):
    saved = backbone.save(tmp_path / "bb")
    assert (saved / OUTPUT_LAYER).read_bytes() == (folder / OUTPUT_LAYER).read_bytes()
    again = peterrec.load_backbone(saved)
    assert again.fingerprint == backbone.fingerprint
    assert again.items == backbone.items
    with pytest.raises(OutputExists, match=r"overwrite=True"):
        again.save(saved)
    again.save(saved, overwrite=True)
    assert (saved / OUTPUT_LAYER).read_bytes() == (folder / OUTPUT_LAYER).read_bytes()


COMMANDS_ANSWERS = {
    "classification": ("--labels", "users", "--label-column", "gender"),
    "value": ("--labels", "users", "--label-column", "monthly_spend"),
    "tags": ("--labels", "tags", "--label-column", "tag"),
    "ranking": ("--targets", "targets", "--target-order-column", "position"),
}


@pytest.mark.parametrize("kind", COMMANDS_ANSWERS)
def test_fine_tuning_gives_the_commands_bundle(kind, folder, tasks, shop, tmp_path):
    option, table, *rest = COMMANDS_ANSWERS[kind]
    run(
        *("finetune", "--backbone", folder, "--interactions", shop.path("histories")),
        *("--order-column", "position", "--kind", kind, option, shop.path(table), *rest),
        *("--out", tmp_path / f"{kind}.bundle", *COMMANDS_FINETUNE),
    )
    written = contents_of((tmp_path / f"{kind}.bundle").read_bytes())
    trained = contents_of(tasks[kind].bundle)
    assert written[1] == trained[1]
    assert written[0] == trained[0]


def test_a_bundle_is_written_once_and_opened_again(tasks, backbone, tmp_path):
    task = tasks["tags"]
    path = task.save(tmp_path / "tags.bundle")
    again = peterrec.load_bundle(path, backbone)
    assert again.digest == task.digest
    assert (again.name, again.kind, again.outputs) == ("tags", "tags", task.outputs)
    assert again.metrics == task.metrics
    assert again.metrics.users == task.metrics.users == 12
    with pytest.raises(OutputExists):
        task.save(path)


def test_a_bundle_is_refused_by_another_backbone(tasks, shop, tmp_path):
    other = peterrec.pretrain(shop.path("histories"), order_column="position", **PRETRAIN, seed=1)
    path = tasks["tags"].save(tmp_path / "tags.bundle")
    with pytest.raises(BundleRejected, match="Fine-tune the task again"):
        peterrec.load_bundle(path, other)


def test_a_missing_bundle_is_an_error_of_ours(backbone, tmp_path):
    with pytest.raises(PathMissing, match=r"none\.bundle"):
        peterrec.load_bundle(tmp_path / "none.bundle", backbone)


def test_evaluating_the_test_part_repeats_the_metrics(tasks, shop):
    task = tasks["classification"]
    found = task.evaluate(
        shop.path("histories"),
        order_column="position",
        labels=shop.path("users"),
        label_column="gender",
        part="test",
    )
    assert found.users == 12
    assert found == pytest.approx({name: task.metrics[name] for name in found}, abs=1e-4)


def test_many_tasks_share_a_run(backbone, shop):
    tasks = peterrec.finetune_many(
        backbone,
        shop.histories,
        {
            "gender": {"kind": "classification", "labels": shop.genders},
            "spend": {"kind": "value", "labels": shop.spends, "epochs": 2},
            "next": {"kind": "ranking", "targets": shop.targets},
        },
        epochs=1,
        queries=4,
    )
    assert {name: task.kind for name, task in tasks.items()} == {
        "gender": "classification",
        "spend": "value",
        "next": "ranking",
    }
    assert len(tasks["spend"].record["epochs"]) == 2
    assert len(tasks["gender"].record["epochs"]) == 1


def test_many_tasks_come_from_the_commands_file_too(backbone, shop, tmp_path):
    text = f"""
        [[tasks]]
        out = "gender.bundle"
        kind = "classification"
        labels = "{shop.path("users")}"
        label_column = "gender"
        epochs = 1
    """
    (tmp_path / "tasks.toml").write_text(text)
    tasks = peterrec.finetune_many(
        backbone, shop.path("histories"), tmp_path / "tasks.toml", order_column="position"
    )
    assert (tmp_path / "gender.bundle").read_bytes() == tasks["gender"].bundle


@pytest.mark.parametrize(
    ("tasks", "reason"),
    [
        ({"a": {"kind": "value", "labels": [], "bottleneck": 4}}, "no option bottleneck"),
        ({"a": {"labels": []}}, "task 'a': kind=None"),
    ],
)
def test_a_wrong_task_of_many_is_named(tasks, reason, backbone, shop):
    with pytest.raises(ArgumentInvalid, match=reason):
        peterrec.finetune_many(backbone, shop.histories, tasks)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"kind": "klass"}, "kind='klass'"),
        ({"blocks": "upper"}, "blocks"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(wrong, reason, backbone, shop):
    given = {"kind": "classification", "labels": shop.genders, **wrong}
    with pytest.raises(ArgumentInvalid, match=reason):
        peterrec.finetune(backbone, shop.histories, **given)


def test_settings_and_arguments_can_be_mixed(backbone, shop):
    from peterrec.model.training.finetune.settings import FinetuneSettings

    settings = FinetuneSettings(kind="classification", epochs=1, bottleneck=2)
    of_a_grid: dict[str, Any] = {"bottleneck": np.int64(4)}
    task = peterrec.finetune(
        backbone, shop.histories, labels=shop.genders, settings=settings, **of_a_grid
    )
    found = task.record["settings"]
    assert (found["epochs"], found["bottleneck"]) == (1, 4)


def test_an_interrupted_run_is_refused_and_continued_as_by_the_command(shop, tmp_path):
    given = {"order_column": "position", "out": tmp_path / "bb", **PRETRAIN}
    peterrec.pretrain(shop.path("histories"), **given)
    with pytest.raises(OutputExists, match="`overwrite`"):
        peterrec.pretrain(shop.path("histories"), **given)
    peterrec.pretrain(shop.path("histories"), overwrite=True, **given)
    with pytest.raises(ArgumentInvalid, match="exclude each other"):
        peterrec.pretrain(shop.path("histories"), overwrite=True, resume=True, **given)


def test_pickled_and_copied_objects_are_the_same(backbone, tasks):
    task = tasks["classification"]
    history = [list(backbone.items[:5])]
    again = pickle.loads(pickle.dumps(task))
    assert again.predict(history) == task.predict(history)
    assert again.backbone.fingerprint == backbone.fingerprint
    assert deepcopy(backbone) is backbone
    assert deepcopy(task) is task


def test_user_vectors_do_not_depend_on_unknown_items(backbone):
    known = list(backbone.items[:4])
    one, two, cold = backbone.vectors([known, ["?", *known], []])
    assert (one == two).all()
    assert one.shape == (8,)
    assert np.isfinite(cold).all()


@pytest.mark.parametrize("kind", ["classification", "ranking", "value"])
def test_objects_have_an_html_form_that_names_them(kind, backbone, tasks):
    task = tasks[kind]
    assert backbone.fingerprint[:12] in backbone._repr_html_()
    html = task._repr_html_()
    assert kind in html
    assert task.digest[:19] in html
    assert "no history" in task.metrics._repr_html_()
    assert all(name.removeprefix("baseline_") in html for name in task.metrics)


def test_an_html_form_does_not_run_what_a_label_says(backbone, shop):
    labels = ["<script>alert(1)</script>" if g == "male" else "b" for g in shop.genders]
    task = peterrec.finetune(
        backbone, shop.histories, kind="classification", labels=labels, **FINETUNE
    )
    assert "<script>alert" not in task._repr_html_()


def test_wrong_uses_are_refused_with_a_code_and_advice(backbone, tasks, shop, tmp_path):
    task: Any = tasks["classification"]
    library: Any = peterrec
    calls = {
        "device='gpu'": lambda: library.pretrain(shop.histories, device="gpu"),
        "device='tpu'": lambda: task.predict(shop.histories[:1], device="tpu"),
        "resume needs the folder": lambda: library.pretrain(shop.histories, resume=True),
        "backbone=None is no path": lambda: library.load_bundle(tmp_path / "b", None),
        "path=None is no path": lambda: library.load_backbone(None),
        "path=5 is no path": lambda: library.load_bundle(5, backbone),
        "tasks has no task": lambda: library.finetune_many(backbone, shop.histories, []),
        "by its name": lambda: library.finetune_many(backbone, shop.histories, {}),
        "kind='x' is unknown": lambda: library.data_info(shop.histories, kind="x"),
        "'x' is neither a task": lambda: library.report("x"),
        "track='wandb' is unknown": lambda: library.pretrain(shop.histories, track="wandb"),
    }
    for reason, call in calls.items():
        with pytest.raises(ArgumentInvalid, match=reason) as refused:
            call()
        assert refused.value.hint


def test_a_name_that_no_bundle_takes_is_refused_before_anything_is_trained(backbone, shop):
    unread: dict[str, Any] = {
        "labels": "no such file",
        "label_column": "gender",
        "kind": "classification",
    }
    with pytest.raises(TaskUnpackable, match="'my task' is no name") as refused:
        peterrec.finetune(backbone, shop.histories, name="my task", **unread)
    assert "`name`" in refused.value.hint
    with pytest.raises(TaskUnpackable, match="'my task' is no name"):
        peterrec.finetune_many(backbone, shop.histories, {"my task": unread})
