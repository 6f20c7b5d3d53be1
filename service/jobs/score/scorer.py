"""Scores of users by many bundles, in three steps that may run in three threads.

``prepare`` maps items to numbers, ``score`` runs the device, ``tables`` makes Arrow tables. The
trunk of a user is computed once for all bundles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from peterrec.model.data.user_rows import UserRows
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.inference.top_k import Rankings
from peterrec.model.network.collate import PackedHistories
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.registry.availability import Availability
from peterrec.service.device.serving_table import entry_of
from peterrec.service.device.slots import SlotStore
from peterrec.service.jobs.score.tokens import ItemNumbers, UserTokens, tokens_of, vocabulary_of
from peterrec.service.predict.arrow_answers import about_bundle
from peterrec.service.predict.filters import available_bits
from peterrec.service.predict.kinds import ANSWERS
from peterrec.service.protocol.messages import PLAIN, BundleEntry

VECTORS = ""
"""The name of the table of user vectors among those of tasks."""

ROWS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 14}
"""Rows of one forward: enough that planning and launching are a small share, by device."""

CHUNK_ROWS = 1 << 11
"""Most rows of a chunk on a GPU. Of chunks as small as a server's, a fast device computes one
before the next is planned."""

VALUES_AT_ONCE = 1 << 22
"""Numbers of all answers to the users that are scored together: 16 MiB, whatever the tasks."""

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class ScoredTask:
    """A task to score, and the bundle that answers for it.

    ``version`` is its number in a registry, and None without one.
    """

    name: str
    bundle: VerifiedBundle
    version: int | None = None
    availability: Availability | None = None


@dataclass(frozen=True, slots=True)
class ScorerOptions:
    """What is computed and where. A ranking names ``top_k`` items that the user has not had."""

    device: Device = "cpu"
    precision: Precision = "float32"
    top_k: int = 10
    has_vectors: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """Users as the device reads them; ``seen`` are items of each ranking's catalog, by its task."""

    rows: UserRows
    tokens: UserTokens
    seen: dict[str, PackedHistories]


@dataclass(slots=True)
class Scored:
    """What the device has computed of some users, by task: scores [n, K], or rankings.

    Tensors may still be on their way from a GPU; ``wait`` says when they have come.
    """

    prepared: Prepared
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    rankings: dict[str, list[Rankings]] = field(default_factory=dict)
    arrival: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait for the last tensor."""
        if self.arrival is not None:
            self.arrival.synchronize()


@dataclass(frozen=True, slots=True)
class _Resident:
    """A task whose bundle is on the device."""

    task: ScoredTask
    entry: BundleEntry
    catalog: "_CatalogItems | None"

    @property
    def name(self) -> str:
        return self.task.name


@dataclass(frozen=True, slots=True)
class _CatalogItems:
    """A ranking's catalog: its ids, their numbers by id, and which may be answered."""

    ids: pa.Array
    numbers: ItemNumbers
    allowed: bytes | None


class Scorer:
    """A backbone and the bundles of some tasks on a device of this process."""

    def __init__(
        self, loaded: LoadedBackbone, tasks: Sequence[ScoredTask], options: ScorerOptions
    ) -> None:
        backbone = loaded.backbone.to(torch.device(options.device))
        self.options = options
        self.spec = backbone.spec
        self._vocabulary = vocabulary_of(loaded.items)
        dtype = getattr(torch, options.precision)
        self._store = SlotStore(backbone, HEADS_BYTES, dtype, chunk_rows=CHUNK_ROWS)
        self._residents = [self._load(task) for task in tasks]
        self._handles = [each.entry.handle for each in self._residents]
        if options.has_vectors:
            self._handles.append(PLAIN)
        while options.device == "cuda" and self._store.prepare_next():
            pass  # captures the launches of every size of a batch

    @property
    def block_users(self) -> int:
        """Users that are scored together, so that their answers take bounded memory."""
        tasks = [each.task for each in self._residents]
        return block_users_of(tasks, self.spec.channels, self.options)

    def prepare(self, rows: UserRows) -> Prepared:
        """Map the items of some users. Any thread may do it."""
        tokens = tokens_of(rows, self._vocabulary, self.spec.max_len)
        seen = {
            each.name: _seen(rows, each.catalog.numbers)
            for each in self._residents
            if each.catalog is not None
        }
        return Prepared(rows, tokens, seen)

    def score(self, prepared: Prepared) -> Scored:
        """Run the device. One thread only."""
        scored = Scored(prepared)
        for part in self._parts(prepared):
            self._run(scored, part)
        if self.options.device == "cuda":
            scored.arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]  # PyTorch's
            scored.arrival.record()
        return scored

    def run_forward(self, prepared: Prepared) -> None:
        """Run the forward without heads, to be compared with (``bench score``)."""
        for part in self._parts(prepared):
            self._store.vectors_of_all(prepared.tokens.newest.part(part), self._handles)
        if self.options.device == "cuda":
            torch.cuda.synchronize()

    def tables(self, scored: Scored) -> dict[str, pa.Table]:
        """The answers as one table per task. Any thread may do it."""
        scored.wait()
        tables = {each.name: self._table(each, scored) for each in self._residents}
        if self.options.has_vectors:
            vectors = _joined(scored.scores.get(VECTORS, []), self.spec.channels)
            flat = pa.array(vectors.reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, self.spec.channels)
            users = scored.prepared.rows.users
            tables[VECTORS] = pa.table({"user_id": users, "vector": column})
        return tables

    def details(self) -> Iterator[tuple[ScoredTask, dict[str, object]]]:
        """What a reader of a task's table should know of its bundle."""
        for each in self._residents:
            yield each.task, about_bundle(each.entry)

    def _load(self, task: ScoredTask) -> _Resident:
        digest = task.bundle.digest
        residency = self._store.by_digest.get(digest) or self._store.load(task.bundle)
        catalog = task.bundle.catalog
        items = None if catalog is None else _catalog_items(catalog, task.availability)
        return _Resident(task, entry_of(residency), items)

    def _parts(self, prepared: Prepared) -> Iterator[slice]:
        """The users of each forward."""
        at_once = max(1, ROWS_AT_ONCE[self.options.device] // max(1, len(self._handles)))
        for start in range(0, len(prepared.rows.users), at_once):
            yield slice(start, start + at_once)

    def _run(self, scored: Scored, part: slice) -> None:
        tokens = scored.prepared.tokens
        vectors = self._store.vectors_of_all(tokens.newest.part(part), self._handles)  # [B, T, C]
        for place, each in enumerate(self._residents):
            users = vectors[:, place].contiguous()  # [B, C]
            whole = tokens.whole.part(part).listed() if each.entry.has_table else ()
            if each.catalog is None:
                scores = self._store.scores_of_all(users, each.entry.handle, whole)
                scored.scores.setdefault(each.name, []).append(_sent(scores))
            else:
                found = self._store.top_of_all(
                    users,
                    each.entry.handle,
                    self.options.top_k,
                    scored.prepared.seen[each.name].part(part),
                    each.catalog.allowed,
                    whole,
                )
                scored.rankings.setdefault(each.name, []).append(found)
        if self.options.has_vectors:
            scored.scores.setdefault(VECTORS, []).append(_sent(vectors[:, -1].float()))

    def _table(self, resident: _Resident, scored: Scored) -> pa.Table:
        rows, tokens = scored.prepared.rows, scored.prepared.tokens
        used = (tokens.whole if resident.entry.has_table else tokens.newest).lengths
        columns: dict[str, pa.Array] = {
            "user_id": rows.users,
            "used_items": pa.array(used.astype(np.int32)),
            "unknown_items": pa.array(tokens.unknown.astype(np.int32)),
        }
        if resident.catalog is not None:
            columns |= _ranking_columns(
                scored.rankings.get(resident.name, []), resident.catalog.ids
            )
        else:
            scores = _joined(scored.scores.get(resident.name, []), resident.entry.outputs)
            columns |= ANSWERS[resident.entry.kind].bulk(resident.entry, scores)
        return pa.table(columns)


def block_users_of(tasks: Sequence[ScoredTask], channels: int, options: ScorerOptions) -> int:
    """Users that are scored together, so that their answers take bounded memory."""
    widths = [
        task.bundle.manifest.head.outputs if task.bundle.catalog is None else 3 * options.top_k
        for task in tasks
    ]
    widths += [channels] * options.has_vectors
    return max(1, min(1 << 14, VALUES_AT_ONCE // max(1, sum(widths))))


HEADS_BYTES = 1 << 62
"""Bytes of heads on the device: nothing may be evicted, as all of them answer for every user."""


def _catalog_items(catalog: Catalog, availability: Availability | None) -> _CatalogItems:
    ids = [*catalog]
    allowed = None if availability is None else available_bits(availability, catalog)
    return _CatalogItems(pa.array(ids, pa.string()), ItemNumbers(ids), allowed)


def _seen(rows: UserRows, catalog: ItemNumbers) -> PackedHistories:
    """Each user's items that are in a catalog, as the catalog's numbers."""
    found = catalog.of(rows.items)
    is_there = found >= 0
    bounds = np.concatenate([[0], np.cumsum(is_there)])[rows.offsets]
    return PackedHistories(found[is_there], bounds[:-1], bounds[1:])


def _sent(scores: Tensor) -> Tensor:
    """Scores on their way to this machine's memory; nobody waits for them yet."""
    if not scores.is_cuda:
        return scores
    here = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
    return here.copy_(scores, non_blocking=True)


def _joined(parts: Sequence[Tensor], width: int) -> npt.NDArray[np.float32]:
    """The scores [n, K] of all parts."""
    if not parts:
        return np.empty((0, width), np.float32)
    return np.concatenate([part.numpy() for part in parts])


def _ranking_columns(rankings: Sequence[Rankings], ids: pa.Array) -> dict[str, pa.Array]:
    """The items of each ranking, best first, and their scores."""
    counts = np.concatenate([np.empty(0, np.int64), *(each.counts for each in rankings)])
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    flat = [each.flat() for each in rankings]
    scores = np.concatenate([np.empty(0, np.float32), *(values for values, _ in flat)])
    indices = np.concatenate([np.empty(0, np.int64), *(places for _, places in flat)])
    return {
        "items": pa.ListArray.from_arrays(ends, ids.take(pa.array(indices))),
        "scores": pa.ListArray.from_arrays(ends, pa.array(scores)),
    }
