"""Exact ranking of a large catalog with exclusions, compared with one product and ``topk``.

Both sides run on one thread with the same weights and user vectors; the plain side holds all logits
in memory. ``return_ms`` is the time to reload an evicted head from its bundle's file, including the
check of its digest.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench.forward_fixture import paired_ratio, paired_seconds
from bench.random_fleet import FleetShape, make_backbone
from bench.random_ranking import head_of, random_catalog, ranking_bundle
from bench.report import Report
from peterrec.model.inference.top_k import CatalogRanking, CatalogWeights, Selection
from peterrec.patches.identity import digest_of
from peterrec.service.device.head_file import read_head

EXCLUDED = 50
CANDIDATES = 500
RETURNS = 5


def main(arguments: list[str]) -> None:
    """``python -m bench heads``."""
    parser = argparse.ArgumentParser(prog="python -m bench heads", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure the whole catalog and candidate lists, at each number of rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = random_catalog(options.items, options.channels)
    ranking = CatalogRanking(torch.device("cpu"))
    figures: dict[str, float] = {"weight_mib": weights.size_bytes / 2**20}
    table: list[list[str]] = []
    for rows in options.rows:
        users = torch.randn(rows, options.channels)
        chosen = _selections(options, rows)
        among = [Selection(options.top_k, s.excluded, s.candidates) for s in chosen]
        whole = [Selection(options.top_k, s.excluded) for s in chosen]
        _require_equal(ranking, users, weights, options.top_k)
        seconds = paired_seconds(
            {
                "whole": partial(ranking.top, users, weights, whole),
                "candidates": partial(ranking.top, users, weights, among),
                "plain": partial(_plain, users, weights, options.top_k),
                "product": partial(_product, users, weights),
            },
            options.repeats,
        )
        per_row = {name: 1000 * median(found) / rows for name, found in seconds.items()}
        figures[f"rank_ms_{rows}"] = per_row["whole"]
        figures[f"rank_vs_plain_{rows}"] = paired_ratio(seconds, "plain", "whole")
        figures[f"rank_vs_product_{rows}"] = paired_ratio(seconds, "product", "whole")
        figures[f"candidates_ms_{rows}"] = per_row["candidates"]
        table.append([str(rows), *(f"{ms:.3f}" for ms in per_row.values())])
    figures["return_ms"] = _return_ms(options, weights)
    columns = ("rows", "ms a row", f"among {CANDIDATES}", "matmul + topk", "matmul alone")
    return Report("heads", figures, {**vars(options), "threads": 1}, columns, table)


@torch.inference_mode()
def _product(users: Tensor, weights: CatalogWeights) -> Tensor:
    assert weights.weight is not None
    return torch.matmul(users, weights.weight.T)


@torch.inference_mode()
def _plain(users: Tensor, weights: CatalogWeights, top_k: int) -> tuple[Tensor, Tensor]:
    assert weights.bias is not None
    values, indices = torch.topk(_product(users, weights).add_(weights.bias), top_k, dim=1)
    return values, indices


def _selections(options: argparse.Namespace, rows: int) -> list[Selection]:
    random = np.random.default_rng(0)
    return [
        Selection(
            options.top_k,
            random.integers(0, options.items, EXCLUDED),
            random.integers(0, options.items, CANDIDATES),
        )
        for _ in range(rows)
    ]


def _return_ms(options: argparse.Namespace, weights: CatalogWeights) -> float:
    """Write a bundle with this catalog and measure reading its head, with the file cached."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="peterrec-bench-") as scratch:
        path = Path(scratch) / "large.bundle"
        shape = FleetShape(1, options.channels, items=1000)
        loaded = make_backbone(shape, Path(scratch) / "backbone")
        path.write_bytes(ranking_bundle(shape, loaded, head_of(weights)))
        digest = digest_of(path.read_bytes())
        for _ in range(RETURNS):
            started = time.perf_counter()
            read_head(path, digest)
            seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds)


def _require_equal(
    ranking: CatalogRanking, users: Tensor, weights: CatalogWeights, top_k: int
) -> None:
    values, _ = _plain(users, weights, top_k)
    found = ranking.top(users, weights, [Selection(top_k)] * len(users))
    for row, scores in zip(values.numpy(), found, strict=True):
        if not np.allclose(row, scores.values, rtol=1e-5, atol=1e-5):
            raise SystemExit("the contenders disagree")
