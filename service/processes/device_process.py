"""The device process: makes the device loop and the follower, and connects them."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch

from peterrec.model.files.backbone_folder import load_backbone
from peterrec.patches.bundle.signatures import TrustedKeys
from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.losses import Knowledge
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.loop import DeviceLimits, DeviceLoop
from peterrec.service.device.slots import Records, SlotStore
from peterrec.service.device.stores import SlotStores, Store
from peterrec.service.protocol.listener import Listener
from peterrec.service.protocol.quota_table import QuotaTable
from peterrec.service.settings import Settings, core_count
from peterrec.service.sync.follower import RegistryFollower
from peterrec.service.sync.quotas import QuotaKeeper
from peterrec.service.sync.source import BundleSource, Demands
from peterrec.service.system.memory import give_back_memory, sparing_the_collector
from peterrec.service.system.pulse import Pulse
from peterrec.service.telemetry.sender import EventSender

log = structlog.get_logger()

SWITCH_INTERVAL_S = 0.0002
"""GIL switch interval in seconds: bounds how long the device thread waits for the follower thread.

Python's default of 5 ms would delay each batch that much while the follower is busy.
"""

STORE_TIMEOUT_S = 3.0
"""Seconds per command, sent at most twice, while a pushed bundle is stored. Its caller waits, and
learns within seconds that Redis is unavailable."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run_device(settings: Settings, pulse: Pulse | None = None) -> None:
    """Run the device process until SIGTERM, then answer the waiting rows and return.

    ``pulse`` shows the supervisor and the workers its progress.
    """
    pulse = pulse or Pulse()
    pulse.begin()
    with pulse.living():
        _run(settings, pulse)


def _run(settings: Settings, pulse: Pulse) -> None:
    torch.set_num_threads(settings.threads or core_count())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stopping = _on_sigterm()
    started = time.monotonic()
    identities, stores = _load(settings, pulse)
    events = EventSender(settings.metrics_endpoint)
    store: Store = SlotStores(stores) if len(stores) > 1 else stores[identities[0].fingerprint]
    log.info("kernels_loading", about="compiled once, which takes most of a minute")
    store.warm_up()
    give_back_memory()  # compilers leave much, and returning it later would delay batches
    limits = DeviceLimits(
        settings.max_queue_rows,
        settings.max_batch_rows,
        torch.get_num_threads(),
        settings.ready_share,
        tuple(stores),
    )
    device = DeviceLoop(Listener(settings.device_endpoint), store, limits, events.emit)
    follower = _follower(settings, device, identities, events)
    follower.start()
    seconds = round(time.monotonic() - started, 1)
    device_name = str(_device(settings.device))
    log.info("device_started", device=device_name, seconds=seconds)
    try:
        with sparing_the_collector():
            pulse.end_start(device.table.epoch)
            device.run(follower, lambda: bool(stopping), pulse.beat)
    finally:
        follower.stop()
        device.close()
        events.close()


def _load(settings: Settings, pulse: Pulse) -> tuple[list[BackboneIdentity], dict[str, SlotStore]]:
    """Load the backbones to the device; return them, and a store for each by its fingerprint."""
    identities: list[BackboneIdentity] = []
    stores: dict[str, SlotStore] = {}
    records: Records | None = None
    for folder in settings.backbone_dir:
        log.info("backbone_loading", folder=str(folder))
        loaded = load_backbone(folder)
        identities.append(BackboneIdentity(loaded.fingerprint, loaded.backbone.spec))
        store = stores[loaded.fingerprint] = SlotStore(
            loaded.backbone.to(_device(settings.device)),
            settings.head_limit_bytes,
            DTYPES[settings.precision],
            settings.trunk_cache_bytes // len(settings.backbone_dir),
            DTYPES.get(settings.patch_precision),
            settings.patch_limit_bytes,
            progress=pulse.beat,
            records=records,
        )
        records = store.records
    return identities, stores


def _follower(
    settings: Settings,
    device: DeviceLoop,
    identities: Sequence[BackboneIdentity],
    events: EventSender,
) -> RegistryFollower:
    assert settings.redis_url, "the supervisor sets the registry's URL"
    knowledge, acknowledgement = Knowledge(), settings.acknowledgement
    registry = Registry(
        open_redis(settings.redis_url), settings.redis_prefix, knowledge, acknowledgement
    )
    redis = open_redis(settings.redis_url, retries=1, timeout_s=STORE_TIMEOUT_S)
    uploads = Registry(redis, settings.redis_prefix, knowledge)
    cache = BlobCache(Path(settings.data_dir) / "cache")
    bundle_limits = BundleLimits(
        max_bytes=settings.bundle_size_limit_bytes,
        max_patch_work=settings.patch_work_limit,
        max_answer_bytes=settings.answer_limit_bytes,
    )
    keys = TrustedKeys.read([settings.trusted_keys]) if settings.trusted_keys else None
    demands = Demands(identities[0], bundle_limits, keys, tuple(identities[1:]))
    source = BundleSource(registry, uploads, cache, demands, knowledge)
    table = QuotaTable.open(settings.quota_table, settings.worker_count)
    quotas = QuotaKeeper(table, registry.shares, events.emit)
    return RegistryFollower(
        registry, source, device, quotas, settings.reconcile_interval_s, events.emit
    )


def _on_sigterm() -> list[int]:
    """Return a list that is empty until SIGTERM. SIGINT is ignored: the supervisor handles it."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return received


def _device(choice: str) -> torch.device:
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(choice)
