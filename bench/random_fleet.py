"""Random backbones and bundles for a service with many random tasks.

Other load generators rely on the names: tasks are ``t0``, ``t1``, …, items are ``0``, ``1``, ….
Tasks have 10 classes and two serial patches per block with bottleneck C/8. Weights are scaled so
that activations keep their size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone, save_backbone
from peterrec.model.files.probes import probe_tensors
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import FIRST_ITEM, BackboneSpec, HeadSpec, PatchGeometry, TableSpec
from peterrec.patches.bundle.bundle import build_bundle
from peterrec.patches.bundle.manifest import (
    Manifest,
    ManifestHead,
    ManifestInput,
    ManifestPatch,
    ManifestProbes,
    Provenance,
)

CLASSES = 10
PROBE_LENGTHS = (0, 1, 20, 50)


@dataclass(frozen=True, slots=True)
class FleetShape:
    """The number of tasks, and the size of backbone and tasks."""

    tasks: int = 500
    channels: int = 64
    items: int = 20_000
    blocks: tuple[int, ...] = tuple(range(8))
    max_len: int = 50
    queries: int = 0

    @property
    def geometry(self) -> PatchGeometry:
        """The geometry of each task's patch."""
        return PatchGeometry("serial2", self.channels // 8, self.blocks, queries=self.queries)


def make_backbone(shape: FleetShape, folder: Path, seed: int = 0) -> LoadedBackbone:
    """Save a random backbone in ``folder`` and load it from there."""
    torch.manual_seed(seed)
    spec = BackboneSpec(shape.items, shape.channels, max_len=shape.max_len)
    backbone = Backbone(spec)
    with torch.no_grad():
        backbone.embedding.weight.normal_()
        for block in backbone.blocks:
            for name, parameter in block.named_parameters():
                if name.startswith("conv") and name.endswith("weight"):
                    parameter.normal_(std=(spec.kernel_size * shape.channels) ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
    save_backbone(folder, backbone, [str(item) for item in range(shape.items)], record={})
    return load_backbone(folder)


def make_patch(shape: FleetShape, task: int) -> PatchWeights:
    """Make random patch weights for one task."""
    random = np.random.default_rng((1, task))
    h, c = shape.geometry.bottleneck, shape.channels
    scales = {"patch.down": c**-0.5, "patch.query": c**-0.5}
    scales |= dict.fromkeys(("patch.up", "patch.read_up"), 0.5 * h ** (-0.5))
    scales["patch.read_down"] = (c * max(1, shape.queries)) ** -0.5
    tensors = {
        name: torch.from_numpy(
            random.standard_normal(size, dtype=np.float32) * np.float32(scales.get(name, 0.1))
        )
        for name, size in shape.geometry.shapes(shape.channels).items()
    }
    return PatchWeights.from_named(shape.geometry, tensors)


def make_head(shape: FleetShape, task: int) -> Head:
    """Make random head weights for one task."""
    generator = torch.Generator().manual_seed(task)
    head = Head(HeadSpec("classification", CLASSES), shape.channels, generator)
    with torch.no_grad():
        head.weight.mul_(10 * shape.channels**-0.5)
    return head.requires_grad_(False)


def make_table(shape: FleetShape, task: int) -> ItemTable:
    """Make a random item table for one task, in which every item has a row."""
    random = np.random.default_rng((2, task))
    codes = random.integers(-127, 128, (shape.items, CLASSES), dtype=np.int8)
    items = torch.arange(shape.items) + FIRST_ITEM
    return ItemTable(
        TableSpec(shape.items), items, torch.from_numpy(codes), torch.full((CLASSES,), 0.01)
    )


def make_bundles(shape: FleetShape, loaded: LoadedBackbone) -> Iterator[bytes]:
    """Make the bundles of all tasks in order, each with correct probes."""
    random = np.random.default_rng(7)
    histories = [
        random.integers(FIRST_ITEM, FIRST_ITEM + shape.items, length) for length in PROBE_LENGTHS
    ]
    for task in range(shape.tasks):
        patch, head = make_patch(shape, task), make_head(shape, task)
        probes = probe_tensors(loaded.backbone, patch, head, histories)
        weights = {**patch.named(), **head.named()}
        tensors = {name: np.ascontiguousarray(t.numpy()) for name, t in weights.items()}
        yield build_bundle(_manifest(shape, loaded, task), tensors | probes)


def _manifest(shape: FleetShape, loaded: LoadedBackbone, task: int) -> Manifest:
    return Manifest(
        name=f"t{task}",
        backbone=loaded.fingerprint,
        input=ManifestInput.of(loaded.backbone.spec),
        patch=ManifestPatch.of(shape.geometry),
        head=ManifestHead(
            kind="classification",
            outputs=CLASSES,
            labels=tuple(f"class-{number}" for number in range(CLASSES)),
        ),
        probes=ManifestProbes(count=len(PROBE_LENGTHS), columns=CLASSES),
        provenance=Provenance(
            data_digest="random",
            seed=task,
            software="bench.random_fleet",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
    )
