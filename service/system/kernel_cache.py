"""Where compiled kernels are kept on the disk."""

import os
from pathlib import Path

import structlog

from peterrec import model
from peterrec.model.disk import make_folder, require_writable_folder
from peterrec.model.errors import FileSystemRefusal

log = structlog.get_logger()

NUMBA, TRITON = "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"
"""Variables that the compilers read when they are imported."""


def choose_kernel_cache(given: Path | None, data_dir: Path) -> None:
    """Tell the compilers where to keep compiled kernels; call it before they are imported.

    They choose a folder beside the package or in the user's cache by themselves. If neither can be
    written, it is a folder of the data directory. FileSystemRefusal if ``given`` cannot be used.
    """
    if given is not None:
        _use(given, NUMBA, TRITON)
        return
    beside = Path(model.__file__ or "").parent / "inference" / "cpu" / "__pycache__"
    has_home = _is_writable(_home())
    lacking = [NUMBA] if not (has_home or _is_writable(beside)) else []
    lacking += [] if has_home else [TRITON]
    unset = [name for name in lacking if name not in os.environ]
    if unset:
        try:
            _use(data_dir / "kernels", *unset)
        except FileSystemRefusal as error:  # then they are compiled at every start
            log.warning("no_kernel_cache", reason=error.message)


def _use(folder: Path, *names: str) -> None:
    """Only the user may write there: code is loaded from it."""
    make_folder(folder, 0o700)
    require_writable_folder(folder)
    for name in names:
        os.environ[name] = str(folder.absolute())


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # neither HOME nor the list of users has it
        return None


def _is_writable(folder: Path | None) -> bool:
    if folder is None or not folder.is_absolute():
        return False
    try:
        require_writable_folder(folder)
    except FileSystemRefusal:
        return False
    return True
