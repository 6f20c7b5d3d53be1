"""What is resident on the device: per bundle a patch in a slab and a head beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from model.backbone import Backbone
from model.errors import Category, PeterRecError
from model.lanes import SlotRef
from model.mixed import MixedForward
from model.mixed_heads import HeadRef, MixedHeads, RowScores, Selection
from model.slab import Slab
from model.spec import FIRST_ITEM, PAD, PatchGeometry
from patches.identity import Digest
from patches.verify import VerifiedBundle
from service.messages import Handle

PROBE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of a probe's logit, relative to the largest expected one, by precision."""

WARM_UP_LENGTHS = (0, 1, 8, 64)

SMALLEST_SCALE = 1e-3
"""Logits smaller than this are compared absolutely."""


class HeadBudgetExceeded(PeterRecError):
    code = "head_budget_exceeded"
    category = Category.NO_ROOM

    def __init__(self, wanted: int, used: int, limit: int) -> None:
        super().__init__(
            f"the head needs {wanted} bytes; {used} of {limit} are in use.",
            hint="Raise PETERREC_HEAD_LIMIT_BYTES, or retire tasks with large catalogs.",
        )


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


@dataclass(frozen=True, slots=True)
class Residency:
    """A bundle whose weights lie on the device, proven there.

    ``catalog_path`` is the local bundle file that a ranking head's item ids are read from.
    """

    handle: Handle
    digest: Digest
    labels: tuple[str, ...]
    threshold: float
    catalog_path: str
    patch: SlotRef
    head: HeadRef


@dataclass(frozen=True, slots=True)
class EngineRow:
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
    ) -> None:
        self._channels = backbone.spec.channels
        self._device = backbone.embedding.weight.device
        self._dtype = dtype
        self._forward = MixedForward(backbone, dtype)
        self._heads = MixedHeads(self._channels, self._device)
        self._head_limit_bytes = head_limit_bytes
        self._slabs: dict[PatchGeometry, Slab] = {}
        self._handles = count(1)
        self.resident: dict[Handle, Residency] = {}
        self.patch_bytes = 0
        self.head_bytes = 0
        self.backbone_bytes = sum(t.numel() * t.element_size() for t in backbone.parameters())

    def load(self, bundle: VerifiedBundle, catalog_path: str = "") -> Residency:
        """Copy a bundle's weights to the device and run its probes there.

        Nothing serves the residency until a table names it. Raises HeadBudgetExceeded or
        ProbeFailed, and then leaves nothing behind.
        """
        used, wanted = self.head_bytes, bundle.head_bytes
        if used + wanted > self._head_limit_bytes:
            raise HeadBudgetExceeded(wanted, used, self._head_limit_bytes)
        residency = self._write(bundle, catalog_path)
        error = self._probe_error(residency, bundle)
        if not error <= PROBE_TOLERANCES[self._dtype]:
            self.free(residency)
            raise ProbeFailed(error, PROBE_TOLERANCES[self._dtype])
        return residency

    def free(self, residency: Residency) -> None:
        """Give the memory back; no row may be waiting for this residency."""
        del self.resident[residency.handle]
        residency.patch.slab.release(residency.patch.slot)
        self._heads.remove(residency.head)
        self.patch_bytes -= residency.patch.slab.slot_bytes
        self.head_bytes -= residency.head.size_bytes

    def warm_up(self) -> None:
        """Run the forward once per common shape, so that the first request pays for nothing."""
        geometry = PatchGeometry("serial2", 1, ())
        slab = self._slab(geometry)
        shapes = geometry.shapes(self._channels)
        ref = SlotRef(geometry, slab, slab.write({n: torch.zeros(s) for n, s in shapes.items()}))
        for length in WARM_UP_LENGTHS:
            self._forward.user_vectors([np.full(length, FIRST_ITEM)] * 2, [ref, ref])
        slab.release(ref.slot)

    def score(self, rows: Sequence[EngineRow]) -> list[RowScores]:
        """One forward over rows of any tasks; answers in the rows' order."""
        users = self._forward.user_vectors(
            [row.tokens for row in rows], [row.residency.patch for row in rows]
        )
        return self._heads.scores(
            users, [row.residency.head for row in rows], [row.selection for row in rows]
        )

    def _write(self, bundle: VerifiedBundle, catalog_path: str) -> Residency:
        tensors, head, geometry = _as_torch(bundle), bundle.manifest.head, bundle.manifest.patch
        slab = self._slab(geometry.geometry())
        residency = Residency(
            handle=next(self._handles),
            digest=bundle.digest,
            labels=head.labels or (),
            threshold=head.threshold,
            catalog_path=catalog_path,
            patch=SlotRef(geometry.geometry(), slab, slab.write(tensors)),
            head=self._heads.add(head.spec(), tensors, head.temperature),
        )
        self.resident[residency.handle] = residency
        self.patch_bytes += slab.slot_bytes
        self.head_bytes += residency.head.size_bytes
        return residency

    def _probe_error(self, residency: Residency, bundle: VerifiedBundle) -> float:
        """Run the probes as served: largest error relative to the largest expected logit."""
        histories = [history[history != PAD] for history in bundle.tensors["probe.histories"]]
        users = self._forward.user_vectors(histories, [residency.patch] * len(histories))
        logits = self._heads.logits(users, residency.head).cpu().numpy()  # [n, K]
        found = logits[:, bundle.tensors["probe.columns"]] * bundle.manifest.head.temperature
        expected = bundle.tensors["probe.logits"]  # [n, m]
        scale = max(SMALLEST_SCALE, float(np.abs(expected).max()))
        return float(np.abs(found - expected).max()) / scale

    def _slab(self, geometry: PatchGeometry) -> Slab:
        if geometry not in self._slabs:
            self._slabs[geometry] = Slab(geometry.shapes(self._channels), self._device, self._dtype)
        return self._slabs[geometry]


def _as_torch(bundle: VerifiedBundle) -> Mapping[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in bundle.tensors.items()
        if name.startswith(("patch.", "head."))
    }
