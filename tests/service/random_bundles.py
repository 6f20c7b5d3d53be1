"""Bundles of random weights with correct probes, for servers under test."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from peterrec.model.files.backbone_folder import load_backbone, save_backbone
from peterrec.model.files.probes import probe_tensors
from peterrec.model.kinds import KINDS
from peterrec.model.kinds.value import ValueScale
from peterrec.model.spec import BackboneSpec, HeadKind, HeadSpec, PatchGeometry, TableSpec
from peterrec.patches.bundle.bundle import build_bundle
from peterrec.patches.bundle.verify import BackboneIdentity
from peterrec.service.jobs.packing import table_tensors
from tests.model.random_tasks import (
    RandomTask,
    random_backbone,
    random_history,
    random_table,
    random_task,
)
from tests.patches.bundles import BundleRecipe, make_parts

SPEC = BackboneSpec(item_count=200, channels=16, dilations=(1, 4), max_len=20)
ITEMS = [f"item-{number}" for number in range(100)] + [str(number) for number in range(100)]
GEOMETRY = PatchGeometry("serial2", 4, (0, 1))
LENGTHS = (1, 7, 30)
"""Lengths of the probes, beside the empty one; the longest is longer than the network reads."""
STANDARD = ValueScale()


class Workshop:
    """One random backbone, saved in a folder, and bundles for it."""

    def __init__(
        self, folder: Path, spec: BackboneSpec = SPEC, items: Sequence[str] = ITEMS
    ) -> None:
        self.folder = folder
        self.spec = spec
        save_backbone(folder, random_backbone(spec), [*items], record={})
        self.loaded = load_backbone(folder)
        self.identity = BackboneIdentity(self.loaded.fingerprint, spec)

    def task(
        self,
        kind: HeadKind,
        seed: int,
        outputs: int = 3,
        geometry: PatchGeometry = GEOMETRY,
        table: TableSpec | None = None,
        reads_network: bool = True,
    ) -> RandomTask:
        """Return the weights of ``bundle``, with the plain reference forward."""
        spec = HeadSpec(kind, 1 if kind == "value" else outputs)
        task = random_task(self.loaded.backbone, geometry, spec, seed)
        if not reads_network:
            task.head.weight.data.zero_()
        if table is None:
            return task
        width = KINDS[kind].table_width(spec.outputs, self.spec.channels)
        return replace(task, table=random_table(self.spec, width, seed, table))

    def bundle(
        self,
        kind: HeadKind,
        seed: int,
        outputs: int = 3,
        geometry: PatchGeometry = GEOMETRY,
        names: tuple[str, ...] | None = None,
        line: ValueScale = STANDARD,
        unit: str | None = None,
        table: TableSpec | None = None,
        reads_network: bool = True,
    ) -> bytes:
        """Make a bundle with correct probes for this backbone; seeds change only the weights.

        ``names``: what the outputs are called, as labels or as the catalog. ``line`` makes a value
        of a logit. ``table`` is the form of the item table, but for its number of items. Without
        ``reads_network`` the head has no weights but its bias.
        """
        task = self.task(kind, seed, outputs, geometry, table, reads_network)
        histories = [[], *(random_history(self.spec, length, length) for length in LENGTHS)]
        probes = probe_tensors(self.loaded.backbone, task.patch, task.head, histories, task.table)
        recipe = BundleRecipe(
            kind=kind,
            outputs=outputs,
            labels=names,
            catalog=names,
            unit=unit,
            seed=seed,
            name=kind,
            backbone=self.identity,
            geometry=geometry,
            probe_count=len(histories),
            line=line,
            table=task.table.spec if task.table else None,
            probe_length=max(LENGTHS),
        )
        parts = make_parts(recipe)
        manifest = parts.manifest.model_copy(
            update={
                "probes": parts.manifest.probes.model_copy(
                    update={"columns": len(probes["probe.columns"])}
                )
            }
        )
        weights = {**task.patch.named(), **task.head.named()}
        tensors = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in weights.items()}
        tensors |= table_tensors(task.table) if task.table else {}
        parts = replace(parts, manifest=manifest, tensors=parts.tensors | tensors | probes)
        return build_bundle(parts.manifest, parts.tensors)
