"""Where TorchRec's planner would put an embedding table that is larger than one device.

Nothing is allocated: the table is on the device `meta`. It needs `torchrec`, and `fbgemm-gpu` (or
`fbgemm-gpu-cpu`) of the release that belongs to the installed torch. docs/scale.md has the results.
"""
# pyright: reportMissingImports=false

import argparse
from collections import Counter

from bench.report import Report

SLACK = 0.85
"""Share of a device's memory that the table may take; the planner keeps more for itself."""


def main(arguments: list[str]) -> None:
    """``python -m bench shards``."""
    parser = argparse.ArgumentParser(prog="python -m bench shards", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000_000, 1_000_000_000])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 8, 16])
    parser.add_argument("--per-host", type=int, default=8)
    parser.add_argument("--device-gb", type=float, default=141.0)
    parser.add_argument("--host-gb", type=float, default=1000.0)
    parser.add_argument("--rows", type=int, default=2048, help="rows of a batch on each device")
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Plan each size on each number of devices."""
    figures: dict[str, float] = {}
    rows = []
    for items in options.items:
        needed = items * options.channels * 4 / (SLACK * options.device_gb * 1e9)
        figures[f"devices_by_size_{items}"] = needed
        for devices in options.devices:
            rows.append(
                [
                    f"{items:,}",
                    str(devices),
                    f"{needed / devices:.2f}",
                    *_plan(options, items, devices),
                ]
            )
    columns = ("items", "devices", "share of memory", "sharding", "kernel", "shards")
    return Report("shards", figures, vars(options), columns, rows)


def _plan(options: argparse.Namespace, items: int, devices: int) -> tuple[str, str, str]:
    """What the planner chooses: the kind of sharding, the kernel, and the sizes of the shards."""
    import torch
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import PlannerError

    config = EmbeddingConfig(
        name="item_table",
        embedding_dim=options.channels,
        num_embeddings=items,
        feature_names=["item"],
    )
    table = EmbeddingCollection(device=torch.device("meta"), tables=[config])
    topology = Topology(
        world_size=devices,
        local_world_size=min(devices, options.per_host),
        compute_device="cuda",
        hbm_cap=round(options.device_gb * 1e9),
        ddr_cap=round(options.host_gb * 1e9),
    )
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=options.rows)
    try:
        plan = planner.plan(table, [EmbeddingCollectionSharder()])
    except PlannerError as error:
        return "none", "", str(error).splitlines()[0][:60]
    (module,) = plan.plan.values()
    found = module["item_table"]
    sizes = Counter(str(each.shard_sizes) for each in found.sharding_spec.shards)
    shards = ", ".join(f"{count} of {size}" for size, count in sizes.items())
    return found.sharding_type, found.compute_kernel, shards
