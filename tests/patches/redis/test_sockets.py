"""Where the sockets of a server's processes are."""

from pathlib import Path

import pytest

from peterrec.patches.errors import NoSocketFolder
from peterrec.patches.redis import sockets
from peterrec.patches.redis.sockets import make_socket_folder


def test_a_folder_for_temporary_files_with_a_long_path_is_not_used(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with make_socket_folder(tmp_path) as folder:
        assert folder.parent == Path("/tmp")
        assert [*long.iterdir()] == []
        assert folder.stat().st_mode & 0o077 == 0


def test_a_missing_folder_for_temporary_files_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    make_socket_folder(tmp_path).remove()


def test_the_data_folder_is_the_last_place_to_try(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets, "_parents", lambda data_dir: [tmp_path / "nowhere", data_dir])
    data = tmp_path / "d"
    data.mkdir()
    monkeypatch.setattr(sockets, "SOCKET_PATH_LIMIT", 1000)
    assert make_socket_folder(data).path.parent == data


def test_every_place_is_told_if_there_is_none(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(sockets, "_parents", lambda data_dir: [tmp_path / "nowhere", long])
    with pytest.raises(NoSocketFolder, match=r"nowhere: No such file.* longer than a socket's"):
        make_socket_folder(tmp_path)
