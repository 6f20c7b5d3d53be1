"""Peak memory and speed of reading interactions, compared with holding whole text columns.

The benchmark writes events with uniform users and a skewed distribution of items as Parquet or CSV.
It reads the file in each way in a separate process.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from bench.report import Report
from peterrec.model.data.interactions import InteractionSource, read_histories
from peterrec.model.data.tables import TableSource, read_parts, text_column

ROWS_AT_ONCE = 1_000_000
SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
WRITERS = {"parquet": pq.ParquetWriter, "csv": pv.CSVWriter}


def main(arguments: list[str]) -> None:
    """``python -m bench reading``."""
    parser = argparse.ArgumentParser(prog="python -m bench reading", description=__doc__)
    parser.add_argument("--events", type=int, default=30_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--form", choices=sorted(WRITERS), default="parquet")
    parser.add_argument("--whole", action="store_true", help="also read whole text columns")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Write the events, read them each way, and report the reading process's peak memory."""
    ways: dict[str, Callable[[Path], int]] = {"batches": read_in_batches}
    if options.whole:
        ways["whole"] = read_whole
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        path = Path(scratch) / f"events.{options.form}"
        _write_events(path, options)
        figures["file_gb"] = path.stat().st_size / 1e9
        for name, read in ways.items():
            seconds, peak_bytes = _in_own_process(read, path)
            figures[f"{name}_seconds"] = seconds
            figures[f"{name}_peak_gib"] = peak_bytes / 2**30
            figures[f"{name}_bytes_per_event"] = peak_bytes / options.events
    return Report("reading", figures, vars(options))


def read_in_batches(path: Path) -> int:
    """Read the file as every command does, and return the number of events."""
    source = InteractionSource(TableSource(path), order_column="timestamp")
    return len(read_histories(source).codes)


def read_whole(path: Path) -> int:
    """Read whole text columns first, encode them, and order the events by user and time."""
    parts = read_parts(TableSource(path), list(SCHEMA.names))
    users = _codes(text_column(parts, "user_id"))
    items = _codes(text_column(parts, "item_id"))
    times = text_column(parts, "timestamp").cast(pa.int64()).to_numpy()
    return len(items[np.lexsort((times, users))])


def _codes(texts: pa.ChunkedArray) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return each row's index among the distinct texts."""
    codes: np.ndarray[tuple[int], np.dtype[np.int64]]
    codes = texts.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


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
    generator = np.random.default_rng(0)
    with WRITERS[options.form](path, SCHEMA) as writer:
        for start in range(0, options.events, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, options.events - start)
            users = generator.integers(0, options.users, count)
            items = np.minimum(generator.pareto(1.0, count) * 2000, 199_999).astype(np.int64)
            times = generator.integers(1_600_000_000, 1_700_000_000, count)
            columns = [_ids("user-", users), _ids("item-", items), pa.array(times)]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def _ids(prefix: str, numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pa.Array:
    return pa.array(np.char.add(prefix, numbers.astype(str)))
