"""The device process: makes the device loop and the follower, and connects them."""

import signal
import sys
import time
from pathlib import Path

import structlog
import torch
import zmq

from peterrec.model.files.backbone_folder import load_backbone
from peterrec.patches.bundle.signatures import TrustedKeys
from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits
from peterrec.patches.redis.client import open_redis
from peterrec.patches.registry.local_copy import BlobCache
from peterrec.patches.registry.registry import Registry
from peterrec.service.device.loop import DeviceLimits, DeviceLoop
from peterrec.service.device.slots import SlotStore
from peterrec.service.settings import Settings, core_count
from peterrec.service.sync.follower import RegistryFollower
from peterrec.service.sync.source import BundleSource, Demands
from peterrec.service.system.memory import sparing_the_collector
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


def run_device(settings: Settings) -> None:
    """Run the device process until SIGTERM, then answer the waiting rows and return."""
    torch.set_num_threads(settings.threads or core_count())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stopping = _on_sigterm()
    started = time.monotonic()
    log.info("backbone_loading", folder=str(settings.backbone_dir))
    loaded = load_backbone(settings.backbone_dir)
    backbone = loaded.backbone.to(_device(settings.device))
    identity = BackboneIdentity(loaded.fingerprint, loaded.backbone.spec)
    events = EventSender(settings.metrics_endpoint)
    store = SlotStore(
        backbone,
        settings.head_limit_bytes,
        DTYPES[settings.precision],
        settings.trunk_cache_bytes,
        DTYPES.get(settings.patch_precision),
    )
    log.info("kernels_loading", about="compiled once, which takes most of a minute")
    store.warm_up()
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.set_hwm(0)
    socket.bind(settings.device_endpoint)
    limits = DeviceLimits(settings.max_queue_rows, settings.max_batch_rows)
    device = DeviceLoop(socket, store, limits, events.emit)
    follower = _follower(settings, device, identity, events)
    follower.start()
    seconds = round(time.monotonic() - started, 1)
    device_name = str(backbone.embedding.weight.device)
    log.info("device_started", device=device_name, seconds=seconds)
    try:
        with sparing_the_collector():
            device.run(follower, lambda: bool(stopping))
    finally:
        follower.stop()
        device.close()
        events.close()
        context.destroy(linger=1000)


def _follower(
    settings: Settings, device: DeviceLoop, identity: BackboneIdentity, events: EventSender
) -> RegistryFollower:
    assert settings.redis_url, "the supervisor sets the registry's URL"
    registry = Registry(open_redis(settings.redis_url), settings.redis_prefix)
    redis = open_redis(settings.redis_url, retries=1, timeout_s=STORE_TIMEOUT_S)
    uploads = Registry(redis, settings.redis_prefix)
    cache = BlobCache(Path(settings.data_dir) / "cache")
    bundle_limits = BundleLimits(max_bytes=settings.bundle_size_limit_bytes)
    keys = TrustedKeys.read([settings.trusted_keys]) if settings.trusted_keys else None
    source = BundleSource(registry, uploads, cache, Demands(identity, bundle_limits, keys))
    return RegistryFollower(registry, source, device, settings.reconcile_interval_s, events.emit)


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
