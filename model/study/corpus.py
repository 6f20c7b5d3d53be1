"""A data set prepared for a comparison: histories, one split of the users, and tasks.

It is stored as safetensors files, so that a comparison can run on a machine that has neither the
tables nor a library to read them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from peterrec.model.data.histories import Histories, UserLabels
from peterrec.model.data.splits import UserSplit
from peterrec.model.disk import read_bytes, write_text
from peterrec.model.documents import Document
from peterrec.model.errors import (
    ComparisonSettingsInvalid,
    PathMissing,
    PreparedFolderInvalid,
    TaskUnknown,
    TensorFileInvalid,
)
from peterrec.model.files.tensors import NumpyArray, read_arrays, write_arrays
from peterrec.model.kinds import KINDS
from peterrec.model.spec import HeadKind

INDEX, HISTORIES, PRETRAINING = "prepared.json", "histories.safetensors", "pretraining.safetensors"

PARTS = ("train", "validation", "test")

COMPARED_KINDS = tuple(n for n, kind in KINDS.items() if kind.answers in ("label", "items"))
"""The kinds of head that a comparison can train: each user has one label, or target items."""


@dataclass(frozen=True, slots=True)
class CorpusTask:
    """One task: its kind and every user's answer."""

    name: str
    kind: HeadKind
    labels: UserLabels


@dataclass(frozen=True)
class PreparedCorpus:
    """Histories that tasks read, the split of their users, and the tasks.

    ``split`` indexes ``histories.users`` and holds for all tasks and for pretraining.
    ``pretraining`` are sequences that only pretraining reads (``backbones.py``). ``metadata`` says
    how the corpus was made, for the report. ``split_of`` is the data set's name if another split of
    it has that name already.
    """

    name: str
    histories: Histories
    split: UserSplit
    tasks: tuple[CorpusTask, ...]
    metadata: Document
    pretraining: Histories | None = None
    split_of: str | None = None

    @property
    def data_set(self) -> str:
        """The data set's name. Its corpora differ in their split alone, and share tables."""
        return self.split_of or self.name

    def task(self, name: str) -> CorpusTask:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)

    @cached_property
    def digest(self) -> str:
        """sha256 over histories, split and answers. It identifies the data."""
        parts = [self.histories.digest(), *(f"{t.name}:{t.labels.digest()}" for t in self.tasks)]
        parts += [self.pretraining.digest()] if self.pretraining else []
        sha = hashlib.sha256(json.dumps(parts).encode())
        for part in (self.split.train, self.split.validation, self.split.test):
            sha.update(part.tobytes())
        return sha.hexdigest()


def shuffled(corpus: PreparedCorpus) -> PreparedCorpus:
    """A copy of the corpus whose answers are given to users at random.

    A method that beats the prior on it must have read the answers: there is a leak.
    """
    random = np.random.default_rng(0)
    tasks = []
    for task in corpus.tasks:
        users, answers = list(task.labels.by_user), list(task.labels.by_user.values())
        order = random.permutation(len(users)).tolist()
        mixed = {user: answers[i] for user, i in zip(users, order, strict=True)}
        tasks.append(replace(task, labels=UserLabels(mixed, task.labels.source)))
    return replace(
        corpus,
        name=f"{corpus.name}-shuffled",
        split_of=f"{corpus.data_set}-shuffled",
        tasks=tuple(tasks),
        metadata={**corpus.metadata, "answers": "shuffled among users"},
    )


def write_corpora(folder: Path, corpora: Sequence[PreparedCorpus]) -> None:
    """Write a prepared folder. Names of corpora and tasks become file names."""
    _require_names([corpus.name for corpus in corpora], "data sets")
    for corpus in corpora:
        _require_names([task.name for task in corpus.tasks], f"tasks of {corpus.name}")
    for corpus in corpora:
        place = folder / corpus.name
        parts = {part: getattr(corpus.split, part) for part in PARTS}
        write_arrays(place / HISTORIES, {**_packed(corpus.histories), **parts})
        if corpus.pretraining is not None:
            write_arrays(place / PRETRAINING, _packed(corpus.pretraining))
        for task in corpus.tasks:
            write_arrays(place / f"{task.name}.safetensors", _packed_answers(task.labels))
    index = {
        corpus.name: {
            "tasks": {task.name: task.kind for task in corpus.tasks},
            "facts": corpus.metadata,
            "data_set": corpus.data_set,
            "digest": corpus.digest,
        }
        for corpus in corpora
    }
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _require_names(names: Sequence[str], what: str) -> None:
    bad = [name for name in names if not re.fullmatch(r"\w[\w .+-]*", name)]
    bad += [name for name in names if names.count(name) > 1]
    if bad:
        raise ComparisonSettingsInvalid(
            f"{what} cannot be called {bad[0]!r}.",
            hint="Give each its own name of letters, digits, spaces, dots, + and -.",
        )


def read_corpora(folder: Path) -> list[PreparedCorpus]:
    """Read a prepared folder; refuse one that was changed since it was written."""
    try:
        index = json.loads(read_bytes(folder / INDEX))
        return [_read_corpus(folder / name, entry) for name, entry in index.items()]
    except (KeyError, ValueError, TypeError, TensorFileInvalid, PathMissing) as error:
        raise PreparedFolderInvalid(
            f"{folder} is not a prepared folder: {error}", hint="Prepare it again."
        ) from error


def choose_tasks(
    corpora: Sequence[PreparedCorpus], names: Sequence[str]
) -> list[tuple[PreparedCorpus, str]]:
    """The tasks named as ``task`` or ``data set/task``; all tasks if ``names`` is empty."""
    pairs = [(corpus, task.name) for corpus in corpora for task in corpus.tasks]
    known = {name for corpus, task in pairs for name in (task, f"{corpus.data_set}/{task}")}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TaskUnknown(
            f"there is no task {unknown[0]!r}.", hint=f"The tasks are {', '.join(sorted(known))}."
        )
    return [
        (corpus, task)
        for corpus, task in pairs
        if not names or task in names or f"{corpus.data_set}/{task}" in names
    ]


def _read_corpus(folder: Path, entry: Document) -> PreparedCorpus:
    arrays = read_arrays(folder / HISTORIES)
    extra = folder / PRETRAINING
    corpus = PreparedCorpus(
        name=folder.name,
        histories=_unpacked(arrays),
        split=UserSplit(
            *(arrays[part].astype(np.int64) for part in ("train", "validation", "test"))
        ),
        tasks=tuple(
            CorpusTask(name, kind, _unpacked_answers(folder / f"{name}.safetensors"))
            for name, kind in entry["tasks"].items()
        ),
        metadata=entry["facts"],
        pretraining=_unpacked(read_arrays(extra)) if extra.exists() else None,
        split_of=entry["data_set"],
    )
    if corpus.digest != entry["digest"]:
        raise PreparedFolderInvalid(
            f"{folder} has digest {corpus.digest[:12]}…, its index records "
            f"{entry['digest'][:12]}….",
            hint="A file was changed; prepare the folder again.",
        )
    return corpus


def _packed(histories: Histories) -> dict[str, NumpyArray]:
    return {
        "users": np.array(histories.users, dtype=np.str_),
        "items": np.array(histories.items, dtype=np.str_),
        "codes": histories.codes.astype(np.int32),
        "offsets": histories.offsets,
    }


def _unpacked(arrays: Mapping[str, NumpyArray]) -> Histories:
    return Histories(
        users=tuple(arrays["users"].tolist()),
        items=tuple(arrays["items"].tolist()),
        codes=arrays["codes"].astype(np.int64),
        offsets=arrays["offsets"].astype(np.int64),
    )


def _packed_answers(labels: UserLabels) -> dict[str, NumpyArray]:
    """Users, the distinct answers, and each user's answers as a range of indices into them."""
    texts = sorted({text for answer in labels.by_user.values() for text in answer})
    index = {text: i for i, text in enumerate(texts)}
    codes = [index[text] for answer in labels.by_user.values() for text in answer]
    lengths = [len(answer) for answer in labels.by_user.values()]
    return {
        "users": np.array(list(labels.by_user), dtype=np.str_),
        "answers": np.array(texts, dtype=np.str_),
        "codes": np.array(codes, dtype=np.int32),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
    }


def _unpacked_answers(path: Path) -> UserLabels:
    arrays = read_arrays(path)
    texts, codes = arrays["answers"].tolist(), arrays["codes"].tolist()
    offsets = arrays["offsets"].tolist()
    rows = zip(arrays["users"].tolist(), offsets[:-1], offsets[1:], strict=True)
    return UserLabels(
        {user: tuple(texts[code] for code in codes[a:b]) for user, a, b in rows}, path.name
    )
