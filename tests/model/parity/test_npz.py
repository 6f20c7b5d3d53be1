"""Npz archives are read completely, or refused with the reason."""

from pathlib import Path

import numpy as np
import pytest

from peterrec.model.errors import TensorFileInvalid
from peterrec.model.parity.npz import read_npz


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
