"""The sections of the report of a backbone."""

from collections.abc import Mapping

import numpy as np

from peterrec.model.documents import Document
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.training.intervals import difference, estimates
from peterrec.model.training.next_items import gains_of
from peterrec.model.training.training_file import TrainingLog
from peterrec.service.jobs.report.curves import settings_table
from peterrec.service.jobs.report.kinds.descriptor import in_words, number, within
from peterrec.service.jobs.report.next_items import CUTOFFS, NextItems
from peterrec.service.jobs.report.task import length_groups, length_text
from peterrec.service.pages.charts import histogram
from peterrec.service.pages.page import Cell, Part, Section, Table, Text, table

POPULARITY = "popularity"

PARTS = (("the most popular 1 %", 0.01), ("the next 9 %", 0.1), ("the other 90 %", 1.0))
"""Parts of the vocabulary, ordered by popularity, by their ends."""


def about_section(loaded: LoadedBackbone) -> Section:
    """What the backbone is."""
    spec = loaded.backbone.spec
    parameters = sum(parameter.numel() for parameter in loaded.backbone.parameters())
    items = loaded.backbone.embedding.weight.numel()
    rows = [
        ("fingerprint", loaded.fingerprint),
        ("vocabulary", f"{spec.item_count:,} items"),
        ("network", f"{len(spec.dilations)} blocks of {spec.channels} channels"),
        ("dilations", ", ".join(map(str, spec.dilations))),
        (
            "reads",
            f"the newest {spec.max_len} items, {'causal' if spec.is_causal else 'non-causal'}",
        ),
        ("parameters", f"{parameters:,}, of which {items:,} in the item embedding"),
    ]
    return Section("What it is", [table("The backbone", ("", ""), rows)])


def recorded_section(record: Document, log: TrainingLog | None) -> Section | None:
    """Next-item metrics, data and settings as they were recorded; None if nothing was."""
    parts: list[Part] = []
    best = _best_metrics(log)
    if best:
        rows = [(name, number(value)) for name, value in best.items()]
        note = "All positions of the validation users' windows, in the best epoch."
        parts.append(table("Next-item metrics", ("metric", "value"), rows, note))
    for name, caption in (("data", "Data of the training"), ("settings", "Settings")):
        if isinstance(record.get(name), Mapping) and record[name]:
            parts.append(settings_table(record[name], caption))
    return Section("What was recorded when it was made", parts) if parts else None


def _best_metrics(log: TrainingLog | None) -> dict[str, float]:
    if log is None or log.ended is None:
        return {}
    best = log.ended["best_epoch"]
    lines = [line for line in log.of_part("validation") if line["epoch"] == best]
    return dict(lines[0].get("metrics", {})) if lines else {}


def next_item_sections(found: NextItems) -> list[Section]:
    """How well the last items of the validation users are predicted."""
    return [
        Section("How well it predicts the next item", [_metrics(found)]),
        Section("By length of the history", [_by_length(found)]),
        Section("The vocabulary", _vocabulary(found)),
    ]


def _metrics(found: NextItems) -> Table:
    own, popular = (gains_of(ranks, CUTOFFS) for ranks in (found.ranks, found.by_popularity))
    metrics = {f"own {name}": metric for name, metric in own.items()}
    metrics |= {f"popular {name}": metric for name, metric in popular.items()}
    metrics |= {f"gain {name}": difference(own[name], popular[name]) for name in own}
    values = estimates(metrics, len(found.ranks))
    rows = [
        (name, *(in_words(values[f"{who} {name}"]) for who in ("own", "popular", "gain")))
        for name in own
    ]
    note = (
        f"The last item of {len(found.ranks):,} validation users, ranked among all items. In "
        "brackets: the interval that contains 95 % of the values for resamples of the users."
    )
    header = ("metric", "this backbone", POPULARITY, f"gain over {POPULARITY}")
    return table("Next-item metrics", header, rows, note)


def _by_length(found: NextItems) -> Table:
    groups = length_groups(found.lengths)
    present: list[int] = np.unique(groups).tolist()
    own, popular = (
        gains_of(ranks, CUTOFFS)["hr@20"] for ranks in (found.ranks, found.by_popularity)
    )
    metrics = {f"own {group}": within(own, groups == group) for group in present}
    metrics |= {f"popular {group}": within(popular, groups == group) for group in present}
    values = estimates(metrics, len(groups))
    rows: list[tuple[Cell, ...]] = [
        (
            length_text(group),
            int((groups == group).sum()),
            *(in_words(values[f"{who} {group}"]) for who in ("own", "popular")),
        )
        for group in present
    ]
    header = ("items", "users", "this backbone", POPULARITY)
    return table("hr@20 by number of items in the history", header, rows)


def _vocabulary(found: NextItems) -> list[Part]:
    order = np.argsort(-found.popularity, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    ends = np.ceil([share * len(order) for _, share in PARTS])
    group = np.searchsorted(ends, place[found.targets], side="right")
    own, popular = (
        gains_of(ranks, CUTOFFS)["hr@20"] for ranks in (found.ranks, found.by_popularity)
    )
    present: list[int] = np.unique(group).tolist()
    metrics = {f"own {at}": within(own, group == at) for at in present}
    metrics |= {f"popular {at}": within(popular, group == at) for at in present}
    values = estimates(metrics, len(group))
    rows: list[tuple[Cell, ...]] = [
        (
            PARTS[at][0],
            int((group == at).sum()),
            *(in_words(values[f"{who} {at}"]) for who in ("own", "popular")),
        )
        for at in present
    ]
    header = ("next item", "users", "this backbone", POPULARITY)
    trained = found.popularity[found.popularity > 0]
    text = f"{found.unknown_share:.2%} of the events name items that the backbone does not know."
    return [
        table("hr@20 by popularity of the next item", header, rows),
        histogram(
            "Events of each item", trained, "events of the training users", is_logarithmic=True
        ),
        Text(text),
    ]
