"""Start the service with random tasks and keep it running for other load generators."""

import argparse
import signal
import tempfile
from pathlib import Path

from bench.random_fleet import FleetShape, make_backbone, make_bundles
from bench.server import register, serving

STOPPING = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str]) -> None:
    """``python -m bench fleet --tasks 500 --channels 64 --items 20000 --port 8100``."""
    parser = argparse.ArgumentParser(prog="python -m bench fleet", description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--workers", type=int, default=0, help="HTTP workers; 0: from the cores")
    parser.add_argument("--threads", type=int, default=0, help="device threads; 0: from the cores")
    options = parser.parse_args(arguments)
    shape = FleetShape(options.tasks, options.channels, options.items)
    with tempfile.TemporaryDirectory(prefix="peterrec-fleet-") as scratch:
        folder = Path(scratch) / "backbone"
        loaded = make_backbone(shape, folder)
        settings = {"workers": options.workers, "threads": options.threads}
        with serving(folder, Path(scratch) / "data", options.port, **settings) as url:
            seconds = register(url, make_bundles(shape, loaded))
            print(
                f"{shape.tasks} tasks registered in {seconds:.1f} s; serving on {url}", flush=True
            )
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            signal.sigwait(STOPPING)
