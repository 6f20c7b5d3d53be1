"""``python -m bench --list`` lists the measurements; ``python -m bench NAME`` runs one."""

import argparse
import sys
from importlib import import_module

MEASUREMENTS = {
    "predict": "requests per second and latency over HTTP at 1, 16 and 64 clients, 500 tasks",
    "mixed": "rows that are all of different tasks, compared with the same rows of one task",
    "forward": "the bare forward, compared with a loop, a gathered forward and peak rates",
    "card": "a hundred tasks for one history, compared with one task; repeated histories",
    "heads": "the top 100 of a million items, compared with one product and topk",
    "growth": "throughput, p99 and memory as tasks, batch, history, channels or catalog grow",
    "numerics": "float32 and bfloat16, compared with the plain reference on a trained backbone",
    "tasks": "10,000 registered tasks, asked uniformly, compared with a single one",
    "memory": "resident bytes per additional task, divided by the bytes of its weights",
    "edge": "what HTTP and the processes add to the forward, compared with an echo of the body",
    "workers": "requests per second with two workers, compared with one",
    "swap": "time from registration to service under load; how swaps slow down other requests",
    "overload": "goodput at three and ten times the load, of clients that wait and that do not",
    "fair": "what a tenant gets beside one that floods; twenty tenants that take all they can",
    "bulk": "what a stream of users costs interactive calls; its rate, and its memory",
    "explain": "what explanations cost, and how they slow down other requests",
    "quotas": "what quotas cost a request, and how much three replicas let through together",
    "peers": "end to end over HTTP, compared with other model servers measured alternately",
    "scale": "one, two and four replicas behind nginx, compared with a simulation's forecast",
    "shards": "where TorchRec would put an item table that is larger than one device",
    "fanout": "what a thousand followers cost the registry's Redis; how soon each knows",
    "registry": "registrations, swaps on three replicas, starts with many bundles, memory",
    "reading": "peak memory and speed of reading interactions, compared with whole text columns",
    "backbones": "next-item quality of backbones by several recipes, and of the tasks above them",
    "score": "peterrec score from file to files, compared with the bare forward on the same cores",
    "train": "sequences per second in pretraining and fine-tuning, compared with plain PyTorch",
    "torchrun": "pretraining in two processes that share every batch, compared with one",
}
TOOLS = {"fleet": "start the service with random tasks and keep it running for load generators"}


def main() -> None:
    """Run the named measurement with the rest of the command line as its options."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, add_help=False)
    parser.add_argument("--list", action="store_true", help="list the measurements")
    parser.add_argument("name", nargs="?", choices=[*MEASUREMENTS, *TOOLS])
    known, rest = parser.parse_known_args()
    if known.list or known.name is None:
        for name, what in {**MEASUREMENTS, **TOOLS}.items():
            print(f"{name:10} {what}")
        sys.exit(0 if known.list else 2)
    import_module(f"bench.{known.name}").main(rest)


if __name__ == "__main__":
    main()
