"""What the fetchers share: where the bytes go, what may be reached, and errors of libraries."""

import hashlib
import importlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from peterrec.model.disk import refusals
from peterrec.model.progress import OnProgress, Progress, no_progress
from peterrec.patches.identity import Digest, format_digest
from peterrec.service.errors import (
    SourceDigestMismatch,
    SourceLibraryMissing,
    SourceTooLarge,
    SourceUnreachable,
)
from peterrec.service.sources.address import Address

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
"""Seconds without a byte after which a transfer is given up."""

CHUNK_BYTES = 1 << 20
"""Bytes that are read and written at a time."""

RETRY_HINT = "Repeat it; if it stays, see whether the address can be reached from where it is read."


def reach_everything(address: Address) -> bool:
    """Allow every address: a person's command reads what that person may read."""
    return True


@dataclass(frozen=True, slots=True)
class Receiver:
    """The file that a bundle is written to, and its limits.

    ``may_reach`` decides where redirects and runs of MLflow may lead.
    """

    file: Path
    limit_bytes: int
    may_reach: Callable[[Address], bool] = reach_everything
    on_progress: OnProgress = no_progress

    def open(self, source: Address, total_bytes: int | None) -> "Writing":
        """Begin to write; SourceTooLarge if the store says that it is more than the limit."""
        if total_bytes is not None and total_bytes > self.limit_bytes:
            raise SourceTooLarge(source, self.limit_bytes)
        return Writing(self, source, total_bytes or 0)


class Writing:
    """A bundle as it arrives. Use it as a context: it has the file open."""

    def __init__(self, to: Receiver, source: Address, total_bytes: int) -> None:
        self._to = to
        self._source = source
        self._total_bytes = total_bytes
        self._size_bytes = 0
        with refusals(to.file, doing="written"):
            self._file = to.file.open("wb")

    def __enter__(self) -> "Writing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Append bytes; SourceTooLarge past the limit."""
        self._size_bytes += len(chunk)
        if self._size_bytes > self._to.limit_bytes:
            raise SourceTooLarge(self._source, self._to.limit_bytes)
        with refusals(self._to.file, doing="written", wanted_bytes=len(chunk)):
            self._file.write(chunk)
        total = max(self._total_bytes, self._size_bytes) if self._total_bytes else 0
        self._to.on_progress(Progress("fetching", self._size_bytes, total, unit="bytes"))

    def require_all(self, total_bytes: int | None) -> None:
        """SourceUnreachable if the store had announced more bytes than came."""
        if total_bytes is not None and self._size_bytes != total_bytes:
            raise broken(self._source, f"{self._size_bytes} of {total_bytes} bytes came")


def check_digest(file: Path, source: object, expected: Digest | None) -> None:
    """SourceDigestMismatch unless a file has the digest that it should have, if one is expected."""
    if expected is None:
        return
    with refusals(file, doing="read"), file.open("rb") as content:
        found = Digest(hashlib.file_digest(content, "sha256").hexdigest())
    if found != expected:
        raise SourceDigestMismatch(source, format_digest(found), format_digest(expected))


def library(module: str, scheme: str, extra: str) -> ModuleType:
    """Import the library of a kind of store; SourceLibraryMissing names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SourceLibraryMissing(scheme, extra, error.name) from error


def broken(source: object, reason: str) -> SourceUnreachable:
    """The error of a store that does not answer, or breaks off."""
    return SourceUnreachable(f"{source} could not be read: {reason}.", hint=RETRY_HINT)


def reason_of(error: BaseException) -> str:
    """Say why a library failed: the innermost error, without an address that may be secret.

    Libraries write whole URLs with their queries into their messages, so only the operating
    system's words and the class are kept.
    """
    innermost, seen = error, {id(error)}
    while (inner := innermost.__cause__ or innermost.__context__) and id(inner) not in seen:
        seen.add(id(inner))
        innermost = inner
    if isinstance(innermost, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({innermost.verify_message})"
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return type(innermost).__name__
