"""The bundles on the device: loaded into slots, validated by their probes, scored and freed.

Each bundle has a patch in a weight pool, and a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from peterrec.model.errors import PeterRecError
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.forward import mixed_forward
from peterrec.model.inference.heads import HeadRef, MixedHeads, RowScores, Selection
from peterrec.model.inference.item_tables import TableWeights
from peterrec.model.inference.top_k import CatalogWeights
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.receptive_field import read_items
from peterrec.model.spec import FIRST_ITEM, PAD, HeadSpec, PatchGeometry
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.identity import Digest
from peterrec.patches.interning import shared, shared_digest
from peterrec.service.device.head_cache import HeadCache
from peterrec.service.device.head_file import item_table
from peterrec.service.errors import HeadBudgetExceeded, ProbeFailed
from peterrec.service.protocol.messages import Handle, Row

PROBE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest error of a probe's logit, relative to the largest expected logit, by precision."""

WARM_UP_LENGTHS = (0, 1, 8, 64)
"""Lengths of the histories that are run before the first request."""

SMALLEST_SCALE = 1e-3
"""If all expected logits are smaller than this value, errors are divided by it instead."""

PROBE_ROWS = 256
"""Probes that run in one forward; more would delay the requests that wait meanwhile."""

EVERYTHING, EVERYTHING_RAW = Selection(), Selection(is_raw=True)
"""The selections of a row whose head does not rank: all outputs, as scores or as logits."""


class Form(NamedTuple):
    """The shapes of a bundle's weights, and the pools that hold weights of these shapes."""

    geometry: PatchGeometry
    patches: WeightPool
    head: HeadSpec
    heads: WeightPool | None


class Residency(msgspec.Struct, frozen=True, gc=False):
    """A bundle whose weights are on the device and were validated there.

    Tens of thousands are kept, so each is one small object that garbage collection does not visit.
    ``catalog`` has the weights of a ranking head, ``table`` the item table of any head, and
    ``path`` is the local bundle file that they are read from again after an eviction, and a
    catalog's item ids. ``scale`` and ``shift`` are those of a value's ``ValueScale``. ``reach``
    is the number of newest items that the network's logits depend on.
    """

    handle: Handle
    digest: Digest
    labels: tuple[str, ...]
    threshold: float
    form: Form
    patch_slot: int
    head_slot: int
    path: str = ""
    catalog: CatalogWeights | None = None
    scale: float = 1.0
    shift: float = 0.0
    unit: str = ""
    table: TableWeights | None = None
    reach: int = 0

    @property
    def patch(self) -> SlotRef:
        """The slot of the patch."""
        return SlotRef(self.form.geometry, self.form.patches, self.patch_slot)

    @property
    def head(self) -> HeadRef:
        """The slot or the catalog weights of the head, and its item table."""
        return HeadRef(self.form.head, self.form.heads, self.head_slot, self.catalog, self.table)


@dataclass(frozen=True, slots=True)
class LocalBundle:
    """A verified bundle, and the file on this machine that its large parts can be read from.

    These are a ranking head or an item table. Without a path they are never evicted.
    """

    bundle: VerifiedBundle
    path: str = ""


class SlotStore:
    """Loads, validates, scores and frees bundles. Used by the device thread only.

    The one record of what is on the device: ``resident`` by handle and ``by_digest``. A bundle is
    in both from loading to freeing, served or not.
    """

    def __init__(
        self,
        backbone: Backbone,
        head_limit_bytes: int,
        dtype: torch.dtype = torch.float32,
        trunk_cache_bytes: int = 0,
        patch_dtype: torch.dtype | None = None,
    ) -> None:
        self._spec = backbone.spec
        self._channels = backbone.spec.channels
        self._device = backbone.embedding.weight.device
        self._dtype, self._patch_dtype = dtype, patch_dtype or dtype
        self._forward = mixed_forward(backbone, dtype, trunk_cache_bytes)
        self._heads = MixedHeads(self._channels, self._device, backbone.spec.token_count)
        self.head_cache = HeadCache(head_limit_bytes)
        self._pools: dict[PatchGeometry, WeightPool] = {}
        self._forms: dict[Form, Form] = {}
        self._handles = count(1)
        self.resident: dict[Handle, Residency] = {}
        self.by_digest: dict[Digest, Residency] = {}
        self.patch_bytes = 0
        self.backbone_bytes = sum(t.numel() * t.element_size() for t in backbone.parameters())

    @property
    def head_bytes(self) -> int:
        """Bytes of heads on the device, including room for one that is being reloaded."""
        return self.head_cache.used_bytes

    def load(self, bundle: VerifiedBundle, path: str = "") -> Residency:
        """Copy a bundle's weights to the device and run its probes there.

        Nothing serves the residency until a table names it. Raises HeadBudgetExceeded or
        ProbeFailed, with nothing left of the bundle.
        """
        (outcome,) = self.load_many([LocalBundle(bundle, path)])
        if isinstance(outcome, PeterRecError):
            raise outcome
        return outcome

    def load_many(self, bundles: Sequence[LocalBundle]) -> list[Residency | PeterRecError]:
        """Load several bundles, with their probes in shared forwards.

        Returns each bundle's residency or error, independent of the others. If the device fails,
        its exception is raised and nothing is left of any bundle.
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
            self.head_cache.unpin()
        return [self._validated(outcome, errors) for outcome in outcomes]

    def free(self, residency: Residency) -> None:
        """Free the memory of a residency; no row may wait for it."""
        del self.resident[residency.handle]
        if self.by_digest.get(residency.digest) is residency:
            del self.by_digest[residency.digest]
        residency.patch.pool.release(residency.patch.slot)
        self.head_cache.remove(residency.handle, residency.head)
        self._heads.remove(residency.head)
        self.patch_bytes -= residency.patch.pool.slot_bytes

    def end_head_reload(self, handle: Handle, tensors: Mapping[str, Tensor] | None) -> bool:
        """Put a head's tensors on the device again; None if they could not be read.

        Returns False if the reload was cancelled: the residency was freed, or its room was taken.
        """
        if not self.head_cache.is_reloading(handle):
            return False
        if tensors is not None:
            self._heads.put_back(self.resident[handle].head, tensors)
        self.head_cache.end_reload(handle, is_here=tensors is not None)
        return True

    def warm_up(self) -> None:
        """Run the forward once per common length, so that the first request need not compile."""
        geometry = PatchGeometry("serial2", 1, (), queries=1)
        pool = self._pool(geometry)
        shapes = geometry.shapes(self._channels)
        ref = SlotRef(geometry, pool, pool.write({n: torch.zeros(s) for n, s in shapes.items()}))
        for length in WARM_UP_LENGTHS:
            self._forward.user_vectors([np.full(length, FIRST_ITEM)] * 2, [ref, ref])
        pool.release(ref.slot)
        self._heads.warm_up()

    def score(self, rows: Sequence[Row]) -> list[RowScores]:
        """Run one forward over rows of any tasks; return their scores in the same order.

        The bundles of all rows must be resident and none of their heads evicted. Rows with
        ``left_out`` need no forward.
        """
        self.head_cache.touch([row.handle for row in rows])
        run = [row for row in rows if row.left_out is None]
        if len(run) == len(rows):
            return self._run(rows)
        found = iter(self._run(run) if run else ())
        return [next(found) if row.left_out is None else self._without_each(row) for row in rows]

    def _without_each(self, row: Row) -> RowScores:
        head = self.resident[row.handle].head
        history = np.frombuffer(row.older + row.tokens, np.int32)
        items = np.frombuffer(row.left_out or b"", np.int32)
        return self._heads.table_without_each(head, history, items)

    def _run(self, rows: Sequence[Row]) -> list[RowScores]:
        residencies = [self.resident[row.handle] for row in rows]
        newest: list[Tokens] = [np.frombuffer(bytearray(row.tokens), np.int32) for row in rows]
        users = self._forward.user_vectors(
            newest, [each.patch for each in residencies], [row.is_raw for row in rows]
        )
        has_table = any(each.table is not None for each in residencies)
        return self._heads.scores(
            users,
            [residency.head for residency in residencies],
            [_selection(row) for row in rows],
            _whole_histories(rows, newest) if has_table else (),
        )

    def _written(self, local: LocalBundle) -> Residency | HeadBudgetExceeded:
        manifest = local.bundle.manifest
        table = item_table(manifest, local.bundle.tensors)
        size = self._heads.size(manifest.head.spec(), table)
        is_evictable = size.large > 0 and local.path != ""
        try:
            self.head_cache.reserve(size, is_evictable=is_evictable)
        except HeadBudgetExceeded as error:
            return error
        residency = self._write(local, table)
        self.head_cache.add(residency.handle, residency.head, is_evictable=is_evictable)
        return residency

    def _validated(
        self, outcome: Residency | PeterRecError, errors: Mapping[Handle, float]
    ) -> Residency | PeterRecError:
        tolerance = max(PROBE_TOLERANCES[kind] for kind in (self._dtype, self._patch_dtype))
        if isinstance(outcome, PeterRecError) or errors[outcome.handle] <= tolerance:
            return outcome
        self.free(outcome)
        return ProbeFailed(errors[outcome.handle], tolerance)

    def _write(self, local: LocalBundle, table: ItemTable | None) -> Residency:
        bundle = local.bundle
        tensors, head = _as_torch(bundle), bundle.manifest.head
        geometry = bundle.manifest.patch.geometry()
        pool = self._pool(geometry)
        slot = pool.write(tensors)
        try:
            head_ref = self._heads.add(head.spec(), tensors, head.temperature, table)
        except Exception:  # no memory for a large part: the slot must not be leaked
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
            path=local.path if head_ref.large else "",
            catalog=head_ref.catalog,
            scale=shared(head.scale),
            shift=shared(head.shift),
            unit=shared(head.unit or ""),
            table=head_ref.table,
            reach=shared(self._reach(geometry, head_ref, tensors)),
        )
        self.resident[residency.handle] = self.by_digest[residency.digest] = residency
        self.patch_bytes += pool.slot_bytes
        return residency

    def _reach(self, geometry: PatchGeometry, head: HeadRef, tensors: Mapping[str, Tensor]) -> int:
        """The number of newest items that a bundle's network depends on; 0 if only a table does."""
        if head.catalog is None and head.table is not None and not tensors["head.weight"].any():
            return 0
        return self._spec.max_len if geometry.queries else read_items(self._spec)

    def _probe_errors(
        self, written: Sequence[tuple[Residency, VerifiedBundle]]
    ) -> dict[Handle, float]:
        """Run the probes as rows are run; return the largest relative error of each bundle."""
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
            histories = [history for _, history in rows[at : at + count]]
            errors[residency.handle] = self._probe_error(
                residency, bundle, vectors[at : at + count], histories
            )
            at += count
        return errors

    def _probe_error(
        self,
        residency: Residency,
        bundle: VerifiedBundle,
        users: Tensor,
        histories: Sequence[Tokens],
    ) -> float:
        """``users`` [n, C] are the probes' user vectors."""
        columns = torch.from_numpy(bundle.tensors["probe.columns"].astype(np.int64))  # [m]
        columns = columns.to(users.device)
        logits = self._heads.logits(users, residency.head, columns, histories)  # [n, m]
        found = logits.cpu().numpy() * bundle.manifest.head.temperature
        expected = bundle.tensors["probe.logits"]  # [n, m]
        scale = max(SMALLEST_SCALE, float(np.abs(expected).max()))
        return float(np.abs(found - expected).max()) / scale

    def _pool(self, geometry: PatchGeometry) -> WeightPool:
        if geometry not in self._pools:
            shapes = geometry.shapes(self._channels)
            self._pools[geometry] = WeightPool(shapes, self._device, self._patch_dtype)
        return self._pools[geometry]


def _whole_histories(rows: Sequence[Row], newest: Sequence[Tokens]) -> list[Tokens]:
    """Each row's whole history; rows with equal ones get the same object."""
    found: dict[tuple[bytes, bytes], Tokens] = {}
    whole: list[Tokens] = []
    for row, tokens in zip(rows, newest, strict=True):
        key = (row.older, row.tokens)
        if key not in found:
            older = np.frombuffer(row.older, np.int32)
            found[key] = np.concatenate([older, tokens]) if row.older else tokens
        whole.append(found[key])
    return whole


def _selection(row: Row) -> Selection:
    if not row.top_k:
        return EVERYTHING_RAW if row.is_raw else EVERYTHING
    return Selection(
        top_k=row.top_k,
        excluded=np.frombuffer(row.excluded, np.int64) if row.excluded else None,
        candidates=None if row.candidates is None else np.frombuffer(row.candidates, np.int64),
    )


def _as_torch(bundle: VerifiedBundle) -> Mapping[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in bundle.tensors.items()
        if name.startswith(("patch.", "head."))
    }
