"""Converts ColdRec files, in which PeterRec's data were published, to Parquet tables.

One line is one user: item ids separated by commas, oldest first, padded on the left with zeros to
equal length. In fine-tuning files, two commas and the answers follow: target items or a class.
Users have no ids, so a user's id is the number of the line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from peterrec.model.data.forms import find_data_files
from peterrec.model.data.observer import SILENT, FilesRead, ReadingObserver
from peterrec.model.disk import folder_in_one_step
from peterrec.model.errors import DataFileEmpty, DataFileMissing, DataFileUnreadable
from peterrec.model.progress import Progress

PADDING = "0"
ANSWERS_BEHIND = ",,"

REPORT_EVERY = 1 << 10
"""Users between two reports of progress."""

BATCH_EVENTS = 1 << 20
"""Events in memory before they are written."""


@dataclass(frozen=True, slots=True)
class ColdRecFile:
    """Counts of one file; ``answers`` is 0 for a file to pretrain on."""

    name: str
    users: int
    events: int
    answers: int


def convert_coldrec(path: Path, out: Path, observer: ReadingObserver = SILENT) -> list[ColdRecFile]:
    """Write ``NAME/histories.parquet`` of each file of a folder, or of one file.

    A fine-tuning file also gives ``NAME/targets.parquet``, whose column ``target`` is what
    ``--target-column`` or ``--label-column`` names.
    """
    found = (file.path for file in find_data_files(path).files)
    files = [file for file in found if file.name.endswith((".csv", ".csv.gz"))]
    if not files:
        raise DataFileMissing(f"{path} is not a ColdRec .csv file.", hint="Check the path.")
    observer.files(FilesRead(str(path), len(files), sum(file.stat().st_size for file in files)))
    return [_convert_file(file, out / file.name.split(".csv")[0], observer) for file in files]


def _convert_file(path: Path, out: Path, observer: ReadingObserver) -> ColdRecFile:
    with folder_in_one_step(out) as place:
        with _Rows(place / "histories.parquet", "item_id") as items:
            targets = _Rows(place / "targets.parquet", "target")
            with targets:
                for done, (user, history, answers) in enumerate(_users(path)):
                    if done % REPORT_EVERY == 0:
                        observer.progress(Progress(f"converting {path.name}", done, unit="users"))
                    items.add(user, history)
                    targets.add(user, answers)
        if not items.users:
            raise DataFileEmpty(f"{path} has no users.", hint="Check the file.")
        if not targets.rows:
            (place / "targets.parquet").unlink()
    return ColdRecFile(out.name, items.users, items.rows, targets.rows)


def _users(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every line's number, items and answers. All lines must have answers, or none."""
    has_answers: bool | None = None
    for number, line in _lines(path):
        source, behind, answers = line.partition(ANSWERS_BEHIND)
        if has_answers not in (None, bool(behind)):
            what = "no answers, but the lines before" if has_answers else "answers, unlike those"
            raise _unreadable(path, number, f"the line has {what} before it")
        has_answers = bool(behind)
        items = source.split(",")
        first = next((at for at, item in enumerate(items) if item != PADDING), len(items))
        _require_ids(path, number, items, first)
        targets = answers.split(",") if behind else []
        _require_ids(path, number, [*items, "", *targets], len(items) + 1, zero_is_padding=False)
        yield str(number), items[first:], targets


def _require_ids(
    path: Path, number: int, fields: list[str], first: int, zero_is_padding: bool = True
) -> None:
    for column, text in enumerate(fields[first:], first + 1):
        if not text:
            raise _unreadable(path, number, f"column {column} is empty")
        if zero_is_padding and text == PADDING:
            raise _unreadable(path, number, f"column {column} is padding after an item")


def _unreadable(path: Path, number: int, what: str) -> DataFileUnreadable:
    return DataFileUnreadable(
        f"{path}, line {number}: {what}.",
        hint="A line is item,item,… or item,item,…,,answer,…, with zeros only at its beginning.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers counted from 1."""
    with (
        pa.input_stream(path) as stream,  # decompresses by the file's suffix
        TextIOWrapper(stream, "ascii", errors="surrogateescape") as lines,
    ):
        for number, line in enumerate(lines, 1):
            if not line.isascii():
                raise _unreadable(path, number, "the line holds more than digits and commas")
            if text := line.strip():
                yield number, text


@dataclass(slots=True)
class _Rows:
    """A Parquet file of user, value and position that is written batch by batch."""

    path: Path
    column: str
    users: int = 0
    rows: int = 0
    _writer: pq.ParquetWriter | None = None
    _of_user: list[str] = field(default_factory=list)
    _values: list[str] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)

    def __enter__(self) -> "_Rows":
        schema = pa.schema(
            [("user_id", pa.string()), (self.column, pa.string()), ("position", pa.int64())]
        )
        self._writer = pq.ParquetWriter(self.path, schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._writer is not None
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, user: str, values: list[str]) -> None:
        """Add one user's values, in order."""
        self.users += bool(values)
        self.rows += len(values)
        self._of_user += [user] * len(values)
        self._values += values
        self._positions += range(len(values))
        if len(self._values) >= BATCH_EVENTS:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        columns = [self._of_user, self._values, self._positions]
        self._writer.write_table(pa.table(columns, schema=self._writer.schema))
        self._of_user, self._values, self._positions = [], [], []
