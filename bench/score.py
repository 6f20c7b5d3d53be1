"""``peterrec score`` on the cores that it has, compared with the bare forward on the same cores.

Both compute the same users by the same tasks: the bare forward from tokens in memory, in batches of
the same size, without heads; bulk scoring from a Parquet file to Parquet files. ``vs_forward`` is
the rows per second of the second ÷ those of the first, and ``vs_heads`` ÷ those of forward and
heads. ``cpu_vs_forward`` is ``vs_forward`` in processor time, which other load disturbs less. On a
GPU, ``busy`` is the share of the run in which some kernel was running.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.random_ranking import head_of, random_catalog, ranking_bundle
from bench.report import Report
from peterrec.model.data.interactions import InteractionSource
from peterrec.model.data.observer import SILENT
from peterrec.model.data.tables import TableSource
from peterrec.model.data.user_rows import UserRows, read_user_lists
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.service.jobs.score.bundles import TaskChoice, pin_files, verified_tasks
from peterrec.service.jobs.score.journal import Journal
from peterrec.service.jobs.score.run import RunOptions, run_score
from peterrec.service.jobs.score.scorer import Prepared, Scorer, ScorerOptions
from peterrec.service.jobs.score.source import UserSource, user_source

USERS_AT_ONCE = 1 << 18
"""Users of the input that are made in memory at a time."""


def main(arguments: list[str]) -> None:
    """``python -m bench score``."""
    parser = argparse.ArgumentParser(prog="python -m bench score", description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--rankings", type=int, default=0, help="tasks that rank all items")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=50, help="items per history")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure both sides in turns."""
    torch.set_num_threads(options.threads)
    shape = FleetShape(options.tasks, options.channels, options.items, max_len=options.history)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch)
        measured = _Measured.prepare(options, shape, folder)
        measured.bulk(folder / "warm-up")
        measured.bare(has_heads=True)
        turns = [_turn(measured, folder / f"turn-{turn}") for turn in range(options.repeats)]
        busy = measured.busy(folder / "profiled") if options.device == "cuda" else None
    rows = options.users * (options.tasks + options.rankings)
    figures = {
        "vs_forward": median(turn.forward.wall_s / turn.bulk.wall_s for turn in turns),
        "vs_heads": median(turn.heads.wall_s / turn.bulk.wall_s for turn in turns),
        "rows_per_s": median(rows / turn.bulk.wall_s for turn in turns),
        "forward_rows_per_s": median(rows / turn.forward.wall_s for turn in turns),
    }
    figures["cpu_vs_forward"] = median(turn.forward.cpu_s / turn.bulk.cpu_s for turn in turns)
    figures |= {} if busy is None else {"busy": busy}
    table = [
        [f"{rows / s:,.0f}" for s in (t.bulk.wall_s, t.heads.wall_s, t.forward.wall_s)]
        for t in turns
    ]
    columns = ("rows/s of score", "rows/s of forward and heads", "rows/s of the forward")
    return Report("score", figures, vars(options), columns, table)


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds by the clock, and of the processor."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class _Turn:
    """What all rows took: from file to files, forward and heads, and the forward alone."""

    bulk: _Spent
    heads: _Spent
    forward: _Spent


def _turn(measured: "_Measured", out: Path) -> _Turn:
    forward = _spent(lambda: measured.bare(has_heads=False))
    bulk = _spent(lambda: measured.bulk(out))
    heads = _spent(lambda: measured.bare(has_heads=True))
    return _Turn(bulk, heads, forward)


def _spent(work: Callable[[], None]) -> _Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return _Spent(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True, slots=True)
class _Measured:
    """A scorer, and users in a file and in memory."""

    scorer: Scorer
    file: Path
    prepared: list[Prepared]

    @classmethod
    def prepare(cls, options: argparse.Namespace, shape: FleetShape, folder: Path) -> "_Measured":
        loaded = make_backbone(shape, folder / "backbone")
        scorer = _scorer(options, shape, loaded, folder)
        file = folder / "users.parquet"
        write_users(file, options.users, options.history, shape.items)
        blocks = read_user_lists(TableSource(file), "user_id", "history")
        prepared = [
            scorer.prepare(part) for rows in blocks for part in _cut(rows, scorer.block_users)
        ]
        return cls(scorer, file, prepared)

    def bulk(self, out: Path) -> None:
        """Score from the file to files."""
        journal = Journal.read(out)
        journal.begin({})
        with self._source() as source:
            run_score(self.scorer, source, journal, RunOptions(out), {}, SILENT)

    def bare(self, *, has_heads: bool) -> None:
        """Run the forward on tokens in memory, and the heads."""
        for block in self.prepared:
            if has_heads:
                self.scorer.score(block).wait()
            else:
                self.scorer.run_forward(block)

    def busy(self, out: Path) -> float:
        """The share of a run in which some kernel was running."""
        kinds = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            seconds = _spent(lambda: self.bulk(out)).wall_s
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profile.events()
            if event.device_type.name == "CUDA"
        )
        covered, end = 0.0, -np.inf
        for start, stop in spans:
            covered += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return covered / 1e6 / seconds

    @contextmanager
    def _source(self) -> Iterator[UserSource]:
        def events(path: Path) -> InteractionSource:
            return InteractionSource(TableSource(path))

        with user_source(str(self.file), events, None, SILENT) as source:
            yield source


def _cut(rows: UserRows, most: int) -> Iterator[UserRows]:
    while len(rows) > most:
        first, rows = rows.split(most)
        yield first
    yield rows


def _scorer(
    options: argparse.Namespace, shape: FleetShape, loaded: LoadedBackbone, folder: Path
) -> Scorer:
    bundles = folder / "bundles"
    bundles.mkdir()
    for task, data in enumerate(make_bundles(shape, loaded)):
        (bundles / f"t{task}.bundle").write_bytes(data)
    for task in range(options.rankings):
        head = head_of(random_catalog(shape.items, shape.channels))
        (bundles / f"r{task}.bundle").write_bytes(ranking_bundle(shape, loaded, head))
    copies = folder / "copies"
    pinned = pin_files([bundles], TaskChoice(("all",)), copies)
    tasks = verified_tasks(pinned, copies, loaded)
    return Scorer(loaded, tasks, ScorerOptions(options.device, options.precision))


def write_users(file: Path, users: int, history: int, items: int) -> None:
    """Write users with random histories of one length, some at a time."""
    random = np.random.default_rng(4)
    schema = pa.schema([("user_id", pa.int64()), ("history", pa.list_(pa.int32()))])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, users, USERS_AT_ONCE):
            count = min(USERS_AT_ONCE, users - start)
            flat = pa.array(random.integers(0, items, count * history, dtype=np.int32))
            ends = pa.array(np.arange(count + 1, dtype=np.int32) * history)
            lists = pa.ListArray.from_arrays(ends, flat)
            ids = pa.array(np.arange(start, start + count))
            writer.write_table(pa.table({"user_id": ids, "history": lists}, schema=schema))
