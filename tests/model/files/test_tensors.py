"""Safetensors files are read completely, or refused with the reason."""

from pathlib import Path

import numpy as np
import pytest
import torch

from peterrec.model.errors import PathMissing, PathUnusable, TensorFileInvalid
from peterrec.model.files.tensors import (
    read_arrays,
    read_tensors,
    require_shapes,
    write_arrays,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    found = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_writing_takes_tensors_that_are_trained_or_views(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    write_tensors(tmp_path / "t.safetensors", {"w": weight.T})
    assert torch.equal(read_tensors(tmp_path / "t.safetensors")["w"], weight.detach().T)


def test_writing_leaves_no_partial_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    write_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    assert read_tensors(tmp_path / "t.safetensors").keys() == {"a"}


def test_others_may_read_a_file_if_the_umask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(1)})
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "t.safetensors").stat().st_mode == expected
    assert (tmp_path / "a.safetensors").stat().st_mode == expected


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PathMissing, match=r"lost\.safetensors can't be read"):
        read_tensors(tmp_path / "lost.safetensors")
    with pytest.raises(PathUnusable, match="it is a folder"):
        read_tensors(tmp_path)


def test_every_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TensorFileInvalid):
            read_tensors(path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "t.safetensors")
    with pytest.raises(TensorFileInvalid):
        read_tensors(tmp_path / "t.safetensors")


def test_every_wrong_tensor_is_named(tmp_path: Path) -> None:
    shapes = {"a": (3, 2), "c": (1,)}
    with pytest.raises(TensorFileInvalid) as error:
        require_shapes(tmp_path, TENSORS, shapes)
    assert "c is missing; b is not expected; a has shape (2, 3), not (3, 2)" in str(error.value)


def test_the_right_tensors_are_accepted(tmp_path: Path) -> None:
    require_shapes(tmp_path, TENSORS, {"a": (2, 3), "b": (2,)})


def test_arrays_of_numbers_and_of_texts_are_read_as_written(tmp_path: Path) -> None:
    arrays = {
        "users": np.array(["a", "größer", ""]),
        "none": np.array([], dtype=np.str_),
        "codes": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2],
    }
    path = tmp_path / "folder" / "a.safetensors"
    write_arrays(path, arrays)
    found = read_arrays(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].tolist() == array.tolist()
        assert found[name].dtype.kind == array.dtype.kind


def test_every_truncated_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"users": np.array(["a", "b"]), "codes": np.arange(2)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TensorFileInvalid):
            read_arrays(path)
