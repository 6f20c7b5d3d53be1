"""Run in a process of its own, as kernels are compiled once in a process: which ones are late?

Warms a store up, loads bundles of many kinds and geometries and runs rows of them, and prints how
many kernels were compiled or read before and after the store was warm.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from peterrec.model.inference.cpu.compiled import compilations_of_this_thread
from peterrec.model.spec import BackboneSpec, HeadKind, PatchGeometry, TableSpec
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.service.device.slots import SlotStore
from peterrec.service.protocol.messages import Row
from tests.service.random_bundles import Workshop

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

TASKS: tuple[tuple[HeadKind, PatchGeometry], ...] = (
    ("classification", PatchGeometry("serial2", 4, (0, 1))),
    ("tags", PatchGeometry("parallel2", 4, (0, 1), has_inner_skip=True)),
    ("ranking", PatchGeometry("serial1", 6, (1,), has_norms=True)),
    ("value", PatchGeometry("serial2", 8, (1,), has_norms=True, has_cls=True)),
    ("classification", PatchGeometry("serial2", 5, (), queries=3)),
    ("tags", PatchGeometry("parallel2", 18, (0,), has_norms=True, queries=17)),
    ("value", PatchGeometry("serial2", 1, ())),
    ("ranking", PatchGeometry("serial2", 40, (1,))),
)


def main(precision: str, patch_precision: str, kernel_size: int, padding: str) -> None:
    spec = BackboneSpec(
        item_count=200,
        channels=24,
        dilations=(1, 4),
        kernel_size=kernel_size,
        max_len=20,
        padding="embedded" if padding == "embedded" else "exact",
    )
    with TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder), spec)
    backbone, patch_dtype = workshop.loaded.backbone, DTYPES[patch_precision]
    store = SlotStore(backbone, 1 << 30, DTYPES[precision], 1 << 20, patch_dtype)
    store.warm_up()
    early = compilations_of_this_thread()
    handles = []
    for number, (kind, geometry) in enumerate(TASKS):
        table = TableSpec(3) if number % 2 else None
        data = workshop.bundle(kind, number, geometry=geometry, table=table)
        bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
        handles.append((store.load(bundle).handle, kind))
    for count in (1, 2, 7, 40):
        for length in (0, 1, 5, 20, 40):
            rows = [row(*handles[at % len(handles)], length, at) for at in range(count)]
            store.score(rows)
            for each in rows[: len(handles)]:
                store.score([each])
    print(early, compilations_of_this_thread() - early, store.preparation.late_kernels)


def row(handle: int, kind: str, length: int, seed: int) -> Row:
    tokens = np.arange(length, dtype=np.int32) % 90 + 10 + seed % 3
    return Row(handle, tokens.tobytes(), top_k=3 if kind == "ranking" else 0)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
