"""Files as corpora for a comparison: MovieLens, two domains in one events file, or a task list."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peterrec.model.data.convert.movielens import Film, MovieLens, read_movielens
from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.interactions import (
    InteractionSource,
    LabelSource,
    encode,
    order_values,
    read_labels,
)
from peterrec.model.data.splits import split_users
from peterrec.model.data.tables import Condition, TableSource, read_parts, text_column
from peterrec.model.errors import ComparisonSettingsInvalid
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind
from peterrec.model.study.corpus import COMPARED_KINDS, Corpus, CorpusTask
from peterrec.model.study.events import (
    Events,
    Flags,
    cuts_after,
    first_targets,
    first_times,
    histories_of,
    is_past,
    require_past,
)

Document = dict[str, Any]  # Any: a JSON document

HISTORY_SHARE = 0.8
"""Of a MovieLens user's ratings the oldest such share may be read, the rest be recommended."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How users are split, how many first targets each has at most, and how many inputs at least.

    With ``min_history`` above 1, between domains, a user's targets begin where so many inputs
    precede them, not at the very first one.
    """

    validation_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0
    most_targets: int = 5
    min_history: int = 0

    def corpus(
        self,
        name: str,
        histories: Histories,
        tasks: Sequence[CorpusTask],
        facts: Document,
        pretraining: Histories | None = None,
    ) -> Corpus:
        """Split the users of the histories, before anything is counted."""
        split = split_users(histories.users, self.validation_share, self.test_share, self.seed)
        own = {"users": len(histories.users), "events": len(histories.codes)}
        said = {**facts, **own, "split_seed": self.seed}
        return Corpus(name, histories, split, tuple(tasks), said, pretraining)


def read_events(source: InteractionSource) -> Events:
    """Events as they stand in the files, with their times."""
    ordering = [] if source.order_column is None else [source.order_column]
    parts = read_parts(source.table, [source.user_column, source.item_column, *ordering])
    users, user = encode(text_column(parts, source.user_column))
    items, item = encode(text_column(parts, source.item_column))
    times = (
        np.arange(len(user))
        if source.order_column is None
        else order_values(parts, source.order_column)
    )
    has_times = source.order_column is not None
    return Events(users, items, user, item, times, has_times, str(source.table.path))


def movielens_corpora(folder: Path, domain: str, cut: Cut) -> list[Corpus]:
    """The profiles of all users who tell them, and films of one domain recommended from others."""
    data = _without_id_order(folder, read_movielens(folder))
    recommendation = _film_corpus(data, domain, cut)
    return [*_profile_corpus(data, cut), recommendation]


def _without_id_order(folder: Path, data: MovieLens) -> MovieLens:
    """The newer form is sorted by film, so ratings of one second would come in the ids' order."""
    ratings = folder / "ratings.csv"
    if not ratings.exists():
        return data
    events = read_events(InteractionSource(TableSource(ratings), "userId", "movieId", "timestamp"))
    return replace(data, histories=histories_of(events))


def _profile_corpus(data: MovieLens, cut: Cut) -> list[Corpus]:
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
    facts = {"source": "MovieLens", "input": "all ratings of a user, oldest first"}
    return [cut.corpus("movielens-profile", data.histories, tasks, facts)]


def _film_corpus(data: MovieLens, domain: str, cut: Cut) -> Corpus:
    """Input: the other films among a user's oldest four fifths; targets: films of the domain among
    the newest fifth. So no target and nothing later is read, and its domain is new to the model.
    """
    events = _film_events(data.histories)
    is_wanted = _domain_films(data.films, domain)
    wanted = np.array([is_wanted.get(item, False) for item in events.items])[events.item]
    lengths = np.bincount(events.user, minlength=len(events.users))
    is_old = events.time < np.maximum(1, (lengths * HISTORY_SHARE).astype(np.int64))[events.user]
    inputs, targets = events.select(is_old & ~wanted), events.select(~is_old & wanted)
    require_past(inputs, targets)
    tasks = [CorpusTask("films", "ranking", first_targets(targets, cut.most_targets))]
    facts = {
        "source": "MovieLens",
        "input": f"films outside {domain} among the oldest four fifths of a user's ratings",
        "targets": f"the first {cut.most_targets} films of {domain} among the newest fifth",
    }
    name = f"movielens-{domain.replace(':', '-').lower()}"
    return cut.corpus(re.sub(r"[^a-z0-9-]", "-", name), histories_of(inputs), tasks, facts)


def _film_events(histories: Histories) -> Events:
    lengths = np.diff(histories.offsets)
    user = np.repeat(np.arange(len(histories.users)), lengths)
    position = np.arange(len(histories.codes)) - np.repeat(histories.offsets[:-1], lengths)
    return Events(
        histories.users, histories.items, user, histories.codes, position, True, "MovieLens"
    )


def _domain_films(films: Sequence[Film], domain: str) -> dict[str, bool]:
    """``genre:Comedy`` are films of the genre, ``year:1998`` those of that year or later."""
    rule, _, value = domain.partition(":")
    if rule == "genre":
        found = {film.item: value in film.genres for film in films}
    elif rule == "year" and value.isdigit():
        found = {film.item: _year(film.title) >= int(value) for film in films}
    else:
        found = {}
    if not any(found.values()):
        raise ComparisonSettingsInvalid(
            f"no film is of the domain {domain!r}.", hint="Write genre:Comedy or year:1998."
        )
    return found


def _year(title: str) -> int:
    match = re.search(r"\((\d{4})\)\s*$", title)
    return int(match.group(1)) if match else 0


def domain_corpora(
    source: InteractionSource, column: str, domains: tuple[str, str], cut: Cut
) -> list[Corpus]:
    """Both directions between two domains of one events file."""
    one, other = domains
    parts = {
        domain: read_events(replace(source, table=_where(source.table, column, domain)))
        for domain in domains
    }
    return [
        _direction(source_domain, target_domain, parts, cut)
        for source_domain, target_domain in ((one, other), (other, one))
    ]


def _where(table: TableSource, column: str, value: str) -> TableSource:
    return replace(table, where=(*table.where, Condition(column, value)))


def _direction(source: str, target: str, parts: dict[str, Events], cut: Cut) -> Corpus:
    """Input: a user's events in the source domain on days before the first target.

    That is the user's first event in the target domain; with ``min_history``, the first that so
    many inputs precede, and what the user took there before is neither read nor a target.
    Pretraining reads the later source events too, of users who are not held out.
    """
    events, every = parts[source], parts[target]
    cuts = cuts_after(events, every, cut.min_history) if cut.min_history else first_times(every)
    targets = every.select(~is_past(every, cuts) & _belongs(every, cuts))
    inputs = events.select(is_past(events, cuts) & _belongs(events, cuts))
    require_past(inputs, targets)
    answers = first_targets(targets, cut.most_targets)
    preceded = f" with {cut.min_history} earlier ones in {source}" if cut.min_history else ""
    facts = {
        "source": events.source,
        "input": f"events in {source} before a user's first one in {target}{preceded}; equal "
        "times not",
        "targets": f"the first {cut.most_targets} items in {target} from then on",
    }
    tasks = [CorpusTask("first-items", "ranking", answers)]
    name, histories = f"{source}-to-{target}", histories_of(inputs)
    return cut.corpus(name, histories, tasks, facts, histories_of(events))


def _belongs(events: Events, cuts: dict[str, float]) -> Flags:
    """True for events of users who have a cut."""
    has_cut = np.array([user in cuts for user in events.users])
    flags: Flags = has_cut[events.user]
    return flags


def file_corpora(document: Document, folder: Path, cut: Cut) -> list[Corpus]:
    """Corpora of a task list (see docs/compare.md); paths count from ``folder``."""
    try:
        return [
            _file_corpus(name, entry, folder, cut) for name, entry in document["corpora"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ComparisonSettingsInvalid(
            f"the task list lacks or misplaces {error}.", hint="See docs/compare.md for the form."
        ) from error


def _file_corpus(name: str, entry: Document, folder: Path, cut: Cut) -> Corpus:
    user_column = entry.get("user_column", "user_id")
    source = InteractionSource(
        _table(entry["interactions"], entry, folder),
        user_column,
        entry.get("item_column", "item_id"),
        entry.get("order_column"),
    )
    events = read_events(source)
    tasks: list[CorpusTask] = []
    for task in entry["tasks"]:
        kind = _kind(task)
        if KINDS[kind].answers == "label":
            labels = LabelSource(
                _table(task["labels"], task, folder),
                task["label_column"],
                task.get("user_column", user_column),
            )
            tasks.append(CorpusTask(task["name"], kind, read_labels(labels)))
            continue
        targets = read_events(
            InteractionSource(
                _table(task["targets"], task, folder),
                task.get("user_column", user_column),
                task.get("target_column", "item_id"),
                task.get("target_order_column"),
            )
        )
        if entry.get("drop_future", False):
            events = events.select(is_past(events, first_times(targets)))
        require_past(events, targets)
        tasks.append(CorpusTask(task["name"], kind, first_targets(targets, cut.most_targets)))
    facts = {"source": str(entry["interactions"]), "input": "the interactions as given"}
    extra = entry.get("pretrain_interactions")
    pretraining = None
    if extra is not None:
        pretraining = histories_of(read_events(replace(source, table=_table(extra, entry, folder))))
    return cut.corpus(name, histories_of(events), tasks, facts, pretraining)


def _kind(task: Document) -> HeadKind:
    kind: HeadKind = task.get("kind", "ranking" if "targets" in task else "classification")
    if kind not in COMPARED_KINDS:
        raise ComparisonSettingsInvalid(
            f"task {task['name']!r} is of kind {kind!r}.",
            hint=f"Compare {' or '.join(COMPARED_KINDS)}.",
        )
    return kind


def _table(path: str, entry: Document, folder: Path) -> TableSource:
    where = tuple(Condition.parse(text) for text in entry.get("where", ()))
    return TableSource(folder / path, entry.get("delimiter", ","), where)
