"""A real headless Chromium, which can reach nothing but this machine, and what it must never do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 860}
PATIENCE_MS = 15_000
SERIOUS = {"serious", "critical"}


def pictures() -> Path:
    """The folder for pictures of pages: PETERREC_TEST_PICTURES, or one that git ignores."""
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("PETERREC_TEST_PICTURES", root / "build" / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Start the browser that is installed; skip the test if there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One tab, what it asked for and what it complained of. ``origin`` is the server's."""

    page: "Page"
    origin: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def show(self, place: str) -> None:
        """Go to a place of the console."""
        self.page.evaluate("place => { location.hash = place }", place)

    def picture(self, name: str, *, whole: bool = True) -> None:
        """Keep what the tab shows: the whole page, or what is visible of it."""
        self.page.screenshot(path=pictures() / f"{name}.png", full_page=whole)

    def require_own_requests_only(self) -> None:
        """Assert that everything came from the server, and that no policy had to stop anything."""
        foreign = [url for url in self.asked if not url.startswith((self.origin, "data:", "blob:"))]
        assert (foreign, self.complaints) == ([], [])

    def require_accessible(self) -> None:
        """Assert that axe-core finds nothing serious in what the tab shows."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(self.page).response["violations"]
        serious = [_finding(each) for each in found if each["impact"] in SERIOUS]
        assert serious == []


def _finding(violation: dict[str, Any]) -> str:  # Any: what axe-core reports
    places = [node["html"][:120] for node in violation["nodes"][:3]]
    return f"{violation['id']}: {violation['help']} at {places}"


@contextmanager
def visit(browser: "Browser", origin: str, path: str, **options: object) -> Iterator[Visit]:
    """Open a page in a new profile. ``options`` are those of a browser context."""
    settings: dict[str, Any] = {"viewport": DESKTOP, **options}  # Any: Playwright has many types
    context = browser.new_context(**settings)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    seen = Visit(page, origin)
    page.on("request", lambda request: seen.asked.append(request.url))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda line: seen.complaints.append(line.text) if _is_bad(line) else None)
    page.goto(f"{origin}{path}")
    try:
        yield seen
    finally:
        context.close()


def _is_bad(line: Any) -> bool:  # Any: Playwright's ConsoleMessage
    """Whether a line of the browser's console is an error, other than of a status of ours."""
    return line.type == "error" and "the server responded with a status" not in line.text
