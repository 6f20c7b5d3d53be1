"""Files and folders on the disk: written completely or not at all, and refused with a code.

Everything that a command writes goes through ``file_in_one_step`` or ``folder_in_one_step``, and
what it will write is checked at its start by ``require_writable_file`` or
``require_writable_folder``. Errors of the operating system become ``FileSystemRefusal``.
"""

import errno
import os
import re
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from secrets import token_hex

from peterrec.model.errors import (
    DiskFull,
    FileSystemRefusal,
    PathMissing,
    PathNotPermitted,
    PathUnusable,
)

PARTIAL = ".partial"
"""End of the names under which unfinished files and folders are written. The names begin with a
dot, so that nobody takes them for data."""

ABANDONED_AFTER_S = 3600.0
"""Age of an unfinished file whose process must have been killed: a write takes seconds."""

LONGEST_NAME = 255
"""Bytes that most file systems allow in a name."""

LONGEST_NAME_PART = 180
"""Bytes of a file's name that are part of its unfinished name."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an error number means for a person."""

    refusal: type[FileSystemRefusal]
    reason: str
    hint: str


_ACCESS = "Give this user access to it, or choose another place."
_SPACE = "Free some space or choose a place with more, then repeat the command."
_NAME = "Check the path."

_KINDS: Mapping[int, _Kind] = {
    errno.EACCES: _Kind(PathNotPermitted, "permission denied", _ACCESS),
    errno.EPERM: _Kind(PathNotPermitted, "the system does not permit it", _ACCESS),
    errno.EROFS: _Kind(
        PathNotPermitted, "its file system is read-only", "Choose a place that can be written."
    ),
    errno.ENOSPC: _Kind(DiskFull, "no space is left on its file system", _SPACE),
    errno.EDQUOT: _Kind(DiskFull, "the disk quota of this user is used up", _SPACE),
    errno.EFBIG: _Kind(
        DiskFull,
        "the file would be larger than this process or file system allows",
        "Raise the limit (`ulimit -f`) or choose another file system, then repeat the command.",
    ),
    errno.EISDIR: _Kind(PathUnusable, "it is a folder, not a file", "Give the path of a file."),
    errno.ENOTDIR: _Kind(PathUnusable, "a part of the path is a file, not a folder", _NAME),
    errno.EEXIST: _Kind(PathUnusable, "something else has this name", "Choose another path."),
    errno.ENOTEMPTY: _Kind(PathUnusable, "a folder has this name", "Choose another path."),
    errno.ELOOP: _Kind(PathUnusable, "its links lead in a circle", _NAME),
    errno.ENAMETOOLONG: _Kind(
        PathUnusable,
        "its name is too long",
        "Most systems allow 255 bytes in a name and 4095 in a path.",
    ),
    errno.ENOENT: _Kind(PathMissing, "it does not exist", _NAME),
    errno.EMFILE: _Kind(
        FileSystemRefusal, "this process has too many open files", "Raise `ulimit -n`."
    ),
}

_NUMBER = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)
"""How libraries write an error's number into a text."""

_NUMBERS: Mapping[type[OSError], int] = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    FileExistsError: errno.EEXIST,
}

_OTHER = "Check the disk and the connection to it, then repeat the command."


def refusal(
    error: OSError | ValueError,
    path: Path | None = None,
    *,
    doing: str = "used",
    wanted_bytes: int | None = None,
) -> FileSystemRefusal:
    """The error for a person that tells what the operating system refused.

    ``path`` is what it is about if the error names no file. A ``ValueError`` is Python's refusal
    of a path with a NUL.
    """
    if isinstance(error, ValueError):
        return PathUnusable(f"{str(path)!r} can't be {doing}: {error}.", hint=_NAME)
    subject = _subject(error, path)
    number = _number_of(error)
    known = _KINDS.get(number)
    if known is None:
        text = error.strerror or str(error) or type(error).__name__
        return FileSystemRefusal(f"{subject} can't be {doing}: {text}.", hint=_OTHER)
    reason, hint = known.reason, known.hint
    if number == errno.ENOENT and not _has_current_folder() and not subject.is_absolute():
        reason, hint = "the current folder no longer exists", "Change to another folder."
    elif number == errno.ENOTDIR:
        reason = _file_within(subject) or reason
    elif number in (errno.EACCES, errno.EPERM):
        reason = f"{reason} for user {os.geteuid()}"
    elif known.refusal is DiskFull:
        reason = f"{reason}{_bytes_text(subject, wanted_bytes)}"
    return known.refusal(f"{subject} can't be {doing}: {reason}.", hint=hint)


@contextmanager
def refusals(path: Path, *, doing: str = "used", wanted_bytes: int | None = None) -> Iterator[None]:
    """Turn errors of the operating system within the block into refusals about this path."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path, doing=doing, wanted_bytes=wanted_bytes) from error


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; FileSystemRefusal if it cannot be read."""
    with refusals(path, doing="read"):
        return path.read_bytes()


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """The paths of a folder whose names match, in order; FileSystemRefusal if it cannot be read."""
    with refusals(folder, doing="read"):
        return sorted(path for path in folder.iterdir() if path.match(pattern))


def require_writable_folder(folder: Path, free_bytes: int = 0) -> None:
    """Refuse a folder in which nothing can be written, which may not exist yet.

    Something is written there, or in the deepest parent that exists, and removed again. With
    ``free_bytes``, a file of that size must fit. Nothing is left behind.
    """
    _require_text(folder)
    with refusals(folder, doing="written"):
        existing = _deepest_existing(folder)
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(folder))
    trial = existing / f".{token_hex(4)}{PARTIAL}"
    with _written_as({trial: folder}, folder, None):
        _try(trial, as_folder=existing != folder)
    if free_bytes:
        require_space(folder, free_bytes)


def _try(trial: Path, *, as_folder: bool) -> None:
    """Make a file or folder and remove it."""
    try:
        if as_folder:
            trial.mkdir()
            trial.rmdir()
        else:
            try:
                trial.write_bytes(b"\0")  # a full disk may have room for an empty file
            finally:
                trial.unlink(missing_ok=True)
    except FileNotFoundError as error:  # the folder is there, but made by the system, as in /proc
        if not trial.parent.exists() or not _has_current_folder():
            raise
        raise PermissionError(errno.EPERM, "", str(trial)) from error


def require_writable_file(path: Path, free_bytes: int = 0) -> None:
    """Refuse a path at which no file can be written or replaced; nothing is left behind."""
    _require_text(path)
    with refusals(path, doing="written"):
        target = _behind_links(path)
        _require_replaceable(target)
        _deepest_existing(target)
    require_writable_folder(target.parent, free_bytes)


def require_space(folder: Path, wanted_bytes: int, largest_file: int | None = None) -> None:
    """Refuse a folder whose file system has less room than what will be written there.

    ``largest_file`` is the largest single file, ``wanted_bytes`` if it is None.
    """
    with refusals(folder, doing="written"):
        usage = shutil.disk_usage(_deepest_existing(folder))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    largest = wanted_bytes if largest_file is None else largest_file
    if limit not in (resource.RLIM_INFINITY, -1) and limit < largest:
        raise refusal(OSError(errno.EFBIG, ""), folder, doing="written", wanted_bytes=largest)
    if usage.total and usage.free < wanted_bytes:
        raise refusal(OSError(errno.ENOSPC, ""), folder, doing="written", wanted_bytes=wanted_bytes)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and its parents, unless they exist."""
    _require_text(folder)
    with refusals(folder, doing="made"):
        _make(folder, mode)


@contextmanager
def file_in_one_step(
    path: Path, *, wanted_bytes: int | None = None, mode: int = 0o666, replaces: bool = True
) -> Iterator[Path]:
    """Give the block another path to write to, and move the result to ``path`` if it succeeds.

    A reader sees the old file or the complete new one, also after a crash of the machine. If the
    block fails, what it wrote is removed. ``wanted_bytes`` is for the message of a full disk.
    The folder is created. A link is followed: the file that it names is replaced. Without
    ``replaces``, a file that exists by then is kept, and the new one is refused.
    """
    _require_text(path)
    with refusals(path, doing="written", wanted_bytes=wanted_bytes):
        target = _behind_links(path)
        _require_replaceable(target)
        _make(target.parent)
        partial = _new_partial(target, mode)
    try:
        with _written_as({partial: path}, path, wanted_bytes):
            yield partial
            sync(partial)
            _give_name(partial, target, replaces)
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666, replaces: bool = True) -> None:
    """Write a file in one step, see ``file_in_one_step``."""
    size = len(data)
    with file_in_one_step(path, wanted_bytes=size, mode=mode, replaces=replaces) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 in one step, see ``file_in_one_step``."""
    write_bytes(path, text.encode())


def append_line(path: Path, text: str) -> None:
    """Add a line to a UTF-8 file, whole or not at all unless the process is killed meanwhile.

    A line that was cut by a killed process is ended first, so that it spoils no other line.
    """
    line = text.encode() + b"\n"
    with refusals(path, doing="written", wanted_bytes=len(line)), path.open("ab+", 0) as file:
        size = file.tell()
        if size:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "")
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def folder_in_one_step(
    folder: Path, *, last: str = "", wanted_bytes: int | None = None
) -> Iterator[Path]:
    """Give the block an empty folder to write files to, and move them to ``folder`` at its end.

    Nothing gets a final name unless the block succeeds and everything is on the disk. Files are
    moved one by one, ``last`` at the end: readers of several files need a way to notice a mix of
    old and new ones. Other files of the folder stay.
    """
    make_folder(folder)
    with refusals(folder, doing="written", wanted_bytes=wanted_bytes):
        _remove_abandoned(folder, f".*{PARTIAL}")
        staging = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=folder))
    try:
        with _written_as({staging: folder}, folder, wanted_bytes):
            yield staging
            _move_all(staging, folder, last)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_all(staging: Path, folder: Path, last: str) -> None:
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    targets = {file: _behind_links(folder / file.relative_to(staging)) for file in files}
    for file, target in targets.items():
        _require_replaceable(target)
        sync(file)
    for file, target in sorted(targets.items(), key=lambda pair: pair[0].name == last):
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    for parent in {target.parent for target in targets.values()}:
        _sync_folder(parent)


@contextmanager
def _written_as(names: Mapping[Path, Path], path: Path, wanted_bytes: int | None) -> Iterator[None]:
    """Refusals that call an unfinished file by its final name."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # of a network that the block reads from
    except OSError as error:
        given, doing = _subject(error, path), "written" if not _has_name(error) else "used"
        for unfinished, final in names.items():
            if given.is_relative_to(unfinished):
                given, doing = final / given.relative_to(unfinished), "written"
        plain = OSError(_number_of(error), error.strerror or str(error))
        known = wanted_bytes if wanted_bytes is not None else _size_of(*names)
        raise refusal(plain, given, doing=doing, wanted_bytes=known) from error


def _size_of(unfinished: Path) -> int | None:
    """Bytes of what was written before the disk was full: at least so many are wanted."""
    with suppress(OSError):
        files = [unfinished, *unfinished.rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file()) or None
    return None


def _new_partial(target: Path, mode: int) -> Path:
    """Create the unfinished file next to its final place, with a name that no process else has."""
    name = os.fsencode(target.name)[:LONGEST_NAME_PART].decode(errors="ignore")
    _remove_abandoned(target.parent, f".{escape(name)}.*{PARTIAL}")
    partial = target.with_name(f".{name}.{token_hex(4)}{PARTIAL}")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    return partial


def _give_name(partial: Path, target: Path, replaces: bool) -> None:
    if replaces:
        partial.replace(target)
        return
    try:
        os.link(partial, target)  # unlike a renaming, it never replaces a file
    except FileExistsError:
        raise
    except OSError as error:  # some file systems have no second names of a file
        if target.exists():
            raise FileExistsError(errno.EEXIST, "", str(target)) from error
        partial.replace(target)


def _remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove unfinished files of this name that a killed process left."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime < ABANDONED_AFTER_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _require_text(path: Path) -> None:
    """Refuse names that JSON documents, logs and other programs cannot carry."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise PathUnusable(
            f"{shown} can't be used: the name is not UTF-8.", hint="Choose another name."
        ) from error
    if "\0" in str(path):
        raise PathUnusable(f"{str(path)!r} can't be used: it contains a NUL.", hint=_NAME)


def _behind_links(path: Path) -> Path:
    """What the path's links lead to; refuse a link to nothing."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if not target.is_symlink() and not target.exists():
        raise PathUnusable(
            f"{path} can't be used: it is a link to {target}, which does not exist.",
            hint="Remove the link, or create what it leads to.",
        )
    return target


def _require_replaceable(target: Path) -> None:
    """Refuse a path that something has which a file cannot replace."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "", str(target))
    if not stat.S_ISREG(found.st_mode):
        raise PathUnusable(
            f"{target} can't be written: it is a device or pipe, not a file.",
            hint="Give the path of a file.",
        )
    parent, user = target.parent.stat(), os.geteuid()
    if parent.st_mode & stat.S_ISVTX and user not in (0, found.st_uid, parent.st_uid):
        raise PermissionError(errno.EPERM, "", str(target))


def _make(folder: Path, mode: int = 0o777) -> None:
    if _deepest_existing(folder) == folder and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "", str(folder))
    folder.mkdir(mode, parents=True, exist_ok=True)


def _deepest_existing(path: Path) -> Path:
    """The path or its deepest parent that exists."""
    found = path
    while True:
        try:
            found.stat()
        except FileNotFoundError:
            _behind_links(found)
            if found == found.parent:
                raise
            found = found.parent
        else:
            break
    missing = path.relative_to(found).parts
    if missing and not found.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "", str(path))
    if missing and max(len(os.fsencode(part)) for part in missing) > _longest_name(found):
        raise OSError(errno.ENAMETOOLONG, "", str(path))
    return found


def _longest_name(folder: Path) -> int:
    """Bytes that a name in this folder may have."""
    with suppress(OSError, ValueError):
        return os.pathconf(folder, "PC_NAME_MAX")
    return LONGEST_NAME


def _number_of(error: OSError) -> int:
    """The error's number, from its text if a library left it out; 0 if it is unknown."""
    if error.errno:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found.group(1)) if found else _NUMBERS.get(type(error), 0)


def _subject(error: OSError, path: Path | None) -> Path:
    """The path that an error is about."""
    if _has_name(error):
        return Path(os.fsdecode(error.filename))
    return path if path is not None else Path("a file")


def _has_name(error: OSError) -> bool:
    return isinstance(error.filename, str | bytes | os.PathLike)


def _file_within(path: Path) -> str | None:
    """Tell which part of a path is a file although it must be a folder."""
    for part in (path, *path.parents):
        with suppress(OSError):
            if part.exists() and not part.is_dir():
                return f"{part if part != path else 'it'} is a file, not a folder"
    return None


def _has_current_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _bytes_text(path: Path, wanted_bytes: int | None) -> str:
    """How many bytes are wanted and how many there are, as far as it is known."""
    parts = [] if wanted_bytes is None else [f"at least {wanted_bytes:,} bytes are wanted"]
    with suppress(OSError, PathUnusable):
        free = shutil.disk_usage(_deepest_existing(path)).free
        parts.append(f"{free:,} bytes are free")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit not in (resource.RLIM_INFINITY, -1):
        parts.append(f"a file may have {limit:,}")
    return f" ({', '.join(parts)})" if parts else ""


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a crash of the machine."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sync_folder(folder: Path) -> None:
    """Make a renaming lasting; some file systems cannot, and some folders cannot be read."""
    with suppress(OSError):
        sync(folder)
