"""The API under a path of a proxy: ``/peterrec/tasks`` instead of ``/tasks``."""

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from peterrec.service.errors import SettingsInvalid


class UnderPrefix:
    """An application whose requests may have the prefix of a proxy before their paths, or not.

    The prefix becomes the scope's ``root_path``, by which FastAPI's pages and its OpenAPI document
    name the API. SettingsInvalid if a route of ``paths`` begins like it: then a path would have
    two meanings.
    """

    def __init__(self, app: ASGIApp, prefix: str, paths: Iterable[str]) -> None:
        if first(prefix) in map(first, paths):
            raise SettingsInvalid(
                f"PETERREC_ROOT_PATH: {prefix!r} begins like a route of the API.",
                hint="Let the proxy show the API under another path.",
            )
        self._app = app
        self._prefix, self._start = prefix, f"{prefix}/"
        self._raw = prefix.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] == "http":
            scope["root_path"] = self._prefix
            if scope["path"].startswith(self._start) or scope["path"] == self._prefix:
                scope["path"] = scope["path"][len(self._prefix) :] or "/"
                scope["raw_path"] = scope["raw_path"].removeprefix(self._raw) or b"/"
        await self._app(scope, receive, send)


def first(path: str) -> str:
    """The first part of a path."""
    return path.split("/")[1]
