"""peterrec verify and diff: what they say about bundle files, and how they exit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peterrec.model.spec import PatchGeometry, TableSpec
from peterrec.patches.bundle.bundle import digest_of, format_digest, sign_bundle
from peterrec.patches.bundle.signatures import SigningKey, key_paths
from peterrec.patches.bundle.verify import BundleLimits, VerifiedBundle, verify_bundle
from peterrec.service.jobs.reference_answers import disagreement, probe_histories, reference_logits
from tests.patches.bundles import BundleRecipe, make_bundle, make_parts
from tests.service.random_bundles import Workshop


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peterrec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_json(*arguments: object, expected: int = 0) -> Any:  # Any: a JSON document
    done = run(*arguments, "--json")
    assert done.returncode == expected, done.stderr
    return json.loads(done.stdout)


def save(folder: Path, name: str, data: bytes) -> Path:
    path = folder / f"{name}.bundle"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


def verified(workshop: Workshop, data: bytes) -> VerifiedBundle:
    return verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())


def test_a_sound_bundle_is_accepted_by_itself(tmp_path: Path) -> None:
    file = save(tmp_path, "gender", make_bundle())
    done = run("verify", file, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert format_digest(digest_of(make_bundle())) in done.stdout


def test_a_bundle_is_accepted_for_its_backbone_with_its_probes(
    workshop: Workshop, tmp_path: Path
) -> None:
    file = save(tmp_path, "gender", workshop.bundle("classification", 1))
    done = run("verify", file, "--quiet", "--backbone", workshop.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "its probes too" in done.stdout


def test_every_reason_against_a_bundle_is_told(workshop: Workshop, tmp_path: Path) -> None:
    file = save(tmp_path, "x", make_parts(BundleRecipe()).without_tensor("head.bias").encode())
    done = run("verify", file, "--quiet", "--backbone", workshop.folder)
    assert (done.returncode, done.stdout) == (1, "")
    for code in ("tensor_missing", "backbone_mismatch", "input_mismatch"):
        assert f"  {code}: " in done.stderr


def test_a_bundle_whose_probes_are_untrue_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    bundle = verified(workshop, workshop.bundle("value", 1))
    parts = make_parts(BundleRecipe())
    logits = bundle.tensors["probe.logits"] + np.float32(0.5)
    lying = replace(
        parts, manifest=bundle.manifest, tensors={**bundle.tensors, "probe.logits": logits}
    )
    document = run_json(
        "verify",
        save(tmp_path, "lying", lying.encode()),
        "--backbone",
        workshop.folder,
        expected=1,
    )
    assert not document["is_accepted"]
    assert [reason["code"] for reason in document["reasons"]] == ["probe_failed"]


def test_a_signature_is_demanded_with_a_trusted_key(tmp_path: Path) -> None:
    key = SigningKey.generate()
    private, public = key_paths(tmp_path / "ci")
    key.write(private, public)
    unsigned = save(tmp_path, "unsigned", make_bundle())
    signed = save(tmp_path, "signed", sign_bundle(make_bundle(), [key]))
    refused = run_json("verify", unsigned, "--trusted-key", public, expected=1)
    assert [reason["code"] for reason in refused["reasons"]] == ["signature_missing"]
    assert run_json("verify", signed, "--trusted-key", tmp_path)["signed_by"] == [key.key_id]


def test_inspect_as_json_has_manifest_tensors_and_version(tmp_path: Path) -> None:
    data = make_bundle("ranking")
    document = run_json("inspect", save(tmp_path, "films", data))
    assert document["digest"] == format_digest(digest_of(data))
    assert document["manifest"]["head"]["kind"] == "ranking"
    assert {tensor["name"] for tensor in document["tensors"]} >= {"catalog.bytes", "head.weight"}
    assert document["size_bytes"] == len(data)


def test_a_bundle_does_not_differ_from_itself_signed(tmp_path: Path) -> None:
    first = save(tmp_path, "a", make_bundle())
    second = save(tmp_path, "b", sign_bundle(make_bundle(), [SigningKey.generate()]))
    document = run_json("diff", first, second)
    assert document["is_same_content"]
    assert document["first"]["digest"] != document["second"]["digest"]
    assert (document["fields"], document["metrics"], document["labels"]) == ([], [], None)


def test_other_geometry_metrics_and_labels_are_shown(tmp_path: Path) -> None:
    parts = make_parts(
        BundleRecipe(labels=("b", "a", "d"), geometry=PatchGeometry("parallel2", 4, (1,)))
    )
    changed = parts.with_manifest(metrics={"accuracy": 0.75, "loss": 0.1})
    first = save(tmp_path, "a", make_bundle(labels=("a", "b", "c")))
    second = save(tmp_path, "b", changed.encode())
    document = run_json("diff", first, second)
    assert {"field": "patch.insertion", "first": "serial2", "second": "parallel2"} in document[
        "fields"
    ]
    assert {"field": "patch.blocks", "first": "0, 1", "second": "1"} in document["fields"]
    assert document["metrics"] == [
        {"field": "accuracy", "first": 0.5, "second": 0.75},
        {"field": "loss", "first": None, "second": 0.1},
    ]
    assert document["labels"] == {
        "added": 1,
        "removed": 1,
        "kept": 2,
        "is_reordered": True,
        "added_names": ["d"],
        "removed_names": ["c"],
    }
    done = run("diff", first, second, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.5 → 0.75 (+0.25)" in done.stdout
    assert "1 added, 1 removed, 2 kept in another order" in done.stdout


def test_catalogs_are_compared_by_their_items(tmp_path: Path) -> None:
    first = save(tmp_path, "a", make_bundle("ranking", outputs=40))
    second = save(tmp_path, "b", make_bundle("ranking", outputs=70))
    catalog = run_json("diff", first, second)["catalog"]
    assert (catalog["added"], catalog["removed"], catalog["kept"]) == (30, 0, 40)
    assert len(catalog["added_names"]) == 20


def test_a_bundle_disagrees_with_itself_in_nothing(workshop: Workshop, tmp_path: Path) -> None:
    file = save(tmp_path, "a", workshop.bundle("tags", 1))
    document = run_json("diff", file, file, "--backbone", workshop.folder)["disagreement"]
    assert (document["divergence"], document["largest_change"]) == (0.0, 0.0)
    assert document["histories"] == 4


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_the_disagreement_is_that_of_the_plain_answers(kind: Any, workshop: Workshop) -> None:
    one, two = (verified(workshop, workshop.bundle(kind, seed, outputs=30)) for seed in (1, 2))
    measured = disagreement(one, two, workshop.loaded.backbone)
    assert measured is not None
    histories = probe_histories([one, two])
    first, second = (
        np.stack([workshop.task(kind, seed, 30).logits(h.tolist()) for h in histories])
        for seed in (1, 2)
    )
    expected = {
        "classification": (first.argmax(1) != second.argmax(1)).mean(),
        "tags": ((first >= 0) != (second >= 0)).mean(),
        "ranking": 1 - np.mean([_overlap(a, b) for a, b in zip(first, second, strict=True)]),
        "value": np.mean(
            np.minimum(1, np.abs(first - second) / np.maximum(np.abs(first), np.abs(second)))
        ),
    }
    assert measured.divergence == pytest.approx(expected[kind], abs=1e-5)
    assert measured.largest_change == pytest.approx(np.abs(first - second).max(), rel=1e-4)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    best = (set(np.argsort(-row)[:10].tolist()) for row in (first, second))
    return len(set.intersection(*best)) / 10


@pytest.mark.parametrize("table", [None, TableSpec(1), TableSpec(1, bits=4, counting="count")])
def test_the_reference_gives_what_the_trainer_saw(
    table: TableSpec | None, workshop: Workshop
) -> None:
    bundle = verified(workshop, workshop.bundle("ranking", 3, outputs=50, table=table))
    logits = reference_logits(bundle, workshop.loaded.backbone, probe_histories([bundle]))
    found = logits[:, bundle.tensors["probe.columns"]]
    np.testing.assert_allclose(found, bundle.tensors["probe.logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bundles_of_different_kinds_have_no_disagreement(
    workshop: Workshop, tmp_path: Path
) -> None:
    first = save(tmp_path, "a", workshop.bundle("tags", 1))
    second = save(tmp_path, "b", workshop.bundle("value", 1))
    done = run("diff", first, second, "--backbone", workshop.folder)
    assert done.returncode == 0
    assert "not measured" in done.stdout
