"""DuckDB: parses text tables, and groups and sorts events that do not fit into memory.

Decision 0083 says why. A connection has a limit of memory and a folder of its own for what does
not fit; the folder is removed in the end. No exception of the library leaves this module.
"""

import errno
import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from peterrec.model.data.forms import DataFile
from peterrec.model.errors import ScratchFull
from peterrec.model.scratch import ScratchFolder

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GiB",  # 100 million events sort as fast with it as with twice as much
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""Settings of every connection. What does not fit into its memory goes to its folder."""

TEXT_BATCH_ROWS = 1 << 19
"""Rows of a text table that are taken at a time."""

LONGEST_LINE_BYTES = 1 << 24
"""The longest row of a text table; DuckDB keeps a buffer of this size for each thread."""

NO_ROOM = ("No space left", "max_temp_directory_size", "Disk quota", errno.errorcode[errno.ENOSPC])


Connection = duckdb.DuckDBPyConnection


@contextmanager
def connected() -> Iterator[Connection]:
    """A database in memory with a limit and a folder for the rest. It uses the cores we may use."""
    with _scratch() as scratch:
        cores = len(os.sched_getaffinity(0))
        config = {**SETTINGS, "threads": cores, "temp_directory": scratch}
        connection = duckdb.connect(config=config)
        # Without its bar, DuckDB counts no progress. It must not print the bar.
        connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
        try:
            yield connection
        except duckdb.InterruptException as error:
            raise KeyboardInterrupt from error
        finally:
            connection.close()


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder that lasts as long as a connection."""
    try:
        folder = ScratchFolder()
    except OSError as error:
        raise ScratchFull(
            f"no folder for what does not fit into memory: {error.strerror or error}.",
            hint="Set the environment variable TMPDIR to a folder that may be written to.",
        ) from error
    with folder as path:
        yield str(path)


@contextmanager
def room_errors() -> Iterator[None]:
    """Translate what DuckDB says when neither its memory nor the disk has room."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        reason = str(error).splitlines()[0]
        if any(text in reason for text in NO_ROOM):
            reason = "the disk is full"
        raise ScratchFull(
            f"no room to put the events in order in {tempfile.gettempdir()}: {reason}.",
            hint="Make room there, or set the environment variable TMPDIR to a folder with more.",
        ) from error


def scan_text(
    connection: Connection, file: DataFile, columns: Sequence[str], batch_rows: int | None = None
) -> pa.RecordBatchReader:
    """Columns of a text table as texts, in the file's order; an empty field is null.

    A header is the first row: DuckDB would take an empty line before it for one.
    Rows of another number of fields, broken quotes and bytes that are not UTF-8 are errors of
    DuckDB or pyarrow, raised while the batches are taken.
    """
    assert file.form is not None
    places = {name: f"c{place}" for place, name in reversed(list(enumerate(file.names)))}
    quote = '"' if file.form.has_quotes else ""
    table = connection.read_csv(
        glob.escape(str(file.path)),  # DuckDB takes a path for a pattern
        columns={f"c{place}": "VARCHAR" for place in range(len(file.names))},
        auto_detect=False,
        header=False,
        delimiter=file.form.delimiter,
        quotechar=quote,
        escapechar=quote,
        strict_mode=True,
        na_values="",
        compression=file.form.packing,
        max_line_size=LONGEST_LINE_BYTES,
        hive_partitioning=False,
    )
    wanted = ", ".join(f"{places[column]} AS w{n}" for n, column in enumerate(columns))
    reader: pa.RecordBatchReader = table.project(wanted).to_arrow_reader(
        batch_rows or TEXT_BATCH_ROWS
    )
    return reader
