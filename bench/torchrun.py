"""Pretraining in several processes of ``torchrun``, compared with one at the same global batch.

Every run is the command that a user would give, from the same file, with one core for each process
or thread. The rate is that of the median epoch without the first. Two trainings that know nothing
of each other, side by side, show what the machine itself loses when all cores are in use. Where
there are GPUs, each process has one of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.report import Report
from bench.training_data import random_histories
from peterrec.model.data.histories import Histories
from peterrec.service.system.program import peterrec


def main(arguments: list[str]) -> None:
    """``python -m bench torchrun``."""
    parser = argparse.ArgumentParser(prog="python -m bench torchrun", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="sequences of a step, in all")
    parser.add_argument("--history", type=int, default=100, help="items per sequence")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--sequences", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="in turn; the median counts")
    run(parser.parse_args(arguments)).show()


@dataclass(frozen=True, slots=True)
class Trained:
    """What one run says: its rate in the steps, and each epoch's training loss."""

    per_s: float
    losses: Sequence[float]


class Runs:
    """Starts the trainings: each in a new folder, from the same file of histories."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._options = options
        self._count = 0
        self._users = folder / "histories.parquet"
        _write(self._users, random_histories(options))

    def one(self, threads: int = 1) -> list[Trained]:
        """A single process."""
        return self._ended([self._started((), threads)])

    def side_by_side(self) -> list[Trained]:
        """As many single processes at the same time, each with the whole batch."""
        return self._ended([self._started((), 1, gpu) for gpu in range(self._options.processes)])

    def together(self) -> list[Trained]:
        """Several processes that share every batch."""
        torchrun = (
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"),
            *("--local-addr", "127.0.0.1"),  # a machine's own name may not be known
            *("--nproc-per-node", str(self._options.processes), "--"),
        )
        return self._ended([self._started(torchrun, 1)])

    def _started(
        self, launcher: Sequence[str], threads: int, gpu: int | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        options = self._options
        self._count += 1
        out = self._folder / f"backbone-{self._count}"
        command = peterrec(
            *("pretrain", "--interactions", str(self._users), "--out", str(out), "--quiet"),
            *("--channels", str(options.channels), "--batch-size", str(options.batch)),
            *("--max-len", str(options.history), "--epochs", str(options.epochs)),
            *("--patience", str(options.epochs), "--start", "random"),
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        process = subprocess.Popen(
            [*launcher, *command], env=environment, stdout=subprocess.DEVNULL
        )
        return process, out

    def _ended(self, started: Sequence[tuple[subprocess.Popen[bytes], Path]]) -> list[Trained]:
        if failed := [process.args for process, _ in started if process.wait()]:
            raise SystemExit(f"failed: {failed}")
        return [_result(out) for _, out in started]


def run(options: argparse.Namespace) -> Report:
    """Train in each way, in turn."""
    rates: dict[str, list[float]] = {}
    losses: dict[str, Sequence[float]] = {}
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as folder:
        runs = Runs(Path(folder), options)
        ways: dict[str, Callable[[], list[Trained]]] = {
            "one": runs.one,
            "together": runs.together,
            "one_with_threads": lambda: runs.one(options.processes),
            "side_by_side": runs.side_by_side,
        }
        for _ in range(options.repeats):
            for name, train in ways.items():
                trained = train()
                rates.setdefault(name, []).append(sum(each.per_s for each in trained))
                losses[name] = trained[0].losses
    figures = {f"{name}_sequences_per_s": statistics.median(all_) for name, all_ in rates.items()}
    figures |= {
        f"{name}_vs_one": statistics.median(
            ours / alone for ours, alone in zip(rates[name], rates["one"], strict=True)
        )
        for name in rates
        if name != "one"
    }
    figures["largest_loss_difference"] = max(
        abs(ours / alone - 1) for ours, alone in zip(losses["together"], losses["one"], strict=True)
    )
    rows = [[name, *(f"{rate:.0f}" for rate in all_)] for name, all_ in rates.items()]
    columns = ("sequences/s", *(f"turn {turn + 1}" for turn in range(options.repeats)))
    return Report("torchrun", figures, vars(options), columns, rows)


def _write(path: Path, histories: Histories) -> None:
    """Write events, one a row, in the order of each user's history."""
    lengths = np.diff(histories.offsets)
    users = np.repeat(np.array(histories.users), lengths)
    items = np.array(histories.items)[histories.codes]
    pq.write_table(pa.table({"user_id": users, "item_id": items}), path)


def _result(out: Path) -> Trained:
    epochs = json.loads((out / "training.json").read_text())["epochs"]
    per_s = statistics.median(epoch["sequences_per_second"] for epoch in epochs[1:])
    return Trained(per_s, [epoch["train_loss"] for epoch in epochs])
