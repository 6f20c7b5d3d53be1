"""Npz archives of recorded cases and checkpoints, read with errors that say what is wrong.

Nothing is ever unpickled. Our own files are safetensors (``model/files/tensors.py``).
"""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from peterrec.model.disk import refusals
from peterrec.model.errors import TensorFileInvalid
from peterrec.model.files.tensors import NumpyArray

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
"""Exceptions that numpy and zipfile raise on a damaged archive."""


def read_npz(path: Path) -> dict[str, NumpyArray]:
    """All arrays of an archive by name."""
    with refusals(path, doing="read"):
        opened = path.open("rb")
    try:
        with opened as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with archive:
                return {name: archive[name] for name in archive.files}
    except DAMAGE as error:
        raise TensorFileInvalid(f"{path} is not a readable npz file: {error}.") from error
