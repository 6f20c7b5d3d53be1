"""peterrec inspect: what it shows, and that it refuses what is damaged."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peterrec.model.spec import PatchGeometry
from peterrec.patches.bundle.bundle import digest_of
from tests.patches.bundles import BundleRecipe, make_bundle, make_parts


def inspect(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peterrec", "inspect", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_is_shown_with_its_version_head_patch_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "gender.bundle"
    geometry = PatchGeometry("parallel2", 4, (1,), has_norms=True)
    path.write_bytes(make_bundle(labels=("female", "male", "unsaid"), geometry=geometry))
    done = inspect(path)
    assert (done.returncode, done.stderr) == (0, "")
    for shown in (
        f"sha256:{digest_of(path.read_bytes())}",
        "classification, 3 outputs",
        "female, male, unsaid",
        "parallel2, bottleneck 4, blocks 1",
        "trained norms",
        "patch.norm_weight",
        "complete and consistent",
    ):
        assert shown in done.stdout


def test_a_long_catalog_is_shown_by_its_first_items_and_its_length(tmp_path: Path) -> None:
    path = tmp_path / "films.bundle"
    path.write_bytes(make_bundle("ranking", outputs=40))
    done = inspect(path)
    assert "film-0, film-1" in done.stdout
    assert "(40 in all)" in done.stdout
    assert "film-30" not in done.stdout


def test_a_damaged_bundle_is_shown_and_refused_with_every_reason(tmp_path: Path) -> None:
    path = tmp_path / "damaged.bundle"
    path.write_bytes(make_parts(BundleRecipe()).without_tensor("patch.up").encode()[:-4])
    done = inspect(path)
    assert done.returncode == 1
    assert "classification, 3 outputs" in done.stdout
    for code in ("checksum_mismatch", "truncated", "tensor_missing"):
        assert f"[{code}]" in done.stderr


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80\x04\x95abcdefgh"])
def test_a_file_that_is_no_bundle_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.bundle"
    path.write_bytes(content)
    done = inspect(path)
    assert done.returncode == 1
    assert "the bundle is refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_control_characters_in_labels_do_not_reach_the_terminal(tmp_path: Path) -> None:
    parts = make_parts(BundleRecipe(labels=("a\x1b[31m", "[bold]b[/bold]", "c")))
    path = tmp_path / "odd.bundle"
    path.write_bytes(replace(parts).encode())
    done = inspect(path)
    assert "\x1b" not in done.stdout
    assert r"a\x1b[31m, [bold]b[/bold], c" in done.stdout
