"""The bundle that a command is given: a file, or an address from which it is fetched first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from peterrec.model.disk import refusals
from peterrec.model.progress import OnProgress
from peterrec.patches.identity import parse_digest

LARGEST_BYTES = 1 << 36
"""Where a command gives up: the server has a limit of its own, and says it."""


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A bundle on this machine, and the address that it came from; empty for a file."""

    path: Path
    origin: str = ""


@contextmanager
def bundle_file(text: str, digest: str | None, on_progress: OnProgress) -> Iterator[BundleFile]:
    """Fetch a bundle if ``text`` is an address; the copy is removed when the block ends.

    SourceDigestMismatch unless the bundle has this digest, if one is given.
    """
    from peterrec.service.sources.address import is_address, parse_address
    from peterrec.service.sources.fetch import fetch
    from peterrec.service.sources.receiving import Receiver, check_digest

    expected = None if digest is None else parse_digest(digest)
    if not is_address(text):
        check_digest(Path(text), text, expected)
        yield BundleFile(Path(text))
        return
    source = parse_address(text)
    with refusals(Path(gettempdir()), doing="written"):
        folder = TemporaryDirectory(prefix="peterrec-push-")
    with folder as name:
        file = Path(name) / "bundle"
        fetch(source, Receiver(file, LARGEST_BYTES, on_progress=on_progress), expected)
        yield BundleFile(file, str(source))
