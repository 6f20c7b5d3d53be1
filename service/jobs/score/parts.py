"""Parts of the output: files that get their names only when all of a part is on the disk."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.user_rows import BadRow
from peterrec.model.disk import PARTIAL, make_folder, refusals, sync

BAD_ROWS = "_bad_rows"
"""Folder of the rows that could not be scored, one JSON object per line."""

CODEC = "zstd"
"""Compression of the tables: a little smaller than snappy's and no slower to write."""

FEW_VALUES = ("used_items", "unknown_items", "label", "tags.list.element", "items.list.element")
"""Columns that are written as numbers of a dictionary. Ids and scores hardly ever repeat: there the
dictionary would take most of the time, and make the file larger."""


class PartWriter:
    """Writes one part: a Parquet file for each table, and the bad rows. Used by one thread.

    ``folders`` has the folder of each table below ``out``, and ``metadata`` what is written into
    its files.
    """

    def __init__(
        self,
        out: Path,
        part: int,
        folders: Mapping[str, str],
        metadata: Mapping[str, Mapping[bytes, bytes]],
    ) -> None:
        self._out, self._part = out, part
        self._folders, self._metadata = folders, metadata
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._bad: list[BadRow] = []
        self._partials: list[tuple[Path, Path]] = []

    def add(self, tables: Mapping[str, pa.Table], bad: Sequence[BadRow]) -> None:
        """Write some users' answers."""
        self._bad += bad
        for name, table in tables.items():
            target = self._out / self._folders[name] / f"part-{self._part:05}.parquet"
            with refusals(target, doing="written", wanted_bytes=table.nbytes):
                self._writer(name, table.schema, target).write_table(table)

    def finish(self) -> dict[str, int]:
        """Give all files their names; returns their sizes by their paths below ``out``."""
        if self._bad:
            target = self._out / BAD_ROWS / f"part-{self._part:05}.ndjson"
            write_bad_rows(self._new(target), self._bad)
        for writer in self._writers.values():
            with refusals(self._out, doing="written"):
                writer.close()
        sizes: dict[str, int] = {}
        for partial, target in self._partials:
            with refusals(target, doing="written"):
                sync(partial)
                sizes[str(target.relative_to(self._out))] = partial.stat().st_size
                partial.replace(target)
        for folder in {target.parent for _, target in self._partials}:
            with suppress(OSError):  # some file systems can't
                sync(folder)
        return sizes

    def abandon(self) -> None:
        """Remove what was written of the part."""
        for writer in self._writers.values():
            with suppress(OSError, pa.ArrowException):
                writer.close()
        for partial, _ in self._partials:
            partial.unlink(missing_ok=True)

    def _writer(self, name: str, schema: pa.Schema, target: Path) -> pq.ParquetWriter:
        if name not in self._writers:
            schema = schema.with_metadata(dict(self._metadata[name]))
            self._writers[name] = pq.ParquetWriter(
                self._new(target), schema, compression=CODEC, use_dictionary=[*FEW_VALUES]
            )
        return self._writers[name]

    def _new(self, target: Path) -> Path:
        make_folder(target.parent)
        partial = target.parent / f".{target.name}{PARTIAL}"
        self._partials.append((partial, target))
        return partial


def write_bad_rows(path: Path, bad: Sequence[BadRow], *, is_first: bool = True) -> None:
    """Write bad rows, one JSON object per line, after those before unless they are the first."""
    make_folder(path.parent)
    mode = "w" if is_first else "a"
    with refusals(path, doing="written"), path.open(mode, encoding="utf-8") as file:
        for row in bad:
            fields = asdict(row)
            del fields["at"]
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def remove_output(out: Path, folders: Sequence[str], state: str) -> None:
    """Remove the files of an earlier run, and nothing else; the journal first."""
    for path in _files_of(out / state, "journal.ndjson"):
        path.unlink(missing_ok=True)
    for folder in (*folders, BAD_ROWS):
        for pattern in (
            "part-*.parquet",
            "part-*.ndjson",
            "events.ndjson",
            "*.npy",
            f".*{PARTIAL}",
        ):
            for path in _files_of(out / folder, pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            (out / folder).rmdir()


def remove_partials(out: Path, folders: Sequence[str]) -> None:
    """Remove what a killed run left unfinished."""
    for folder in (*folders, BAD_ROWS):
        for path in _files_of(out / folder, f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


def _files_of(folder: Path, pattern: str) -> list[Path]:
    return [*folder.glob(pattern)] if folder.is_dir() else []
