"""Bundles, differences between them and refusals, as text for people and as JSON documents."""

from collections.abc import Iterable, Sequence
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds.value import ValueScale
from peterrec.patches.bundle.bundle import Catalog, Contents, Manifest, format_digest
from peterrec.patches.bundle.diff import (
    BundleDifference,
    BundleMetadata,
    FieldChange,
    NamesChange,
    OpenedBundle,
)
from peterrec.patches.bundle.manifest import ManifestPatch, ManifestTable
from peterrec.patches.bundle.outputs import type_of
from peterrec.patches.errors import BundleRejected
from peterrec.service.system.texts import printable

NAMES_SHOWN = 10
"""Labels or items that are printed of a longer list."""

NAME_WIDTH = 20
"""Columns of the names in front of the printed values."""

Rows = list[tuple[str, str]]
"""Names and values, one pair for each line."""


def print_rows(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair on each line."""
    for name, found in rows:
        line = Text.assemble((f"{printable(name):<{NAME_WIDTH}}", "bold"), printable(found))
        console.print(line, soft_wrap=True)


def manifest_rows(manifest: Manifest) -> Rows:
    """The manifest's fields."""
    head, framing, provenance = manifest.head, manifest.input, manifest.provenance
    direction = "causal" if framing.is_causal else "non-causal"
    return [
        ("name", manifest.name),
        ("kind", f"{head.kind}, {head.outputs} outputs"),
        *([("labels", _some(head.labels, len(head.labels)))] if head.labels else []),
        *([("threshold", f"{head.threshold}")] if manifest.described_kind.has_threshold else []),
        ("temperature", f"{head.temperature}"),
        *([] if head.value_scale == ValueScale() else [("value", _value_line(head.value_scale))]),
        ("backbone", manifest.backbone),
        ("input", f"{framing.max_len} items, {framing.padding} padding, {direction}"),
        ("patch", _patch(manifest)),
        *([("item table", _table(manifest.table))] if manifest.table else []),
        *([("titles", f"{head.title_bytes} bytes")] if head.title_bytes else []),
        *([("attributes", _attributes(manifest))] if manifest.attributes else []),
        ("probes", f"{manifest.probes.count} histories, {manifest.probes.columns} outputs of each"),
        *((f"metric {name}", f"{value:.6g}") for name, value in sorted(manifest.metrics.items())),
        ("data", provenance.data_digest),
        ("trained", f"{provenance.created_at.isoformat()} by {provenance.software}"),
        ("seed", f"{provenance.seed}"),
        *([("notes", provenance.notes)] if provenance.notes else []),
    ]


def _attributes(manifest: Manifest) -> str:
    found = sorted(manifest.attributes.items())
    return ", ".join(f"{name} ({type_of(form)})" for name, form in found)


def content_rows(opened: OpenedBundle) -> Rows:
    """Digest, size, signatures and catalog of the file."""
    contents, facts = opened.contents, opened.metadata
    rows = [
        ("version", format_digest(facts.digest)),
        ("content", f"sha256:{facts.content}"),
        ("size", f"{facts.size_bytes} bytes"),
        *(("signed by", f"{key} (not checked)") for key in facts.signed_by),
    ]
    if contents.manifest.described_kind.has_catalog:
        catalog = Catalog.of(contents.tensors)
        rows.append(("catalog", _some(catalog, len(catalog))))
    return [*rows, ("integrity", "complete and consistent")]


def tensor_table(contents: Contents) -> Table:
    """A table of the file's tensors."""
    table = Table("tensor", "dtype", "shape", "bytes", box=None, padding=(0, 2, 0, 0))
    for name, entry in sorted(contents.header.entries.items()):
        shape = " × ".join(map(str, entry.shape))
        table.add_row(name, entry.dtype, shape, str(entry.end - entry.begin))
    return table


def bundle_document(opened: OpenedBundle) -> dict[str, object]:
    """A bundle's manifest, tensors and sizes as JSON."""
    contents = opened.contents
    return {
        **metadata_document(opened.metadata),
        "manifest": contents.manifest.model_dump(mode="json", by_alias=True),
        "tensors": [
            {
                "name": name,
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "size_bytes": entry.end - entry.begin,
            }
            for name, entry in sorted(contents.header.entries.items())
        ],
    }


def metadata_document(facts: BundleMetadata) -> dict[str, object]:
    """A bundle's digest, sizes and signatures as JSON."""
    return {
        "digest": format_digest(facts.digest),
        "content": f"sha256:{facts.content}",
        "name": facts.name,
        "size_bytes": facts.size_bytes,
        "patch_bytes": facts.patch_bytes,
        "head_bytes": facts.head_bytes,
        "signed_by": list(facts.signed_by),
    }


def difference_rows(difference: BundleDifference) -> Rows:
    """The differences, one change on each line."""
    first, second = difference.first, difference.second
    sizes = [
        FieldChange("size", first.size_bytes, second.size_bytes),
        FieldChange("patch bytes", first.patch_bytes, second.patch_bytes),
        FieldChange("head bytes", first.head_bytes, second.head_bytes),
        FieldChange("signed by", _keys(first.signed_by), _keys(second.signed_by)),
    ]
    changed = [*difference.fields, *(size for size in sizes if size.first != size.second)]
    return [
        ("versions", f"{format_digest(first.digest)} → {format_digest(second.digest)}"),
        ("content", "the same" if difference.is_same_content else "different"),
        *((change.field, f"{change.first} → {change.second}") for change in changed),
        *((f"metric {change.field}", _metric(change)) for change in difference.metrics),
        *_names_rows("labels", difference.labels),
        *_names_rows("catalog", difference.catalog),
    ]


def difference_document(difference: BundleDifference) -> dict[str, object]:
    """The differences between two bundles as JSON."""
    return {
        "first": metadata_document(difference.first),
        "second": metadata_document(difference.second),
        "is_same_content": difference.is_same_content,
        "fields": _changes_document(difference.fields),
        "metrics": _changes_document(difference.metrics),
        "labels": _names_document(difference.labels),
        "catalog": _names_document(difference.catalog),
    }


def refusal_document(error: PeterRecError) -> list[dict[str, str]]:
    """Why a bundle is refused, as JSON: every reason that verification found, or one error."""
    if isinstance(error, BundleRejected):
        return [{"code": r.code, "message": r.message, "hint": r.hint} for r in error.reasons]
    return [{"code": error.code, "message": error.message, "hint": error.hint}]


def _value_line(line: ValueScale) -> str:
    return f"{line.scale} · logit + {line.shift}"


def _patch(manifest: Manifest) -> str:
    patch = manifest.patch
    extras = {
        "inner skip": patch.has_inner_skip,
        "trained norms": patch.has_norms,
        "trained [CLS]": patch.has_cls,
    }
    parts = [
        patch.insertion,
        f"bottleneck {patch.bottleneck}",
        *_places(patch),
        *(name for name, is_there in extras.items() if is_there),
    ]
    return ", ".join(parts)


def _table(table: ManifestTable) -> str:
    return f"{table.items} items, {table.bits} bits, {table.counting}, n^-{table.exponent:g}"


def _places(patch: ManifestPatch) -> list[str]:
    blocks = [f"blocks {', '.join(map(str, patch.blocks))}"] if patch.blocks else []
    reader = [f"reads the items with {patch.queries} queries"] if patch.queries else []
    return [*blocks, *reader] or ["no blocks (head only)"]


def _some(names: Iterable[str], count: int) -> str:
    shown = ", ".join(islice(names, NAMES_SHOWN))
    return shown if count <= NAMES_SHOWN else f"{shown} … ({count} in all)"


def _keys(key_ids: Sequence[str]) -> str:
    return ", ".join(key_ids) or "nobody"


def _metric(change: FieldChange) -> str:
    if isinstance(change.first, float) and isinstance(change.second, float):
        delta = change.second - change.first
        return f"{change.first:.6g} → {change.second:.6g} ({delta:+.3g})"
    return f"{change.first} → {change.second}"


def _names_rows(what: str, change: NamesChange | None) -> Rows:
    if change is None:
        return []
    order = " in another order" if change.is_reordered else ""
    rows = [(what, f"{change.added} added, {change.removed} removed, {change.kept} kept{order}")]
    if change.added:
        rows.append((f"  {what} added", _some(change.added_names, change.added)))
    if change.removed:
        rows.append((f"  {what} removed", _some(change.removed_names, change.removed)))
    return rows


def _changes_document(changes: Sequence[FieldChange]) -> list[dict[str, object]]:
    return [
        {"field": change.field, "first": change.first, "second": change.second}
        for change in changes
    ]


def _names_document(change: NamesChange | None) -> dict[str, object] | None:
    if change is None:
        return None
    return {
        "added": change.added,
        "removed": change.removed,
        "kept": change.kept,
        "is_reordered": change.is_reordered,
        "added_names": list(change.added_names),
        "removed_names": list(change.removed_names),
    }
