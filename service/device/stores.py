"""The bundles of several backbones on one device, as if it had one store.

A server has several backbones while its tasks move from one to the next. Rows of one batch that are
for different backbones run in forwards of their own, one after the other.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch

from peterrec.model.errors import PeterRecError
from peterrec.model.inference.heads import RowScores
from peterrec.model.inference.steps import Steps
from peterrec.service.device.pricing import Price
from peterrec.service.device.slots import LocalBundle, Preparation, Residency, SlotStore
from peterrec.service.protocol.messages import PLAIN, BackboneMemory, Handle, Row


class SlotStores:
    """Several stores that have the same records. Used by the device thread only.

    A bundle goes to the store of the backbone that its manifest names; only such bundles are
    verified. ``by_fingerprint`` has the stores in the order of their backbones.
    """

    def __init__(self, by_fingerprint: dict[str, SlotStore]) -> None:
        self._by_fingerprint = by_fingerprint
        self._stores = [*by_fingerprint.values()]
        first = self._stores[0]
        self.resident, self.by_digest = first.resident, first.by_digest
        self.head_cache = first.head_cache
        self.awake_s = first.awake_s
        self.probe_tolerance = first.probe_tolerance

    @property
    def patch_bytes(self) -> int:
        """Bytes of patches on the device."""
        return self._stores[0].patch_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of heads on the device, including room for one that is being reloaded."""
        return self._stores[0].head_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of a GPU's memory that this process has reserved; 0 on a CPU."""
        return self._stores[0].memory_bytes

    def memory(self) -> list[BackboneMemory]:
        """Return what each backbone takes of the device."""
        return [entry for store in self._stores for entry in store.memory()]

    def price_of_plain(self, handle: Handle) -> Price:
        """Return the price of rows that only a backbone computes."""
        return self._of(handle).price_of_plain(handle)

    def holds(self, handle: Handle) -> bool:
        """True if rows that were bound to this residency can be scored."""
        return handle in self.resident or -len(self._stores) < handle <= PLAIN

    def score(self, rows: Sequence[Row]) -> list[RowScores]:
        """Run a forward for each backbone of the rows; return their scores in the same order."""
        places: defaultdict[int, list[int]] = defaultdict(list)
        for at, row in enumerate(rows):
            places[self._place(row.handle)].append(at)
        if len(places) == 1:
            return self._stores[next(iter(places))].score(rows)
        found: dict[int, RowScores] = {}
        for place, own in places.items():
            scores = self._stores[place].score([rows[at] for at in own])
            found |= zip(own, scores, strict=True)
        return [found[at] for at in range(len(rows))]

    def load_steps(self, bundles: Sequence[LocalBundle]) -> Steps[list[Residency | PeterRecError]]:
        """Load bundles as ``SlotStore.load_steps`` does, those of each backbone together.

        If the device fails, its exception is raised and nothing is left of any bundle.
        """
        outcomes: dict[int, Residency | PeterRecError] = {}
        try:
            for store, own in self._parts(bundles):
                found = yield from store.load_steps([bundles[at] for at in own])
                outcomes |= zip(own, found, strict=True)
        except BaseException:  # also if no further step is taken
            for outcome in outcomes.values():
                if isinstance(outcome, Residency):
                    self.free(outcome)
            raise
        return [outcomes[at] for at in range(len(bundles))]

    def free(self, residency: Residency) -> None:
        """Free the memory of a residency; no row may wait for it."""
        self._stores[residency.backbone].free(residency)

    def end_head_reload(self, handle: Handle, tensors: dict[str, torch.Tensor] | None) -> bool:
        """Put a head's tensors on the device again; False if the reload was cancelled."""
        if not self.head_cache.is_reloading(handle):
            return False
        return self._of(handle).end_head_reload(handle, tensors)

    def warm_up(self) -> None:
        """Compile what the rows of any bundle run, so that no request need wait for it."""
        for store in self._stores:
            store.warm_up()

    def are_prepared(self, bundles: Collection[LocalBundle]) -> bool:
        """True if ``prepare_for`` has nothing left to do for these bundles."""
        return all(store.are_prepared(own) for store, own in self._shares([*bundles]))

    def prepare_for(self, bundles: Collection[LocalBundle]) -> None:
        """Compile what the bundles' rows run. May be called from any thread."""
        for store, own in self._shares([*bundles]):
            store.prepare_for(own)

    @property
    def has_steps(self) -> bool:
        """True if something of the loaded bundles is not prepared."""
        return any(store.has_steps for store in self._stores)

    def prepare_next(self) -> bool:
        """Prepare one more size of a batch, which takes milliseconds; False if none is left."""
        return any(store.prepare_next() for store in self._stores)

    def take_preparation(self) -> Preparation:
        """What was prepared since the last call."""
        whole = Preparation()
        for part in [store.take_preparation() for store in self._stores]:
            whole.kernels += part.kernels
            whole.steps += part.steps
            whole.seconds += part.seconds
            whole.late_kernels += part.late_kernels
        return whole

    def _of(self, handle: Handle) -> SlotStore:
        return self._stores[self._place(handle)]

    def _place(self, handle: Handle) -> int:
        """The place of the backbone that a row is for; of one whose bundle is gone, the first."""
        residency = self.resident.get(handle)
        if residency is not None:
            return residency.backbone
        return -handle if -len(self._stores) < handle <= PLAIN else 0

    def _parts(self, bundles: Sequence[LocalBundle]) -> list[tuple[SlotStore, list[int]]]:
        """The places of the bundles of each backbone that has some."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for at, local in enumerate(bundles):
            places[local.bundle.manifest.backbone].append(at)
        return [(self._by_fingerprint[name], own) for name, own in places.items()]

    def _shares(self, bundles: Sequence[LocalBundle]) -> list[tuple[SlotStore, list[LocalBundle]]]:
        return [(store, [bundles[at] for at in own]) for store, own in self._parts(bundles)]


Store = SlotStore | SlotStores
"""What a device thread runs rows by: most devices have one backbone."""
