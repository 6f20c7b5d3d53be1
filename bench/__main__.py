"""``python -m bench --list`` names the measurements, ``python -m bench NAME`` runs one."""

import argparse
import sys
from importlib import import_module

MEASUREMENTS = {
    "predict": "requests per second and latency over HTTP at 1, 16 and 64 clients, 500 tasks",
    "mixed": "rows of all different tasks against the same rows of one task",
    "forward": "the bare forward against a loop over tasks, a gathered product, and the core",
    "card": "a hundred tasks for one history against one task; a history asked again",
    "heads": "the top 100 of a million items, against one product and topk",
    "growth": "throughput, p99 and memory as tasks, batch, history, channels, catalog grow",
    "numerics": "float32 and bfloat16 against the plain reference on a trained backbone",
    "tasks": "10,000 registered tasks, asked uniformly, against a single one",
    "memory": "resident bytes per additional task over its weights",
    "swap": "registered until served, under load; what swaps cost other tasks' requests",
    "peers": "end to end over HTTP against other model servers, in turn with ours",
    "registry": "registrations, swaps on three replicas, starts with many bundles, memory",
    "reading": "peak memory and speed of reading interactions, against whole text columns",
    "train": "sequences per second in pretraining and fine-tuning, against a plain PyTorch step",
}
TOOLS = {"fleet": "start the service with random tasks and keep it running for load generators"}


def main() -> None:
    """Run the named measurement with the rest of the command line as its options."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, add_help=False)
    parser.add_argument("--list", action="store_true", help="name the measurements")
    parser.add_argument("name", nargs="?", choices=[*MEASUREMENTS, *TOOLS])
    known, rest = parser.parse_known_args()
    if known.list or known.name is None:
        for name, what in {**MEASUREMENTS, **TOOLS}.items():
            print(f"{name:10} {what}")
        sys.exit(0 if known.list else 2)
    import_module(f"bench.{known.name}").main(rest)


if __name__ == "__main__":
    main()
