"""What is resident on the device: per bundle a patch in a pool and a head beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from peterrec.model.errors import Category, PeterRecError
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.forward import mixed_forward
from peterrec.model.inference.heads import HeadRef, MixedHeads, RowScores, Selection
from peterrec.model.inference.top_k import CatalogWeights
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.kinds import KINDS
from peterrec.model.network.backbone import Backbone
from peterrec.model.spec import FIRST_ITEM, PAD, HeadSpec, PatchGeometry
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.identity import Digest
from peterrec.patches.interning import shared, shared_digest
from peterrec.service.device.head_cache import HeadBudgetExceeded, HeadRoom
from peterrec.service.protocol.messages import Handle

__all__ = [
    "EngineRow",
    "HeadBudgetExceeded",
    "LocalBundle",
    "ProbeFailed",
    "Residency",
    "SlotStore",
]

PROBE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of a probe's logit, relative to the largest expected one, by precision."""

WARM_UP_LENGTHS = (0, 1, 8, 64)

SMALLEST_SCALE = 1e-3
"""Logits smaller than this are compared absolutely."""

PROBE_ROWS = 256
"""Probes that run in one forward; more would hold up the requests that wait meanwhile."""


class ProbeFailed(PeterRecError):
    """The device computes other numbers for the bundle's probes than its trainer saw."""

    code = "probe_failed"
    category = Category.INCOMPATIBLE

    def __init__(self, error: float, tolerance: float) -> None:
        super().__init__(
            f"the probes' logits are off by {error:.2g} of the largest; {tolerance:g} is allowed.",
            hint="Write the bundle again on the backbone that is served; its weights do not "
            "give the answers its trainer recorded.",
        )


class Form(NamedTuple):
    """What a bundle's weights look like, and the pools that hold those of this form."""

    geometry: PatchGeometry
    patches: WeightPool
    head: HeadSpec
    heads: WeightPool | None


class Residency(msgspec.Struct, frozen=True, gc=False):
    """A bundle whose weights lie on the device, validated there.

    Ten thousands of them are kept, so that a residency is one small object that garbage collection
    need not look at. ``catalog_path`` is the local bundle file that a ranking head's item ids are
    read from, and its weights, which are in ``catalog``, when they have left the device.
    """

    handle: Handle
    digest: Digest
    labels: tuple[str, ...]
    threshold: float
    form: Form
    patch_slot: int
    head_slot: int
    catalog_path: str = ""
    catalog: CatalogWeights | None = None

    @property
    def patch(self) -> SlotRef:
        """Where the patch lies."""
        return SlotRef(self.form.geometry, self.form.patches, self.patch_slot)

    @property
    def head(self) -> HeadRef:
        """Where the head lies."""
        return HeadRef(self.form.head, self.form.heads, self.head_slot, self.catalog)


@dataclass(frozen=True, slots=True)
class LocalBundle:
    """A verified bundle and the file on this machine that a ranking head is read from.

    Without a path the head never leaves the device.
    """

    bundle: VerifiedBundle
    path: str = ""


class EngineRow(NamedTuple):
    """One row of a batch: a history (token ids int32, oldest first) for one residency."""

    residency: Residency
    tokens: np.ndarray
    selection: Selection


class SlotStore:
    """Loads, probes, scores and frees bundles. Used by the device thread only."""

    def __init__(
        self,
        backbone: Backbone,
        head_limit_bytes: int,
        dtype: torch.dtype = torch.float32,
        trunk_cache_bytes: int = 0,
        patch_dtype: torch.dtype | None = None,
    ) -> None:
        self._channels = backbone.spec.channels
        self._device = backbone.embedding.weight.device
        self._dtype, self._patch_dtype = dtype, patch_dtype or dtype
        self._forward = mixed_forward(backbone, dtype, trunk_cache_bytes)
        self._heads = MixedHeads(self._channels, self._device)
        self.head_room = HeadRoom(head_limit_bytes)
        self._pools: dict[PatchGeometry, WeightPool] = {}
        self._forms: dict[Form, Form] = {}
        self._handles = count(1)
        self.resident: dict[Handle, Residency] = {}
        self.patch_bytes = 0
        self.backbone_bytes = sum(t.numel() * t.element_size() for t in backbone.parameters())

    @property
    def head_bytes(self) -> int:
        """Bytes of heads on the device, room for one that returns included."""
        return self.head_room.used_bytes

    def load(self, bundle: VerifiedBundle, catalog_path: str = "") -> Residency:
        """Copy a bundle's weights to the device and run its probes there.

        Nothing serves the residency until a table names it. Raises HeadBudgetExceeded or
        ProbeFailed, and then leaves nothing behind.
        """
        (outcome,) = self.load_many([LocalBundle(bundle, catalog_path)])
        if isinstance(outcome, PeterRecError):
            raise outcome
        return outcome

    def load_many(self, bundles: Sequence[LocalBundle]) -> list[Residency | PeterRecError]:
        """The same for many, their probes in common forwards; each stands or falls by itself.

        If the device fails, its exception is raised and nothing is left of any of them.
        """
        outcomes: list[Residency | PeterRecError] = []
        try:
            for local in bundles:
                outcomes.append(self._written(local))
            written = [
                (outcome, local.bundle)
                for outcome, local in zip(outcomes, bundles, strict=True)
                if isinstance(outcome, Residency)
            ]
            errors = self._probe_errors(written)
        except Exception:
            for outcome in outcomes:
                if isinstance(outcome, Residency):
                    self.free(outcome)
            raise
        finally:
            self.head_room.release_held()
        return [self._validated(outcome, errors) for outcome in outcomes]

    def free(self, residency: Residency) -> None:
        """Give the memory back; no row may be waiting for this residency."""
        del self.resident[residency.handle]
        residency.patch.pool.release(residency.patch.slot)
        self.head_room.remove(residency.handle, residency.head)
        self._heads.remove(residency.head)
        self.patch_bytes -= residency.patch.pool.slot_bytes

    def put_head_back(self, handle: Handle, tensors: Mapping[str, Tensor] | None) -> bool:
        """End the return of a head: with its tensors, or without if they could not be read.

        False if it is not awaited any more: the residency was freed, or its room was taken.
        """
        if not self.head_room.is_returning(handle):
            return False
        if tensors is not None:
            self._heads.put_back(self.resident[handle].head, tensors)
        self.head_room.end_return(handle, is_here=tensors is not None)
        return True

    def warm_up(self) -> None:
        """Run the forward once per common shape, so that the first request pays for nothing."""
        geometry = PatchGeometry("serial2", 1, (), queries=1)
        pool = self._pool(geometry)
        shapes = geometry.shapes(self._channels)
        ref = SlotRef(geometry, pool, pool.write({n: torch.zeros(s) for n, s in shapes.items()}))
        for length in WARM_UP_LENGTHS:
            self._forward.user_vectors([np.full(length, FIRST_ITEM)] * 2, [ref, ref])
        pool.release(ref.slot)

    def score(self, rows: Sequence[EngineRow]) -> list[RowScores]:
        """One forward over rows of any tasks; answers in the rows' order. No head is away."""
        self.head_room.use([row.residency.handle for row in rows])
        users = self._forward.user_vectors(
            [row.tokens for row in rows], [row.residency.patch for row in rows]
        )
        return self._heads.scores(
            users, [row.residency.head for row in rows], [row.selection for row in rows]
        )

    def _written(self, local: LocalBundle) -> Residency | HeadBudgetExceeded:
        head = local.bundle.manifest.head.spec()
        is_movable = KINDS[head.kind].has_catalog and local.path != ""
        try:
            self.head_room.admit(self._heads.size_bytes(head), is_movable=is_movable)
        except HeadBudgetExceeded as error:
            return error
        residency = self._write(local.bundle, local.path)
        self.head_room.add(residency.handle, residency.head, is_movable=is_movable)
        return residency

    def _validated(
        self, outcome: Residency | PeterRecError, errors: Mapping[Handle, float]
    ) -> Residency | PeterRecError:
        tolerance = max(PROBE_TOLERANCES[kind] for kind in (self._dtype, self._patch_dtype))
        if isinstance(outcome, PeterRecError) or errors[outcome.handle] <= tolerance:
            return outcome
        self.free(outcome)
        return ProbeFailed(errors[outcome.handle], tolerance)

    def _write(self, bundle: VerifiedBundle, catalog_path: str) -> Residency:
        tensors, head = _as_torch(bundle), bundle.manifest.head
        geometry = bundle.manifest.patch.geometry()
        pool = self._pool(geometry)
        slot = pool.write(tensors)
        try:
            head_ref = self._heads.add(head.spec(), tensors, head.temperature)
        except Exception:  # no memory for a large catalog: the slot must not be lost with it
            pool.release(slot)
            raise
        form = Form(geometry, pool, head_ref.spec, head_ref.pool)
        residency = Residency(
            handle=next(self._handles),
            digest=shared_digest(bundle.digest),
            labels=shared(head.labels or ()),
            threshold=shared(head.threshold),
            form=self._forms.setdefault(form, form),
            patch_slot=slot,
            head_slot=slot if head_ref.slot == slot else head_ref.slot,  # the same int, if equal
            catalog_path=catalog_path if head_ref.catalog else "",
            catalog=head_ref.catalog,
        )
        self.resident[residency.handle] = residency
        self.patch_bytes += pool.slot_bytes
        return residency

    def _probe_errors(
        self, written: Sequence[tuple[Residency, VerifiedBundle]]
    ) -> dict[Handle, float]:
        """Run the probes as served: each bundle's largest error, relative to its largest logit."""
        rows = [
            (residency.patch, history[history != PAD])
            for residency, bundle in written
            for history in bundle.tensors["probe.histories"]
        ]
        users = [
            self._forward.user_vectors([h for _, h in chunk], [ref for ref, _ in chunk])
            for chunk in (rows[at : at + PROBE_ROWS] for at in range(0, len(rows), PROBE_ROWS))
        ]
        errors: dict[Handle, float] = {}
        at, vectors = 0, torch.cat(users) if users else torch.empty(0)  # [all probes, C]
        for residency, bundle in written:
            count = len(bundle.tensors["probe.histories"])
            errors[residency.handle] = self._probe_error(
                residency, bundle, vectors[at : at + count]
            )
            at += count
        return errors

    def _probe_error(self, residency: Residency, bundle: VerifiedBundle, users: Tensor) -> float:
        """``users`` [n, C] are the probes' user vectors."""
        columns = torch.from_numpy(bundle.tensors["probe.columns"].astype(np.int64))  # [m]
        logits = self._heads.logits(users, residency.head, columns.to(users.device))  # [n, m]
        found = logits.cpu().numpy() * bundle.manifest.head.temperature
        expected = bundle.tensors["probe.logits"]  # [n, m]
        scale = max(SMALLEST_SCALE, float(np.abs(expected).max()))
        return float(np.abs(found - expected).max()) / scale

    def _pool(self, geometry: PatchGeometry) -> WeightPool:
        if geometry not in self._pools:
            shapes = geometry.shapes(self._channels)
            self._pools[geometry] = WeightPool(shapes, self._device, self._patch_dtype)
        return self._pools[geometry]


def _as_torch(bundle: VerifiedBundle) -> Mapping[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in bundle.tensors.items()
        if name.startswith(("patch.", "head."))
    }
