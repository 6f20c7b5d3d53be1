"""What the answers of a bundle can say, and how that differs between two bundles."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Self

from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.bundle.format import compact_json
from peterrec.patches.bundle.header import Tensors
from peterrec.patches.bundle.manifest import Manifest, ManifestAttribute

NAMES_SHOWN = 5
"""Labels or items that a difference names at most of each sort; it counts the others."""

NAME_CHARACTERS = 60
"""Characters after which a difference cuts a name."""

DIGEST_CHARACTERS = 32
"""Characters of the digest of outputs: 128 bits."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """The kind of a head and what its outputs are called. Weights play no part.

    Callers depend on these: two bundles of equal outputs can replace each other without a change in
    any program that reads the answers. ``labels`` have an order, in which answers list them. A
    catalog is a set here, since a ranking names its items and orders them by score. ``attributes``
    are the types of what requests may filter it by.
    """

    kind: str
    labels: tuple[str, ...] = ()
    catalog: Catalog | None = None
    unit: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, tensors: Tensors) -> Self:
        """Take the outputs from a bundle; of its tensors, only those of the catalog are read."""
        return cls(
            kind=manifest.kind,
            labels=manifest.head.labels or (),
            catalog=Catalog.of(tensors) if manifest.described_kind.has_catalog else None,
            unit=manifest.head.unit,
            attributes={name: type_of(form) for name, form in manifest.attributes.items()},
        )

    @cached_property
    def digest(self) -> str:
        """A text that is equal for equal outputs. Takes about a second per million items."""
        items = "" if self.catalog is None else _set_digest(self.catalog.encoded())
        parts: list[object] = [self.kind, self.labels, items, self.unit]
        if self.attributes:
            parts.append(sorted(self.attributes.items()))
        text = compact_json(parts)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARACTERS]


def output_differences(before: Outputs, after: Outputs) -> list[str]:
    """Return one line for each thing that differs; a line names a few examples and counts all."""
    lines = []
    if before.kind != after.kind:
        lines.append(f"kind: {before.kind} → {after.kind}")
    if before.labels != after.labels and before.labels and after.labels:
        lines.append(f"labels: {_label_difference(before.labels, after.labels)}")
    if before.catalog is not None and after.catalog is not None:
        lines += _catalog_difference(before.catalog, after.catalog)
    lines += _attribute_differences(before.attributes, after.attributes)
    if before.unit != after.unit:
        lines.append(f"unit: {_shown(before.unit or 'none')} → {_shown(after.unit or 'none')}")
    return lines


def type_of(form: ManifestAttribute) -> str:
    """Return the type of an attribute in words."""
    return f"list of {form.type}s" if form.is_list else form.type


def _attribute_differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Only what callers may filter by and could not afterwards: new attributes harm nobody."""
    gone = sorted(before.keys() - after.keys())
    if gone:
        yield f"attributes: − {_examples(gone)}"
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"attribute {_shown(name)}: {before[name]} → {after[name]}"


def _label_difference(before: Sequence[str], after: Sequence[str]) -> str:
    had, has = set(before), set(after)
    added = [label for label in after if label not in had]
    removed = [label for label in before if label not in has]
    parts = [f"+ {_examples(added)}"] if added else []
    parts += [f"− {_examples(removed)}"] if removed else []
    kept_before = [label for label in before if label in has]
    kept_after = [label for label in after if label in had]
    moved = [pair for pair in zip(kept_before, kept_after, strict=True) if pair[0] != pair[1]]
    if moved:
        was, now = moved[0]
        at = after.index(now) + 1
        parts.append(f"order differs at {at} ({_shown(was)} → {_shown(now)})")
    return ", ".join(parts)


def _catalog_difference(before: Catalog, after: Catalog) -> list[str]:
    had, has = set(before.encoded()), set(after.encoded())
    if had == has:
        return []
    gone, new = had - has, has - had
    plural = "" if len(gone) == 1 else "s"
    lines = [f"{len(gone):,} item{plural} gone ({_first(gone, before)})"] if gone else []
    lines += [f"{len(new):,} new ({_first(new, after)})"] if new else []
    return [f"catalog: {', '.join(lines)} of {len(had):,}"]


def _first(some: Collection[bytes], catalog: Catalog) -> str:
    found = (item.decode() for item in catalog.encoded() if item in some)
    return _examples(list(islice(found, NAMES_SHOWN)), len(some))


def _examples(names: Sequence[str], count: int | None = None) -> str:
    more = (len(names) if count is None else count) - NAMES_SHOWN
    shown = ", ".join(map(_shown, names[:NAMES_SHOWN]))
    return f"{shown} and {more:,} more" if more > 0 else shown


def _shown(name: str) -> str:
    return repr(name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…")


def _set_digest(items: Iterable[bytes]) -> str:
    """Return a digest that does not depend on the order: the sum of the items' own digests.

    Sorting a million items would keep other threads from running for most of a second.
    """
    return f"{sum(_numbers(items)) % (1 << 256):x}"


def _numbers(items: Iterable[bytes]) -> Iterator[int]:
    return (int.from_bytes(hashlib.sha256(item).digest(), "big") for item in items)
