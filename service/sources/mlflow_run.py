"""Bundles among the artifacts of a run of MLflow."""

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from peterrec.model.disk import refusals
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    SourceDenied,
    SourceInvalid,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SourceUnreachable,
)
from peterrec.service.sources import s3
from peterrec.service.sources.address import Address, parse_address
from peterrec.service.sources.receiving import Receiver, broken, library, reason_of

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

QUIET: Mapping[str, str] = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
}
"""Without these, MLflow draws bars of its own and retries for minutes."""

DENIED = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
NOT_FOUND = frozenset({"RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "NOT_FOUND"})


def fetch(source: Address, to: Receiver) -> None:
    """Write an artifact to the receiver's file; errors named ``Source…``.

    The tracking server and its credentials are those of MLflow (``MLFLOW_TRACKING_URI``).
    """
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)  # MLflow has no other way to set these
    library("mlflow", source.scheme, "mlflow")
    from mlflow.exceptions import MlflowException

    try:
        where = _artifact(source)
        address = _reachable(where, source, to)
        if address is not None and address.scheme == "s3":
            s3.fetch(address, to)
        else:
            _download(where, source, to)
    except MlflowException as error:
        raise _refused(source, error) from error


def _artifact(source: Address) -> str:
    """Return where an artifact is kept; for a run, its tracking server knows."""
    if source.scheme == "mlflow-artifacts":
        return str(source)
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise SourceUnreachable(
            f"{source}: no tracking server of MLflow is known.",
            hint="Set MLFLOW_TRACKING_URI where the bundle is fetched.",
        )
    run, _, path = source.path.partition("/")
    root = str(mlflow.MlflowClient().get_run(run).info.artifact_uri)
    return f"{root.rstrip('/')}/{path}"


def _reachable(where: str, source: Address, to: Receiver) -> Address | None:
    """Return the address of an artifact, if it is one of ours and not, say, a path of a disk.

    Whoever may write to a tracking server chooses where a run's artifacts are. So the receiver's
    rule is asked about that, not about the run.
    """
    address = None
    with suppress(SourceInvalid):
        address = parse_address(where)
    is_allowed = to.may_reach(address if address is not None else _ELSEWHERE)
    if not is_allowed:
        raise SourceRefused(
            f"{source} is kept where PETERREC_BUNDLE_SOURCES does not allow.",
            hint="Whoever runs the server lists it, such as `mlflow-artifacts:/12/` for the runs "
            "of experiment 12 whose artifacts the tracking server keeps.",
        )
    return address


_ELSEWHERE = Address("file", "", "")
"""Stands for a place that no prefix can name."""


def _download(where: str, source: Address, to: Receiver) -> None:
    """Have MLflow download one file beside the receiver's, and give it that name."""
    from mlflow.artifacts import download_artifacts

    _require_file(where, source, to)
    with TemporaryDirectory(dir=to.file.parent, prefix=".mlflow-") as folder:
        try:
            got = Path(download_artifacts(artifact_uri=where, dst_path=folder))
        except OSError as error:
            raise _not_written(source, to, error) from error
        with refusals(to.file, doing="written"):
            size = got.stat().st_size
            if size > to.limit_bytes:
                raise SourceTooLarge(source, to.limit_bytes)
            if got.is_relative_to(folder):
                got.replace(to.file)
            else:  # a folder of this machine, which MLflow reads where it is
                shutil.copyfile(got, to.file)


def _require_file(where: str, source: Address, to: Receiver) -> None:
    """Look before the download: MLflow would get a folder with all that is in it."""
    from mlflow.artifacts import list_artifacts

    folder, _, name = where.rpartition("/")
    found = [each for each in list_artifacts(artifact_uri=folder) if _name(each.path) == name]
    if not found:
        raise SourceNotFound(f"there is nothing at {source}.", hint="Check the run and the path.")
    if found[0].is_dir:
        raise SourceInvalid(f"{source} is a folder.", hint="Add the name of the bundle.")
    if (found[0].file_size or 0) > to.limit_bytes:
        raise SourceTooLarge(source, to.limit_bytes)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _not_written(source: Address, to: Receiver, error: OSError) -> PeterRecError:
    if error.errno == errno.EFBIG:
        return SourceTooLarge(source, to.limit_bytes)
    return broken(source, reason_of(error))


def _refused(source: Address, error: "MlflowException") -> PeterRecError:
    """The error that MLflow's means; its words may repeat addresses with passwords."""
    if error.error_code in NOT_FOUND:
        return SourceNotFound(f"there is nothing at {source}.", hint="Check the run and the path.")
    if error.error_code in DENIED:
        return SourceDenied(source, error.error_code)
    return broken(source, f"MLflow says {error.error_code}")
