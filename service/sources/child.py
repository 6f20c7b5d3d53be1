"""The child process in which a server fetches a bundle.

A process of its own ends at the deadline whatever a library does, can't write more than a bundle
may have, and keeps the libraries and their work out of the workers, which answer predictions.
"""

import os
import resource
import sys
import tempfile
from pathlib import Path

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.patches.identity import parse_digest
from peterrec.service.sources.address import allowed_by, parse_address
from peterrec.service.sources.fetch import fetch
from peterrec.service.sources.receiving import Receiver
from peterrec.service.system.parent_watch import die_with_parent

NICENESS = 10
"""A fetch gives way to the processes that serve."""


class FetchOrder(msgspec.Struct, frozen=True):
    """What a worker writes to the child's standard input. The source may hold a signature."""

    source: str
    file: str
    limit_bytes: int
    prefixes: tuple[str, ...]
    tenant: str
    digest: str | None = None


class FetchOutcome(msgspec.Struct, frozen=True):
    """What the child answers: its error, or nothing if the file is there."""

    code: str = ""
    message: str = ""
    hint: str = ""


def fetch_as_child() -> None:
    """Write a line when this has begun, read an order, fetch, and write the outcome."""
    die_with_parent()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for libraries that print
    os.write(answer, b"\n")  # the time for the fetch begins
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=FetchOrder)
    os.nice(NICENESS)
    tempfile.tempdir = str(Path(order.file).parent)  # which the worker removes
    sys.dont_write_bytecode = True  # the limit would cut the files
    resource.setrlimit(resource.RLIMIT_FSIZE, (order.limit_bytes, order.limit_bytes))
    try:
        _fetch(order)
        outcome = FetchOutcome()
    except PeterRecError as error:
        outcome = FetchOutcome(error.code, error.message, error.hint)
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.json.encode(outcome))


def _fetch(order: FetchOrder) -> None:
    digest = None if order.digest is None else parse_digest(order.digest)
    may_reach = allowed_by(order.prefixes, order.tenant)
    receiver = Receiver(Path(order.file), order.limit_bytes, may_reach)
    fetch(parse_address(order.source), receiver, digest)
