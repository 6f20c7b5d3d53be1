"""What ``peterrec doctor`` looks at before and while a server runs: each check is one function.

A check asks one part of the server's surroundings, changes nothing, and says what it found and what
to do about it. The first ones need no other; the last ones ask the registry, if it answers.
"""

import errno
import os
import platform
import resource
import shutil
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import httpx

from peterrec.model.disk import require_writable_folder
from peterrec.model.errors import PeterRecError
from peterrec.model.files.backbone_info import read_backbones
from peterrec.patches.redis.client import redis_errors
from peterrec.patches.registry.health import server_info
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import PROD
from peterrec.service.errors import AddressInUse
from peterrec.service.settings import PREFIX, Settings, core_count, unknown_settings
from peterrec.service.system.addresses import local_url

State = Literal["good", "note", "bad"]

LEAST_FREE_BYTES, USUAL_FREE_BYTES = 64 << 20, 2 << 30
"""Free disk below which a server soon fails, and below which somebody should look."""

USUAL_DESCRIPTORS = 4096
"""Descriptors below which a worker serves only hundreds of connections."""

USUAL_SKEW_S, MOST_SKEW_S = 1.0, 30.0
"""Seconds between this clock and Redis' that are worth a word, and that make keys and tokens end at
other times on other replicas."""

ASK_S = 3.0
"""Seconds that a server which may run here has for its answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. ``todo`` says what to do, unless all is good."""

    check: str
    state: State
    what: str
    todo: str = ""


def failed(check: str, error: PeterRecError) -> Finding:
    """What a check found if its subject refuses."""
    return Finding(check, "bad", f"{error.code}: {error.message}", error.hint)


def look_at_versions(settings: Settings) -> Iterator[Finding]:
    """The releases that answer here; the client's must be the server's."""
    own, client = version("peterrec-serving"), version("peterrec-client")
    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "redis"))
    what = f"peterrec-serving {own}, Python {platform.python_version()}, {others}"
    if own == client:
        yield Finding("versions", "good", what)
    else:
        todo = "Install both from one release."
        yield Finding("versions", "note", f"{what}; but peterrec-client {client}", todo)


def look_at_settings(settings: Settings) -> Iterator[Finding]:
    """Variables that look like settings; bad values end the command before."""
    unknown = [*unknown_settings()]
    for sentence in unknown:
        yield Finding("settings", "note", sentence, "Remove or correct it.")
    if not unknown:
        given = sum(name.startswith(PREFIX) for name in os.environ)
        yield Finding("settings", "good", f"{given} variables {PREFIX}*, all of them known")


def look_at_backbone(settings: Settings) -> Iterator[Finding]:
    """The folder of the backbone."""
    for folder, info in zip(
        settings.backbone_dir, read_backbones(settings.backbone_dir), strict=True
    ):
        items, channels = info.spec.item_count, info.spec.channels
        what = f"{folder}: {items} items, {channels} channels, {info.fingerprint}"
        yield Finding("backbone", "good", what)


def look_at_disk(settings: Settings) -> Iterator[Finding]:
    """The data directory, and where compiled kernels are kept."""
    folder = settings.data_dir
    require_writable_folder(folder)
    free = shutil.disk_usage(_existing(folder)).free
    shown = f"{folder.absolute()}: {free / 2**30:.1f} GiB free"
    if free >= USUAL_FREE_BYTES:
        yield Finding("disk", "good", shown)
    else:
        state: State = "bad" if free < LEAST_FREE_BYTES else "note"
        yield Finding("disk", state, shown, "Free some, or name another PETERREC_DATA_DIR.")
    if settings.kernel_cache_dir is not None:
        require_writable_folder(settings.kernel_cache_dir)
        yield Finding("disk", "good", f"kernels are kept in {settings.kernel_cache_dir}")


def look_at_device(settings: Settings) -> Iterator[Finding]:
    """What computes: a GPU that torch can use, or the processor with its vector units."""
    import torch  # takes a second, which the other checks need not wait for

    if torch.cuda.is_available() and settings.device != "cpu":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding("device", "good", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB")
        return
    if settings.device == "cuda":
        what = f"PETERREC_DEVICE is cuda, but torch {torch.__version__} finds no GPU"
        todo = "Look at nvidia-smi, give the container a GPU, or install torch's CUDA build."
        yield Finding("device", "bad", what, todo)
        return
    if settings.device == "auto" and Path("/dev/nvidiactl").exists():
        what = f"there is an NVIDIA driver, but torch {torch.__version__} can't use it"
        yield Finding("device", "note", what, "Install torch's CUDA build, or a newer driver.")
    yield Finding("device", "good", f"CPU, {core_count()} cores, {_vector_units()}")


def look_at_limits(settings: Settings) -> Iterator[Finding]:
    """How many files and connections a process may have open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most >= USUAL_DESCRIPTORS:
        yield Finding("limits", "good", f"{most} open files a process")
    else:
        what = f"only {most} open files a process, so as many connections"
        yield Finding("limits", "note", what, "Raise the limit (ulimit -n, LimitNOFILE=).")


def look_at_ports(settings: Settings) -> Iterator[Finding]:
    """Whether the ports are free, or a server that runs here is ready."""
    url = local_url(settings.host, settings.port)
    if settings.port == 0 or _is_free(settings.host, settings.port):
        yield Finding("server", "good", f"none runs here; port {settings.port} is free")
        return
    try:
        answer = httpx.get(f"{url}/readyz", timeout=ASK_S, trust_env=False)
        ready = answer.json()
        reasons = ", ".join(ready["reasons"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        what = f"port {settings.port} is taken by a program that is no server of ours"
        yield Finding("server", "bad", what, "End it, or choose another PETERREC_PORT.")
        return
    if answer.status_code == 200 and not reasons:
        revision = ready["registry_revision"]
        yield Finding("server", "good", f"{url} is ready, at registry revision {revision}")
        if unfit := ready.get("prod_bundles", {}).get("unfit"):
            what = f"it does not answer {unfit} tasks, since it refuses their bundles"
            yield Finding("server", "note", what, "Its log says which, and why: bundles_unfit.")
    else:
        todo = "docs/operations.md explains each reason; so does the server's log."
        yield Finding("server", "bad", f"{url} is {ready['status']}: {reasons}", todo)


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    look_at_versions,
    look_at_settings,
    look_at_backbone,
    look_at_disk,
    look_at_device,
    look_at_limits,
    look_at_ports,
)


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks that need no registry; one that fails does not keep others from it."""
    for look in CHECKS:
        try:
            yield from look(settings)
        except PeterRecError as error:
            yield failed(look.__name__.removeprefix("look_at_"), error)


async def examine_registry(registry: Registry, settings: Settings) -> list[Finding]:
    """Look at Redis, at the clocks, and whether what is registered is for this backbone."""
    found = [each async for each in _look_at_redis(registry, settings)]
    found.append(await _look_at_clock(registry))
    return [*found, *[each async for each in _look_at_registry(registry, settings)]]


async def _look_at_redis(registry: Registry, settings: Settings) -> AsyncIterator[Finding]:
    info = await server_info(registry.store)
    used = f"{info.used_bytes / 2**20:.0f} MiB used"
    where = "embedded" if settings.redis_url is None else info.mode
    yield Finding("redis", "good", f"{info.software} {info.version}, {where}, {used}")
    for warning in info.warnings():
        state: State = "bad" if info.role != "master" and "replica" in warning else "note"
        yield Finding("redis", state, warning, "docs/registry.md says which Redis is needed.")
    if info.limit_bytes and info.used_bytes > 0.9 * info.limit_bytes:
        yield Finding("redis", "note", "over 90 % of maxmemory is used", "Raise maxmemory.")
    if settings.ack_replicas > info.replicas:
        what = f"{info.replicas} replicas, but changes wait for {settings.ack_replicas}"
        yield Finding("redis", "bad", what, "Add replicas, or lower PETERREC_ACK_REPLICAS.")


async def _look_at_clock(registry: Registry) -> Finding:
    before = time.time()
    with redis_errors():
        seconds, microseconds = await registry.store.redis.time()
    here = (before + time.time()) / 2
    skew = abs(here - seconds - microseconds / 1e6)
    shown = f"{skew:.2f} s from Redis' clock"
    if skew <= USUAL_SKEW_S:
        return Finding("clock", "good", shown)
    state: State = "bad" if skew > MOST_SKEW_S else "note"
    return Finding("clock", state, shown, "Run a time service (chrony, systemd-timesyncd) on both.")


async def _look_at_registry(registry: Registry, settings: Settings) -> AsyncIterator[Finding]:
    snapshot = await registry.feed.snapshot()
    what = f"{len(snapshot.tasks)} tasks, {len(snapshot.keys)} keys, revision {snapshot.revision}"
    yield Finding("registry", "good", what)
    if not snapshot.keys and settings.auth == "on":
        todo = "Make the first one with `peterrec keys create`; docs/operations.md shows how."
        yield Finding("registry", "note", "there is no API key, so nobody may call", todo)
    own = {info.fingerprint for info in read_backbones(settings.backbone_dir)}
    foreign: Counter[str] = Counter()
    prods = fitting = 0
    for ref, entry in snapshot.tasks.items():
        detail = await registry.get_task(ref.tenant, ref.task)
        served = {*entry.numbers}
        foreign.update(
            version.summary.backbone
            for version in detail.versions
            if version.version in served and version.summary.backbone not in own
        )
        prod = entry.aliases.get(PROD)
        prods += prod is not None
        fitting += any(
            each.version == prod and each.summary.backbone in own for each in detail.versions
        )
    if prods and not fitting:
        what = f"no_bundle_fits: of {prods} tasks, none has a prod for this backbone"
        yield Finding("registry", "bad", what, "A server with it never becomes ready.")
    for fingerprint, count in foreign.items():
        what = f"{count} served versions are for another backbone, {fingerprint}"
        todo = "Serve that backbone, or fine-tune these tasks again on this one and push them."
        yield Finding("registry", "bad", what, todo)


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind)) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise AddressInUse(host, port, error) from error
        return False
    return True


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def _vector_units() -> str:
    from peterrec.model.inference.cpu.simd import has_features

    wanted = {"AMX": "amx-bf16", "AVX-512": "avx512f", "AVX2": "avx2"}
    found = [name for name, feature in wanted.items() if has_features(feature)]
    return ", ".join(found) or "no vector units that the kernels use"
