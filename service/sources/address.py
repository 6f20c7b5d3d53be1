"""Addresses of bundles: parsed, compared with prefixes, and shown without what is secret.

One parse serves everything: the fetchers build their requests from its parts, never from the text,
so nobody can read an address in two ways.
"""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import unquote

from peterrec.service.errors import SourceInvalid

LONGEST_ADDRESS = 4096
"""Characters of an address; a signed URL of S3 has about 1500."""

TENANT = "{tenant}"
"""What a prefix has in place of the caller's tenant."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?\Z")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,255}\Z")
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*\Z")
_REFERENCE = re.compile(r":[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z|@sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a bundle is, in normal form.

    ``place`` is a host with its port, a bucket, or empty for MLflow; ``path`` has no slash at its
    beginning. ``rest`` is the query of a URL, which may hold a signature, or an OCI artifact's
    ``:tag`` or ``@digest``.
    """

    scheme: str
    place: str
    path: str
    rest: str = field(default="", repr=False)

    def __str__(self) -> str:
        """The address for logs, errors and the audit trail: without the query of a URL."""
        slashes = "/" if self.scheme in _WITHOUT_PLACE else "//"
        between = "/" if self.place and self.path else ""
        shown = self.rest if self.scheme == "oci" else ""
        return f"{self.scheme}:{slashes}{self.place}{between}{self.path}{shown}"

    @property
    def host(self) -> str:
        """The host of ``place``, without the port and the brackets of IPv6."""
        return re.sub(r":[0-9]+\Z", "", self.place).strip("[]")


def is_address(text: str) -> bool:
    """Whether a command's argument names a bundle elsewhere, rather than a file."""
    return "://" in text or text.lower().startswith(tuple(f"{name}:" for name in _WITHOUT_PLACE))


def parse_address(text: str) -> Address:
    """Parse the address of one bundle; SourceInvalid, which never repeats what may be secret."""
    address = _parse(text)
    if not address.path or address.path.endswith("/"):
        _refuse(f"{str(address)!r:.200} names no file.", "Add the path of the bundle.")
    if address.scheme == "oci" and not address.rest:
        _refuse(f"{str(address)!r:.200} has no tag.", "Add `:TAG` or `@sha256:DIGEST`.")
    return address


def parse_prefix(text: str) -> Address:
    """Parse a prefix of addresses, in which TENANT may stand; SourceInvalid."""
    address = _parse(text.replace(TENANT, "tenant"))
    if address.scheme == "runs":
        _refuse(
            f"{text!r:.200} is no prefix: an id of a run says nothing of whose it is.",
            "List where the artifacts of the runs are, such as `mlflow-artifacts:/12/`.",
        )
    if address.rest:
        _refuse(f"{text!r:.200} has a query or a tag.", "A prefix ends with a folder.")
    if address.scheme != "s3" and TENANT in text.partition("://")[2].partition("/")[0]:
        _refuse(f"{text!r:.200} has {TENANT} in its host.", "It may stand in the path only.")
    return address


def allowed_by(prefixes: Collection[str], tenant: str) -> Callable[[Address], bool]:
    """Return whether an address lies under one of the prefixes, as they are for a tenant.

    A prefix is a folder: ``s3://models/shop`` has ``s3://models/shop/a`` and not
    ``s3://models/shop2``. A prefix that can't have the tenant's name in it allows nothing.
    """
    folders = []
    for prefix in prefixes:
        with suppress(SourceInvalid):
            folders.append(_parse(prefix.replace(TENANT, tenant)))

    def is_allowed(address: Address) -> bool:
        return any(_is_under(address, folder) for folder in folders)

    return is_allowed


def _is_under(address: Address, folder: Address) -> bool:
    if (address.scheme, address.place) != (folder.scheme, folder.place):
        return False
    path = folder.path.rstrip("/")
    return not path or address.path == path or address.path.startswith(f"{path}/")


def _parse(text: str) -> Address:
    if len(text) > LONGEST_ADDRESS:
        _refuse(f"it has {len(text)} characters, at most {LONGEST_ADDRESS} are read.")
    if _UNSAFE.search(text):
        _refuse("it has a space, a backslash or a control character.", "Encode it: %20.")
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in _SCHEMES:
        known = "https://HOST/PATH, s3://BUCKET/KEY, oci://HOST/REPOSITORY:TAG, runs:/RUN_ID/PATH"
        _refuse(f"{(scheme or text)!r:.40} is no scheme of bundles.", f"Write one of {known}.")
    address = _SCHEMES[scheme](text[found.end() :])
    if any(part.split(";")[0] in {".", ".."} for part in _decoded(address.path).split("/")):
        _refuse("its path has `.` or `..` as a folder.", "Write the path itself.")
    return address


def _https(text: str) -> Address:
    before, _, query = text.partition("?")
    if "#" in text:
        _refuse("it has a fragment (`#`), which names no file.")
    place, path = _place_and_path(before)
    return Address("https", _checked_host(place).removesuffix(":443"), path, query)


def _s3(text: str) -> Address:
    bucket, key = _place_and_path(text)
    if not _BUCKET.match(bucket):
        _refuse(f"{bucket!r:.80} is no name of a bucket.", "Write s3://BUCKET/KEY.")
    return Address("s3", bucket, key)


def _oci(text: str) -> Address:
    place, path = _place_and_path(text)
    place = _checked_host(place)
    found = re.search(r"[:@]", path)
    repository, reference = (path[: found.start()], path[found.start() :]) if found else (path, "")
    if repository and not _REPOSITORY.match(repository.rstrip("/")):
        _refuse(f"{repository!r:.80} is no name of a repository.", "It is in small letters.")
    if reference and not _REFERENCE.match(reference):
        _refuse("its tag or digest has another form.", "Write `:TAG` or `@sha256:DIGEST`.")
    return Address("oci", place, repository, reference)


def _run(text: str) -> Address:
    run, _, path = _mlflow_path(text).partition("/")
    if not _RUN.match(run) or not path:
        _refuse("it names no file of a run.", "Write runs:/RUN_ID/PATH.")
    return Address("runs", "", f"{run}/{path}")


def _mlflow_artifact(text: str) -> Address:
    return Address("mlflow-artifacts", "", _mlflow_path(text))


def _mlflow_path(text: str) -> str:
    if not text.startswith("/") or text.startswith("//"):
        _refuse(
            "it names a server of MLflow, or no path.",
            "Write one slash after the colon; the server is MLFLOW_TRACKING_URI.",
        )
    if re.search(r"[?#]", text):
        _refuse("it has a `?` or `#`, which MLflow reads as the end of a path.")
    return text[1:]


def _place_and_path(text: str) -> tuple[str, str]:
    place, _, path = text.removeprefix("//").partition("/")
    if not text.startswith("//"):
        _refuse("it has no `//` after its scheme.")
    if "@" in place:
        _refuse(
            "it has a user or a password.",
            "Credentials come from the environment of whoever fetches: docs/sources.md.",
        )
    return place, path


def _checked_host(place: str) -> str:
    found = _HOST.match(place.lower())
    if found is None or int(found[1] or 1) > 65535:
        _refuse(f"{place!r:.80} is no host.", "Write the name in ASCII, as DNS has it.")
    return place.lower()


def _decoded(path: str) -> str:
    """Return a path as the most generous server would read it."""
    while (once := unquote(path)) != path:
        path = once
    return path.replace("\\", "/")


def _refuse(what: str, hint: str = "") -> NoReturn:
    raise SourceInvalid(f"this is no address of a bundle: {what}", hint=hint)


_SCHEMES: Mapping[str, Callable[[str], Address]] = {
    "https": _https,
    "s3": _s3,
    "oci": _oci,
    "runs": _run,
    "mlflow-artifacts": _mlflow_artifact,
}
_WITHOUT_PLACE = frozenset({"runs", "mlflow-artifacts"})
