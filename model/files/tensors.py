"""Safetensors files, read with errors that say what is wrong. Nothing is ever unpickled."""

import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from peterrec.model.disk import file_in_one_step, refusal
from peterrec.model.errors import FileSystemRefusal, TensorFileInvalid

NumpyArray = NDArray[np.generic]

TEXTS = "texts"
"""Metadata entry of an array file: a JSON list of the arrays that hold texts."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name and create the folder.

    A reader sees either the old file or the complete new one.
    """
    with file_in_one_step(path, wanted_bytes=bytes_of(tensors)) as partial:
        write_plainly(partial, tensors)


def write_plainly(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a file that gets its final name later; OSError if that fails."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _save(path, lambda: safetensors.torch.save_file(plain, path))


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """The bytes of a file's tensors, without its short header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def read_arrays(path: Path) -> dict[str, NumpyArray]:
    """All arrays of a file that ``write_arrays`` wrote, by name."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys()  # it cannot be iterated itself
            arrays: dict[str, NumpyArray] = {name: file.get_tensor(name) for name in names}
            texts = json.loads((file.metadata() or {}).get(TEXTS, "[]"))
        for name in texts:
            arrays[name] = np.array(json.loads(arrays[name].tobytes()), dtype=np.str_)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, NumpyArray]) -> None:
    """Write arrays by name and create the folder.

    Safetensors has no texts: an array of texts is stored as the bytes of a JSON list, and the
    metadata entry ``texts`` names it. A reader sees either the old file or the complete new one.
    """
    texts = [name for name, array in arrays.items() if array.dtype.kind == "U"]
    plain = {
        name: _json_bytes(array) if name in texts else np.ascontiguousarray(array)
        for name, array in arrays.items()
    }
    wanted = sum(array.nbytes for array in plain.values())
    with file_in_one_step(path, wanted_bytes=wanted) as partial:
        metadata = {TEXTS: json.dumps(texts)}
        _save(partial, lambda: safetensors.numpy.save_file(plain, partial, metadata))


def _save(path: Path, save: Callable[[], None]) -> None:
    """Save a file; OSError if that fails, as its number is in the text of the library's error.

    The library replaces the file by one that only its owner may read, so the mode is restored.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save()
        path.chmod(mode)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def _json_bytes(texts: NumpyArray) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(texts.tolist()).encode(), dtype=np.uint8)


def _unreadable(path: Path, error: Exception) -> TensorFileInvalid | FileSystemRefusal:
    if path.is_dir():  # the library's error is about a device
        error = IsADirectoryError(errno.EISDIR, "")
    if isinstance(error, OSError):
        return refusal(error, path, doing="read")
    return TensorFileInvalid(
        f"{path} is not a readable safetensors file: {error}.",
        hint="Convert other formats first; pickled checkpoints are never opened.",
    )


def require_shapes(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a file whose tensor names or shapes are not exactly those expected."""
    problems = [f"{name} is missing" for name in sorted(set(shapes) - set(tensors))]
    problems += [f"{name} is not expected" for name in sorted(set(tensors) - set(shapes))]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        raise TensorFileInvalid(f"{path}: {'; '.join(problems)}.")
