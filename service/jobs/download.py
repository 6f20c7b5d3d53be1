"""Download data sets from their publishers."""

import zipfile
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO

import httpx

from peterrec.model.disk import folder_in_one_step, refusals
from peterrec.model.progress import OnProgress, Progress
from peterrec.service.errors import DownloadFailed

MOVIELENS_1M = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MEMBERS = ("ratings.dat", "users.dat", "movies.dat", "README")
"""Files of the archive that are unpacked."""

LARGEST_BYTES = 200 << 20
"""Limit of the archive and of each unpacked file; MovieLens-1M has 6 MB, unpacked 25 MB."""

UNPACKED_BYTES = 26 << 20
"""Room that the unpacked files need."""

TIMEOUT_S = 30.0
"""Limit of each step of the connection, not of the whole download."""


def download_movielens_1m(out: Path, on_progress: OnProgress, url: str = MOVIELENS_1M) -> None:
    """Download and unpack MovieLens-1M; its README allows research, but no redistribution."""
    temporary = Path(gettempdir())
    with refusals(temporary, doing="written"), TemporaryFile() as archive:
        try:
            _fetch(url, archive, on_progress)
            on_progress(Progress("unpacking"))
            _unpack(archive, out)
        except httpx.HTTPError as error:
            raise DownloadFailed(
                f"{url}: {type(error).__name__}: {error}.",
                hint="Without a network, copy the folder here and use `convert movielens`, "
                "or use `peterrec sample-data`.",
            ) from error
        except (zipfile.BadZipFile, KeyError) as error:
            raise DownloadFailed(
                f"{url} is not a MovieLens-1M archive: {error}.", hint="Try again later."
            ) from error


def _fetch(url: str, archive: IO[bytes], on_progress: OnProgress) -> None:
    with httpx.stream("GET", url, timeout=TIMEOUT_S, follow_redirects=True) as response:
        response.raise_for_status()
        total = int(response.headers.get("content-length", 0))
        for chunk in response.iter_bytes():
            archive.write(chunk)
            if archive.tell() > LARGEST_BYTES:
                raise DownloadFailed(f"{url} is larger than {LARGEST_BYTES} bytes.")
            on_progress(Progress("downloading", archive.tell(), total, unit="bytes"))


def _unpack(archive: IO[bytes], out: Path) -> None:
    """Unpack the files in ``MEMBERS`` and ignore all others."""
    with zipfile.ZipFile(archive) as files, folder_in_one_step(out) as folder:
        for member in MEMBERS:
            with files.open(f"ml-1m/{member}") as source:
                data = source.read(LARGEST_BYTES + 1)
            if len(data) > LARGEST_BYTES:
                raise DownloadFailed(f"{member} unpacks to more than {LARGEST_BYTES} bytes.")
            (folder / member).write_bytes(data)
