"""The bundles on the device: loaded into slots, validated by their probes, scored and freed.

Each bundle has a patch in a weight pool, and a head.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from threading import Lock
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from peterrec.model.errors import PeterRecError
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.forward import mixed_forward
from peterrec.model.inference.heads import (
    HeadBytes,
    HeadRef,
    MixedHeads,
    PreparedHead,
    RowScores,
    Selection,
    head_bytes,
)
from peterrec.model.inference.item_tables import TableWeights
from peterrec.model.inference.steps import Steps, finish
from peterrec.model.inference.top_k import CatalogWeights, Rankings
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import PackedHistories, Tokens
from peterrec.model.network.receptive_field import read_items
from peterrec.model.spec import PAD, BackboneSpec, HeadSpec, PatchGeometry
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.patches.identity import Digest
from peterrec.patches.interning import shared, shared_digest
from peterrec.service.device.head_cache import HeadCache
from peterrec.service.device.head_file import item_table
from peterrec.service.device.pricing import UNKNOWN, Price, position_work
from peterrec.service.errors import HeadBudgetExceeded, PatchBudgetExceeded, ProbeFailed
from peterrec.service.protocol.answer_prior import AnswerPrior
from peterrec.service.protocol.messages import (
    PLAIN,
    VECTOR,
    BackboneMemory,
    Handle,
    Row,
    plain,
)
from peterrec.service.settings import core_count

log = structlog.get_logger()

PROBE_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest error of a probe's logit, relative to what its output can reach, by precision."""

PLAIN_GEOMETRY = PatchGeometry("serial2", 1, ())
"""A patch that changes nothing: that of rows which ask for the backbone's own user vectors."""

COMMON_GEOMETRIES = (
    PLAIN_GEOMETRY,
    PatchGeometry("serial2", 1, (0,), queries=1),
    PatchGeometry("serial2", 1, (), queries=1),
)
"""What is compiled at the start: on a CPU, these geometries run the kernels of all."""

SMALLEST_SCALE = 1e-3
"""If what an output can reach is smaller than this value, errors are divided by it instead."""

PROBE_ROWS, PROBE_STEP_S = 256, 0.003
"""Most probes that run in one forward, and the seconds that it should take: the requests that come
meanwhile wait for it."""

PROBE_PRODUCTS = 1 << 22
"""Multiplications of a head in one step of the probes: about a millisecond."""

AWAKE_S = 0.002
"""Seconds after a batch for which the device thread does not sleep beside a GPU. With it, a client
alone, which sends its next request within that time, gets its answer sooner."""

CORES_TO_STAY_AWAKE = 4
"""Cores of the machine from which one of them may be spent on that."""

EVERYTHING, EVERYTHING_RAW = Selection(), Selection(is_raw=True)
"""The selections of a row whose head does not rank: all outputs, as scores or as logits."""


@dataclass(slots=True)
class Records:
    """What is on a device, of all its backbones, and the limits that they share.

    ``first`` is the spec of the first backbone, whose positions are the unit of work.
    """

    head_cache: HeadCache
    patch_limit_bytes: int
    first: BackboneSpec
    resident: "dict[Handle, Residency]" = field(default_factory=dict)
    by_digest: "dict[Digest, Residency]" = field(default_factory=dict)
    handles: Iterator[int] = field(default_factory=lambda: count(1))
    backbones: int = 0
    patch_bytes: int = 0


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
    is the number of newest items that the network's logits depend on, ``price`` what its rows take
    of a batch. ``titles`` are the labels' display names, empty if there are none; a catalog's are
    read from its file. ``probe_error`` is the largest error of the probes, relative to what their
    outputs can reach. ``prior`` is its encoded ``AnswerPrior``, or empty. ``backbone`` is the place
    of its backbone among those of the device.
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
    price: Price = Price()
    titles: tuple[str, ...] = ()
    probe_error: float = 0.0
    prior: bytes = b""
    backbone: int = 0

    @property
    def patch(self) -> SlotRef:
        """The slot of the patch."""
        return SlotRef(self.form.geometry, self.form.patches, self.patch_slot)

    @property
    def head(self) -> HeadRef:
        """The slot or the catalog weights of the head, and its item table."""
        return HeadRef(self.form.head, self.form.heads, self.head_slot, self.catalog, self.table)


@dataclass(frozen=True, slots=True)
class BundleWeights:
    """A bundle's weights as they are written to the device. Any thread makes them: ``weights_of``.

    ``reads_network`` is False if only the item table moves the answers.
    """

    patch: Mapping[str, Tensor]
    head: PreparedHead
    head_bytes: HeadBytes
    reads_network: bool


@dataclass(frozen=True, slots=True)
class LocalBundle:
    """A verified bundle, and the file on this machine that its large parts can be read from.

    These are a ranking head or an item table. Without a path they are never evicted. ``weights``
    spare the device thread copying the bundle's.
    """

    bundle: VerifiedBundle
    path: str = ""
    weights: BundleWeights | None = None


def weights_of(bundle: VerifiedBundle) -> BundleWeights:
    """Copy a bundle's weights out of its file, in the form in which they are kept."""
    head, spec = bundle.manifest.head, bundle.manifest.head.spec()
    tensors, table = _as_torch(bundle), item_table(bundle.manifest, bundle.tensors)
    has_catalog = bundle.manifest.described_kind.has_catalog
    reads_network = has_catalog or table is None or bool(tensors["head.weight"].any())
    channels = tensors["head.weight"].shape[1]
    return BundleWeights(
        patch={name: tensor for name, tensor in tensors.items() if name.startswith("patch.")},
        head=PreparedHead.of(spec, tensors, head.temperature, table),
        head_bytes=head_bytes(spec, channels, table),
        reads_network=reads_network,
    )


@dataclass(slots=True)
class Held:
    """What a backbone's bundles take of the device; heads count even if they are evicted."""

    bundles: int = 0
    patch_bytes: int = 0
    head_bytes: int = 0


@dataclass(slots=True)
class Preparation:
    """What was compiled or captured before batches need it, and the seconds that it took.

    ``late_kernels`` were compiled or read from the disk while a batch waited: none should be.
    """

    kernels: int = 0
    steps: int = 0
    seconds: float = 0.0
    late_kernels: int = 0


class SlotStore:
    """Loads, validates, scores and frees bundles of one backbone. Used by the device thread only.

    The one record of what is on the device: ``resident`` by handle and ``by_digest``. A bundle is
    in both from loading to freeing, served or not. A device with several backbones has a store for
    each, and all have the same ``records``.
    """

    def __init__(
        self,
        backbone: Backbone,
        head_limit_bytes: int,
        dtype: torch.dtype = torch.float32,
        trunk_cache_bytes: int = 0,
        patch_dtype: torch.dtype | None = None,
        patch_limit_bytes: int = sys.maxsize,
        progress: Callable[[], None] = lambda: None,
        records: Records | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        """``progress`` is called after each part of a forward; ``chunk_rows`` as in its creation.

        With the ``records`` of another store of this device, its limits hold for both together.
        """
        self._spec = backbone.spec
        self._channels = backbone.spec.channels
        self._device = backbone.embedding.weight.device
        self._dtype, self._patch_dtype = dtype, patch_dtype or dtype
        self._progress = progress
        self._forward = mixed_forward(backbone, dtype, trunk_cache_bytes, progress, chunk_rows)
        self._heads = MixedHeads(self._channels, self._device, backbone.spec.token_count)
        self.records = records or Records(
            HeadCache(head_limit_bytes), patch_limit_bytes, backbone.spec
        )
        self.place = self.records.backbones
        self.records.backbones += 1
        self.head_cache = self.records.head_cache
        self._work = position_work(self._spec) / position_work(self.records.first)
        self._pools: dict[PatchGeometry, WeightPool] = {}
        self._forms: dict[Form, Form] = {}
        self._prices: dict[Price, Price] = {}
        self._plain_price = Price.plain(backbone.spec).times(self._work)
        self._captured: dict[PatchGeometry, int] = {}
        self._prepared: set[PatchGeometry] = set()
        self._preparing = Lock()
        self.preparation = Preparation()
        has_cores = core_count() >= CORES_TO_STAY_AWAKE
        self.awake_s = AWAKE_S if self._device.type == "cuda" and has_cores else 0.0
        self._steps: deque[Iterator[None]] = deque()
        self.resident, self.by_digest = self.records.resident, self.records.by_digest
        self._held = Held()
        self.backbone_bytes = sum(t.numel() * t.element_size() for t in backbone.parameters())

    @property
    def patch_bytes(self) -> int:
        """Bytes of patches on the device."""
        return self.records.patch_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of heads on the device, including room for one that is being reloaded."""
        return self.head_cache.used_bytes

    def memory(self) -> list[BackboneMemory]:
        """Return what this backbone takes of the device: one entry."""
        evicted = (self.resident[handle] for handle in self.head_cache.evicted)
        away = sum(each.head.size.large for each in evicted if each.backbone == self.place)
        held, heads = self._held, self._held.head_bytes - away
        return [BackboneMemory(self.backbone_bytes, held.patch_bytes, heads, held.bundles)]

    def price_of_plain(self, handle: Handle) -> Price:
        """Return the price of rows that only the backbone computes."""
        return self._plain_price if handle == plain(self.place) else UNKNOWN

    @property
    def probe_tolerance(self) -> float:
        """The largest error that a bundle's probes may have."""
        return max(PROBE_TOLERANCES[kind] for kind in (self._dtype, self._patch_dtype))

    def load(self, bundle: VerifiedBundle, path: str = "") -> Residency:
        """Copy a bundle's weights to the device and run its probes there.

        Nothing serves the residency until a table names it. Raises HeadBudgetExceeded,
        PatchBudgetExceeded or ProbeFailed, with nothing left of the bundle.
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
        return finish(self.load_steps(bundles))

    def load_steps(self, bundles: Sequence[LocalBundle]) -> Steps[list[Residency | PeterRecError]]:
        """``load_many`` in steps of milliseconds, between which batches may run.

        A bundle is in none of the records before its probes were right.
        """
        outcomes: list[Residency | PeterRecError] = []
        try:
            for local in bundles:
                outcomes.append((yield from self._written(local)))
                yield
            written = [
                (outcome, local.bundle)
                for outcome, local in zip(outcomes, bundles, strict=True)
                if isinstance(outcome, Residency)
            ]
            errors = yield from self._probe_errors(written)
        except BaseException:  # also if no further step is taken
            for outcome in outcomes:
                if isinstance(outcome, Residency):
                    self._discard(outcome)
            raise
        finally:
            self.head_cache.unpin()
        return [self._validated(outcome, errors) for outcome in outcomes]

    def free(self, residency: Residency) -> None:
        """Free the memory of a residency; no row may wait for it."""
        del self.resident[residency.handle]
        if self.by_digest.get(residency.digest) is residency:
            del self.by_digest[residency.digest]
        self._discard(residency)

    def _discard(self, residency: Residency) -> None:
        self._count(residency, -1)
        residency.patch.pool.release(residency.patch.slot)
        self.head_cache.remove(residency.handle, residency.head)
        self._heads.remove(residency.head)

    def _count(self, residency: Residency, times: int) -> None:
        """Count what is written to the device, or taken from it."""
        size = residency.patch.pool.slot_bytes
        self.records.patch_bytes += times * size
        self._held.bundles += times
        self._held.patch_bytes += times * size
        self._held.head_bytes += times * sum(residency.head.size)

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
        """Compile what the rows of any bundle run, so that no request need wait for it."""
        started, before = time.monotonic(), self._forward.compilations
        self.prepare(COMMON_GEOMETRIES, self._progress)
        self._heads.warm_up()
        seconds = round(time.monotonic() - started, 1)
        log.info("kernels_ready", kernels=self._forward.compilations - before, seconds=seconds)

    def prepare(
        self, geometries: Collection[PatchGeometry], progress: Callable[[], None] = lambda: None
    ) -> None:
        """Compile what rows with patches of these geometries run; call it before they are loaded.

        May be called from any thread. A geometry that is new to a GPU takes up to a minute.
        """
        for geometry in geometries:
            with self._preparing:
                if geometry in self._prepared:
                    continue
                started, before = time.monotonic(), self._forward.compilations
                self._forward.prepare(geometry, self._patch_dtype, progress)
                self._prepared.add(geometry)
                found = self._forward.compilations - before
            self.preparation.kernels += found
            self.preparation.seconds += time.monotonic() - started
            seconds = round(time.monotonic() - started, 1)
            log.info("geometry_ready", geometry=str(geometry), kernels=found, seconds=seconds)

    def are_prepared(self, bundles: Collection[LocalBundle]) -> bool:
        """True if ``prepare_for`` has nothing left to do for these bundles.

        On a CPU, all geometries run the kernels that ``warm_up`` compiles.
        """
        return self._device.type == "cpu" or self._prepared.issuperset(_geometries(bundles))

    def prepare_for(self, bundles: Collection[LocalBundle]) -> None:
        """Compile what the bundles' rows run. May be called from any thread."""
        self.prepare(_geometries(bundles))

    @property
    def has_steps(self) -> bool:
        """True if something of the loaded bundles is not prepared."""
        return bool(self._steps)

    def prepare_next(self) -> bool:
        """Prepare one more size of a batch, which takes milliseconds; False if none is left."""
        started = time.monotonic()
        is_done = self._step() or self._forward.capture_next()
        self.preparation.steps += is_done
        self.preparation.seconds += time.monotonic() - started if is_done else 0.0
        return is_done

    def _step(self) -> bool:
        while self._steps:
            try:
                next(self._steps[0])
            except StopIteration:
                self._steps.popleft()
            except Exception as error:
                # Batches run without it, only slower at first, and the device loop must not stop.
                log.error("preparation_failed", reason=repr(error))
                self._steps.popleft()
            else:
                return True
        return False

    def take_preparation(self) -> "Preparation":
        """What was prepared since the last call."""
        taken, self.preparation = self.preparation, Preparation()
        return taken

    @property
    def memory_bytes(self) -> int:
        """Bytes of a GPU's memory that this process has reserved; 0 on a CPU."""
        return torch.cuda.memory_reserved(self._device) if self._device.type == "cuda" else 0

    def score(self, rows: Sequence[Row]) -> list[RowScores]:
        """Run one forward over rows of any tasks; return their scores in the same order.

        The bundles of all rows must be resident and none of their heads evicted. Rows with
        ``left_out`` need no forward.
        """
        self.head_cache.touch([row.handle for row in rows if row.top_k != VECTOR])
        before = self._forward.compilations
        scores = self._scores(rows)
        self.preparation.late_kernels += self._forward.compilations - before
        return scores

    def vectors_of_all(self, histories: PackedHistories, handles: Sequence[Handle]) -> Tensor:
        """User vectors [B, T, C] of every history by every bundle, with one trunk per history.

        ``PLAIN`` among the handles stands for the backbone itself.
        """
        return self._forward.user_vectors_of_all(histories, [self._patch_of(h) for h in handles])

    def scores_of_all(self, users: Tensor, handle: Handle, whole: Sequence[Tokens] = ()) -> Tensor:
        """Scores [B, K] of a bundle for user vectors [B, C]; ``whole`` is for its item table."""
        return self._heads.scores_of_all(users, self.resident[handle].head, whole)

    def top_of_all(
        self,
        users: Tensor,
        handle: Handle,
        top_k: int,
        excluded: PackedHistories,
        allowed: bytes | None = None,
        whole: Sequence[Tokens] = (),
    ) -> Rankings:
        """The best items of a ranking bundle for user vectors [B, C]; see ``MixedHeads``."""
        head = self.resident[handle].head
        return self._heads.top_of_all(users, head, top_k, excluded, allowed, whole)

    def _scores(self, rows: Sequence[Row]) -> list[RowScores]:
        run = [row for row in rows if row.left_out is None]
        if len(run) == len(rows):
            return self._run(rows)
        found = iter(self._run(run) if run else ())
        return [next(found) if row.left_out is None else self._without_each(row) for row in rows]

    def holds(self, handle: Handle) -> bool:
        """True if rows that were bound to this residency can be scored."""
        return handle in self.resident or handle == plain(self.place)

    def _without_each(self, row: Row) -> RowScores:
        head = self.resident[row.handle].head
        history = np.frombuffer(row.older + row.tokens, np.int32)
        items = np.frombuffer(row.left_out or b"", np.int32)
        return self._heads.table_without_each(head, history, items)

    def _run(self, rows: Sequence[Row]) -> list[RowScores]:
        newest: list[Tokens] = [np.frombuffer(bytearray(row.tokens), np.int32) for row in rows]
        users = self._forward.user_vectors(
            newest, [self._patch_of(row.handle) for row in rows], [row.is_raw for row in rows]
        )
        scored = [at for at, row in enumerate(rows) if row.top_k != VECTOR]
        if len(scored) == len(rows):
            return self._head_scores(users, rows, newest)
        vectors = users.float().cpu().numpy()  # [B, C]
        if not scored:
            return [RowScores(vector) for vector in vectors]
        chosen = users[torch.tensor(scored, device=users.device)]  # [b, C]
        found = iter(
            self._head_scores(chosen, [rows[at] for at in scored], [newest[at] for at in scored])
        )
        return [
            RowScores(vectors[at]) if row.top_k == VECTOR else next(found)
            for at, row in enumerate(rows)
        ]

    def _patch_of(self, handle: Handle) -> SlotRef:
        """The patch of a residency; for the plain backbone, one that changes nothing."""
        return self._plain_patch if handle <= PLAIN else self.resident[handle].patch

    @cached_property
    def _plain_patch(self) -> SlotRef:
        geometry = PLAIN_GEOMETRY
        pool = self._pool(geometry)
        shapes = geometry.shapes(self._channels)
        return SlotRef(geometry, pool, pool.write({n: torch.zeros(s) for n, s in shapes.items()}))

    def _head_scores(
        self, users: Tensor, rows: Sequence[Row], newest: Sequence[Tokens]
    ) -> list[RowScores]:
        """What the rows' heads make of user vectors [B, C]."""
        residencies = [self.resident[row.handle] for row in rows]
        has_table = any(each.table is not None for each in residencies)
        return self._heads.scores(
            users,
            [residency.head for residency in residencies],
            [_selection(row) for row in rows],
            _whole_histories(rows, newest) if has_table else (),
        )

    def _written(self, local: LocalBundle) -> Steps[Residency | PeterRecError]:
        weights = local.weights or weights_of(local.bundle)
        size = weights.head_bytes
        is_evictable = size.large > 0 and local.path != ""
        try:
            self._require_room(local.bundle)
            self.head_cache.reserve(size, is_evictable=is_evictable)
        except (HeadBudgetExceeded, PatchBudgetExceeded) as error:
            return error
        residency = yield from self._write(local, weights)
        self.head_cache.add(residency.handle, residency.head, is_evictable=is_evictable)
        return residency

    def _validated(
        self, outcome: Residency | PeterRecError, errors: Mapping[Handle, float]
    ) -> Residency | PeterRecError:
        if isinstance(outcome, PeterRecError):
            return outcome
        if not errors[outcome.handle] <= self.probe_tolerance:
            self._discard(outcome)
            return ProbeFailed(errors[outcome.handle], self.probe_tolerance)
        outcome = msgspec.structs.replace(outcome, probe_error=errors[outcome.handle])
        self.resident[outcome.handle] = self.by_digest[outcome.digest] = outcome
        return outcome

    def _require_room(self, bundle: VerifiedBundle) -> None:
        """Raise PatchBudgetExceeded if the bundle's patch has no place on the device."""
        needed = self._pool(bundle.manifest.patch.geometry()).slot_bytes
        used, limit = self.records.patch_bytes, self.records.patch_limit_bytes
        if used + needed > limit:
            raise PatchBudgetExceeded(needed, used, limit)

    def _write(self, local: LocalBundle, weights: BundleWeights) -> Steps[Residency]:
        bundle, head = local.bundle, local.bundle.manifest.head
        geometry = bundle.manifest.patch.geometry()
        pool = self._pool(geometry)
        slot = yield from pool.write_steps(weights.patch)
        try:
            head_ref = yield from self._heads.add_steps(weights.head)
        except BaseException:  # no memory for a large part: the slot must not be leaked
            pool.release(slot)
            raise
        if self._captured.get(geometry) != pool.generation:
            self._captured[geometry] = pool.generation
            self._steps.append(self._forward.capture(SlotRef(geometry, pool, slot)))
        self._steps.append(self._heads.prepare(head_ref))
        form = Form(geometry, pool, head_ref.spec, head_ref.pool)
        residency = Residency(
            handle=next(self.records.handles),
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
            reach=shared(self._reach(geometry) if weights.reads_network else 0),
            price=self._price(bundle),
            titles=shared(tuple(bundle.titles or ()) if head.labels else ()),
            prior=AnswerPrior.packed(bundle.manifest),
            backbone=self.place,
        )
        self._count(residency, 1)
        return residency

    def _price(self, bundle: VerifiedBundle) -> Price:
        price = Price.of(bundle.cost, bundle.manifest.head.outputs, self._spec).times(self._work)
        return self._prices.setdefault(price, price)  # most bundles have one of a few

    def _reach(self, geometry: PatchGeometry) -> int:
        """The number of newest items that a bundle's network depends on."""
        return self._spec.max_len if geometry.queries else read_items(self._spec)

    def _probe_errors(
        self, written: Sequence[tuple[Residency, VerifiedBundle]]
    ) -> Steps[dict[Handle, float]]:
        """Run the probes as rows are run; return the largest relative error of each bundle."""
        rows = [
            (residency.patch, history[history != PAD])
            for residency, bundle in written
            for history in bundle.tensors["probe.histories"]
        ]
        users = yield from self._probe_users(rows)
        errors: dict[Handle, float] = {}
        at, vectors = 0, torch.cat(users) if users else torch.empty(0)  # [all probes, C]
        for residency, bundle in written:
            count = len(bundle.tensors["probe.histories"])
            histories = [history for _, history in rows[at : at + count]]
            errors[residency.handle] = yield from self._probe_error(
                residency, bundle, vectors[at : at + count], histories
            )
            at += count
        return errors

    def _probe_users(self, rows: Sequence[tuple[SlotRef, Tokens]]) -> Steps[list[Tensor]]:
        """User vectors of probes, as many at once as take about ``PROBE_STEP_S``."""
        users: list[Tensor] = []
        at, at_once = 0, 1
        while at < len(rows):
            chunk, started = rows[at : at + at_once], time.monotonic()
            users.append(
                self._forward.user_vectors([h for _, h in chunk], [ref for ref, _ in chunk])
            )
            took_s = time.monotonic() - started
            at += len(chunk)
            affordable = int(len(chunk) * PROBE_STEP_S / max(took_s, 1e-6))
            at_once = max(1, min(affordable, 2 * at_once, PROBE_ROWS))
            yield
        return users

    def _probe_error(
        self,
        residency: Residency,
        bundle: VerifiedBundle,
        users: Tensor,
        histories: Sequence[Tokens],
    ) -> Steps[float]:
        """``users`` [n, C] are the probes' user vectors."""
        columns = torch.from_numpy(bundle.tensors["probe.columns"].astype(np.int64))  # [m]
        columns = columns.to(users.device)
        at_once = max(1, PROBE_PRODUCTS // (residency.form.head.outputs * self._channels))
        parts: list[Tensor] = []
        for start in range(0, len(users), at_once):
            part = slice(start, start + at_once)
            parts.append(self._heads.logits(users[part], residency.head, columns, histories[part]))
            yield
        logits = torch.cat(parts)  # [n, m]
        found = logits.cpu().numpy() * bundle.manifest.head.temperature
        expected = bundle.tensors["probe.logits"]  # [n, m]
        return probe_error(bundle, users.float().cpu().numpy(), found - expected)

    def _pool(self, geometry: PatchGeometry) -> WeightPool:
        if geometry not in self._pools:
            shapes = geometry.shapes(self._channels)
            self._pools[geometry] = WeightPool(shapes, self._device, self._patch_dtype)
        return self._pools[geometry]


def probe_error(
    bundle: VerifiedBundle, users: npt.NDArray[np.floating], misses: npt.NDArray[np.floating]
) -> float:
    """Return the largest error of the probes, each relative to what its own output can reach.

    ``users`` [n, C] are the probes' user vectors, and ``misses`` [n, m] how far the logits are off.
    An output reaches at most the product of the norms of its weights and of a user vector; rounding
    errors are a share of that, also where a logit itself is near 0. So a single output with large
    weights hides no error of the others.
    """
    weights = bundle.tensors["head.weight"][bundle.tensors["probe.columns"]]  # [m, C]
    expected = np.abs(bundle.tensors["probe.logits"]).max(axis=0, initial=0.0)  # [m]
    longest = float(np.linalg.norm(users, axis=1).max(initial=0.0))
    reached = np.linalg.norm(weights, axis=1) * longest  # [m]
    scales = np.maximum(np.maximum(reached, expected), SMALLEST_SCALE)  # [m]
    return float((np.abs(misses) / scales).max(initial=0.0))


def _geometries(bundles: Collection[LocalBundle]) -> set[PatchGeometry]:
    return {local.bundle.manifest.patch.geometry() for local in bundles}


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
        allowed=row.allowed or None,
    )


def _as_torch(bundle: VerifiedBundle) -> Mapping[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in bundle.tensors.items()
        if name.startswith(("patch.", "head."))
    }
