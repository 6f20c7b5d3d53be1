"""Do a bundle's parts agree with each other? Everything that needs no backbone to be judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from peterrec.model.spec import FIRST_ITEM, PAD, UNK
from peterrec.patches.bundle.header import (
    DTYPES,
    Array,
    Header,
    Tensors,
    check_checksum,
    read_header,
    tensor_view,
)
from peterrec.patches.bundle.manifest import SCHEMA, Manifest, parse_manifest
from peterrec.patches.errors import Findings, ReasonCode

FINITE_CHUNK = 1 << 20
"""Elements looked at together when searching for NaN and Inf, to bound the extra memory."""


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """What a bundle may cost before anything of it is read."""

    max_bytes: int = 1 << 30
    max_header_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A readable bundle whose parts are being judged; ``tensors`` are read-only views."""

    manifest: Manifest
    header: Header
    tensors: Tensors


@dataclass(frozen=True, slots=True)
class TensorForm:
    """Dtype and shape that the manifest calls for; None is a size that only the file knows."""

    dtype: str
    shape: tuple[int | None, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """True if a tensor of this shape has the form."""
        return len(shape) == len(self.shape) and all(
            want is None or want == size for want, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"[{', '.join('any' if size is None else str(size) for size in self.shape)}]"


def tensor_forms(manifest: Manifest, channels: int) -> dict[str, TensorForm]:
    """The exact set of tensors of a bundle with this manifest."""
    shapes = manifest.patch.geometry().shapes(channels) | manifest.head.spec().shapes(channels)
    forms = {name: TensorForm("F32", shape) for name, shape in shapes.items()}
    if manifest.described_kind.has_catalog:
        forms["catalog.bytes"] = TensorForm("U8", (None,))
        forms["catalog.offsets"] = TensorForm("I64", (manifest.head.outputs + 1,))
    n, m = manifest.probes.count, manifest.probes.columns
    forms["probe.histories"] = TensorForm("I32", (n, manifest.input.max_len))
    forms["probe.columns"] = TensorForm("I64", (m,))
    forms["probe.logits"] = TensorForm("F32", (n, m))
    return forms


def read_manifest_of(header: Header, findings: Findings) -> Manifest | None:
    """The manifest in a file's header; None with the reasons noted if it can't be used."""
    if header.metadata["format"] != SCHEMA:
        findings.add(
            ReasonCode.SCHEMA_UNSUPPORTED,
            f"the file's format is {header.metadata['format']!r:.64}, this server reads {SCHEMA!r}",
            "Update the server, or write the bundle with the matching version.",
        )
        return None
    return parse_manifest(header.metadata["manifest"], findings)


def examine(
    view: memoryview, limits: BundleLimits, channels_of: Mapping[str, int], findings: Findings
) -> Contents | None:
    """Judge everything in the file by itself; None if it is too broken for further checks.

    ``channels_of`` gives the width of known backbones by fingerprint; for any other one the
    bundle's tensors are held against its own head's width.
    """
    size = len(view)
    if not check_size(size, limits, findings):
        return None
    header = read_header(view, size, limits.max_header_bytes, findings)
    if header is None:
        return None
    is_laid_out = not findings
    check_checksum(view, header, findings)
    manifest = read_manifest_of(header, findings)
    tensors = _views(view, header) if is_laid_out else {}
    for name, tensor in tensors.items():
        _check_finite(name, tensor, findings)
    if manifest is None:
        return None
    channels = channels_of.get(manifest.backbone) or _own_channels(header)
    forms = tensor_forms(manifest, channels)
    sound = _check_forms(forms, header, findings) & tensors.keys()
    _check_catalog({name: tensors[name] for name in sound}, findings)
    _check_probes(manifest, {name: tensors[name] for name in sound}, findings)
    return Contents(manifest, header, tensors)


def check_size(size: int, limits: BundleLimits, findings: Findings) -> bool:
    """False, with the reason noted, for a file larger than the limit."""
    if size > limits.max_bytes:
        findings.add(
            ReasonCode.OVERSIZE,
            f"the bundle has {size} bytes, at most {limits.max_bytes} are accepted",
            "Use a smaller catalog or raise the limit on bundle size.",
        )
    return size <= limits.max_bytes


def _views(view: memoryview, header: Header) -> dict[str, Array]:
    known = (name for name, entry in header.entries.items() if entry.dtype in DTYPES)
    return {name: tensor_view(view, header, name) for name in known}


def _own_channels(header: Header) -> int:
    weight = header.entries.get("head.weight")
    return weight.shape[1] if weight is not None and len(weight.shape) == 2 else 0


def _check_forms(forms: Mapping[str, TensorForm], header: Header, findings: Findings) -> set[str]:
    """Compare the file's tensors with the manifest's; the names of those that fit."""
    for name in sorted(set(forms) - set(header.entries)):
        findings.add(ReasonCode.TENSOR_MISSING, f"{name} {forms[name]} is missing")
    for name in sorted(set(header.entries) - set(forms)):
        findings.add(ReasonCode.TENSOR_UNEXPECTED, f"{name!r:.100} belongs to no such bundle")
    sound = set()
    for name in sorted(set(forms) & set(header.entries)):
        form, entry = forms[name], header.entries[name]
        if entry.dtype != form.dtype:
            findings.add(
                ReasonCode.TENSOR_DTYPE, f"{name} is {entry.dtype!r:.20}, expected {form.dtype}"
            )
        if not form.admits(entry.shape):
            findings.add(ReasonCode.TENSOR_SHAPE, f"{name} is {list(entry.shape)}, expected {form}")
        if entry.dtype == form.dtype and form.admits(entry.shape):
            sound.add(name)
    return sound


def _check_finite(name: str, tensor: Array, findings: Findings) -> None:
    if tensor.dtype != DTYPES["F32"]:
        return
    flat = tensor.reshape(-1)
    starts = range(0, flat.size, FINITE_CHUNK)
    bad = sum(int(np.count_nonzero(~np.isfinite(flat[at : at + FINITE_CHUNK]))) for at in starts)
    if bad:
        findings.add(
            ReasonCode.TENSOR_NOT_FINITE,
            f"{name!r:.100} has {bad} of {prod(tensor.shape)} values that are NaN or infinite",
            "The training diverged; train again with a smaller learning rate.",
        )


def _check_catalog(tensors: Tensors, findings: Findings) -> None:
    if "catalog.bytes" not in tensors or "catalog.offsets" not in tensors:
        return
    problem = _catalog_problem(tensors["catalog.bytes"], tensors["catalog.offsets"])
    if problem:
        findings.add(ReasonCode.CATALOG_INVALID, f"catalog: {problem}")


def _catalog_problem(packed: Array, offsets: Array) -> str | None:
    if offsets[0] != 0 or offsets[-1] != packed.size:
        return f"offsets run from {offsets[0]} to {offsets[-1]}, expected 0 to {packed.size}"
    if not (offsets[:-1] < offsets[1:]).all():
        return "offsets do not ascend (an item id is empty or overlaps the next)"
    if ((packed[offsets[:-1]] & 0xC0) == 0x80).any():
        return "an item id begins inside a UTF-8 character"
    data = packed.tobytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"item ids are not UTF-8: {error}"
    ends = offsets.tolist()
    ids = {data[begin:end] for begin, end in pairwise(ends)}
    repeated = len(ends) - 1 - len(ids)
    return f"{repeated} item ids occur twice" if repeated else None


def _check_probes(manifest: Manifest, tensors: Tensors, findings: Findings) -> None:
    histories = tensors.get("probe.histories")
    if histories is not None:
        for problem in _history_problems(histories):
            findings.add(ReasonCode.PROBES_INVALID, f"probe.histories: {problem}")
    columns = tensors.get("probe.columns")
    if columns is None:
        return
    outputs = manifest.head.outputs
    if ((columns < 0) | (columns >= outputs)).any():
        findings.add(
            ReasonCode.PROBES_INVALID, f"probe.columns: names outputs outside 0..{outputs - 1}"
        )
    if np.unique(columns).size != columns.size:
        findings.add(ReasonCode.PROBES_INVALID, "probe.columns: an output is named twice")


def _history_problems(histories: Array) -> list[str]:
    """``histories`` int32 [n, max_len]."""
    is_pad = histories == PAD
    is_item = (histories == UNK) | (histories >= FIRST_ITEM)
    problems = []
    if not (is_pad | is_item).all():
        problems.append("holds tokens that are neither padding, unknown nor items")
    if (is_pad[:, 1:] & ~is_pad[:, :-1]).any():
        problems.append("padding stands right of an item; pad on the left")
    if not is_pad[0].all():
        problems.append("the first probe must be the empty history (cold start)")
    return problems
