"""The training commands turn files into a backbone folder and bundles that a server accepts."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from peterrec.model.data.sample_data import INTERESTS, write_sample_data
from peterrec.model.errors import (
    ColumnMissing,
    DataFileMissing,
    InvalidSpec,
    LabelUnknown,
    UnknownItems,
)
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone
from peterrec.model.progress import no_progress
from peterrec.model.spec import PAD
from peterrec.patches.bundle.bundle import read_manifest
from peterrec.patches.errors import BundleRejected
from peterrec.service.cli.main import build_app
from peterrec.service.errors import AnswersNotGiven, DownloadFailed, OutputExists, TaskUnpackable
from peterrec.service.jobs.download import MEMBERS, download_movielens_1m
from peterrec.service.jobs.options import parse_blocks
from peterrec.service.jobs.packing import PROBE_USERS, TABLE_PROBE_USERS, unpack_task
from peterrec.service.jobs.train import OUTPUT_LAYER
from tests.service.cli.command_line import run

PRETRAIN = ["--channels", "8", "--dilations", "1,4", "--max-len", "20", "--epochs", "1"]
FINETUNE = ["--bottleneck", "4", "--epochs", "1"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_sample_data(folder, users=200)
    return folder


@pytest.fixture(scope="module")
def backbone(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backbone") / "bb"
    run("pretrain", "--interactions", shop / "histories.parquet", "--out", out, *PRETRAIN)
    return out


@pytest.fixture(scope="module")
def loaded(backbone: Path) -> LoadedBackbone:
    return load_backbone(backbone)


def answers_of(kind: str, shop: Path) -> list[str | Path]:
    by_kind: dict[str, list[str | Path]] = {
        "classification": ["--labels", shop / "users.parquet", "--label-column", "gender"],
        "tags": ["--labels", shop / "tags.parquet", "--label-column", "tag"],
        "ranking": ["--targets", shop / "targets.parquet", "--target-order-column", "position"],
        "value": ["--labels", shop / "users.parquet", "--label-column", "monthly_spend"],
    }
    return by_kind[kind]


def tune(kind: str, backbone: Path, shop: Path, out: Path, *options: str | Path) -> Path:
    run(
        "finetune",
        *("--backbone", backbone, "--interactions", shop / "histories.parquet"),
        *("--kind", kind, "--out", out, *answers_of(kind, shop), *FINETUNE, *options),
    )
    return out


def test_a_backbone_folder_holds_weights_record_and_output_layer(backbone, loaded):
    assert {file.name for file in backbone.iterdir()} == {
        "backbone.safetensors",
        OUTPUT_LAYER,
        "spec.json",
        "training.json",
        "training.jsonl",
        "vocabulary.json",
    }
    assert loaded.record["settings"]["channels"] == 8
    assert loaded.backbone.spec.max_len == 20


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_every_kind_gives_a_bundle_that_verifies_and_repeats_its_probes(
    kind, backbone, loaded, shop, tmp_path
):
    out = tune(kind, backbone, shop, tmp_path / f"{kind}.bundle")
    task = unpack_task(out.read_bytes(), loaded)
    tensors = task.bundle.tensors
    histories = [row[row != PAD] for row in np.array(tensors["probe.histories"])]
    with torch.inference_mode():
        logits = task.model.logits(histories)[:, torch.tensor(tensors["probe.columns"])]
    torch.testing.assert_close(logits, torch.tensor(tensors["probe.logits"]), rtol=1e-5, atol=1e-5)
    assert task.bundle.manifest.kind == kind
    assert task.bundle.manifest.name == kind
    assert len(histories[0]) == 0
    has_table = task.bundle.manifest.table is not None
    assert 1 < len(histories) <= (TABLE_PROBE_USERS if has_table else PROBE_USERS) + 1


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_evaluating_the_test_part_repeats_the_manifests_metrics(kind, backbone, shop, tmp_path):
    out = tune(kind, backbone, shop, tmp_path / "task.bundle")
    printed = run(
        "evaluate",
        *("--backbone", backbone, "--bundle", out, "--part", "test", "--json"),
        *("--interactions", shop / "histories.parquet", *answers_of(kind, shop)),
    )
    document = json.loads(printed)
    recorded = read_manifest(out).metrics
    assert document["users"] == 20
    assert document["metrics"] == pytest.approx(
        {name: recorded[name] for name in document["metrics"]}, abs=1e-4
    )


@pytest.mark.parametrize("kind", ["classification", "tags"])
def test_a_bundle_carries_its_temperature_and_both_calibration_errors(
    kind, backbone, shop, tmp_path
):
    manifest = read_manifest(tune(kind, backbone, shop, tmp_path / "task.bundle"))
    assert manifest.head.temperature != 1.0
    assert {"ece", "ece_uncalibrated"} <= manifest.metrics.keys()


def test_tags_and_catalog_are_named_in_the_bundle(backbone, loaded, shop, tmp_path):
    tags = unpack_task(tune("tags", backbone, shop, tmp_path / "t.bundle").read_bytes(), loaded)
    ranking = unpack_task(
        tune("ranking", backbone, shop, tmp_path / "r.bundle").read_bytes(), loaded
    )
    assert tags.outputs == tuple(sorted(INTERESTS))
    assert all(item.startswith("product-") for item in ranking.outputs)


def test_the_geometry_follows_the_options(backbone, shop, tmp_path):
    out = tune(
        "classification",
        *(backbone, shop, tmp_path / "task.bundle"),
        *("--insertion", "parallel2", "--inner-skip", "--cardinality", "2"),
        *("--parts", "blocks", "--blocks", "top:1", "--no-norms", "--name", "gender-small"),
    )
    manifest = read_manifest(out)
    patch = manifest.patch
    assert manifest.name == "gender-small"
    assert (patch.insertion, patch.blocks, patch.cardinality) == ("parallel2", (1,), 2)
    assert (patch.has_inner_skip, patch.has_norms, patch.has_cls) == (True, False, False)


@pytest.mark.parametrize("kind", ["classification", "ranking"])
def test_a_reader_alone_is_a_patch_that_a_bundle_can_carry(kind, backbone, loaded, shop, tmp_path):
    reader = ("--parts", "reader", "--queries", "3")
    out = tune(kind, backbone, shop, tmp_path / "task.bundle", *reader)
    task = unpack_task(out.read_bytes(), loaded)
    patch = task.bundle.manifest.patch
    assert (patch.blocks, patch.queries, patch.has_norms, patch.has_cls) == ((), 3, False, False)
    assert np.abs(task.bundle.tensors["patch.read_up"]).max() > 0  # it has learned
    histories = [row[row != PAD] for row in np.array(task.bundle.tensors["probe.histories"])]
    with torch.inference_mode():
        logits = task.model.logits(histories)[:, torch.tensor(task.bundle.tensors["probe.columns"])]
    expected = torch.tensor(task.bundle.tensors["probe.logits"])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_one_file_of_two_domains_serves_as_source_and_as_target(tmp_path):
    generator = np.random.default_rng(0)
    lines = ["user,item,domain,at"]
    for user in range(60):
        for at in range(12):
            domain = "home" if at % 4 == 3 else "food"
            lines.append(f"{user},{domain}-{generator.integers(0, 15)},{domain},{at}")
    events = tmp_path / "events.csv"
    events.write_text("\n".join(lines))
    source = ["--interactions", events, "--user-column", "user", "--item-column", "item"]
    source += ["--order-column", "at", "--where", "domain=food"]
    run("pretrain", *source, "--out", tmp_path / "bb", *PRETRAIN)
    run(
        "finetune",
        *("--backbone", tmp_path / "bb", *source, "--kind", "ranking"),
        *("--targets", events, "--target-column", "item", "--answers-where", "domain=home"),
        *("--out", tmp_path / "home.bundle", *FINETUNE),
    )
    task = unpack_task((tmp_path / "home.bundle").read_bytes(), load_backbone(tmp_path / "bb"))
    assert all(item.startswith("home-") for item in task.outputs)
    assert all(item.startswith("food-") for item in load_backbone(tmp_path / "bb").items)


def test_a_finished_backbone_is_replaced_only_when_asked(backbone, shop, tmp_path):
    command = ["pretrain", "--interactions", shop / "histories.parquet", *PRETRAIN]
    run(*command, "--out", tmp_path / "bb")
    with pytest.raises(OutputExists, match="holds a finished backbone"):
        run(*command, "--out", tmp_path / "bb")
    run(*command, "--out", tmp_path / "bb", "--overwrite", "--seed", "1")
    assert load_backbone(tmp_path / "bb").record["settings"]["seed"] == 1


def test_the_unit_of_a_value_is_part_of_its_bundle(backbone, shop, tmp_path):
    plain = tune("value", backbone, shop, tmp_path / "plain.bundle")
    out = tune("value", backbone, shop, tmp_path / "task.bundle", "--unit", "euros")
    assert (read_manifest(plain).head.unit, read_manifest(out).head.unit) == (None, "euros")


def test_a_kind_without_a_number_has_no_unit(backbone, shop, tmp_path):
    with pytest.raises(InvalidSpec, match="a classification task has no unit"):
        tune("classification", backbone, shop, tmp_path / "task.bundle", "--unit", "euros")


def test_a_bundle_is_replaced_only_when_asked(backbone, shop, tmp_path):
    out = tune("value", backbone, shop, tmp_path / "task.bundle")
    with pytest.raises(OutputExists, match=r"task\.bundle exists"):
        tune("value", backbone, shop, out)
    tune("value", backbone, shop, out, "--overwrite")


def test_input_errors_reach_the_caller_with_their_place(shop, tmp_path):
    with pytest.raises(ColumnMissing, match="no column 'customer'"):
        run(
            "pretrain",
            *("--interactions", shop / "histories.parquet", "--user-column", "customer"),
            *("--out", tmp_path / "bb"),
        )
    with pytest.raises(DataFileMissing):
        run("pretrain", "--interactions", tmp_path / "absent.csv", "--out", tmp_path / "bb")


def test_histories_of_another_shop_are_refused(backbone, shop, tmp_path):
    events = tmp_path / "events.csv"
    rows = "".join(f"user-{i:05d},elsewhere-{i}\n" for i in range(50))
    events.write_text("user_id,item_id\n" + rows)
    with pytest.raises(UnknownItems):
        run(
            "finetune",
            *("--backbone", backbone, "--interactions", events, "--kind", "classification"),
            *(*answers_of("classification", shop), "--out", tmp_path / "task.bundle"),
        )


def test_labels_that_a_bundle_lacks_are_refused_in_evaluation(backbone, shop, tmp_path):
    out = tune("classification", backbone, shop, tmp_path / "task.bundle")
    with pytest.raises(LabelUnknown):
        run(
            "evaluate",
            *("--backbone", backbone, "--bundle", out),
            *("--interactions", shop / "histories.parquet"),
            *("--labels", shop / "users.parquet", "--label-column", "age_group"),
        )


def test_a_bundle_of_another_backbone_is_refused_in_evaluation(backbone, shop, tmp_path):
    out = tune("value", backbone, shop, tmp_path / "task.bundle")
    other = ["--interactions", shop / "histories.parquet", "--out", tmp_path / "bb", *PRETRAIN]
    run("pretrain", *other, "--seed", "9")
    with pytest.raises(BundleRejected, match="backbone"):
        run(
            "evaluate",
            *("--backbone", tmp_path / "bb", "--bundle", out),
            *("--interactions", shop / "histories.parquet", *answers_of("value", shop)),
        )


def test_a_name_that_no_bundle_may_have_is_refused(backbone, shop, tmp_path):
    with pytest.raises(TaskUnpackable, match="name"):
        tune("value", backbone, shop, tmp_path / "task.bundle", "--name", "no spaces please")


@pytest.mark.parametrize(("kind", "what"), [("tags", "answers"), ("ranking", "targets")])
def test_a_task_without_answers_is_refused(kind, what, backbone, shop, tmp_path):
    with pytest.raises(AnswersNotGiven, match=f"a {kind} task needs a table of {what}"):
        run(
            *("finetune", "--backbone", backbone, "--out", tmp_path / "task.bundle"),
            *("--interactions", shop / "histories.parquet", "--kind", kind),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "banana"], "'banana' is not one of"),
        (["--kind", "value", "--blocks", "some"], "--blocks"),
    ],
)
def test_missing_or_odd_options_are_usage_errors(options, message, backbone, shop, tmp_path):
    result = CliRunner().invoke(
        build_app(),
        [
            *("finetune", "--backbone", str(backbone), "--out", str(tmp_path / "x.bundle")),
            *("--interactions", str(shop / "histories.parquet"), *options),
        ],
    )
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_resume_and_overwrite_exclude_each_other(shop, tmp_path):
    result = CliRunner().invoke(
        build_app(),
        [
            *("pretrain", "--interactions", str(shop / "histories.parquet")),
            *("--out", str(tmp_path / "bb"), "--resume", "--overwrite"),
        ],
    )
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("all", (0, 1, 2, 3)),
        ("top:2", (2, 3)),
        ("top:9", (0, 1, 2, 3)),
        ("2,0", (0, 2)),
    ],
)
def test_blocks_are_named_in_three_ways(text, blocks):
    assert parse_blocks(text, 4) == blocks


@pytest.mark.parametrize("text", ["top:", "top:x", "some", "none", ""])
def test_odd_names_of_blocks_are_refused(text):
    with pytest.raises(typer.BadParameter):
        parse_blocks(text, 4)


def test_a_movielens_folder_is_converted(tmp_path):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"1,{i},3,{i}\n" for i in range(5))
    )
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A film,Drama\n")
    printed = run("convert", "movielens", tmp_path, "--out", tmp_path / "out")
    assert "5 events of 1 users on 5 items" in printed
    assert "no users.parquet" in printed


def test_the_sample_shop_is_written(tmp_path):
    assert "a shop of 50 users" in run("sample-data", "--out", tmp_path, "--users", "50")
    assert (tmp_path / "targets.parquet").exists()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a word on stderr."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def archive(members: tuple[str, ...]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as files:
        for member in (*(f"ml-1m/{m}" for m in members), "../evil", "ml-1m/unasked"):
            files.writestr(member, f"content of {member}")
    return packed.getvalue()


def test_a_download_unpacks_the_files_it_knows_and_no_others(file_server, tmp_path):
    folder, url = file_server
    (folder / "ml-1m.zip").write_bytes(archive(MEMBERS))
    download_movielens_1m(tmp_path / "out", no_progress, f"{url}/ml-1m.zip")
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(MEMBERS)
    assert (tmp_path / "out" / "users.dat").read_text() == "content of ml-1m/users.dat"


@pytest.mark.parametrize("content", [b"no archive", archive(("users.dat",))])
def test_a_download_of_something_else_is_refused(content, file_server, tmp_path):
    folder, url = file_server
    (folder / "ml-1m.zip").write_bytes(content)
    with pytest.raises(DownloadFailed, match="not a MovieLens-1M archive"):
        download_movielens_1m(tmp_path / "out", no_progress, f"{url}/ml-1m.zip")


def test_a_missing_file_and_a_missing_network_are_reported_with_a_way_out(file_server, tmp_path):
    _, url = file_server
    with pytest.raises(DownloadFailed, match="404") as missing:
        download_movielens_1m(tmp_path / "out", no_progress, f"{url}/absent.zip")
    with pytest.raises(DownloadFailed, match="ConnectError"):
        download_movielens_1m(tmp_path / "out", no_progress, "http://127.0.0.1:9/ml-1m.zip")
    assert "sample-data" in missing.value.hint
