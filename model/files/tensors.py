"""Safetensors files, read with errors that say what is wrong. Nothing is ever unpickled."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from peterrec.model.errors import TensorFileInvalid


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name."""
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise TensorFileInvalid(
            f"{path} is no readable safetensors file: {error}.",
            hint="Convert other formats first; pickled checkpoints are never opened.",
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name; a reader sees the old file or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial)
    partial.replace(path)


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
