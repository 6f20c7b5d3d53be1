"""Files as corpora for a comparison: MovieLens, two domains in one events file, or a task list."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from peterrec.model.data.convert.movielens import Film, MovieLens, read_movielens
from peterrec.model.data.files import history_lengths
from peterrec.model.data.filters import Condition
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.interactions import (
    Events,
    Flags,
    InteractionSource,
    histories_of,
    on_one_scale,
    read_events,
    targets_of,
)
from peterrec.model.data.labels import LabelSource, read_labels
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.splits import split_users
from peterrec.model.data.tables import TableSource
from peterrec.model.documents import Document
from peterrec.model.errors import ComparisonSettingsInvalid
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind
from peterrec.model.study.corpus import COMPARED_KINDS, CorpusTask, PreparedCorpus
from peterrec.model.study.cutoffs import Cuts, cuts_after, first_times, is_past, require_past
from peterrec.model.study.settings import CutSettings


@dataclass(frozen=True, slots=True)
class Cut(CutSettings):
    """How users are split, and where inputs end and targets begin.

    A user has at most ``most_targets`` targets. Between two domains, targets begin with the first
    one that at least ``min_history`` inputs precede; with 0 they begin with the very first one.
    """

    def corpora(
        self,
        name: str,
        histories: Histories,
        tasks: Sequence[CorpusTask],
        metadata: Document,
        pretraining: Histories | None = None,
    ) -> list[PreparedCorpus]:
        """Split the users of the histories, before anything is counted: one corpus per seed.

        The one of seed 0 has the name, the others have their seed in theirs.
        """
        own = {"users": len(histories.users), "events": len(histories.codes)}
        found = []
        for seed in self.seeds:
            split = split_users(histories.users, self.validation_share, self.test_share, seed)
            found.append(
                PreparedCorpus(
                    name=f"{name}-split{seed}" if seed else name,
                    histories=histories,
                    split=split,
                    tasks=tuple(tasks),
                    metadata={**metadata, **own, "split_seed": seed},
                    pretraining=pretraining,
                    split_of=name,
                )
            )
        return found


def movielens_corpora(
    folder: Path, domain: str, cut: Cut, observer: ReadingObserver = SILENT
) -> list[PreparedCorpus]:
    """Tasks on MovieLens: the users' profiles, if known, and films of one domain."""
    data = read_movielens(folder, observer)
    return [*_profile_corpora(data, cut), *_film_corpora(data, domain, cut)]


def _profile_corpora(data: MovieLens, cut: Cut) -> list[PreparedCorpus]:
    if not data.profiles:
        return []
    tasks = [
        CorpusTask(name, "classification", UserLabels(answers, "profiles"))
        for name, answers in {
            "gender": {p.user: (p.gender,) for p in data.profiles},
            "age": {p.user: (p.age,) for p in data.profiles},
            "occupation": {p.user: (p.occupation,) for p in data.profiles},
        }.items()
    ]
    metadata = {"source": "MovieLens", "input": "all ratings of a user, oldest first"}
    return cut.corpora("movielens-profile", data.histories, tasks, metadata)


def _film_corpora(data: MovieLens, domain: str, cut: Cut) -> list[PreparedCorpus]:
    """Films of one domain, recommended from films of all others.

    Inputs are the other films among a user's oldest four fifths; targets are films of the domain
    among the newest fifth. So no target and nothing later is read, and the domain is new to the
    model.
    """
    events = _film_events(data.histories)
    is_wanted = _domain_films(data.films, domain)
    wanted = np.array([is_wanted.get(item, False) for item in events.items])[events.item]
    lengths = np.bincount(events.user, minlength=len(events.users))
    assert events.time is not None
    is_old = events.time < history_lengths(lengths)[events.user]
    inputs, targets = events.select(is_old & ~wanted), events.select(~is_old & wanted)
    require_past(inputs, targets)
    tasks = [CorpusTask("films", "ranking", targets_of(targets, cut.most_targets))]
    metadata = {
        "source": "MovieLens",
        "input": f"films outside {domain} among the oldest four fifths of a user's ratings",
        "targets": f"the first {cut.most_targets} films of {domain} among the newest fifth",
    }
    name = f"movielens-{domain.replace(':', '-').lower()}"
    return cut.corpora(re.sub(r"[^a-z0-9-]", "-", name), histories_of(inputs), tasks, metadata)


def _film_events(histories: Histories) -> Events:
    lengths = np.diff(histories.offsets)
    user = np.repeat(np.arange(len(histories.users)), lengths)
    position = np.arange(len(histories.codes)) - np.repeat(histories.offsets[:-1], lengths)
    return Events(
        histories.users,
        histories.items,
        user.astype(np.int32),
        histories.codes.astype(np.int32),
        position,
        "number",
        "MovieLens",
    )


def _domain_films(films: Sequence[Film], domain: str) -> dict[str, bool]:
    """Whether each film is of the domain: ``genre:Comedy`` or ``year:1998`` (or later)."""
    rule, _, value = domain.partition(":")
    if rule == "genre":
        found = {film.item: value in film.genres for film in films}
    elif rule == "year" and value.isdigit():
        found = {film.item: _year(film.title) >= int(value) for film in films}
    else:
        found = {}
    if not any(found.values()):
        raise ComparisonSettingsInvalid(
            f"the domain {domain!r} has no film.", hint="Write genre:Comedy or year:1998."
        )
    return found


def _year(title: str) -> int:
    match = re.search(r"\((\d{4})\)\s*$", title)
    return int(match.group(1)) if match else 0


def domain_corpora(
    source: InteractionSource,
    column: str,
    domains: tuple[str, str],
    cut: Cut,
    observer: ReadingObserver = SILENT,
) -> list[PreparedCorpus]:
    """Two domains of one file of events: each is recommended from the other."""
    one, other = domains
    parts = {
        domain: read_events(replace(source, table=_where(source.table, column, domain)), observer)
        for domain in domains
    }
    return [
        corpus
        for source_domain, target_domain in ((one, other), (other, one))
        for corpus in _direction(source_domain, target_domain, parts, cut)
    ]


def _where(table: TableSource, column: str, value: str) -> TableSource:
    return replace(table, where=(*table.where, Condition(column, value)))


def _direction(
    source: str, target: str, parts: dict[str, Events], cut: Cut
) -> list[PreparedCorpus]:
    """Items of the target domain, recommended from events in the source domain.

    Inputs are a user's events in the source domain before the first target. That is the user's
    first event in the target domain or, with ``min_history``, the first one that this number of
    inputs precede; earlier events in the target domain are then neither inputs nor targets.
    Pretraining also reads the later source events of users who are not held out.
    """
    events, every = on_one_scale(parts[source], parts[target])
    cuts = cuts_after(events, every, cut.min_history) if cut.min_history else first_times(every)
    targets = every.select(~is_past(every, cuts) & _belongs(every, cuts))
    inputs = events.select(is_past(events, cuts) & _belongs(events, cuts))
    require_past(inputs, targets)
    answers = targets_of(targets, cut.most_targets)
    preceded = f" with {cut.min_history} earlier ones in {source}" if cut.min_history else ""
    metadata = {
        "source": events.source,
        "input": f"events in {source} before a user's first one in {target}{preceded}; equal "
        "times not",
        "targets": f"the first {cut.most_targets} items in {target} from then on",
    }
    tasks = [CorpusTask("first-items", "ranking", answers)]
    name, histories = f"{source}-to-{target}", histories_of(inputs)
    return cut.corpora(name, histories, tasks, metadata, histories_of(events))


def _belongs(events: Events, cuts: Cuts) -> Flags:
    """True for events of users who have a cut."""
    has_cut = np.array([user in cuts for user in events.users])
    flags: Flags = has_cut[events.user]
    return flags


TASK_LIST_SETTINGS = (
    *("interactions", "pretrain_interactions", "labels", "targets", "kind", "name"),
    *("user_column", "item_column", "order_column", "drop_future", "label_column"),
    *("target_column", "target_order_column", "where", "delimiter", "columns", "missing"),
)
"""Names of the settings in a task list: those of a data set, and those of its tasks."""


def file_corpora(
    document: Document, folder: Path, cut: Cut, observer: ReadingObserver = SILENT
) -> list[PreparedCorpus]:
    """Corpora of a task list (see docs/compare.md); paths are relative to ``folder``."""
    try:
        return [
            corpus
            for name, entry in document["corpora"].items()
            for corpus in _of_files(name, entry, folder, cut, observer)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ComparisonSettingsInvalid(
            f"the task list lacks or misplaces {error}.", hint="See docs/compare.md for the form."
        ) from error


def _of_files(
    name: str, entry: Document, folder: Path, cut: Cut, observer: ReadingObserver
) -> list[PreparedCorpus]:
    user_column = entry.get("user_column", "user_id")
    source = InteractionSource(
        _table(entry["interactions"], entry, folder),
        user_column,
        entry.get("item_column", "item_id"),
        entry.get("order_column"),
    )
    events = read_events(source, observer)
    tasks: list[CorpusTask] = []
    for task in entry["tasks"]:
        kind = _kind(task)
        if KINDS[kind].answers == "label":
            labels = LabelSource(
                _table(task["labels"], task, folder),
                task["label_column"],
                task.get("user_column", user_column),
            )
            tasks.append(CorpusTask(task["name"], kind, read_labels(labels, observer)))
            continue
        targets = read_events(
            InteractionSource(
                _table(task["targets"], task, folder),
                task.get("user_column", user_column),
                task.get("target_column", "item_id"),
                task.get("target_order_column"),
            ),
            observer,
        )
        if entry.get("drop_future", False):
            events, targets = on_one_scale(events, targets)
            events = events.select(is_past(events, first_times(targets)))
        require_past(events, targets)
        tasks.append(CorpusTask(task["name"], kind, targets_of(targets, cut.most_targets)))
    metadata = {"source": str(entry["interactions"]), "input": "the interactions as given"}
    extra = entry.get("pretrain_interactions")
    pretraining = None
    if extra is not None:
        other = replace(source, table=_table(extra, entry, folder))
        pretraining = histories_of(read_events(other, observer))
    return cut.corpora(name, histories_of(events), tasks, metadata, pretraining)


def _kind(task: Document) -> HeadKind:
    kind: HeadKind = task.get("kind", "ranking" if "targets" in task else "classification")
    if kind not in COMPARED_KINDS:
        raise ComparisonSettingsInvalid(
            f"task {task['name']!r} is of kind {kind!r}.",
            hint=f"Compare {' or '.join(COMPARED_KINDS)}.",
        )
    return kind


def _table(path: str, entry: Document, folder: Path) -> TableSource:
    columns = entry.get("columns")
    return TableSource(
        folder / path,
        entry.get("delimiter"),
        None if columns is None else tuple(columns),
        tuple(Condition.parse(text) for text in entry.get("where", ())),
        tuple(entry.get("missing", ())),
    )
