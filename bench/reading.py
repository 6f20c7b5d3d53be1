"""Peak memory and speed of reading interactions, beside doing the same with Arrow and NumPy alone.

The benchmark writes random events as Parquet or CSV, and reads the file in each way in a process of
its own: as every command does, and by the plain way that keeps ids in a dict and sorts in memory.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from bench.report import Report
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.tables import TableSource

ROWS_AT_ONCE = 1_000_000
SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
Numbers = npt.NDArray[np.int32 | np.int64]
WRITERS = {"parquet": pq.ParquetWriter, "csv": pv.CSVWriter}


def main(arguments: list[str]) -> None:
    """``python -m bench reading``."""
    parser = argparse.ArgumentParser(prog="python -m bench reading", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--form", choices=sorted(WRITERS), default="parquet")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain way out")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Write the events, read them each way, and report time and peak memory.

    ``ratio`` is the time of the plain way divided by the reader's.
    """
    ways: dict[str, Callable[[Path], int]] = {"reader": read_as_commands_do}
    if not options.no_plain:
        ways["plain"] = read_plainly
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        path = Path(scratch) / f"events.{options.form}"
        _write_events(path, options)
        figures["file_gb"] = path.stat().st_size / 1e9
        for name, read in ways.items():
            seconds, peak_bytes = _in_own_process(read, path)
            figures[f"{name}_seconds"] = seconds
            figures[f"{name}_peak_gb"] = peak_bytes / 1e9
            figures[f"{name}_bytes_per_event"] = peak_bytes / options.events
    if "plain" in ways:
        figures["ratio"] = figures["plain_seconds"] / figures["reader_seconds"]
    return Report("reading", figures, vars(options))


def read_as_commands_do(path: Path) -> int:
    """Read the file as every command does, and return the number of events."""
    source = InteractionSource(TableSource(path), order_column="timestamp")
    return len(read_histories(source).codes)


def read_plainly(path: Path) -> int:
    """Read batches with Arrow, number ids with a dict, and sort with NumPy."""
    numbers: dict[str, dict[str, int]] = {"user_id": {}, "item_id": {}}
    codes: dict[str, list[Numbers]] = {"user_id": [], "item_id": []}
    times: list[Numbers] = []
    for batch in _batches(path):
        for name, known in numbers.items():
            encoded = batch.column(name).dictionary_encode()
            texts = encoded.dictionary.to_pylist()
            own = np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int32)
            codes[name].append(own[encoded.indices.to_numpy()])
        times.append(batch.column("timestamp").cast(pa.int64()).to_numpy())
    users, items = np.concatenate(codes["user_id"]), np.concatenate(codes["item_id"])
    return len(items[np.lexsort((np.concatenate(times), users))].astype(np.int64))


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(1 << 19)
        return
    texts = pv.ConvertOptions(column_types=dict.fromkeys(SCHEMA.names, pa.string()))
    yield from pv.open_csv(path, pv.ReadOptions(block_size=1 << 24), convert_options=texts)


def _in_own_process(read: Callable[[Path], int], path: Path) -> tuple[float, int]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (read, path))


def _measured(read: Callable[[Path], int], path: Path) -> tuple[float, int]:
    """Run ``read``; return its seconds and the peak bytes of this process (Linux only)."""
    started = time.perf_counter()
    read(path)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return seconds, int(peak) * 1024


def _write_events(path: Path, options: argparse.Namespace) -> None:
    """Write events of uniform users on items of which a few are far more frequent than the rest."""
    generator = np.random.default_rng(0)
    user_ids, item_ids = _ids("user-", options.users), _ids("item-", options.items)
    with WRITERS[options.form](path, SCHEMA) as writer:
        for start in range(0, options.events, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, options.events - start)
            users = generator.integers(0, options.users, count)
            items = np.minimum(generator.pareto(1.0, count) * 2000, options.items - 1)
            times = generator.integers(1_600_000_000, 1_700_000_000, count)
            columns = [user_ids.take(pa.array(users)), item_ids.take(pa.array(items.astype(int)))]
            writer.write_table(pa.table([*columns, pa.array(times)], schema=SCHEMA))


def _ids(prefix: str, count: int) -> pa.Array:
    return pa.array([f"{prefix}{number}" for number in range(count)])
