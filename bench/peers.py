"""End to end over HTTP, compared with other model servers that are measured alternately with ours.

The peers, and the driver that starts and loads them, are in a separate folder (``--driver``), which
is not part of this project. ``bench/README.md`` says what it must contain. The server runs on one
core and the load generator on another. Every peer is measured immediately after our server, and
each ratio compares two such consecutive measurements.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.report import Report
from bench.server import register, serving

PLAIN = ("triton", "ray-batch", "litserve", "bentoml", "mlserver", "mlserver-nobatch")
GATHERED = ("triton-gather", "ray-gather", "litserve-gather", "bentoml-gather")

Measured = Mapping[int, Mapping[str, float]]
"""The driver's figures for each number of clients."""


@dataclass(frozen=True, slots=True)
class Round:
    """One peer and ours, measured one after the other."""

    peer: str
    ours: Measured
    theirs: Measured

    def ratio(self, figure: str, clients: int) -> float:
        """Our figure divided by the peer's."""
        return self.ours[clients][figure] / self.theirs[clients][figure]


def main(arguments: list[str]) -> None:
    """``python -m bench peers --driver FOLDER``."""
    parser = argparse.ArgumentParser(prog="python -m bench peers", description=__doc__)
    parser.add_argument("--driver", type=Path, required=True, help="folder with run.py and peers")
    parser.add_argument("--peers", nargs="+", default=[*PLAIN, *GATHERED])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--clients", type=int, default=64, help="in addition to one client")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per window")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--server-cpus", default="0")
    parser.add_argument("--load-cpus", default="1")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure our server and then a peer, for every peer, ``rounds`` times."""
    with our_server(options) as url:
        rounds = [
            Round(peer, _ours(options, url), _theirs(options, peer))
            for _ in range(options.rounds)
            for peer in options.peers
        ]
    plain = [r for r in rounds if r.peer not in GATHERED]
    gathered = [r for r in rounds if r.peer in GATHERED]
    many = options.clients
    figures: dict[str, float] = {}
    if plain:
        best = _best(plain, many)
        figures["vs_best_peer"] = _ratio(best, "rps", many)
        figures["p99_vs_best_peer"] = _ratio(best, "p99_ms", many)
    if gathered:
        figures["vs_gather_peer"] = _ratio(_best(gathered, many), "rps", many)
    fastest = min(rounds, key=lambda each: each.theirs[1]["p50_ms"]).peer
    figures["p50_single_vs_peer"] = _ratio([r for r in rounds if r.peer == fastest], "p50_ms", 1)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name != "driver"
    }
    columns = ("peer", "p50 ms, 1", f"req/s, {many}", f"p99 ms, {many}", "ours ÷ theirs, req/s")
    return Report("peers", figures, settings, columns, [_row(each, many) for each in rounds])


@contextmanager
def our_server(options: argparse.Namespace) -> Iterator[str]:
    """Run the service with random tasks of the peers' shape, on the server's core."""
    shape = FleetShape(options.tasks, options.channels)
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        folder = Path(scratch) / "backbone"
        loaded = make_backbone(shape, folder)
        data, cpus = Path(scratch) / "data", options.server_cpus
        with serving(folder, data, options.port, cpus, workers=1, threads=1) as url:
            register(url, make_bundles(shape, loaded))
            yield url


def _ours(options: argparse.Namespace, url: str) -> Measured:
    style = options.driver / "styles" / "peterrec.py"
    return _drive(
        options, ["--url", url, "--style", str(style), "--reference", "none", "--name", "ours"]
    )


def _theirs(options: argparse.Namespace, peer: str) -> Measured:
    return _drive(options, ["--peer", peer])


def _drive(options: argparse.Namespace, which: Sequence[str]) -> Measured:
    """Run the driver and return its figures by the number of clients."""
    command = [
        str(options.driver / "venvs" / "base" / "bin" / "python"), str(options.driver / "run.py"),
        *which, "--channels", str(options.channels), "--tasks", str(options.tasks),
        "--mix", "uniform", "--concurrency", "1", str(options.clients),
        "--seconds", str(options.seconds), "--repeat", str(options.windows), "--warmup", "1",
        "--server-cpus", options.server_cpus, "--load-cpus", options.load_cpus,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{' '.join(which)} failed: {done.stderr[-2000:]}")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(json.dumps({"measured": list(which), "rows": found}), flush=True)
    return {line["concurrency"]: line for line in found}


def _best(rounds: Sequence[Round], clients: int) -> list[Round]:
    """Return the rounds of the peer with the most requests per second."""
    best = max(rounds, key=lambda each: each.theirs[clients]["rps"]).peer
    return [each for each in rounds if each.peer == best]


def _ratio(rounds: Sequence[Round], figure: str, clients: int) -> float:
    return median(each.ratio(figure, clients) for each in rounds)


def _row(each: Round, clients: int) -> list[str]:
    theirs = each.theirs
    return [
        each.peer,
        f"{theirs[1]['p50_ms']:.2f}",
        f"{theirs[clients]['rps']:.0f}",
        f"{theirs[clients]['p99_ms']:.1f}",
        f"{each.ratio('rps', clients):.2f}",
    ]
