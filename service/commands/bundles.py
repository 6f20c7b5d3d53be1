"""Commands of the bundles group."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patches.bundle import Catalog, Contents, Manifest, format_digest, open_bundle, read_manifest
from patches.identity import digest_of

NAMES_SHOWN = 10
NAME_WIDTH = 20


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(inspect)


def inspect(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .bundle file.")],
) -> None:
    """Show what a bundle is; exit 1, with every reason, if it is damaged or contradicts itself."""
    console = Console(highlight=False)
    _print_rows(console, _manifest_rows(read_manifest(file)))
    data = file.read_bytes()
    contents = open_bundle(data)
    _print_rows(console, _content_rows(contents, data))
    console.print(_tensor_table(contents))


def _manifest_rows(manifest: Manifest) -> list[tuple[str, str]]:
    head, framing, provenance = manifest.head, manifest.input, manifest.provenance
    direction = "causal" if framing.is_causal else "non-causal"
    return [
        ("name", manifest.name),
        ("kind", f"{head.kind}, {head.outputs} outputs"),
        *([("labels", _some(head.labels, len(head.labels)))] if head.labels else []),
        *([("threshold", f"{head.threshold}")] if head.kind == "tags" else []),
        ("temperature", f"{head.temperature}"),
        ("backbone", manifest.backbone),
        ("input", f"{framing.max_len} items, {framing.padding} padding, {direction}"),
        ("patch", _patch(manifest)),
        ("probes", f"{manifest.probes.count} histories, {manifest.probes.columns} outputs of each"),
        *((f"metric {name}", f"{value:.6g}") for name, value in sorted(manifest.metrics.items())),
        ("data", provenance.data_digest),
        ("trained", f"{provenance.created_at.isoformat()} by {provenance.software}"),
        ("seed", f"{provenance.seed}"),
        *([("notes", provenance.notes)] if provenance.notes else []),
    ]


def _content_rows(contents: Contents, data: bytes) -> list[tuple[str, str]]:
    rows = [("version", format_digest(digest_of(data))), ("size", f"{len(data)} bytes")]
    if contents.manifest.kind == "ranking":
        catalog = Catalog.of(contents.tensors)
        rows.append(("catalog", _some(catalog, len(catalog))))
    return [*rows, ("integrity", "whole, and its parts agree")]


def _patch(manifest: Manifest) -> str:
    patch = manifest.patch
    blocks = ", ".join(map(str, patch.blocks))
    extras = {
        "inner skip": patch.has_inner_skip,
        "trained norms": patch.has_norms,
        "trained [CLS]": patch.has_cls,
    }
    parts = [
        patch.insertion,
        f"bottleneck {patch.bottleneck}",
        f"blocks {blocks}" if blocks else "no blocks (head only)",
        *(name for name, is_there in extras.items() if is_there),
    ]
    return ", ".join(parts)


def _some(names: Iterable[str], count: int) -> str:
    shown = ", ".join(islice(names, NAMES_SHOWN))
    return shown if count <= NAMES_SHOWN else f"{shown} … ({count} in all)"


def _print_rows(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    for name, found in rows:
        line = Text.assemble((f"{_printable(name):<{NAME_WIDTH}}", "bold"), _printable(found))
        console.print(line, soft_wrap=True)


def _tensor_table(contents: Contents) -> Table:
    table = Table("tensor", "dtype", "shape", "bytes", box=None, padding=(0, 2, 0, 0))
    for name, entry in sorted(contents.header.entries.items()):
        shape = " × ".join(map(str, entry.shape))
        table.add_row(name, entry.dtype, shape, str(entry.end - entry.begin))
    return table


def _printable(found: str) -> str:
    """Labels and notes come from the bundle's maker: no control characters to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in found)
