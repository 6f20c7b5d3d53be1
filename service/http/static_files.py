"""Files that browsers load from this server: read once, and kept with their compressed forms.

They need no key, so an answer must cost next to nothing: nothing is read, compressed or hashed
twice, and only names that the folder has are ever looked for on the disk.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastapi import Request, Response

from peterrec.service.http.encodings import ENCODERS, MIN_COMPRESSED_BYTES, choose_coding

MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""What is served, by the end of its name."""

SECURITY_HEADERS: Mapping[str, str] = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


REDOCS_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""What Redoc would load from elsewhere."""

NO_PICTURE = b"data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="


def policy(**sources: str) -> str:
    """Return a Content-Security-Policy that allows what is named and nothing else."""
    rules = {"default": "'none'", **sources}
    named = "; ".join(f"{name}-src {source}" for name, source in rules.items())
    return f"{named}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file in every coding that answers have; an empty name is the file as it is."""

    media_type: str
    etag: str
    bodies: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path, change: Callable[[bytes], bytes]) -> "StaticFile":
        """Read and compress a file, after a change of its bytes. Blocks."""
        body = change(path.read_bytes())
        is_worth_it = len(body) >= MIN_COMPRESSED_BYTES
        encoded = {name: ENCODERS[name](body) for name in (ENCODERS if is_worth_it else ())}
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return cls(MEDIA_TYPES[path.suffix], etag, {"": body, **encoded})

    def answer(self, request: Request, csp: str) -> Response:
        """Answer a request, by 304 if the browser has the file already."""
        headers = {
            **SECURITY_HEADERS,
            "Cache-Control": "no-cache",
            "Content-Security-Policy": csp,
            "ETag": self.etag,
            "Vary": "accept-encoding",
        }
        if self.etag in _tags(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        coding = choose_coding(request.headers.get("accept-encoding", "").encode())
        body = self.bodies.get(coding)
        if body is None:
            coding, body = "", self.bodies[""]
        if coding:
            headers["Content-Encoding"] = coding
        return Response(body, headers=headers, media_type=self.media_type)


class StaticFolder:
    """The files of some folders by their names, each read at its first request.

    Lives on the event loop; files are read in a thread.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]]) -> None:
        self._folders = folders
        self._kept: dict[tuple[str, str], StaticFile] = {}

    @cached_property
    def _paths(self) -> Mapping[str, Path]:
        found = (path for folder in self._folders() for path in folder.iterdir())
        return {path.name: path for path in found if path.suffix in MEDIA_TYPES}

    async def get(self, name: str, assets: str = "./") -> StaticFile | None:
        """Return a file; None if there is none of this name.

        ``assets`` takes the place of ``./`` at the beginning of the addresses in a page.
        """
        kept = self._kept.get((name, assets))
        if kept is None:
            kept = await asyncio.to_thread(self._read, name, assets)
            if kept is not None:
                self._kept[name, assets] = kept
        return kept

    def _read(self, name: str, assets: str) -> StaticFile | None:
        path = self._paths.get(name)
        if path is None:
            return None
        found, put = (b'="./', f'="{assets}'.encode())
        if path.suffix != ".html":
            found, put = REDOCS_LOGO, NO_PICTURE
        return StaticFile.read(path, lambda body: body.replace(found, put))


def _tags(if_none_match: str) -> list[str]:
    return [each.strip().removeprefix("W/") for each in if_none_match[:1000].split(",")]
