"""The differences between two bundles that are visible without running them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.bundle.contents import Contents
from peterrec.patches.bundle.signatures import content_digest, signatures_of
from peterrec.patches.errors import Findings
from peterrec.patches.identity import Digest

NAMES_LISTED = 20
"""Names listed of each kind of change, because catalogs may differ in a million items."""

COMPARED_APART = frozenset({"metrics", "head.labels"})
"""Parts of the manifest that have their own place in a BundleDifference."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class BundleMetadata:
    """What a comparison shows of one bundle."""

    digest: Digest
    content: str
    name: str
    size_bytes: int
    patch_bytes: int
    head_bytes: int
    signed_by: tuple[str, ...]

    @classmethod
    def of(cls, contents: Contents, digest: Digest, size_bytes: int) -> Self:
        """Describe an opened bundle; its signatures are listed without being checked."""
        return cls(
            digest=digest,
            content=content_digest(contents),
            name=contents.manifest.name,
            size_bytes=size_bytes,
            patch_bytes=_bytes_of(contents, "patch."),
            head_bytes=_bytes_of(contents, "head."),
            signed_by=tuple(signatures_of(contents, Findings()) or ()),
        )


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field of the manifest whose value differs; None where one bundle does not have it."""

    field: str
    first: Scalar
    second: Scalar


@dataclass(frozen=True, slots=True)
class NamesChange:
    """How a list of labels or of catalog items differs; the first few names of each kind."""

    added: int
    removed: int
    kept: int
    is_reordered: bool
    added_names: tuple[str, ...]
    removed_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundleDifference:
    """Everything that differs; an empty tuple or None stands for no difference."""

    first: BundleMetadata
    second: BundleMetadata
    is_same_content: bool
    fields: tuple[FieldChange, ...]
    metrics: tuple[FieldChange, ...]
    labels: NamesChange | None
    catalog: NamesChange | None


@dataclass(frozen=True, slots=True, eq=False)
class OpenedBundle:
    """A bundle's contents with the metadata of its file."""

    contents: Contents
    metadata: BundleMetadata


def compare_bundles(first: OpenedBundle, second: OpenedBundle) -> BundleDifference:
    """Return what changes from the first bundle to the second."""
    one, two = first.contents.manifest, second.contents.manifest
    return BundleDifference(
        first=first.metadata,
        second=second.metadata,
        is_same_content=first.metadata.content == second.metadata.content,
        fields=_changes(_manifest_fields(first.contents), _manifest_fields(second.contents)),
        metrics=_changes(one.metrics, two.metrics),
        labels=_names_change(one.head.labels or (), two.head.labels or ()),
        catalog=_names_change(_items(first.contents), _items(second.contents)),
    )


def _bytes_of(contents: Contents, prefix: str) -> int:
    return sum(t.nbytes for name, t in contents.tensors.items() if name.startswith(prefix))


def _items(contents: Contents) -> Sequence[str]:
    has_catalog = contents.manifest.described_kind.has_catalog
    return list(Catalog.of(contents.tensors)) if has_catalog else ()


def _manifest_fields(contents: Contents) -> dict[str, Scalar]:
    return dict(_flat("", contents.manifest.model_dump(mode="json", by_alias=True)))


def _flat(prefix: str, part: Mapping[str, object]) -> Iterator[tuple[str, Scalar]]:
    for key, value in part.items():
        name = f"{prefix}{key}"
        if name in COMPARED_APART:
            continue
        if isinstance(value, dict):
            yield from _flat(f"{name}.", value)
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        else:
            assert value is None or isinstance(value, str | int | float)
            yield name, value


def _changes(
    first: Mapping[str, Scalar] | Mapping[str, float],
    second: Mapping[str, Scalar] | Mapping[str, float],
) -> tuple[FieldChange, ...]:
    names = [*first, *(name for name in second if name not in first)]
    changes = (FieldChange(name, first.get(name), second.get(name)) for name in names)
    return tuple(change for change in changes if change.first != change.second)


def _names_change(first: Sequence[str], second: Sequence[str]) -> NamesChange | None:
    if first == second:
        return None
    before, after = set(first), set(second)
    added = [name for name in second if name not in before]
    removed = [name for name in first if name not in after]
    kept_before = [name for name in first if name in after]
    kept_after = [name for name in second if name in before]
    return NamesChange(
        added=len(added),
        removed=len(removed),
        kept=len(kept_before),
        is_reordered=kept_before != kept_after,
        added_names=tuple(added[:NAMES_LISTED]),
        removed_names=tuple(removed[:NAMES_LISTED]),
    )
