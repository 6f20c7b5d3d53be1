"""Fetch a bundle from wherever its address is."""

from collections.abc import Callable, Mapping

from peterrec.patches.identity import Digest
from peterrec.service.sources import https, mlflow_run, oci, s3
from peterrec.service.sources.address import Address
from peterrec.service.sources.receiving import Receiver, check_digest

FETCHERS: Mapping[str, Callable[[Address, Receiver], None]] = {
    "https": https.fetch,
    "s3": s3.fetch,
    "oci": oci.fetch,
    "runs": mlflow_run.fetch,
    "mlflow-artifacts": mlflow_run.fetch,
}


def fetch(source: Address, to: Receiver, expected: Digest | None = None) -> None:
    """Write a bundle to the receiver's file, and check its digest if one is expected.

    Blocks. Errors are those whose names begin with ``Source``, or the file system's.
    """
    FETCHERS[source.scheme](source, to)
    check_digest(to.file, source, expected)
