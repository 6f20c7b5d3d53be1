"""Small valid bundles, whole or with one thing wrong, for a tiny backbone."""

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from peterrec.model.kinds import KINDS
from peterrec.model.kinds.value import ValueScale
from peterrec.model.spec import FIRST_ITEM, BackboneSpec, HeadKind, PatchGeometry, TableSpec
from peterrec.patches.bundle.bundle import Catalog, build_bundle
from peterrec.patches.bundle.contents import tensor_forms
from peterrec.patches.bundle.header import Array, encode_file
from peterrec.patches.bundle.manifest import (
    Manifest,
    ManifestHead,
    ManifestInput,
    ManifestPatch,
    ManifestProbes,
    ManifestTable,
    Provenance,
)
from peterrec.patches.bundle.packed_table import pack_codes
from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits

TINY = BackboneIdentity(
    fingerprint=hashlib.sha256(b"tiny backbone").hexdigest(),
    spec=BackboneSpec(item_count=20, channels=4, dilations=(1, 2), max_len=3),
)
LIMITS = BundleLimits(max_bytes=1 << 20, max_header_bytes=1 << 16, max_patch_work=1e6)
"""Any patch may be served: beside a tiny backbone, most of them are costly."""


@dataclass(frozen=True)
class BundleParts:
    """The parts of a bundle. A test may change a part and ``encode`` it, even to an invalid one."""

    manifest: Manifest
    tensors: dict[str, Array]
    manifest_text: str | None = None

    def encode(self) -> bytes:
        """Encode the parts with a correct checksum, without checking them."""
        return encode_file(self.manifest_text or self.manifest.to_json(), self.tensors)

    def with_tensors(self, **changed: Array) -> "BundleParts":
        """Replace tensors; ``__`` in a keyword stands for the dot of the tensor's name."""
        named = {name.replace("__", ".", 1): tensor for name, tensor in changed.items()}
        return replace(self, tensors=self.tensors | named)

    def without_tensor(self, name: str) -> "BundleParts":
        return replace(self, tensors={n: t for n, t in self.tensors.items() if n != name})

    def with_manifest(self, **changed: object) -> "BundleParts":
        """Replace manifest fields without validating them."""
        return replace(self, manifest=self.manifest.model_copy(update=changed))


@dataclass(frozen=True)
class BundleRecipe:
    """The options of a generated bundle."""

    kind: HeadKind = "classification"
    outputs: int = 3
    seed: int = 0
    name: str = "gender"
    backbone: BackboneIdentity = TINY
    geometry: PatchGeometry = field(default_factory=lambda: PatchGeometry("serial2", 2, (0, 1)))
    labels: tuple[str, ...] | None = None
    catalog: tuple[str, ...] | None = None
    unit: str | None = None
    probe_count: int = 2
    line: ValueScale = field(default_factory=ValueScale)
    table: TableSpec | None = None
    probe_length: int = 8


def make_parts(recipe: BundleRecipe) -> BundleParts:
    """Make a manifest and random tensors that fit each other."""
    outputs = 1 if recipe.kind == "value" else recipe.outputs
    manifest = _manifest(recipe, outputs)
    random = np.random.default_rng(recipe.seed)
    forms = tensor_forms(manifest, recipe.backbone.spec.channels)
    tensors: dict[str, Array] = {
        name: random.normal(size=[size or 0 for size in form.shape]).astype(np.float32)
        for name, form in forms.items()
        if form.dtype == "F32"
    }
    if recipe.table:
        width = KINDS[recipe.kind].table_width(outputs, recipe.backbone.spec.channels)
        tensors |= _table(recipe.table, width, random)
    tensors["probe.histories"] = _histories(recipe, manifest.probe_length, random)
    tensors["probe.columns"] = np.arange(outputs, dtype=np.int64)
    if recipe.kind == "ranking":
        items = recipe.catalog or tuple(f"film-{index}" for index in range(outputs))
        tensors |= Catalog.pack(items).tensors()
    return BundleParts(manifest, tensors)


def make_bundle(
    kind: HeadKind = "classification",
    **overrides: Any,  # Any: fields of BundleRecipe, which checks their names
) -> bytes:
    """Make a valid bundle; ``overrides`` are fields of BundleRecipe."""
    parts = make_parts(replace(BundleRecipe(kind=kind), **overrides))
    return build_bundle(parts.manifest, parts.tensors)


def _manifest(recipe: BundleRecipe, outputs: int) -> Manifest:
    labels = recipe.labels or tuple(f"label-{index}" for index in range(outputs))
    return Manifest(
        name=recipe.name,
        backbone=recipe.backbone.fingerprint,
        input=ManifestInput.of(recipe.backbone.spec),
        patch=ManifestPatch.of(recipe.geometry),
        head=ManifestHead(
            kind=recipe.kind,
            outputs=outputs,
            labels=labels if KINDS[recipe.kind].has_labels else None,
            scale=recipe.line.scale,
            shift=recipe.line.shift,
            unit=recipe.unit,
        ),
        table=ManifestTable.of(recipe.table) if recipe.table else None,
        probes=ManifestProbes(
            count=recipe.probe_count,
            columns=outputs,
            length=recipe.probe_length if recipe.table else None,
        ),
        metrics={"accuracy": 0.5},
        provenance=Provenance(
            data_digest="0" * 64,
            seed=recipe.seed,
            software="peterrec 0.1.0",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
    )


def _table(spec: TableSpec, outputs: int, random: np.random.Generator) -> dict[str, Array]:
    """An item table of the vocabulary's first items."""
    codes = random.integers(-spec.largest, spec.largest + 1, (spec.items, outputs), dtype=np.int8)
    return {
        "table.items": np.zeros(spec.items, np.uint8),  # no gaps
        "table.weight": pack_codes(codes, spec),
        "table.scale": random.random(outputs, dtype=np.float32),
    }


def _histories(recipe: BundleRecipe, length: int, random: np.random.Generator) -> Array:
    """Left-padded item tokens int32 [n, length], the first one empty."""
    spec = recipe.backbone.spec
    shape = (recipe.probe_count, length)
    histories = random.integers(FIRST_ITEM, spec.token_count, shape, dtype=np.int32)
    histories[0] = 0
    return histories
