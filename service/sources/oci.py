"""Bundles as OCI artifacts: one layer of a manifest in a registry of images."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from peterrec.patches.errors import InvalidDigest
from peterrec.patches.identity import digest_of, format_digest, parse_digest
from peterrec.service.errors import (
    SourceDenied,
    SourceDigestMismatch,
    SourceInvalid,
    SourceRefused,
)
from peterrec.service.sources.address import Address, parse_address
from peterrec.service.sources.https import check_status
from peterrec.service.sources.receiving import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Receiver,
    broken,
    check_digest,
    library,
    reason_of,
)
from peterrec.service.system.addresses import is_loopback

if TYPE_CHECKING:
    import requests

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
TITLE = "org.opencontainers.image.title"
LARGEST_MANIFEST = 4 << 20
"""Bytes of a manifest, as the distribution specification has it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of an artifact, as its manifest describes it."""

    digest: str
    size_bytes: int
    title: str


def fetch(source: Address, to: Receiver) -> None:
    """Write an artifact's bundle to the receiver's file; errors named ``Source…``.

    Credentials are those of ``docker login``. A registry on this machine is read without TLS.
    """
    oras = library("oras.provider", "oci", "oci")
    import requests
    from oras.auth import AuthenticationException

    try:
        registry = _registry(oras, source, to)
        layer = _layer(_manifest(registry, source), source)
        answer = _ask(registry, source, f"blobs/{layer.digest}")
        with to.open(source, layer.size_bytes) as file:
            for chunk in answer.iter_content(CHUNK_BYTES):
                file.write(chunk)
            file.require_all(layer.size_bytes)
    except requests.exceptions.RequestException as error:
        raise broken(source, reason_of(error)) from error
    except (AuthenticationException, ValueError) as error:  # what oras raises without credentials
        raise SourceDenied(source, "the registry wants other credentials") from error
    check_digest(to.file, source, parse_digest(layer.digest))


def _registry(oras: ModuleType, source: Address, to: Receiver) -> Any:  # Any: oras has no types
    """Connect to a registry, with the form of credentials that it asks for, and load them."""
    insecure = _scheme(source) == "http"
    registry = oras.Registry(source.place, insecure=insecure)
    _guard(registry.session, source, to)
    with registry.session.get(f"{registry.prefix}://{source.place}/v2/", stream=True) as greeting:
        challenge = greeting.headers.get("www-authenticate", "")
    if challenge.lower().startswith("basic"):
        registry = oras.Registry(source.place, insecure=insecure, auth_backend="basic")
        _guard(registry.session, source, to)
    registry.auth.load_configs(registry.get_container(f"{source.place}/{source.path}"))
    return registry


def _guard(session: "requests.Session", source: Address, to: Receiver) -> None:
    """Have every request of a session pass through the receiver's rule, redirects too."""
    from requests.adapters import HTTPAdapter

    class Guarded(HTTPAdapter):
        def send(self, request: "requests.PreparedRequest", *rest: Any, **named: Any) -> Any:
            # Any: passed on as requests has it
            _require_reachable(str(request.url), source, to)
            named["timeout"] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            return super().send(request, *rest, **named)

    for scheme in ("https://", "http://"):
        session.mount(scheme, Guarded())


def _require_reachable(url: str, source: Address, to: Receiver) -> None:
    """Allow the registry itself, and what the receiver may reach: its tokens or its storage."""
    parts = urlsplit(url)
    if parts.netloc == source.place and parts.scheme == _scheme(source):
        return
    try:
        target = parse_address(url)
    except SourceInvalid as error:
        raise SourceRefused(f"{source} leads to no address that may be read.") from error
    if not to.may_reach(target):
        raise SourceRefused(
            f"{source} leads to {target.place}, which PETERREC_BUNDLE_SOURCES does not allow.",
            hint="Registries keep tokens or blobs at other hosts; whoever runs the server may list "
            "them, too.",
        )


def _scheme(source: Address) -> str:
    """Registries on this machine speak plain HTTP, as Docker has it."""
    return "http" if is_loopback(source.host) else "https"


def _ask(registry: Any, source: Address, what: str) -> "requests.Response":  # Any: oras has none
    """Ask the registry for something of the repository, and check the status.

    Without the retries of oras, which take two minutes if a host is away.
    """
    once = inspect.unwrap(type(registry).do_request)
    url = f"{registry.prefix}://{source.place}/v2/{source.path}/{what}"
    try:
        answer: requests.Response = once(
            registry, url, headers={"Accept": ", ".join(MANIFESTS)}, stream=True
        )
    except AttributeError as error:  # oras, if it has no password that it could send
        raise SourceDenied(source, "the registry wants credentials") from error
    check_status(answer.status_code, source)
    return answer


def _manifest(registry: Any, source: Address) -> Mapping[str, Any]:  # Any: JSON of a stranger
    """Read the manifest, and check it against the digest of the address if that has one."""
    answer = _ask(registry, source, f"manifests/{source.rest[1:]}")
    content = b""
    for chunk in answer.iter_content(CHUNK_BYTES):
        content += chunk
        if len(content) > LARGEST_MANIFEST:
            raise SourceInvalid(f"{source}: its manifest has more than {LARGEST_MANIFEST} bytes.")
    found = format_digest(digest_of(content))
    if source.rest.startswith("@") and found != source.rest[1:]:
        raise SourceDigestMismatch(source, found, source.rest[1:])
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise SourceInvalid(f"{source}: its manifest is no JSON.") from error
    return manifest if isinstance(manifest, dict) else {}


def _layer(manifest: Mapping[str, Any], source: Address) -> Layer:
    """Choose the layer that is the bundle: the only one, or the only one called ``*.bundle``."""
    layers = [_read_layer(each, source) for each in _list(manifest.get("layers"))]
    named = [each for each in layers if each.title.endswith(".bundle")]
    chosen = named if len(layers) > 1 else layers
    if len(chosen) != 1:
        raise SourceInvalid(
            f"{source} has {len(layers)} files, {len(named)} of them called `*.bundle`.",
            hint="Push one bundle per artifact: `oras push HOST/REPOSITORY:TAG FILE.bundle`.",
        )
    return chosen[0]


def _read_layer(layer: Any, source: Address) -> Layer:  # Any: JSON of a stranger
    try:
        digest = format_digest(parse_digest(layer["digest"]))
        return Layer(digest, int(layer["size"]), str((layer.get("annotations") or {}).get(TITLE)))
    except (KeyError, TypeError, ValueError, AttributeError, InvalidDigest) as error:
        raise SourceInvalid(f"{source}: its manifest describes no files.") from error


def _list(value: object) -> list[Any]:  # Any: JSON of a stranger
    return value if isinstance(value, list) else []
