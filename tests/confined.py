"""Programs started as in a hardened container: as a user whom nobody knows, without a home, on a
root file system that can't be written, with the folders that are mounted into it.

It takes root and Linux: namespaces and mounts of the kernel, as a container's, without its tools.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STRANGER = 54321
"""A user and group id that no list of users has."""

ETC = ("passwd", "group", "nsswitch.conf", "ssl", "ld.so.cache", "alternatives", "localtime")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *(f"/etc/{name}" for name in ETC))
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

ENTER = r"""
root=$1 image=$2 mode=$3; shift 3
if [ -d "$image" ]; then mount --bind "$image" "$root"
else mount -t tmpfs -o mode=755,nosuid root "$root"; fi
while [ "$1" != -- ]; do
    how=$1 from=$2 to=$root$3; shift 3
    if [ -f "$from" ] || [ -c "$from" ]; then
        mkdir -p "${to%/*}"; [ -e "$to" ] || : > "$to"
    else mkdir -p "$to"; fi
    case $how in
        tmpfs) mount -t tmpfs -o mode=1777 none "$to" ;;
        *) mount --bind "$from" "$to" ;;
    esac
    case $how in ro) mount -o remount,bind,ro "$to" ;; esac
done
shift
mkdir -p "$root/proc"
mount --rbind /proc "$root/proc"
if [ -d "$image" ]; then mode=bind,$mode; fi
mount -o "remount,$mode" "$root"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Mount:
    """A file or folder that the program sees, by its own path or another; by itself to be read.

    Without a source it is an empty folder, which everybody may write.
    """

    source: Path | None
    target: str = ""
    is_writable: bool = False

    def words(self) -> list[str]:
        """The three words that `ENTER` reads."""
        if self.source is None:
            return ["tmpfs", "-", self.target]
        mode = "rw" if self.is_writable else "ro"
        return [mode, str(self.source), self.target or str(self.source)]


@dataclass(frozen=True)
class Cell:
    """Where a program is to run: ``root`` is an empty folder, ``place`` the current one in it.

    ``environment`` has the words of env(1) before the command. ``image`` is the root file system;
    without one, there is what this machine has in `SYSTEM`.
    """

    root: Path
    mounts: tuple[Mount, ...]
    place: str
    user: int = STRANGER
    group: int = STRANGER
    environment: tuple[str, ...] = ()
    is_read_only: bool = True
    image: Path | None = None

    def enter(self) -> list[str]:
        """The words before a command that has it run here; the process id stays the same."""
        own = [*(() if self.image else SYSTEM), *DEVICES]
        found = [Mount(Path(each)) for each in own if Path(each).exists()]
        mounted = [word for mount in (*found, *self.mounts) for word in mount.words()]
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh"]
        ids = ["--reuid", str(self.user), "--regid", str(self.group), "--clear-groups"]
        powers = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        return [
            *(*namespace, str(self.root), str(self.image or "-")),
            *("ro" if self.is_read_only else "rw", *mounted, "--"),
            *("setpriv", *ids, *powers),
            *("env", "-C", self.place, *self.environment),
        ]


def stranger(root: Path, readable: Iterable[Path], writable: Path) -> list[str]:
    """Return the words before a command of these tests that has it run without a home.

    The command sees ``readable``, the system's programs, and ``writable``, where it starts and
    which becomes its own. Of the variables it gets those that are about Python and its settings.
    """
    os.chown(writable, STRANGER, STRANGER)
    kept = ("PETERREC_", "PYTHON", "OMP_")
    hidden = [word for name in os.environ if not name.startswith(kept) for word in ("-u", name)]
    mounts = (*map(Mount, readable), Mount(writable, is_writable=True))
    plain = ("HOME=/nonexistent", "PATH=/usr/bin:/bin")
    return Cell(root, mounts, str(writable), environment=(*hidden, *plain)).enter()


@functools.cache
def why_not() -> str:
    """Return why no such program can be started here; empty if it can."""
    if os.geteuid() != 0:
        return "only root may start programs as another user with a read-only root"
    if not all(shutil.which(name) for name in ("unshare", "setpriv", "chroot")):
        return "unshare, setpriv and chroot of util-linux and coreutils are not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"this machine lets nobody mount: {tried.stderr.strip()}" if tried.returncode else ""
