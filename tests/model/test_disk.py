"""Files and folders in one step, and what each refusal of the operating system is called."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peterrec.model import disk
from peterrec.model.disk import (
    append_line,
    file_in_one_step,
    folder_in_one_step,
    make_folder,
    read_bytes,
    refusal,
    require_space,
    require_writable_file,
    require_writable_folder,
    write_bytes,
    write_text,
)
from peterrec.model.errors import (
    DiskFull,
    FileSystemRefusal,
    PathMissing,
    PathNotPermitted,
    PathUnusable,
)
from tests.full_disk import files_of_at_most
from tests.unprivileged import obey_permissions

NOBODY = 65534


@pytest.fixture
def small_files() -> Iterator[None]:
    """In the test, a file of this process may have 1000 bytes: a disk that is full after them."""
    with files_of_at_most(1000):
        yield


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(statement: str, place: Path, user: int | None = None) -> str:
    """What a child process says that may not do everything, also if the tests run as root.

    With ``user``, it becomes that user before the statement; only root's children can.
    """
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from peterrec.model.disk import *\n"
        "from peterrec.model.errors import PeterRecError\n"
        f"{'' if user is None else f'os.setuid({user})'}\n"
        "place = Path(sys.argv[1])\n"
        "try:\n"
        f"    {statement}\n"
        "except PeterRecError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)],
        preexec_fn=obey_permissions,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_file_is_written_with_its_folders_and_nothing_else(tmp_path):
    write_text(tmp_path / "new" / "deep" / "täxt.json", "ö")
    assert (tmp_path / "new" / "deep" / "täxt.json").read_text(encoding="utf-8") == "ö"
    assert names(tmp_path) == ["new", "new/deep", "new/deep/täxt.json"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "ours", b"1")
    (tmp_path / "plain").write_bytes(b"1")
    write_bytes(tmp_path / "secret", b"1", mode=0o600)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def write_half(path: Path) -> None:
    with file_in_one_step(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError


def write_files(folder: Path, **sizes: int) -> None:
    with folder_in_one_step(folder) as staging:
        for name, size in sizes.items():
            (staging / name).write_bytes(bytes(size))


def test_a_failed_write_keeps_the_old_file_and_removes_its_own(tmp_path):
    write_bytes(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_nobody_sees_a_file_before_it_is_complete(tmp_path):
    with file_in_one_step(tmp_path / "file") as partial:
        partial.write_bytes(b"half")
        assert not (tmp_path / "file").exists()
        assert all(name.startswith(".") for name in names(tmp_path))
    assert (tmp_path / "file").read_bytes() == b"half"


def test_two_writers_of_one_file_never_mix(tmp_path):
    path = tmp_path / "file"
    with file_in_one_step(path) as one, file_in_one_step(path) as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_file_and_tells_the_bytes(tmp_path, small_files):
    write_bytes(tmp_path / "file", b"old")
    with pytest.raises(DiskFull) as caught:
        write_bytes(tmp_path / "file", bytes(5000))
    assert "5,000 bytes are wanted" in caught.value.message
    assert str(tmp_path / "file") in caught.value.message
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_none_of_a_folders_files(tmp_path, small_files):
    (tmp_path / "one").write_bytes(b"old")
    with pytest.raises(DiskFull) as caught:
        write_files(tmp_path, one=3, two=5000)
    assert str(tmp_path) in caught.value.message
    assert "at least 1,003 bytes are wanted" in caught.value.message
    assert ".partial" not in caught.value.message
    assert (tmp_path / "one").read_bytes() == b"old"
    assert names(tmp_path) == ["one"]


def test_a_folder_keeps_its_other_files_and_gets_the_named_file_last(tmp_path):
    (tmp_path / "other").touch()
    with folder_in_one_step(tmp_path, last="a") as staging:
        (staging / "deep").mkdir()
        for name in ("a", "b", "deep/c"):
            (staging / name).write_text(name)
        assert not (tmp_path / "b").exists()
    assert names(tmp_path) == ["a", "b", "deep", "deep/c", "other"]
    assert (tmp_path / "a").stat().st_ctime_ns >= (tmp_path / "b").stat().st_ctime_ns


def test_a_folder_with_a_folder_in_a_files_place_gets_no_file_at_all(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(PathUnusable):
        write_files(tmp_path, a=0, b=0)
    assert names(tmp_path) == ["b"]


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path):
    old, fresh = tmp_path / ".f[1].aa.partial", tmp_path / ".f[1].bb.partial"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))
    write_bytes(tmp_path / "f[1]", b"")
    assert names(tmp_path) == [fresh.name, "f[1]"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("big/file")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "file").read_bytes() == b"new"


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 127)
    require_writable_file(path)
    write_bytes(path, b"1")
    assert path.read_bytes() == b"1"


def make_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def make_dangling(folder: Path) -> Path:
    (folder / "link").symlink_to("nowhere")
    return folder / "link"


def make_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def make_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
    return folder / "s"


UNUSABLE_AS_FILE: dict[str, Callable[[Path], Path]] = {
    "is a folder": lambda folder: folder,
    "file is a file, not a folder": lambda folder: make_file(folder) / "x",
    "does not exist": make_dangling,
    "link to": lambda folder: make_dangling(folder) / "x",
    "circle": make_loop,
    "too long": lambda folder: folder / ("x" * 300),
    "name is too long": lambda folder: folder / "new" / ("x" * 300),
    "NUL": lambda folder: folder / "a\0b",
    "not UTF-8": lambda folder: folder / os.fsdecode(b"a\xffb"),
    "device or pipe": make_pipe,
    "device": lambda folder: Path("/dev/null"),
    "pipe": make_socket,
}


@pytest.mark.parametrize("reason", UNUSABLE_AS_FILE)
@pytest.mark.parametrize("use", [require_writable_file, lambda path: write_bytes(path, b"")])
def test_a_path_at_which_no_file_can_be_is_refused_at_start_and_at_the_end(tmp_path, reason, use):
    path = UNUSABLE_AS_FILE[reason](tmp_path)
    before = names(tmp_path)
    with pytest.raises(PathUnusable, match=reason) as caught:
        use(path)
    assert caught.value.hint
    assert names(tmp_path) == before or use is not require_writable_file
    assert Path("/dev/null").is_char_device()


UNUSABLE_AS_FOLDER = {
    "is a file, not a folder": make_file,
    "file is a file, not a folder": lambda folder: make_file(folder) / "x",
    **{
        reason: make
        for reason, make in UNUSABLE_AS_FILE.items()
        if reason in ("does not exist", "link to", "circle", "too long", "NUL", "not UTF-8")
    },
}


@pytest.mark.parametrize("reason", UNUSABLE_AS_FOLDER)
@pytest.mark.parametrize("use", [require_writable_folder, make_folder])
def test_a_path_at_which_no_folder_can_be_is_refused(tmp_path, reason, use):
    path = UNUSABLE_AS_FOLDER[reason](tmp_path)
    with pytest.raises(PathUnusable, match=reason):
        use(path)


def test_checking_leaves_nothing_behind(tmp_path):
    require_writable_folder(tmp_path)
    require_writable_folder(tmp_path / "new" / "deep")
    require_writable_file(tmp_path / "new" / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "statement",
    [
        "require_writable_folder(place)",
        "require_writable_folder(place / 'new' / 'deep')",
        "require_writable_file(place / 'file')",
        "write_bytes(place / 'file', b'')",
        "make_folder(place / 'new')",
        "append_line(place / 'lines', '')",
        "read_bytes(place / 'secret')",
    ],
)
def test_what_this_user_may_not_do_is_refused_with_the_user(tmp_path, statement):
    place = tmp_path / "place"
    place.mkdir()
    (place / "secret").touch()
    (place / "secret").chmod(0)
    place.chmod(0o555)
    said = refused(statement, place)
    place.chmod(0o755)
    assert said.startswith(f"path_not_permitted: {place}")
    assert f"permission denied for user {os.geteuid()}" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else")
def test_a_file_of_somebody_else_in_a_common_folder_is_refused_at_start(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o1777)
    (place / "file").touch()
    for folder in [tmp_path, *tmp_path.parents][:3]:  # pytest's folders are closed to others
        folder.chmod(folder.stat().st_mode | 0o555)
    said = refused("require_writable_file(place / 'file')", place, user=NOBODY)
    assert said.startswith(f"path_not_permitted: {place / 'file'}")


def test_too_little_space_is_refused_before_anything_is_written(tmp_path):
    require_space(tmp_path / "new", 1)
    with pytest.raises(DiskFull, match=r"bytes are wanted, .* bytes are free"):
        require_space(tmp_path / "new", 1 << 60)
    with pytest.raises(DiskFull):
        require_writable_file(tmp_path / "file", free_bytes=1 << 60)


def test_a_limit_of_the_process_is_known_before_anything_is_written(tmp_path, small_files):
    require_space(tmp_path, 5000, largest_file=500)
    with pytest.raises(DiskFull, match="a file may have 1,000"):
        require_space(tmp_path, 5000)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PathMissing, match=str(tmp_path / "nowhere")):
        read_bytes(tmp_path / "nowhere")


def test_a_current_folder_that_was_removed_is_told(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PathMissing, match="current folder no longer exists"):
        require_writable_folder(Path("out"))
    with pytest.raises(PathMissing, match="current folder no longer exists"):
        write_bytes(Path("out") / "file", b"")


def test_a_line_is_added_whole_or_not_at_all(tmp_path, small_files):
    journal = tmp_path / "journal"
    append_line(journal, "x" * 600)
    with pytest.raises(DiskFull, match="501 bytes are wanted"):
        append_line(journal, "y" * 500)
    append_line(journal, "ö")
    assert journal.read_text(encoding="utf-8").splitlines() == ["x" * 600, "ö"]


def test_a_line_that_a_killed_process_cut_spoils_no_other_line(tmp_path):
    (tmp_path / "journal").write_text("whole\ncu")
    append_line(tmp_path / "journal", "next")
    assert (tmp_path / "journal").read_text().splitlines() == ["whole", "cu", "next"]


def test_the_number_within_a_librarys_text_is_understood():
    assert isinstance(refusal(OSError("I/O error: full (os error 28)"), Path("f")), DiskFull)
    assert isinstance(refusal(FileNotFoundError("no such file"), Path("f")), PathMissing)


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_number_has_a_code_the_path_and_a_hint(number):
    told = refusal(OSError(number, os.strerror(number)), Path("somewhere"))
    assert isinstance(told, FileSystemRefusal)
    assert "somewhere" in told.message
    assert told.hint


def test_a_file_name_within_the_error_is_what_the_error_is_about():
    told = refusal(PermissionError(errno.EACCES, "", "inner"), Path("outer"))
    assert isinstance(told, PathNotPermitted)
    assert told.message.startswith("inner ")


def test_folders_that_cannot_be_synced_are_written_all_the_same(tmp_path, monkeypatch):
    """A folder of mode 0300 may be written but not opened for reading."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o300)
    write_bytes(place / "file", b"1")
    place.chmod(0o700)
    assert (place / "file").read_bytes() == b"1"
    assert disk.PARTIAL not in "".join(names(tmp_path))
