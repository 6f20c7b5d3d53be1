"""Where the data of recorded trainings are now: found by name, and proved by digest."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.errors import DiskFull, PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind
from peterrec.service.errors import (
    TrainingDataChanged,
    TrainingDataMissing,
    TrainingUnrepeatable,
)
from peterrec.service.jobs.task_data import TaskData

MOST_FOUND = 20
"""Files of one name that are looked at, to find the one with the right digest."""

Look = Callable[[Path], Iterable[Path]]
"""Yields the places at which a recorded path may be now, the likeliest first."""

DIGESTS = ("histories_digest", "labels_digest")


def look_below(folders: Sequence[Path]) -> Look:
    """Look in these folders and below them, and nowhere else: records are anybody's texts.

    A recorded ``shop/users.csv`` is looked for as that in each folder, then as ``users.csv``, and
    then as ``users.csv`` further below.
    """

    def look(recorded: Path) -> Iterator[Path]:
        parts = [part for part in recorded.parts if part not in ("..", recorded.anchor)]
        if not parts:
            return
        near = [folder.joinpath(*parts[at:]) for folder in folders for at in range(len(parts))]
        yield from (path for path in near if path.exists())
        for folder in folders:
            yield from (path for path in _named(folder, parts[-1]) if path not in near)

    return lambda recorded: islice(look(recorded), MOST_FOUND)


def look_from(folder: Path) -> Look:
    """Take paths as they are written, relative to a folder."""
    return lambda written: [folder / written] if (folder / written).exists() else []


def _named(folder: Path, name: str) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        if name in folders or name in files:
            yield Path(place) / name


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a training was on: the kind of its task, and the digests of its data."""

    kind: HeadKind
    histories_digest: str
    labels_digest: str

    @classmethod
    def of(cls, kind: HeadKind, recorded: Mapping[str, object]) -> "Wanted":
        """Read the recorded digests; TrainingUnrepeatable if there are none."""
        histories, labels = (recorded.get(name) for name in DIGESTS)
        if not isinstance(histories, str) or not isinstance(labels, str):
            raise TrainingUnrepeatable("its bundle has no digests of the data of its training")
        return cls(kind, histories, labels)


class DataFinder:
    """Finds data by their digests; tasks with the same data read them once."""

    def __init__(self, observer: ReadingObserver) -> None:
        self._observer = observer
        self._histories: dict[InteractionSource, str] = {}

    def find(self, data: TaskData, look: Look, wanted: Wanted) -> TaskData:
        """The data with their paths where they are now.

        TrainingDataMissing or TrainingDataChanged if they are nowhere, or only something else is.
        """
        events = self._place_of(
            data.events.interactions,
            look,
            lambda path: self._histories_digest(_with_events(data, path).histories_source),
            wanted.histories_digest,
        )
        data = _with_events(data, events)
        is_ranking = KINDS[wanted.kind].answers == "items"
        recorded = data.answers.targets if is_ranking else data.answers.labels
        if recorded is not None:
            answers = self._place_of(
                recorded,
                look,
                lambda path: self._labels_digest(_with_answers(data, path, is_ranking), wanted),
                wanted.labels_digest,
            )
            data = _with_answers(data, answers, is_ranking)
        elif not is_ranking or data.time.cut_off is None:
            raise TrainingUnrepeatable("nothing says where its answers were")
        elif self._labels_digest(data, wanted) != wanted.labels_digest:
            raise TrainingDataChanged(str(events), "its later events have another digest")
        return data

    def _place_of(
        self, recorded: Path, look: Look, digest: Callable[[Path], str], wanted: str
    ) -> Path:
        """The first place whose data have the digest."""
        found: list[Path] = []
        why = ""
        for path in look(recorded):
            found.append(path)
            try:
                if digest(path) == wanted:
                    return path
                why = why or "its digest is another one"
            except DiskFull:
                raise
            except PeterRecError as error:
                why = why or error.message.rstrip(".")
        if not found:
            raise TrainingDataMissing(str(recorded))
        raise TrainingDataChanged(", ".join(map(str, found)), why)

    def _histories_digest(self, source: InteractionSource) -> str:
        if source not in self._histories:
            self._histories[source] = read_histories(source, self._observer).digest()
        return self._histories[source]

    def _labels_digest(self, data: TaskData, wanted: Wanted) -> str:
        return data.answers_source.read(wanted.kind, self._observer).digest()


def _with_events(data: TaskData, path: Path) -> TaskData:
    return replace(data, events=replace(data.events, interactions=path))


def _with_answers(data: TaskData, path: Path, is_ranking: bool) -> TaskData:
    """The data with the answers of the task's kind alone, at a path."""
    labels, targets = (None, path) if is_ranking else (path, None)
    return replace(data, answers=replace(data.answers, labels=labels, targets=targets))
