"""Npz archives, written, and read with errors that say what is wrong. Nothing is ever unpickled."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peterrec.model.errors import TensorFileInvalid

NumpyArray = NDArray[np.generic]

DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on a damaged archive."""


def read_npz(path: Path) -> dict[str, NumpyArray]:
    """All arrays of an archive by name."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with archive:
                return {name: archive[name] for name in archive.files}
    except DAMAGE as error:
        raise TensorFileInvalid(f"{path} is no readable npz file: {error}.") from error


def write_npz(path: Path, arrays: Mapping[str, NumpyArray]) -> None:
    """A compressed archive; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # numpy's stub is too narrow
