"""The site of the documentation: it is built without a broken link, and works without a network."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.service import error_pages

ROOT = Path(__file__).parents[2]

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
"""What a browser loads by itself."""


class Page(HTMLParser):
    """The links of a page, and the names that links may lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, str, str]] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.names.add(value)
            if name in ("href", "src") and value:
                self.links.append((tag, name, value))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    folder: Path = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for _, _, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            names = pages[target].names if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in names):
                yield f"{path.relative_to(site)}: {link}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_link_of_the_site_is_broken(site, pages):
    assert len(pages) > 100
    assert list(broken(site, pages)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_page_loads_anything_from_elsewhere(site, pages):
    elsewhere = [
        f"{path.relative_to(site)}: {link}"
        for path, page in pages.items()
        for tag, attribute, link in page.links
        if (tag, attribute) in LOADED and urlsplit(link).netloc
    ]
    assert elsewhere == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_error_code_has_a_page_of_its_own(site, pages):
    codes = {error.code for error in error_pages.every_error()}
    shown = {path.stem for path in (site / "errors").glob("*.html")}
    assert codes <= shown
