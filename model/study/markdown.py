"""A comparison's report as Markdown (decision 0032: why this is not a library)."""

from peterrec.model.kinds import KINDS
from peterrec.model.study.baselines import POPULAR, PRIOR
from peterrec.model.study.results import Gap, Report, Row, Spread, Table, Tuning, Verdict

METRIC_TITLES = {"macro_f1": "macro-F1", "auc": "AUC", "log_loss": "log-loss"}

SAMPLED = "sampled_"
"""Prefix of the metrics that rank a target among 99 random items."""


def markdown_of(report: Report) -> str:
    """One section for each task, then how the numbers were made."""
    sections = [_section(table, report) for table in report["tables"]]
    return "\n".join(["# Comparison", "", *sections, _footer(report), ""])


def header_of(table: Table) -> list[str]:
    """Column titles of one task's table."""
    names = _metric_names(table)
    return ["method", *map(_title, names), "trained", "share", "head", "KB", "tuned", "seconds"]


def cells_of(table: Table, row: Row) -> list[str]:
    """The cells of one row of a task's table, under ``header_of``."""
    metrics = [_value(row["metrics"].get(name)) for name in _metric_names(table)]
    if "trained_parameters" not in row:
        return [_name(row), *metrics, "", "", "", "", "", ""]
    return [
        _name(row),
        *metrics,
        f"{row['trained_parameters']:,}",
        f"{row['share']:.2%}" if "share" in row else "",
        f"{row['head_parameters']:,}",
        f"{row['size_bytes'] / 1000:,.0f}",
        _tuned(row["tuning"]),
        f"{row['seconds']:.1f}",
    ]


def _title(metric: str) -> str:
    """A metric in the head of a table."""
    if metric.startswith(SAMPLED):
        return f"{_title(metric.removeprefix(SAMPLED))} of 100 *(sampled)*"
    return METRIC_TITLES.get(metric, metric.upper() if "@" in metric else metric)


def gaps_header_of(table: Table) -> list[str]:
    """Column titles of the differences to other methods; empty if there are none."""
    pairs = dict.fromkeys((gap["metric"], gap["rival"]) for gap in table["gaps"])
    return ["method", *(f"{_title(metric)} − {rival}" for metric, rival in pairs)] if pairs else []


def gaps_cells_of(table: Table) -> list[list[str]]:
    """Rows of differences ± standard error and their intervals, under ``gaps_header_of``."""
    pairs = list(dict.fromkeys((gap["metric"], gap["rival"]) for gap in table["gaps"]))
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for gap in table["gaps"]:
        cells.setdefault(gap["method"], {})[gap["metric"], gap["rival"]] = _gap(gap)
    names = [row["method"] for row in table["rows"] if row["method"] in cells]
    return [[name, *(cells[name].get(pair, "") for pair in pairs)] for name in names]


def _gap(gap: Gap) -> str:
    said = f"{gap['mean']:+.4f} ± {gap['standard_error']:.4f}"
    return f"{said} ({gap['low']:+.4f} to {gap['high']:+.4f})"


def left_out_of(table: Table) -> list[str]:
    """A sentence for each method that has no row because all of its runs failed."""
    return [f"{each['method']} has no row: {each['reason']}" for each in table["left_out"]]


def parts_of(table: Table) -> list[str]:
    """A sentence for each method that chose its parts on validation users."""
    return [
        f"{row['method']} chose {', '.join(f'{name} ({runs}×)' for name, runs in found)}."
        for row in table["rows"]
        if len(found := sorted(row.get("parts", {}).items(), key=lambda pair: -pair[1])) > 0
    ]


def _section(table: Table, report: Report) -> str:
    header = header_of(table)
    users = table["rows"][0]["users"] if table["rows"] else {}
    metadata = report["corpora"][table["splits"][0]]
    said = [f"Input: {metadata['input']}."] if "input" in metadata else []
    said += [f"Targets: {metadata['targets']}."] if "targets" in metadata else []
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in users.items())
    if len(table["splits"]) > 1:
        counts += f"; of the first of {len(table['splits'])} splits"
    lines = [
        f"## {table['data_set']}: {table['task']}",
        "",
        " ".join([*said, f"Users: {counts}."]),
        "",
        *_lines(header, [cells_of(table, row) for row in table["rows"]]),
        *_lines(gaps_header_of(table), gaps_cells_of(table)),
        *(f"- {text}" for text in left_out_of(table)),
        *(f"- {text}" for text in parts_of(table)),
        *(f"- {_sentence(verdict, table)}" for verdict in table["verdicts"]),
        "",
    ]
    return "\n".join(lines)


def _lines(header: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    return [
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
        *("| " + " | ".join(cells) + " |" for cells in rows),
        "",
    ]


def _sentence(verdict: Verdict, table: Table) -> str:
    """Say whether the paper's finding holds for one pair of methods."""
    said = "holds" if verdict["holds"] else "**does not hold**"
    if not KINDS[table["kind"]].has_catalog:
        gap = f"{100 * verdict['difference']:+.2f} ± {100 * verdict['standard_error']:.2f} points"
    else:
        gap = f"{verdict['difference']:+.4f} ± {verdict['standard_error']:.4f}"
        gap += f" ({verdict['relative']:+.1%})"
    wanted = "ahead of"
    if "share" in verdict:
        wanted = f"with {verdict['share']:.2%} of the trained parameters as good as"
    name = table["primary"]
    return f"{verdict['method']} {wanted} {verdict['rival']}: {said}, {name} {gap}."


def _footer(report: Report) -> str:
    digests = "; ".join(f"{n} {c['digest'][:16]}" for n, c in report["corpora"].items())
    settings = report["settings"]
    software = ", ".join(f"{name} {version}" for name, version in report["software"].items())
    lines = [
        f"Test users; mean ± standard deviation over {settings['seeds']} seeds (initialisation and "
        "order of batches) and all splits of the users. Baselines draw nothing at random and run "
        "once for each split. Probabilities of every method are calibrated on validation users. "
        "`tuned` is each method's learning rate, the best of "
        f"{settings['rate_trials']} on validation users with the first seed, or a baseline's one "
        "setting, also chosen on them; `!` marks one at the edge of those tried. `trained` counts "
        "parameters below the head, `share` divides them by those of the whole backbone. `KB` is "
        "the size of the bundle, or without one that of these and the head's in float32. Metrics "
        "marked *sampled* rank a target among 99 random items and are not comparable with the "
        "others, which rank it among all. Differences between methods are means over seeds and "
        "splits ± standard error over test users, paired within each user, with the interval of "
        "95 %. *As good as* means at most 0.5 points of accuracy or 2 % of MRR@5 lower.",
        "",
        f"Data: {digests}. Pretrained on {settings['pretrain_on']} users. {software}; "
        f"{report['device']}.",
    ]
    if report["unfinished"]:
        lines += ["", f"**{report['unfinished']} runs are missing**; repeat the command."]
    return "\n".join(lines)


def _metric_names(table: Table) -> list[str]:
    return list(dict.fromkeys(name for row in table["rows"] for name in row["metrics"]))


def _name(row: Row) -> str:
    names = {PRIOR: "no history (prior)", POPULAR: "popular (prior)"}
    return names.get(row["family"], row["method"])


def _tuned(tuning: dict[str, Tuning]) -> str:
    """What was chosen, each value once if splits differ; ``!`` follows one at the edge."""
    found = [_chosen(own["rates"]) + ("!" if own["is_at_edge"] else "") for own in tuning.values()]
    return ", ".join(dict.fromkeys(found))


def _chosen(rates: dict[str, float]) -> str:
    """The encoder's learning rate, or the head's if nothing else is trained, or a strength."""
    if "encoder" in rates:
        return f"{rates['encoder'] or rates['head']:g}"
    return " ".join(f"{name} {value:g}" for name, value in rates.items())


def _value(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread["std"] is None:
        return f"{spread['mean']:.4f}"
    return f"{spread['mean']:.4f} ± {spread['std']:.4f}"
