"""A bundle's parts, and whether they agree with each other: all checks that need no backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from peterrec.model.spec import FIRST_ITEM, LONGEST_LABEL, PAD, UNK
from peterrec.patches.bundle.attributes import attribute_forms, attribute_problems
from peterrec.patches.bundle.format import SCHEMA, BundleLimits
from peterrec.patches.bundle.header import (
    DTYPES,
    Array,
    Header,
    Tensors,
    check_checksum,
    read_header,
    tensor_view,
)
from peterrec.patches.bundle.manifest import Manifest, parse_manifest
from peterrec.patches.bundle.packed_table import is_shown, stored_dtype, table_problems
from peterrec.patches.bundle.texts import text_problem
from peterrec.patches.errors import Findings, ReasonCode

FINITE_CHUNK = 1 << 20
"""Elements that are tested for NaN and infinity at a time, which bounds the extra memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The parts of a readable bundle; ``tensors`` are read-only views of its bytes.

    ``tensors`` is empty if the header misplaces one of them.
    """

    manifest: Manifest
    header: Header
    tensors: Tensors


@dataclass(frozen=True, slots=True)
class TensorForm:
    """The dtype and shape that the manifest requires of a tensor; None allows any size.

    ``earlier`` is the form that older bundles have instead, if readers still take it.
    """

    dtype: str
    shape: tuple[int | None, ...]
    earlier: "TensorForm | None" = None

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a tensor of this shape has the form."""
        return len(shape) == len(self.shape) and all(
            want is None or want == size for want, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"[{', '.join('any' if size is None else str(size) for size in self.shape)}]"


def tensor_forms(manifest: Manifest, channels: int) -> dict[str, TensorForm]:
    """Return the exact set of tensors that a bundle with this manifest must hold."""
    shapes = manifest.patch.geometry().shapes(channels) | manifest.head.spec().shapes(channels)
    forms = {name: TensorForm("F32", shape) for name, shape in shapes.items()}
    if manifest.described_kind.has_catalog:
        forms["catalog.bytes"] = TensorForm("U8", (None,))
        forms["catalog.offsets"] = TensorForm("I64", (manifest.head.outputs + 1,))
    if manifest.table is not None:
        table = manifest.table.spec()
        shapes = table.shapes(_table_width(manifest, channels))
        tokens = TensorForm("I32", shapes["table.items"])
        forms["table.items"] = TensorForm("U8", (None,), earlier=tokens)
        forms["table.weight"] = TensorForm(stored_dtype(table), shapes["table.weight"])
        forms["table.scale"] = TensorForm("F32", shapes["table.scale"])
    if manifest.head.title_bytes:
        forms["title.bytes"] = TensorForm("U8", (manifest.head.title_bytes,))
        forms["title.offsets"] = TensorForm("I64", (manifest.head.outputs + 1,))
    for name, form in attribute_forms(manifest):
        forms[name] = TensorForm(*form)
    n, m = manifest.probes.count, manifest.probes.columns
    forms["probe.histories"] = TensorForm("I32", (n, manifest.probe_length))
    forms["probe.columns"] = TensorForm("I64", (m,))
    forms["probe.logits"] = TensorForm("F32", (n, m))
    return forms


def read_contents(view: memoryview, limits: BundleLimits, findings: Findings) -> Contents:
    """Read a file's header, manifest and tensors; BundleRejected if a part cannot be read.

    Problems that leave the parts readable (checksum, layout, NaN) only go to ``findings``.
    """
    header = read_header(view, len(view), limits.max_header_bytes, findings)
    check_checksum(view, header, findings)
    manifest = manifest_of(header, findings)
    tensors = _tensors_of(view, header, findings)
    if manifest is None:
        findings.raise_if_any()
    assert manifest is not None
    return Contents(manifest, header, tensors)


def manifest_of(header: Header, findings: Findings) -> Manifest | None:
    """Parse the manifest in a file's header; None, with the reasons in ``findings``, if invalid."""
    if header.metadata["format"] != SCHEMA:
        findings.add(
            ReasonCode.SCHEMA_UNSUPPORTED,
            f"the file's format is {header.metadata['format']!r:.64}, this server reads {SCHEMA!r}",
            "Update the server, or write the bundle with the matching version.",
        )
        return None
    return parse_manifest(header.metadata["manifest"], findings)


def check_tensors(contents: Contents, channels: int | None, findings: Findings) -> None:
    """Check the tensors against the manifest, and the catalog and probes by themselves.

    ``channels`` is the backbone's width; None takes the width of the bundle's own head instead.
    """
    channels = channels or _own_channels(contents.header)
    forms = tensor_forms(contents.manifest, channels)
    sound = _check_forms(forms, contents.header, findings)
    tensors = {name: t for name, t in contents.tensors.items() if name in sound}
    _check_catalog(tensors, findings)
    for problem in attribute_problems(contents.manifest, tensors):
        findings.add(ReasonCode.ATTRIBUTES_INVALID, problem)
    _check_probes(contents.manifest, tensors, findings)
    _check_table(contents.manifest, channels, tensors, findings)


def _tensors_of(view: memoryview, header: Header, findings: Findings) -> dict[str, Array]:
    """Return views of the tensors with known dtypes; search them for values that are not finite."""
    if not header.is_sound:
        return {}
    known = (name for name, entry in header.entries.items() if entry.dtype in DTYPES)
    tensors = {name: tensor_view(view, header, name) for name in known}
    for name, tensor in tensors.items():
        _check_finite(name, tensor, findings)
    return tensors


def _own_channels(header: Header) -> int:
    weight = header.entries.get("head.weight")
    return weight.shape[1] if weight is not None and len(weight.shape) == 2 else 0


def _check_forms(forms: Mapping[str, TensorForm], header: Header, findings: Findings) -> set[str]:
    """Compare the file's tensors with the required ones; return the names of those that fit."""
    for name in sorted(set(forms) - set(header.entries)):
        findings.add(ReasonCode.TENSOR_MISSING, f"{name} {forms[name]} is missing")
    for name in sorted(set(header.entries) - set(forms)):
        findings.add(ReasonCode.TENSOR_UNEXPECTED, f"{name!r:.100} is not part of such a bundle")
    sound = set()
    for name in sorted(set(forms) & set(header.entries)):
        form, entry = forms[name], header.entries[name]
        if form.earlier is not None and entry.dtype == form.earlier.dtype:
            form = form.earlier
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
    if "catalog.bytes" in tensors and "catalog.offsets" in tensors:
        packed, offsets = tensors["catalog.bytes"], tensors["catalog.offsets"]
        problem = text_problem(packed, offsets, "an item id")
        if problem:
            findings.add(ReasonCode.CATALOG_INVALID, f"catalog: {problem}")
    if "title.bytes" in tensors and "title.offsets" in tensors:
        packed, offsets = tensors["title.bytes"], tensors["title.offsets"]
        problem = text_problem(packed, offsets, "a title", may_be_empty=True, longest=LONGEST_LABEL)
        if problem:
            findings.add(ReasonCode.TITLES_INVALID, f"title: {problem}")


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
            ReasonCode.PROBES_INVALID, f"probe.columns: has outputs outside 0..{outputs - 1}"
        )
    if np.unique(columns).size != columns.size:
        findings.add(ReasonCode.PROBES_INVALID, "probe.columns: an output occurs twice")


def _table_width(manifest: Manifest, channels: int) -> int:
    return manifest.described_kind.table_width(manifest.head.outputs, channels)


def _check_table(manifest: Manifest, channels: int, tensors: Tensors, findings: Findings) -> None:
    if manifest.table is None:
        return
    width = _table_width(manifest, channels)
    spec = manifest.table.spec()
    problems = list(table_problems(tensors, width, spec))
    for problem in problems:
        findings.add(ReasonCode.TABLE_INVALID, problem)
    needed = {"table.items", "table.weight", "table.scale", "probe.histories"}
    if problems or not needed <= set(tensors):
        return
    if not is_shown(tensors, spec, manifest.input.max_len):
        findings.add(
            ReasonCode.PROBES_INVALID,
            "probe.histories: none has an item of the table before the newest "
            f"{manifest.input.max_len}, so nothing proves that whole histories are read",
        )


def _history_problems(histories: Array) -> list[str]:
    """Check the probes' tokens, ``histories`` int32 [n, length]."""
    is_pad = histories == PAD
    is_item = (histories == UNK) | (histories >= FIRST_ITEM)
    problems = []
    if not (is_pad | is_item).all():
        problems.append("has tokens that are neither padding, unknown nor items")
    if (is_pad[:, 1:] & ~is_pad[:, :-1]).any():
        problems.append("has padding to the right of an item; pad on the left")
    if not is_pad[0].all():
        problems.append("the first probe must be the empty history (cold start)")
    return problems
