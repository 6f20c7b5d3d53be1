"""The methods of every path, as the OpenAPI document lists them."""

import re
from collections.abc import Mapping

from starlette.routing import compile_path

from peterrec.model.documents import Document

PAGES = ("/docs", "/redoc", "/openapi.json", "/console", "/console/")
"""Paths with GET that the document does not list: it describes the API, not itself."""

PAGE_FOLDERS = ("/docs/files/", "/console/")
"""Where the files of these pages are."""


class Methods:
    """Tells which methods a path has: OPTIONS always, and HEAD where GET is."""

    def __init__(self, document: Document) -> None:
        self._by_pattern: Mapping[re.Pattern[str], frozenset[str]] = {
            compile_path(path)[0]: frozenset(map(str.upper, operations))
            for path, operations in document["paths"].items()
        }

    def of(self, path: str) -> list[str]:
        """Return the methods of a path in order; empty if there is no such path."""
        found = self._find(path)
        if not found:
            return []
        return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))

    def _find(self, path: str) -> frozenset[str]:
        """Return what the document says about the template that fits a path most closely."""
        if path in PAGES or path.startswith(PAGE_FOLDERS):
            return frozenset({"GET"})
        fitting = [each for each in self._by_pattern if each.fullmatch(path)]
        return self._by_pattern[max(fitting, key=_length)] if fitting else frozenset()


def _length(pattern: re.Pattern[str]) -> int:
    return len(pattern.pattern)
