"""One run of bulk scoring: reading, the device and writing overlap, in three threads.

Each hands blocks of users to the next through a queue of two, so memory does not depend on how many
users there are. The parts of the output are those of the input: so many rows each, the bad ones
too. A part is finished when the journal says so; a run that goes on begins after the last one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from peterrec.model.data.observer import FilesRead, ReadingObserver
from peterrec.model.data.user_rows import BadRow, UserRows
from peterrec.model.progress import Progress
from peterrec.patches.identity import format_digest
from peterrec.service.jobs.score.journal import Journal, PartDone
from peterrec.service.jobs.score.parts import BAD_ROWS, PartWriter, remove_partials, write_bad_rows
from peterrec.service.jobs.score.scorer import VECTORS, Prepared, Scored, Scorer
from peterrec.service.jobs.score.source import UserSource
from peterrec.service.jobs.score.vectors import write_numpy

PART_ROWS = 1 << 18
"""Rows of the input in one part: what a kill costs at most, some minutes on two cores."""

BLOCKS_WAITING = 2
"""Blocks that wait between two threads: enough that none waits for another's short pause."""

LOOK_S = 0.1
"""Seconds after which a thread that waits looks whether another one has failed."""

VECTORS_FOLDER = "_vectors"
"""Folder of the user vectors. Its name keeps it out of a table of all tasks."""

MANY_UNKNOWN = 0.5
"""The share of unknown items from which on the ids are probably written otherwise."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Work:
    """Some users of one part; ``is_last``: the part ends with them."""

    part: int
    rows: UserRows
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Done:
    """Nothing more comes."""


class _Stopped(Exception):
    """Another thread has failed, or the run is over."""


class Channel(Generic[Item]):
    """Hands items from one thread to another, a few at a time. It ends when ``stop`` is set."""

    def __init__(self, stop: Event) -> None:
        self._queue: Queue[Item | _Done] = Queue(BLOCKS_WAITING)
        self._stop = stop

    def put(self, item: Item) -> None:
        """Hand over an item, when there is room."""
        self._put(item)

    def end(self) -> None:
        """Say that nothing more comes."""
        self._put(_Done())

    def __iter__(self) -> Iterator[Item]:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                item = self._queue.get(timeout=LOOK_S)
            except Empty:
                continue
            if isinstance(item, _Done):
                return
            yield item

    def _put(self, item: Item | _Done) -> None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                self._queue.put(item, timeout=LOOK_S)
            except Full:
                continue
            return


class Stage(Protocol):
    """The work of one thread."""

    def run(self) -> None:
        """Do it until nothing more comes."""


class Threads:
    """Threads that stop together: the first failure of one is raised in the caller's."""

    def __init__(self) -> None:
        self.stop = Event()
        self._failures: list[BaseException] = []
        self._threads: list[Thread] = []

    def start(self, name: str, work: "Stage") -> None:
        """Run a stage in a thread of its own."""
        thread = Thread(target=self._run, args=(work,), name=name)
        self._threads.append(thread)
        thread.start()

    def _run(self, work: "Stage") -> None:
        try:
            work.run()
        except _Stopped:
            pass
        except BaseException as error:  # raised again in the caller's thread
            self._failures.append(error)
            self.stop.set()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all threads at the end of the block."""
        try:
            yield
        except _Stopped:
            pass
        except BaseException:
            self.stop.set()
            raise
        finally:
            for thread in self._threads:
                thread.join()
            if self._failures:
                raise self._failures[0]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run writes: ``vectors`` as Parquet, as numpy files, or not at all."""

    out: Path
    part_rows: int = PART_ROWS
    vectors: str | None = None


@dataclass(frozen=True, slots=True)
class RayPlace:
    """A Ray cluster: ``actors`` at most, each with a graphics card or with so many ``cores``."""

    address: str
    actors: int
    cores: int


@dataclass(slots=True)
class Report:
    """What a run has done, including what it had done before it went on."""

    rows: int = 0
    bad: int = 0
    items: int = 0
    unknown: int = 0
    parts: int = 0

    @property
    def unknown_share(self) -> float:
        """The share of items that the backbone does not know."""
        return self.unknown / self.items if self.items else 0.0


def run_score(
    scorer: Scorer,
    source: UserSource,
    journal: Journal,
    options: RunOptions,
    metadata: Mapping[str, object],
    observer: ReadingObserver,
) -> Report:
    """Score all users that the journal does not know as finished.

    ``metadata`` is written into every file, beside what belongs to its task.
    """
    if not journal.is_complete:
        _score_rest(scorer, source, journal, options, metadata, observer)
    return finish(journal, options)


def finish(journal: Journal, options: RunOptions) -> Report:
    """Do what is left when every part is finished."""
    if not journal.is_complete:
        if options.vectors == "npy":
            write_numpy(options.out / VECTORS_FOLDER)
        journal.end()
    return report_of(journal)


def report_of(journal: Journal) -> Report:
    """What the parts of a journal have together."""
    report = Report(parts=len(journal.parts))
    for part in journal.parts:
        report.rows += part.rows
        report.bad += part.bad
        report.items += part.items
        report.unknown += part.unknown
    return report


def folders_of(tasks: Sequence[str], vectors: str | None) -> dict[str, str]:
    """The folder of each table below the output."""
    folders = {name: f"task={name}" for name in tasks}
    return folders | ({VECTORS: VECTORS_FOLDER} if vectors else {})


def _score_rest(
    scorer: Scorer,
    source: UserSource,
    journal: Journal,
    options: RunOptions,
    metadata: Mapping[str, object],
    observer: ReadingObserver,
) -> None:
    folders = folders_of([task.name for task, _ in scorer.details()], options.vectors)
    remove_partials(options.out, [*folders.values()])
    threads = Threads()
    output = Output(options.out, folders, metadata_of(scorer, metadata))
    prepared: Channel[tuple[Work, Prepared]] = Channel(threads.stop)
    scored: Channel[tuple[Work, Scored]] = Channel(threads.stop)
    reading = Reader(scorer, source, journal.rows, options, prepared, observer)
    with threads.together():
        threads.start("reader", reading)
        threads.start("writer", Writer(scorer, journal, output, scored, reading.tell))
        for work, ready in prepared:
            scored.put((work, scorer.score(ready)))
        scored.end()


def metadata_of(scorer: Scorer, common: Mapping[str, object]) -> dict[str, dict[bytes, bytes]]:
    """What each table's files say of themselves, as JSON under the key ``peterrec``."""
    found = {
        task.name: {
            "task": task.name,
            "digest": format_digest(task.bundle.digest),
            "version": task.version,
            **about,
            **common,
        }
        for task, about in scorer.details()
    }
    found[VECTORS] = dict(common)
    return {
        name: {b"peterrec": json.dumps(about, ensure_ascii=False).encode()}
        for name, about in found.items()
    }


class Reader:
    """Reads users, skips those that are finished, cuts the others into blocks and maps items."""

    def __init__(
        self,
        scorer: Scorer,
        source: UserSource,
        finished: int,
        options: RunOptions,
        out: Channel[tuple[Work, Prepared]],
        observer: ReadingObserver,
    ) -> None:
        self._scorer, self._source, self._finished = scorer, source, finished
        self._options, self._out = options, out
        self._bar = _Bar(observer, source.total_rows(), is_grouped=source.form == "events")

    def run(self) -> None:
        """Read to the end."""
        for work in works(self._blocks(), self._finished, self._options.part_rows):
            self._out.put((work, self._scorer.prepare(work.rows)))
        self._out.end()

    def tell(self, rows: int) -> None:
        """Show how many rows are finished."""
        self._bar.tell(rows)

    def _blocks(self) -> Iterator[UserRows]:
        most = self._scorer.block_users
        for rows in self._source.rows(self._keep_bad_events, self._bar):
            self._bar.read += len(rows)
            yield from rows.cut(most)

    def _keep_bad_events(self, bad: Sequence[BadRow]) -> None:
        path = self._options.out / BAD_ROWS / "events.ndjson"
        write_bad_rows(path, bad, is_first=not self._bar.bad_events)
        self._bar.bad_events += len(bad)


def works(blocks: Iterator[UserRows], finished: int, part_rows: int) -> Iterator[Work]:
    """Cut blocks at the ends of parts. The first ``finished`` rows are left out."""
    held: Work | None = None
    for start, rows in _starts(blocks):
        if start + len(rows) <= finished:
            continue
        if start < finished:
            _, rows = rows.split(finished - start)
            start = finished
        while len(rows):
            room = part_rows - start % part_rows
            block, rest = rows.split(room) if len(rows) > room else (rows, None)
            if held is not None:
                yield held
            held = Work(start // part_rows, block, len(block) == room)
            start += len(block)
            if rest is None:
                break
            rows = rest
    if held is not None:
        yield Work(held.part, held.rows, True)


def _starts(blocks: Iterator[UserRows]) -> Iterator[tuple[int, UserRows]]:
    start = 0
    for rows in blocks:
        yield start, rows
        start += len(rows)


@dataclass(frozen=True, slots=True)
class Output:
    """Where tables are written, and what their files say of themselves."""

    out: Path
    folders: Mapping[str, str]
    metadata: Mapping[str, Mapping[bytes, bytes]]

    def part(self, number: int) -> PartWriter:
        """The writer of a part."""
        return PartWriter(self.out, number, self.folders, self.metadata)


class Writer:
    """Makes tables of what the device has computed, writes them, and finishes parts."""

    def __init__(
        self,
        scorer: Scorer,
        journal: Journal,
        output: Output,
        given: Channel[tuple[Work, Scored]],
        tell: Callable[[int], None],
    ) -> None:
        """``tell`` gets the number of rows that are written."""
        self._scorer, self._journal, self._output = scorer, journal, output
        self._given, self._tell = given, tell

    def run(self) -> None:
        """Write to the end."""
        part: OpenPart | None = None
        done = self._journal.rows
        try:
            for work, scored in self._given:
                part = part or OpenPart(self._output.part(work.part))
                part.add(work, self._scorer.tables(scored), scored.prepared)
                done += len(work.rows)
                if work.is_last:
                    self._journal.add(part.finish(work.part))
                    part = None
                self._tell(done)
        finally:
            if part is not None:
                part.writer.abandon()


@dataclass(slots=True)
class OpenPart:
    """A part that is being written, and what it has so far."""

    writer: PartWriter
    rows: int = 0
    bad: int = 0
    items: int = 0
    unknown: int = 0

    def add(self, work: Work, tables: Mapping[str, pa.Table], prepared: Prepared) -> None:
        """Write a block of the part."""
        self.writer.add(tables, work.rows.bad)
        self.rows += len(work.rows)
        self.bad += len(work.rows.bad)
        self.items += len(work.rows.items)
        self.unknown += int(np.sum(prepared.tokens.unknown))

    def finish(self, number: int) -> PartDone:
        """Give its files their names."""
        files = self.writer.finish()
        return PartDone(number, self.rows, self.bad, self.items, self.unknown, files)


@dataclass(slots=True)
class _Bar:
    """Shows how many users are scored, of how many as far as that can be told."""

    observer: ReadingObserver
    total: int
    is_grouped: bool
    read: int = 0
    bad_events: int = 0
    share: float = 0.0

    def files(self, read: FilesRead) -> None:
        """Pass on the list of files."""
        self.observer.files(read)

    def notice(self, text: str) -> None:
        """Pass on a sentence."""
        self.observer.notice(text)

    def progress(self, progress: Progress) -> None:
        """Take how far the users are read, as the bar counts users; pass on what is before that."""
        if progress.phase == ("grouping" if self.is_grouped else "reading"):
            self.share = progress.done / max(1, progress.total)
        else:
            self.observer.progress(progress)

    def tell(self, rows: int) -> None:
        """Show how many rows are finished."""
        total = self.total
        if not total and self.share:
            total = max(rows + 1, round(self.read / self.share))
        self.observer.progress(Progress("scoring", rows, total, unit="users"))
