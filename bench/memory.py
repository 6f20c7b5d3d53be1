"""Resident bytes per additional profile task, divided by the bytes of its weights.

The growth of private memory (USS) while ``--more`` tasks are registered is counted in every process
of the service, but not in Redis. ``--patch-precision`` chooses how patches are kept.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import psutil

from bench.random_fleet import FleetShape, make_backbone, make_bundles, make_head, make_patch
from bench.report import Report
from bench.server import register, serving

SETTLE_S = 5.0


def main(arguments: list[str]) -> None:
    """``python -m bench memory``."""
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__)
    parser.add_argument("--first", type=int, default=500, help="tasks before")
    parser.add_argument("--more", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--patch-precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--port", type=int, default=8100)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """For each precision, measure memory before and after registering further tasks."""
    shape = FleetShape(options.first + options.more, options.channels)
    weights = sum(
        tensor.numel() * 4
        for part in (make_patch(shape, 0).named(), make_head(shape, 0).named())
        for tensor in part.values()
    )
    figures: dict[str, float] = {"weight_bytes": float(weights)}
    rows: list[list[str]] = []
    for precision in options.patch_precision:
        grown = _growth(options, shape, precision)
        per_task = {name: size / options.more for name, size in grown.items()}
        suffix = "" if precision == "float32" else f"_{precision}"
        figures[f"bytes_per_task{suffix}"] = sum(per_task.values()) / weights
        rows += [[precision, name, f"{size:.0f}"] for name, size in per_task.items()]
    columns = ("patches as", "process", "bytes per task")
    return Report("memory", figures, vars(options), columns, rows)


def _growth(options: argparse.Namespace, shape: FleetShape, precision: str) -> dict[str, int]:
    """Measure the growth in bytes of each kind of process. Redis holds the registry."""
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        loaded = make_backbone(shape, Path(scratch) / "backbone")
        bundles = make_bundles(shape, loaded)
        folder, data = Path(scratch) / "backbone", Path(scratch) / "data"
        with serving(
            folder, data, options.port, workers=1, threads=1, patch_precision=precision
        ) as url:
            register(url, islice(bundles, options.first))
            before = _settled_bytes()
            register(url, bundles, first=options.first)
            after = _settled_bytes()
    return {name: after[name] - size for name, size in before.items()}


def _settled_bytes() -> dict[str, int]:
    """Measure the private bytes of the service's processes.

    It waits first, until they have released the temporary memory of the last registrations.
    """
    time.sleep(SETTLE_S)
    found: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        for name in ("supervisor", "device", "worker"):
            if title.startswith(f"peterrec: {name}"):
                found[name] = found.get(name, 0) + process.memory_full_info().uss
    return found
