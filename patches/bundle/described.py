"""Titles and attributes are added to a bundle: they change nothing of what it computes."""

from collections.abc import Mapping, Sequence

from peterrec.model.spec import LONGEST_LABEL
from peterrec.patches.bundle.attributes import (
    Attributes,
    attribute_tensors,
    attributes_of,
    column_at,
)
from peterrec.patches.bundle.bundle import Catalog, build_bundle, open_bundle
from peterrec.patches.bundle.format import BundleLimits
from peterrec.patches.bundle.header import Array, Tensors
from peterrec.patches.bundle.manifest import Manifest
from peterrec.patches.bundle.texts import PackedTexts


def outputs_named(data: bytes, limits: BundleLimits | None = None) -> Sequence[str]:
    """Return the labels of a bundle, or the items of its catalog; nothing of a value."""
    contents = open_bundle(data, limits)
    if contents.manifest.described_kind.has_catalog:
        return tuple(Catalog.of(contents.tensors))
    return contents.manifest.head.labels or ()


def describe_bundle(
    data: bytes,
    titles: Mapping[str, str] | None = None,
    attributes: Attributes | None = None,
    limits: BundleLimits | None = None,
) -> bytes:
    """Return a bundle with these display names and attributes instead of those that it has.

    ``titles`` are by label or item, and cut if they are too long; ``attributes`` have a value for
    each item of the catalog, in its order. None leaves what is there. The result has another
    content, so signatures are left out. BundleRejected if it is no valid bundle.
    """
    contents = open_bundle(data, limits)
    manifest, tensors = contents.manifest, dict(contents.tensors)
    if titles is not None:
        names = outputs_named(data, limits)
        packed = PackedTexts.pack(titles.get(name, "")[:LONGEST_LABEL] for name in names)
        added = packed.tensors_named("title")
        size = added["title.bytes"].size
        tensors = _without(tensors, "title.") | (added if size else {})
        head = manifest.head.model_copy(update={"title_bytes": size})
        manifest = manifest.model_copy(update={"head": head})
    if attributes is not None:
        tensors = _without(tensors, "attribute.") | attribute_tensors(attributes)
        forms = {name: column.form for name, column in attributes.items()}
        manifest = manifest.model_copy(update={"attributes": forms})
    manifest = Manifest.model_validate_json(manifest.to_json())
    return build_bundle(manifest, tensors)


def inherit_descriptions(data: bytes, other: bytes) -> bytes:
    """Return a bundle with the titles and attributes that another one has, by labels or items.

    Outputs that the other one has not get none. BundleRejected if one of them is no valid bundle.
    """
    contents, names = open_bundle(other), outputs_named(data)
    place = {name: at for at, name in enumerate(outputs_named(other))}
    titles: dict[str, str] | None = None
    if contents.manifest.head.title_bytes:
        titles = dict(zip(place, PackedTexts.named(contents.tensors, "title"), strict=True))
    places = [place.get(name) for name in names]
    columns = {
        name: column_at(column, places)
        for name, column in attributes_of(contents.manifest, contents.tensors).items()
    }
    if titles is None and not columns:
        return data
    return describe_bundle(data, titles, columns or None)


def _without(tensors: Tensors, prefix: str) -> dict[str, Array]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
