"""The outcome of a comparison as one document: every run, means with spread, and what made it."""

import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from peterrec.model.study.markdown import markdown_of
from peterrec.model.study.methods import PRIOR
from peterrec.model.study.run import Workplace, corpora_at
from peterrec.model.study.schedule import Unit
from peterrec.model.study.verdict import verdicts_of
from peterrec.model.training.objectives import OBJECTIVES

Document = dict[str, Any]  # Any: a JSON document

RESULTS, TABLE = "comparison.json", "comparison.md"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over seeds; one seed has no deviation."""

    mean: float
    std: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std, len(values))

    def to_json(self) -> Document:
        std = None if math.isnan(self.std) else self.std
        return {"mean": self.mean, "std": std, "runs": self.runs}


def write_report(place: Workplace, units: list[Unit]) -> str:
    """Write JSON and Markdown into the output folder; the Markdown is returned."""
    document = report_of(place, units)
    text = markdown_of(document)
    (place.out / RESULTS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (place.out / TABLE).write_text(text, encoding="utf-8")
    return text


def report_of(place: Workplace, units: list[Unit]) -> Document:
    """Everything that tables and plots are made from."""
    corpora = corpora_at(place.prepared)
    tables = []
    for corpus, task in dict.fromkeys((u.corpus, task) for u in units for task in u.tasks):
        own = [unit for unit in units if unit.corpus == corpus and task in unit.tasks]
        kind = corpora[corpus].task(task).kind
        rows = [row for unit in own if (row := _row(unit, task)) is not None]
        table: Document = {
            "corpus": corpus,
            "task": task,
            "kind": kind,
            "primary": OBJECTIVES[kind].primary_metric,
            "rows": rows,
        }
        tables.append(table | {"verdicts": verdicts_of(table, place.out)})
    return {
        "settings": place.settings.to_json(),
        "corpora": {c.name: {**c.facts, "digest": c.digest} for c in corpora.values()},
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": _device_name(place.device),
        "tables": tables,
        "unfinished": sum(unit.planned - len(unit.results) for unit in units),
        "runs": [result for unit in units for result in unit.results.values()],
    }


def _row(unit: Unit, task: str) -> Document | None:
    """One line of a task's table; None until a counting run is there."""
    results = [unit.results[spec] for spec in unit.final if spec in unit.results]
    whole = [result for result in results if "failed" not in result]
    if not whole:
        return None
    names = list(whole[0]["metrics"][task])
    rates = unit.chosen
    assert rates is not None
    row: Document = {
        "method": unit.variant.label,
        "family": unit.variant.method,
        "is_causal": unit.variant.is_causal,
        "insertion": unit.variant.insertion,
        "bottleneck": unit.variant.bottleneck,
        "cardinality": unit.variant.cardinality,
        "depth": unit.variant.depth,
        "extras": unit.variant.extras,
        "queries": unit.variant.queries,
        "label_share": unit.variant.label_share,
        "metrics": {
            name: Spread.of([result["metrics"][task][name] for result in whole]).to_json()
            for name in names
            if all(name in result["metrics"][task] for result in whole)
        },
        "users": whole[0]["users"][task],
        "keys": [result["key"] for result in whole],
        "failed": len(results) - len(whole),
    }
    return row if unit.variant.method == PRIOR else row | _training(unit, whole, task)


def _training(unit: Unit, whole: list[Document], task: str) -> Document:
    """What training cost, and what it did epoch by epoch."""
    parameters = whole[0]["parameters"]
    rates = unit.chosen
    assert rates is not None
    losses = [unit.results[spec].get("validation_loss") for spec in unit.trials]
    return {
        "trained_parameters": parameters["trained"],
        "head_parameters": parameters["head"],
        "share": parameters["trained"] / parameters["backbone"],
        "share_of_blocks": parameters["trained"] / parameters["backbone_blocks"],
        "seconds": statistics.fmean(result["seconds"] for result in whole),
        "cpu_seconds": statistics.fmean(result["cpu_seconds"] for result in whole),
        "epochs": statistics.fmean(len(result["epochs"]) for result in whole),
        "rates": {"encoder": rates.encoder, "head": rates.head},
        "rate_trials": [
            {"encoder": rate.encoder, "head": rate.head, "validation_loss": loss}
            for rate, loss in zip(unit.rates, losses, strict=True)
        ],
        "is_rate_at_edge": _is_at_edge(unit),
        "curve": _curve(whole, task),
    }


def _is_at_edge(unit: Unit) -> bool:
    """True if the best rate is the lowest or the highest tried, so a better one may lie beyond."""
    rates = unit.chosen
    assert rates is not None
    tried = [(rate.encoder, rate.head) for rate in unit.rates]
    return len(tried) > 1 and (rates.encoder, rates.head) in (min(tried), max(tried))


def _curve(whole: list[Document], task: str) -> list[Document]:
    """Validation users' loss and metrics after each epoch, means over the seeds that reached it."""
    longest = max(len(result["epochs"]) for result in whole)
    curve = []
    for at in range(longest):
        epochs = [result["epochs"][at] for result in whole if len(result["epochs"]) > at]
        names = epochs[0]["validation_metrics"]
        point: Document = {
            name.removeprefix(f"{task}/"): statistics.fmean(
                epoch["validation_metrics"][name] for epoch in epochs
            )
            for name in names
        }
        loss = statistics.fmean(epoch["validation_loss"] for epoch in epochs)
        curve.append({"epoch": at + 1, "runs": len(epochs), "validation_loss": loss, **point})
    return curve


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device
