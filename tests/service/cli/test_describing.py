"""peterrec describe, as a person uses it: titles and attributes for a bundle that there is."""

import subprocess
import sys
from pathlib import Path

import pytest

from peterrec.patches.bundle.verify import verify_bundle
from tests.patches.bundles import LIMITS, TINY, make_bundle

TABLE = "id,title,genre,price\nfilm-0,One,a|b,1.5\nfilm-2,Three,b,\nother,Other,,3\n"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "peterrec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "films.bundle").write_bytes(make_bundle("ranking"))
    (tmp_path / "items.csv").write_text(TABLE)
    return tmp_path


def test_a_bundle_gets_titles_and_attributes(folder: Path) -> None:
    out, table = folder / "new.bundle", folder / "items.csv"
    done = run(
        *("describe", folder / "films.bundle", "--out", out, "--titles", table),
        *("--attributes", table, "--attribute", "genre=list", "--attribute", "price"),
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 3 outputs have no row" in done.stderr
    assert "genre (list), price (number)" in done.stderr
    bundle = verify_bundle(out, backbone=TINY, limits=LIMITS)
    assert bundle.digest in done.stdout
    assert [*(bundle.titles or ())] == ["One", "", "Three"]
    assert bundle.catalog is not None
    assert set(bundle.catalog.attributes) == {"genre", "price"}
    assert bundle.catalog.attributes["genre"].has_value.tolist() == [True, False, True]
    shown = run("inspect", out).stdout
    assert "genre (list of texts), price (number)" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--titles"),
        (("--titles", "items.csv", "--id-column", "title"), "none of its ids"),
        (("--titles", "nothing.csv"), "nothing.csv"),
        (("--titles", "items.csv", "--title-column", "name"), "name"),
        (("--attributes", "items.csv", "--attribute", "price=money"), "text, number, time, list"),
        (("--attributes", "items.csv", "--attribute", "genre=number"), "line 2"),
    ],
)
def test_what_can_not_be_described_says_why(
    folder: Path, options: tuple[str, ...], words: str
) -> None:
    given = [str(folder / each) if each.endswith(".csv") else each for each in options]
    done = run("describe", folder / "films.bundle", "--out", folder / "new.bundle", *given)
    assert done.returncode in {1, 2}
    assert words in done.stderr
    assert not (folder / "new.bundle").exists()
