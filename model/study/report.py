"""The report of a comparison: every run, means with spread, settings and data."""

import json
import platform
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from peterrec.model.disk import write_text
from peterrec.model.study.baselines import PRIORS
from peterrec.model.study.markdown import markdown_of
from peterrec.model.study.methods import Variant
from peterrec.model.study.results import (
    LeftOut,
    Parameters,
    Point,
    Report,
    Row,
    RunResult,
    Spread,
    Table,
    Tuning,
)
from peterrec.model.study.run import Workplace, corpora_at
from peterrec.model.study.schedule import Unit
from peterrec.model.study.verdict import gaps_of, verdicts_of
from peterrec.model.training.baselines.bags import FLOAT_BYTES
from peterrec.model.training.objectives import OBJECTIVES

RESULTS, MARKDOWN = "comparison.json", "comparison.md"


def write_report(place: Workplace, units: list[Unit]) -> str:
    """Write the report as JSON and Markdown into the output folder; return the Markdown."""
    document = report_of(place, units)
    text = markdown_of(document)
    write_text(place.out / RESULTS, json.dumps(document, indent=2) + "\n")
    write_text(place.out / MARKDOWN, text)
    return text


def report_of(place: Workplace, units: list[Unit]) -> Report:
    """The report, from which tables and plots are made."""
    corpora = corpora_at(place.prepared)
    own: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        for task in unit.tasks:
            own.setdefault((corpora[unit.corpus].data_set, task), []).append(unit)
    tables = [_table(place, name, task, chosen) for (name, task), chosen in own.items()]
    return {
        "settings": place.settings.to_json(),
        "corpora": {c.name: {**c.metadata, "digest": c.digest} for c in corpora.values()},
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


def _table(place: Workplace, data_set: str, task: str, units: list[Unit]) -> Table:
    """One task's table, from the units of all splits of its data set."""
    kind = corpora_at(place.prepared)[units[0].corpus].task(task).kind
    variants: dict[Variant, list[Unit]] = {}
    for unit in units:
        variants.setdefault(unit.variant, []).append(unit)
    rows = [row for own in variants.values() if (row := _row(own, task)) is not None]
    table: Table = {
        "data_set": data_set,
        "splits": list(dict.fromkeys(unit.corpus for unit in units)),
        "task": task,
        "kind": kind,
        "primary": OBJECTIVES[kind].primary_metric,
        "rows": rows,
        "left_out": [each for unit in units for each in _left_out(unit)],
        "gaps": [],
        "verdicts": [],
    }
    table["gaps"] = gaps_of(table, place.out)
    table["verdicts"] = verdicts_of(table, place.out)
    return table


def _row(units: list[Unit], task: str) -> Row | None:
    """One variant's row over all splits; None until one of its final runs has succeeded."""
    found = {unit.corpus: _finished(unit) for unit in units}
    results = [result for own in found.values() for result in own]
    whole = [result for result in results if "failed" not in result]
    if not whole:
        return None
    names = list(whole[0]["metrics"][task])
    variant = units[0].variant
    row: Row = {
        "method": variant.label,
        "family": variant.method,
        "is_causal": variant.is_causal,
        "insertion": variant.insertion,
        "bottleneck": variant.bottleneck,
        "cardinality": variant.cardinality,
        "depth": variant.depth,
        "extras": variant.extras,
        "queries": variant.queries,
        "label_share": variant.label_share,
        "metrics": {
            name: _spread(
                [
                    [result["metrics"][task][name] for result in own if "failed" not in result]
                    for own in found.values()
                ]
            )
            for name in names
            if all(name in result["metrics"][task] for result in whole)
        },
        "users": whole[0]["users"][task],
        "keys": {
            corpus: [result["key"] for result in own if "failed" not in result]
            for corpus, own in found.items()
            if own
        },
        "failed": len(results) - len(whole),
    }
    if variant.method not in PRIORS:
        row["tuning"] = {unit.corpus: _tuning(unit) for unit in units if unit.chosen}
        _add_training(row, whole, task)
    return row


def _finished(unit: Unit) -> list[RunResult]:
    return [unit.results[spec] for spec in unit.final if spec in unit.results]


def _left_out(unit: Unit) -> list[LeftOut]:
    """Why a method has no row, if all of its runs failed."""
    results = [unit.results[spec] for spec in unit.trials if spec in unit.results]
    if len(results) < len(unit.trials) or not all("failed" in result for result in results):
        return []
    first = results[0]
    reason = first.get("reason", "")
    return [{"method": unit.variant.label, "failed": first["failed"], "reason": reason}]


def _spread(by_split: Sequence[Sequence[float]]) -> Spread:
    """Every split counts as much, also while some of its seeds are missing."""
    values = [value for own in by_split for value in own]
    std = statistics.stdev(values) if len(values) > 1 else None
    mean = statistics.fmean(statistics.fmean(own) for own in by_split if own)
    return {"mean": mean, "std": std, "runs": len(values)}


def _tuning(unit: Unit) -> Tuning:
    losses = [unit.results[spec].get("validation_loss") for spec in unit.trials]
    assert unit.chosen is not None
    return {
        "rates": unit.chosen.to_json(),
        "trials": [
            {**rate.to_json(), "validation_loss": loss}
            for rate, loss in zip(unit.rates, losses, strict=True)
        ],
        "is_at_edge": _is_at_edge(unit),
    }


def _add_training(row: Row, whole: list[RunResult], task: str) -> None:
    """Add what training cost, and its curve epoch by epoch if it has epochs."""
    parameters = whole[0]["parameters"]
    row.update(
        {
            "trained_parameters": parameters["trained"],
            "head_parameters": parameters["head"],
            "size_bytes": statistics.fmean(_size_bytes(result["parameters"]) for result in whole),
            "seconds": statistics.fmean(result["seconds"] for result in whole),
            "cpu_seconds": statistics.fmean(result["cpu_seconds"] for result in whole),
        }
    )
    if "parts" in whole[0]:
        row["parts"] = dict(Counter("+".join(each["parts"]) or "head" for each in whole))
    if "backbone" in parameters:
        row.update(
            {
                "share": parameters["trained"] / parameters["backbone"],
                "share_of_blocks": parameters["trained"] / parameters["backbone_blocks"],
                "epochs": statistics.fmean(len(result["epochs"]) for result in whole),
                "curve": _curve(whole, task),
            }
        )


def _size_bytes(parameters: Parameters) -> int:
    dense = parameters["trained"] + parameters["head"]
    return parameters.get("size_bytes", FLOAT_BYTES * dense)


def _is_at_edge(unit: Unit) -> bool:
    """True if the best rate is the lowest or highest tried, so a better one may be outside."""
    rates = unit.chosen
    assert rates is not None
    tried = [each.order for each in unit.rates]
    return len(tried) > 1 and rates.order in (min(tried), max(tried))


def _curve(whole: list[RunResult], task: str) -> list[Point]:
    """Loss and metrics on validation users by epoch: means over the seeds that reached it."""
    longest = max(len(result["epochs"]) for result in whole)
    curve = []
    for at in range(longest):
        epochs = [result["epochs"][at] for result in whole if len(result["epochs"]) > at]
        names = epochs[0]["validation_metrics"]
        point: Point = {
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
