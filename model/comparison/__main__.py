"""``python -m model.comparison PREPARED OUT``: compare where a folder was prepared before.

Needs torch, numpy and safetensors, nothing else.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from model.comparison.report import write_report
from model.comparison.run import Workplace
from model.comparison.schedule import Effort, compare
from model.comparison.settings import ComparisonSettings
from model.errors import PeterRecError
from model.progress import Progress


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m model.comparison", description=__doc__)
    parser.add_argument("prepared", type=Path, help="folder written by `peterrec compare`")
    parser.add_argument("out", type=Path, help="folder for results; finished runs are reused")
    parser.add_argument("--settings", type=Path, help="JSON; default PREPARED/settings.json")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        settings = _settings(options)
        place = Workplace(options.prepared, options.out, settings, options.device)
        units = compare(place, Effort(options.jobs, options.time_limit), _tell)
        print(write_report(place, units))
    except PeterRecError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _settings(options: argparse.Namespace) -> ComparisonSettings:
    path = options.settings or options.prepared / "settings.json"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for text in options.set:
        name, _, value = text.partition("=")
        fields[name] = json.loads(value)
    return ComparisonSettings.from_json(fields)


def _tell(progress: Progress) -> None:
    print(f"{progress.phase} {progress.done}/{progress.total} {progress.note}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
