"""Safetensors and npz files: whole, or an error that says why not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from peterrec.model.errors import TensorFileInvalid
from peterrec.model.files.tensors import read_tensors, require_shapes, write_tensors
from peterrec.model.parity.npz import read_npz

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


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "lost.safetensors", tmp_path):
        with pytest.raises(TensorFileInvalid, match="no readable safetensors file"):
            read_tensors(path)


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


def test_an_npz_gives_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", a=np.arange(3))
    assert read_npz(tmp_path / "t.npz")["a"].tolist() == [0, 1, 2]


def test_an_npy_under_the_name_of_an_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(TensorFileInvalid, match="a single array"):
        read_npz(tmp_path / "t.npz")


def test_no_damaged_byte_of_an_npz_escapes_as_a_foreign_error(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, a=np.arange(9.0), b=np.array("text"))
    whole = path.read_bytes()
    outcomes = {_outcome(path, whole, at, mask) for at in range(len(whole)) for mask in (1, 255)}
    assert outcomes <= {"read", "refused"}
    assert "refused" in outcomes


def _outcome(path: Path, whole: bytes, at: int, mask: int) -> str:
    path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
    try:
        read_npz(path)
    except TensorFileInvalid:
        return "refused"
    return "read"
