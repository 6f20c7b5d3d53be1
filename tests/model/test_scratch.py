"""Folders for temporary files that don't outlive their process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peterrec.model.scratch import LOCK_NAME, PREFIX, ScratchFolder

CODE = (
    "import sys; from pathlib import Path; from peterrec.model.scratch import ScratchFolder\n"
    "folder = ScratchFolder(Path(sys.argv[1])); (folder.path / 'file').touch()\n"
    "print(folder.path, flush=True); input()"
)


@pytest.fixture
def holder(tmp_path: Path):
    """A process with a scratch folder, and the folder."""
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    yield child, Path(child.stdout.readline().decode().strip())
    child.kill()
    child.communicate()


def test_the_folder_of_a_killed_process_is_removed_when_the_next_is_made(holder, tmp_path):
    child, folder = holder
    assert (folder / "file").exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    with ScratchFolder(tmp_path) as next_one:
        assert [*tmp_path.iterdir()] == [next_one]
    assert [*tmp_path.iterdir()] == []


def test_the_folder_of_a_process_that_runs_or_is_stopped_stays(holder, tmp_path):
    child, folder = holder
    child.send_signal(signal.SIGSTOP)
    with ScratchFolder(tmp_path):
        assert (folder / "file").exists()


def test_folders_without_a_lock_and_links_are_left_alone(tmp_path):
    theirs = tmp_path / f"{PREFIX}theirs"
    theirs.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK_NAME).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    with ScratchFolder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} == {theirs.name, f"{PREFIX}link", "elsewhere"}
    assert (elsewhere / LOCK_NAME).exists()
