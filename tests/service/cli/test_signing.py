"""peterrec keygen and sign, as a person uses them."""

import stat
import subprocess
import sys
from pathlib import Path

from peterrec.patches.bundle.signatures import TrustedKeys
from peterrec.patches.bundle.verify import verify_bundle
from tests.patches.bundles import LIMITS, TINY, make_bundle


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peterrec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_is_signed_with_a_new_key_and_accepted(tmp_path: Path) -> None:
    file = tmp_path / "gender.bundle"
    file.write_bytes(make_bundle())
    made = run("keygen", "--out", tmp_path / "ci")
    assert (made.returncode, made.stderr) == (0, "")
    assert stat.S_IMODE((tmp_path / "ci.key").stat().st_mode) == 0o600
    signed = run("sign", file, "--key", tmp_path / "ci.key")
    assert (signed.returncode, signed.stderr) == (0, "")
    trusted = TrustedKeys.read([tmp_path / "ci.pub"])
    bundle = verify_bundle(file, backbone=TINY, limits=LIMITS, trusted_keys=trusted)
    assert bundle.digest in signed.stdout
    assert f"key id {bundle.signed_by[0]}" in made.stdout


def test_signing_into_another_file_leaves_the_first_alone(tmp_path: Path) -> None:
    file, out = tmp_path / "a.bundle", tmp_path / "b.bundle"
    file.write_bytes(make_bundle())
    run("keygen", "--out", tmp_path / "one")
    run("keygen", "--out", tmp_path / "two")
    keys = ("--key", tmp_path / "one.key", "--key", tmp_path / "two.key")
    assert run("sign", file, *keys, "--out", out).returncode == 0
    assert file.read_bytes() == make_bundle()
    trusted = TrustedKeys.read([tmp_path])
    signed = verify_bundle(out, backbone=TINY, limits=LIMITS, trusted_keys=trusted)
    assert set(signed.signed_by) == trusted.keys.keys()


def test_a_second_keygen_does_not_overwrite_the_key(tmp_path: Path) -> None:
    run("keygen", "--out", tmp_path / "ci")
    before = (tmp_path / "ci.key").read_bytes()
    again = run("keygen", "--out", tmp_path / "ci")
    assert again.returncode == 1
    assert "key_file_exists" in again.stderr
    assert (tmp_path / "ci.key").read_bytes() == before
