"""Connect a command to the Ray cluster that does its work."""
# pyright: reportMissingImports=false

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import ray

from peterrec.service.errors import ProcessLost

LOCAL = "local"
"""The address that stands for a new cluster of this machine, which ends with the command."""


@contextmanager
def connected(address: str, *, shows_logs: bool) -> Iterator[None]:
    """Use a cluster for the length of the block; ProcessLost if none answers.

    ``shows_logs``: what its processes print is printed here, too. Whatever Ray prints goes to
    stderr, because it tells of lost workers on stdout, where a command prints its result.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a relative path means what it says
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address, log_to_driver=shows_logs)
        except ConnectionError as error:
            raise ProcessLost(
                f"no Ray cluster answers at {address!r}: {error}",
                hint="Start one with Ray's own command, `ray start`; the address local needs none.",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
