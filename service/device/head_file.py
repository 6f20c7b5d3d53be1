"""Reads a ranking head's weights from the bundle's local file, equal to those loaded at first."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peterrec.patches.bundle.contents import manifest_of
from peterrec.patches.bundle.header import Array, read_header, tensor_view
from peterrec.patches.errors import BlobCorrupt, BlobMissing, Findings
from peterrec.patches.identity import Digest, digest_of


def read_head(path: Path, digest: Digest) -> dict[str, Tensor]:
    """Read ``head.weight`` and ``head.bias``, divided by the temperature. Blocks, without the GIL.

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
    names = (name for name in header.entries if name.startswith("head."))
    temperature = manifest.head.temperature
    return {name: _divided(tensor_view(view, header, name), temperature) for name in names}


def _mapped(path: Path, digest: Digest) -> memoryview:
    try:
        return np.memmap(path, np.uint8, "r").data
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise BlobMissing(digest) from error


def _divided(array: Array, temperature: float) -> Tensor:
    tensor = torch.empty(array.shape)
    np.divide(array, np.float32(temperature), out=tensor.numpy())
    return tensor
