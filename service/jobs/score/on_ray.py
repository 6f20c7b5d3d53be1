"""Score on a Ray cluster by Ray Data: one reader, and an actor per graphics card or group of cores.

The reader cuts the users into the parts and blocks of a run in one process, so the answers are the
same to the bit. An actor has the backbone and the bundles, and writes the files of whole parts. A
part that is lost with its actor or its machine is computed again, to files of the same names; the
journal takes it once. What goes through Ray are the users on the way in, and a line a part back.
"""
# pyright: reportMissingImports=false

import io
import json
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import ray
import ray.data
import torch

from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import one_array
from peterrec.model.data.user_rows import BadRow, UserRows
from peterrec.model.files.backbone_folder import load_backbone
from peterrec.model.progress import Progress
from peterrec.service.jobs.ray_cluster import connected
from peterrec.service.jobs.score.bundles import Pinned, verified_tasks
from peterrec.service.jobs.score.journal import Journal, PartDone
from peterrec.service.jobs.score.parts import BAD_ROWS, remove_partials, write_bad_rows
from peterrec.service.jobs.score.run import (
    OpenPart,
    Output,
    RayPlace,
    RunOptions,
    Work,
    folders_of,
    metadata_of,
    works,
)
from peterrec.service.jobs.score.scorer import Scorer, ScorerOptions
from peterrec.service.jobs.score.source import UserSource, user_source


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """What every process of a run must know. All paths are the same on all machines.

    ``users``, ``events`` and ``history_column`` are those of the job. The first ``finished`` rows
    are left out, and blocks have ``block_users`` users at most.
    """

    users: str
    events: Callable[[Path], InteractionSource]
    history_column: str | None
    backbone: Path
    copies: Path
    pinned: Pinned
    scorer: ScorerOptions
    options: RunOptions
    about: Mapping[str, object]
    finished: int
    block_users: int
    cores: int


class PartScorer:
    """An actor: scores whole parts and writes their files."""

    def __init__(self, run: ScoringRun) -> None:
        torch.set_num_threads(run.cores)
        loaded = load_backbone(run.backbone)
        tasks = verified_tasks(run.pinned, run.copies, loaded)
        self._scorer = Scorer(loaded, tasks, run.scorer)
        folders = folders_of([task.name for task in tasks], run.options.vectors)
        metadata = metadata_of(self._scorer, run.about)
        self._output = Output(run.options.out, folders, metadata)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the parts of a batch; a line of JSON for each says what it has."""
        done = [
            self._score(part, _unpacked(users))
            for part, users in zip(
                batch["part"].to_pylist(), batch["users"].to_pylist(), strict=True
            )
        ]
        return pa.table({"done": [json.dumps(asdict(each)) for each in done]})

    def _score(self, number: int, blocks: Iterable[UserRows]) -> PartDone:
        part = OpenPart(self._output.part(number))
        try:
            for rows in blocks:
                scored = self._scorer.score(self._scorer.prepare(rows))
                work = Work(number, rows, is_last=False)
                part.add(work, self._scorer.tables(scored), scored.prepared)
        except BaseException:
            part.writer.abandon()
            raise
        return part.finish(number)


def score_on_ray(
    run: ScoringRun, place: RayPlace, journal: Journal, total: int, observer: ReadingObserver
) -> None:
    """Score all users that the journal does not know as finished; it gets the parts in order.

    ``total`` is the number of users if it is known, else 0.
    """
    names = [task.name for task in run.pinned.tasks]
    remove_partials(run.options.out, [*folders_of(names, run.options.vectors).values()])
    with connected(place.address, shows_logs=False), closing(_finished(run, place)) as parts:
        observer.progress(Progress("scoring", journal.rows, total, unit="users"))
        for part in parts:
            journal.add(part)
            observer.progress(Progress("scoring", journal.rows, total, unit="users"))


def _finished(run: ScoringRun, place: RayPlace) -> Generator[PartDone, None, None]:
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # every part is a block, so that each may go to any actor
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    uses_gpu = run.scorer.device == "cuda"
    scored = (
        ray.data.from_items([{"run": 0}])
        .map_batches(_parts, fn_args=(run,), batch_size=1, batch_format="pyarrow", num_cpus=0)
        .map_batches(
            PartScorer,
            fn_constructor_args=(run,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=place.actors, initial_size=place.actors
            ),
            num_cpus=0 if uses_gpu else place.cores,
            num_gpus=1 if uses_gpu else 0,
        )
    )
    for row in scored.iter_rows():
        yield PartDone(**json.loads(row["done"]))


def _parts(batch: pa.Table, run: ScoringRun) -> Iterator[pa.Table]:
    """Read the users; yield a row for each part, with its blocks."""
    held: list[UserRows] = []
    with user_source(run.users, run.events, run.history_column, SILENT) as source:
        for work in works(_blocks(run, source), run.finished, run.options.part_rows):
            held.append(work.rows)
            if work.is_last:
                users = pa.array([_packed(held)], pa.large_binary())
                yield pa.table({"part": [work.part], "users": users})
                held = []


def _blocks(run: ScoringRun, source: UserSource) -> Iterator[UserRows]:
    """The users in the blocks of a run in one process."""
    path, has_bad = run.options.out / BAD_ROWS / "events.ndjson", False

    def keep(bad: Sequence[BadRow]) -> None:
        nonlocal has_bad
        write_bad_rows(path, bad, is_first=not has_bad)
        has_bad = True

    for rows in source.rows(keep, SILENT):
        yield from rows.cut(run.block_users)


def _packed(blocks: Sequence[UserRows]) -> bytes:
    """The blocks as bytes; of arrays only what they show of their buffers."""
    return pickle.dumps(
        [(_bytes_of(b.users), _bytes_of(b.items), b.offsets, b.bad) for b in blocks]
    )


def _unpacked(data: bytes) -> Iterator[UserRows]:
    for users, items, offsets, bad in pickle.loads(data):  # noqa: S301  # from our own process
        yield UserRows(_array_of(users), _array_of(items), offsets, bad)


def _bytes_of(array: pa.Array) -> bytes:
    table, sink = pa.table({"": array}), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _array_of(data: bytes) -> pa.Array:
    with pa.ipc.open_stream(data) as stream:
        return one_array(stream.read_all().column(0))
