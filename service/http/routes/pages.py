"""Pages for people: the console at ``/console``, and the API's documentation without any CDN.

The pages are files. They get everything else from the routes that all clients call, with the key
that their reader has typed in, so they may do what the key may do and nothing more.
"""

from fastapi import APIRouter, Request, Response

from peterrec.service.console.folders import CONSOLE, REFERENCE, find_viewers
from peterrec.service.http.static_files import StaticFile, StaticFolder, policy

CONSOLE_POLICY = policy(
    script="'self'", style="'self'", img="'self'", connect="'self'", manifest="'self'"
)
"""Nothing but this server's own files and calls; no script or style within the page."""

REFERENCE_POLICY = policy(
    script="'self'",
    style="'self' 'unsafe-inline'",  # Redoc writes its styles into the page
    img="'self' data:",
    font="'self'",
    connect="'self'",
    worker="blob:",  # Redoc's search
)

FOLDER = "/docs/files/"

router = APIRouter(include_in_schema=False)


class Pages:
    """The files of all pages, as a worker keeps them."""

    def __init__(self) -> None:
        self.console = StaticFolder(lambda: [CONSOLE])
        self.reference = StaticFolder(lambda: [REFERENCE, find_viewers()])


@router.get("/console")
async def show_console(request: Request) -> Response:
    """Show the console."""
    return _answer(request, await _pages(request).console.get("index.html", "./console/"))


@router.get("/console/")
async def show_console_in_its_folder(request: Request) -> Response:
    """Show the console to somebody who typed a slash more."""
    return _answer(request, await _pages(request).console.get("index.html"))


@router.get("/console/{name}")
async def get_console_file(request: Request, name: str) -> Response:
    """Return a script, a style or a picture of the console."""
    return _answer(request, await _pages(request).console.get(name))


@router.get("/docs")
async def show_docs(request: Request) -> Response:
    """Show the API in Swagger UI."""
    found = await _pages(request).reference.get("docs.html")
    return _answer(request, found, REFERENCE_POLICY)


@router.get("/redoc")
async def show_redoc(request: Request) -> Response:
    """Show the API in Redoc."""
    found = await _pages(request).reference.get("redoc.html")
    return _answer(request, found, REFERENCE_POLICY)


@router.get(FOLDER + "{name}")
async def get_reference_file(request: Request, name: str) -> Response:
    """Return a file of Swagger UI or Redoc."""
    return _answer(request, await _pages(request).reference.get(name), REFERENCE_POLICY)


def _pages(request: Request) -> Pages:
    pages: Pages = request.app.state.pages
    return pages


def _answer(request: Request, found: StaticFile | None, csp: str = CONSOLE_POLICY) -> Response:
    if found is None:
        raise request.app.no_route(request.scope["path"])
    return found.answer(request, csp)
