"""Reads the large part of a head from the bundle's local file, equal to what was loaded at first.

It is the weights of a ranking, or an item table, or both of a ranking with a table.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peterrec.model.inference.item_tables import packed_table
from peterrec.model.network.item_table import ItemTable
from peterrec.patches.bundle.contents import manifest_of
from peterrec.patches.bundle.header import Array, read_header, tensor_view
from peterrec.patches.bundle.manifest import Manifest
from peterrec.patches.bundle.packed_table import listed_items, unpack_codes
from peterrec.patches.errors import BlobCorrupt, BlobMissing, Findings
from peterrec.patches.identity import Digest, digest_of


def read_head(path: Path, digest: Digest) -> dict[str, Tensor]:
    """Read what ``MixedHeads.put_back`` takes, divided by the temperature. Blocks, without the GIL.

    The whole file is hashed first: raises BlobCorrupt if it is not the one that was verified, and
    BlobMissing if it does not exist.
    """
    view = _mapped(path, digest)
    found = digest_of(view)
    if found != digest:
        raise BlobCorrupt(digest, found)
    findings = Findings()
    header = read_header(view, len(view), len(view), findings)
    manifest = manifest_of(header, findings)
    findings.raise_if_any()
    assert manifest is not None
    temperature, has_catalog = manifest.head.temperature, manifest.described_kind.has_catalog
    names = [name for name in header.entries if name.startswith(("head.", "table."))]
    tensors = {name: tensor_view(view, header, name) for name in names}
    table = item_table(manifest, tensors)
    large: dict[str, Tensor] = {}
    if table is not None:
        large["table"] = packed_table(table, 1.0 if has_catalog else temperature)
    if has_catalog:
        heads = (name for name in names if name.startswith("head."))
        large |= {name: _divided(tensors[name], temperature) for name in heads}
    return large


def item_table(manifest: Manifest, tensors: Mapping[str, Array]) -> ItemTable | None:
    """The item table in a verified bundle's tensors; None if it has none."""
    if manifest.table is None:
        return None
    spec = manifest.table.spec()
    codes = unpack_codes(tensors["table.weight"], len(tensors["table.scale"]), spec)
    return ItemTable(
        spec,
        torch.from_numpy(listed_items(tensors, spec).astype(np.int64)),
        torch.from_numpy(np.array(codes)),
        torch.from_numpy(np.array(tensors["table.scale"])),
    )


def _mapped(path: Path, digest: Digest) -> memoryview:
    try:
        return np.memmap(path, np.uint8, "r").data
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise BlobMissing(digest) from error


def _divided(array: Array, temperature: float) -> Tensor:
    tensor = torch.empty(array.shape)
    np.divide(array, np.float32(temperature), out=tensor.numpy())
    return tensor
