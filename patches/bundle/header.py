"""The outer form of a bundle: one safetensors file, written deterministically, checked when read.

The reader and writer are our own, and the tests check both against the safetensors library. The
library's writer does not fix the order of the metadata, so one bundle could get several digests.
Its reader reports only the first problem of a file, ours reports all.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peterrec.patches.bundle.format import SCHEMA, BundleLimits, compact_json, parse_json
from peterrec.patches.errors import Findings, ReasonCode

Array = NDArray[Any]  # Any: the dtype is one of DTYPES and known at run time only
Tensors = Mapping[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {  # Any: dtypes of several kinds
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

ALIGNMENT = 8
"""Bytes to a multiple of which the header is padded, so that every tensor is aligned."""

LENGTH_BYTES = 8
"""Bytes at the start of the file that hold the header's length."""

MAX_DIMENSIONS = 8

MAX_ELEMENTS = 1 << 40
"""Elements that a shape may have if sizes of 0 count as 1: more than any file holds, and few enough
for every library to count. Without it, a shape with a 0 fits no bytes, whatever its other sizes."""

METADATA_KEYS = frozenset({"format", "manifest", "checksum"})
SIGNATURES_KEY = "signatures"
_CHECKSUM_MARK = b'"checksum":"'
_CHECKSUM_HOLE = b"0" * 64

_UNSAFE_MAGIC: dict[bytes, str] = {
    **{b"\x80" + bytes([protocol]): "a Python pickle" for protocol in range(6)},
    b"PK": "a zip archive (torch.save, npz)",
    b"\x1f\x8b": "a gzip archive",
    b"BZ": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x93NUMPY": "a numpy array file",
    b"\x89HDF": "an HDF5 file",
    b"(": "a Python pickle",
    b"]": "a Python pickle",
    b"}": "a Python pickle",
    b"c": "a Python pickle",
}
"""First bytes of formats that can run code when they are read, or can contain such a format."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header describes it; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A readable header. ``is_sound`` is False if an entry is malformed or misplaced."""

    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    data_start: int
    is_sound: bool


def encode_file(manifest_text: str, tensors: Tensors, signatures: str | None = None) -> bytes:
    """Encode a bundle; equal input gives equal bytes. A dtype outside DTYPES raises KeyError."""
    metadata = {
        "checksum": _CHECKSUM_HOLE.decode(),
        "format": SCHEMA,
        "manifest": manifest_text,
    }
    if signatures is not None:
        metadata[SIGNATURES_KEY] = signatures
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    arrays = [np.ascontiguousarray(tensors[name]) for name in names]
    document: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, array in zip(names, arrays, strict=True):
        begin, end = end, end + array.nbytes
        document[name] = {
            "dtype": _DTYPE_NAMES[array.dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = compact_json(document).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return _with_checksum([len(text).to_bytes(LENGTH_BYTES, "little"), text, *arrays])


def _with_checksum(parts: list[Any]) -> bytes:  # Any: bytes and arrays, all buffers
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    text = parts[1]
    at = text.index(_CHECKSUM_MARK) + len(_CHECKSUM_MARK)
    parts[1] = text[:at] + whole.hexdigest().encode() + text[at + len(_CHECKSUM_HOLE) :]
    return b"".join(parts)


def check_size(size: int, limits: BundleLimits) -> None:
    """Raise BundleTooLarge for a file larger than the limit."""
    findings = Findings()
    if size > limits.max_bytes:
        findings.add(
            ReasonCode.OVERSIZE,
            f"the bundle has {size} bytes, at most {limits.max_bytes} are accepted",
            "Use a smaller catalog or raise the limit on bundle size.",
        )
    findings.raise_if_any()


def read_header(view: memoryview, size: int, max_bytes: int, findings: Findings) -> Header:
    """Read the header at the start of ``view``, which begins a file of ``size`` bytes.

    Problems of single tensors go to ``findings``; BundleRejected if the header cannot be read at
    all. No memory is allocated for a length that the file only claims.
    """
    length = int.from_bytes(view[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    _check_length(view, size, length, max_bytes, findings)
    findings.raise_if_any()
    document: object = {}
    try:
        document = parse_json(bytes(view[LENGTH_BYTES:start]))
    except ValueError as error:
        findings.add(ReasonCode.HEADER_MALFORMED, f"the header is not JSON: {error}")
    findings.raise_if_any()
    assert isinstance(document, dict), "a document that begins with { is an object"
    metadata = _metadata(document.pop("__metadata__", None), findings)
    entries = {name: _entry(name, fields, findings) for name, fields in document.items()}
    known = {name: entry for name, entry in entries.items() if entry is not None}
    if len(known) == len(entries):
        _check_offsets(known, start, size, findings)
    if metadata is None:
        findings.raise_if_any()
    assert metadata is not None
    return Header(metadata, known, start, is_sound=not findings)


def _check_length(
    view: memoryview, size: int, length: int, max_bytes: int, findings: Findings
) -> None:
    """Find out from the first bytes whether a header of an acceptable length is there."""
    looks_like_header = bytes(view[LENGTH_BYTES : LENGTH_BYTES + 1]) == b"{"
    disguise = None if looks_like_header and length < size else _unsafe_format(bytes(view[:8]))
    if disguise:
        findings.add(
            ReasonCode.UNSAFE_FORMAT,
            f"the file is {disguise}, not safetensors; it was not read",
            "Write the bundle with peterrec finetune.",
        )
    elif length > max_bytes:
        findings.add(
            ReasonCode.HEADER_TOO_LARGE,
            f"the header claims {length} bytes, at most {max_bytes} are read"
            + ("" if looks_like_header else "; the file does not begin like a bundle"),
            "" if looks_like_header else "Give a bundle, as peterrec finetune writes it.",
        )
    elif size < LENGTH_BYTES + length or size < LENGTH_BYTES:
        findings.add(
            ReasonCode.TRUNCATED,
            f"the header ends at byte {LENGTH_BYTES + length}, the file at {size}",
            "Copy the file again.",
        )
    elif not looks_like_header:
        findings.add(ReasonCode.HEADER_MALFORMED, "the header does not begin with '{'")


def _unsafe_format(beginning: bytes) -> str | None:
    names = (name for magic, name in _UNSAFE_MAGIC.items() if beginning.startswith(magic))
    return next(names, None)


def _metadata(found: object, findings: Findings) -> Mapping[str, str] | None:
    if not isinstance(found, dict) or "format" not in found or "manifest" not in found:
        findings.add(
            ReasonCode.NOT_A_BUNDLE,
            "a safetensors file without a manifest in its metadata",
            "Write the bundle with peterrec finetune.",
        )
        return None
    is_complete = set(found) - {SIGNATURES_KEY} == METADATA_KEYS
    if not is_complete or not all(isinstance(text, str) for text in found.values()):
        findings.add(
            ReasonCode.HEADER_MALFORMED,
            "__metadata__ must hold the texts checksum, format and manifest, "
            f"and may hold signatures, not {sorted(found)!r:.200}",
        )
        return None
    return found


def _entry(name: str, fields: object, findings: Findings) -> TensorEntry | None:
    problem = _entry_problem(fields)
    if problem or not isinstance(fields, dict):
        findings.add(ReasonCode.HEADER_MALFORMED, f"tensor {name!r:.100}: {problem}")
        return None
    begin, end = fields["data_offsets"]
    return TensorEntry(fields["dtype"], tuple(fields["shape"]), begin, end)


def _entry_problem(fields: object) -> str | None:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        return "needs exactly dtype, shape and data_offsets"
    if not isinstance(fields["dtype"], str):
        return "dtype is not a text"
    if not _are_sizes(fields["shape"]) or len(fields["shape"]) > MAX_DIMENSIONS:
        return f"shape is not a list of at most {MAX_DIMENSIONS} sizes"
    if prod(max(1, size) for size in fields["shape"]) > MAX_ELEMENTS:
        return f"shape has sizes whose product is beyond {MAX_ELEMENTS}"
    if not _are_sizes(fields["data_offsets"]) or len(fields["data_offsets"]) != 2:
        return "data_offsets is not a pair of offsets"
    return None


def _are_sizes(found: object) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _check_offsets(
    entries: Mapping[str, TensorEntry], data_start: int, size: int, findings: Findings
) -> None:
    """Check that the tensors fill the data exactly, without gaps, overlaps or misalignment."""
    for name, problem in _offset_problems(entries, data_start):
        findings.add(ReasonCode.OFFSETS_INVALID, f"tensor {name!r:.100}: {problem}")
    end = data_start + max((entry.end for entry in entries.values()), default=0)
    if size < end:
        findings.add(ReasonCode.TRUNCATED, f"the tensors end at byte {end}, the file at {size}")
    elif size > end:
        findings.add(ReasonCode.OFFSETS_INVALID, f"{size - end} bytes after the last tensor")


def _offset_problems(
    entries: Mapping[str, TensorEntry], data_start: int
) -> Iterator[tuple[str, str]]:
    placed = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    first = TensorEntry("", (), 0, 0)
    for (_, before), (name, entry) in pairwise([("", first), *placed]):
        if entry.begin != before.end or entry.end < entry.begin:
            yield name, f"is at {entry.begin}:{entry.end}, expected to begin at {before.end}"
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            continue  # the check of dtypes reports it
        if prod(entry.shape) * dtype.itemsize != entry.end - entry.begin:
            yield name, f"{entry.end - entry.begin} bytes for {entry.dtype} {list(entry.shape)}"
        if (data_start + entry.begin) % dtype.itemsize:
            yield name, f"begins at byte {data_start + entry.begin}, not aligned to {entry.dtype}"


def check_checksum(view: memoryview, header: Header, findings: Findings) -> None:
    """Compare the checksum with the file's bytes, in which its own 64 characters count as zeros."""
    text = bytes(view[: header.data_start])
    if text.count(_CHECKSUM_MARK) != 1:
        findings.add(ReasonCode.HEADER_MALFORMED, 'the header needs "checksum":" exactly once')
        return
    at = text.index(_CHECKSUM_MARK) + len(_CHECKSUM_MARK)
    whole = hashlib.sha256(text[:at] + _CHECKSUM_HOLE)
    whole.update(view[at + len(_CHECKSUM_HOLE) :])
    if whole.hexdigest() != header.metadata["checksum"]:
        findings.add(
            ReasonCode.CHECKSUM_MISMATCH,
            f"the file's bytes give checksum {whole.hexdigest()}, "
            f"it carries {header.metadata['checksum']!r:.80}",
            "The file was damaged or changed; copy it again.",
        )


def tensor_view(view: memoryview, header: Header, name: str) -> Array:
    """Return a read-only view of one tensor's bytes, without a copy."""
    entry = header.entries[name]
    return tensor_array(
        view[header.data_start + entry.begin : header.data_start + entry.end], entry
    )


def tensor_array(part: memoryview, entry: TensorEntry) -> Array:
    """Return a read-only array of a tensor's own bytes, without a copy."""
    dtype = DTYPES[entry.dtype]
    array = np.frombuffer(part, dtype=dtype) if len(part) else np.empty(0, dtype)
    array.flags.writeable = False
    return array.reshape(entry.shape)
