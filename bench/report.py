"""The report of a measurement: figures by name, its settings, and the machine."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

Setting = str | int | float | bool | Sequence[int]


@dataclass(frozen=True, slots=True)
class Report:
    """One measurement. ``figures`` are the numbers to quote; ``rows`` are a table to read."""

    name: str
    figures: Mapping[str, float]
    settings: Mapping[str, Setting]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)

    def show(self) -> None:
        """Print the table, the figures and, on the last line, the whole report as JSON."""
        console = Console()
        if self.rows:
            table = Table(*self.columns, title=self.name)
            for row in self.rows:
                table.add_row(*row)
            console.print(table)
        for name, value in self.figures.items():
            console.print(f"{name} = {value:.4g}", highlight=False)
        document = {
            "bench": self.name,
            "figures": {name: float(f"{value:.5g}") for name, value in self.figures.items()},
            "settings": self.settings,
            "machine": machine(),
        }
        print(json.dumps(document), flush=True)


def machine() -> dict[str, str | int]:
    """Describe the machine and the versions that produced the figures."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "peterrec": version("peterrec-serving"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
