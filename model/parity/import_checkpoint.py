"""Converts a checkpoint of the published code to a backbone folder.

In the published code, id 0 stands for UNK, [CLS], [MASK] and trailing padding. Here each of these
has a separate token, so row 0 is copied to all four. Items keep their order: reference id ``r``
becomes token ``FIRST_ITEM + r - 1``. Padding is ``embedded``, because the published network reads
its padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from peterrec.model.disk import read_bytes
from peterrec.model.errors import ReferenceVariablesInvalid, VocabularyMismatch
from peterrec.model.files.backbone_folder import save_backbone
from peterrec.model.network.backbone import Backbone
from peterrec.model.parity.tf_variables import (
    BLOCK,
    EMBEDDING,
    LAYER_NORM_EPS,
    bind_blocks,
    block_prefix,
    load_variables,
    read_variables,
)
from peterrec.model.spec import FIRST_ITEM, PAD, BackboneSpec


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """Settings that a checkpoint does not contain.

    ``max_len`` is the length that histories were padded to. ``pad_item`` is the id of the item that
    padded them on the left, if one did (the literal token "0" of the public data).
    """

    is_causal: bool = True
    max_len: int = 50
    pad_item: str | None = None


@dataclass(frozen=True, slots=True)
class ImportedBackbone:
    """The written backbone, and the variables that are not part of one (heads, patches)."""

    spec: BackboneSpec
    fingerprint: str
    unused: tuple[str, ...]


def import_reference(
    source: Path, out: Path, settings: ImportSettings, vocabulary: Path | None = None
) -> ImportedBackbone:
    """Write the backbone of a checkpoint file to the folder ``out``."""
    variables = read_variables(source)
    spec = infer_spec(variables, settings)
    items = _read_items(vocabulary, spec.item_count)
    backbone = Backbone(spec)
    blocks = bind_blocks(backbone)
    load_variables(blocks, variables)
    table = _embedding(variables[EMBEDDING], _pad_row(settings.pad_item, items))
    backbone.embedding.weight.detach().copy_(table)
    unused = tuple(sorted(set(variables) - set(blocks) - {EMBEDDING}))
    record = {
        "imported_from": source.name,
        "pad_item": settings.pad_item,
        "unused_variables": list(unused),
    }
    return ImportedBackbone(spec, save_backbone(out, backbone, items, record), unused)


def infer_spec(variables: Mapping[str, Tensor], settings: ImportSettings) -> BackboneSpec:
    """Infer blocks, dilations, kernel size, channels and items from names and shapes."""
    dilations = _dilations(variables)
    kernel = f"{block_prefix(0, dilations[0])}dilated_conv1/weight"
    for name, axes in ((EMBEDDING, 2), (kernel, 4)):
        if name not in variables:
            raise ReferenceVariablesInvalid(f"{name} is missing.")
        if variables[name].dim() != axes or 0 in variables[name].shape:
            shape = tuple(variables[name].shape)
            raise ReferenceVariablesInvalid(f"{name} has shape {shape}, not {axes} axes.")
    if not variables[EMBEDDING].isfinite().all():
        raise ReferenceVariablesInvalid(f"{EMBEDDING} has numbers that are not finite.")
    rows, channels = variables[EMBEDDING].shape
    return BackboneSpec(
        item_count=rows - 1,
        channels=channels,
        dilations=dilations,
        kernel_size=variables[kernel].shape[1],
        is_causal=settings.is_causal,
        padding="embedded",
        max_len=settings.max_len,
        layer_norm_eps=LAYER_NORM_EPS,
    )


def _dilations(variables: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks = {(int(m["index"]), int(m["dilation"])) for n in variables if (m := BLOCK.match(n))}
    if not blocks:
        raise ReferenceVariablesInvalid(
            f"no variable is named {block_prefix(0, 1)}….",
            hint="Give a NextItNet checkpoint of the published PeterRec code.",
        )
    if sorted(index for index, _ in blocks) != list(range(len(blocks))):
        raise ReferenceVariablesInvalid(
            f"the residual blocks {sorted(blocks)} (number, dilation) are not 0, 1, 2, …."
        )
    return tuple(dilation for _, dilation in sorted(blocks))


def _read_items(vocabulary: Path | None, count: int) -> list[str]:
    if vocabulary is None:
        return [str(number) for number in range(1, count + 1)]
    try:
        items = read_bytes(vocabulary).decode().splitlines()
    except UnicodeDecodeError as error:
        raise VocabularyMismatch(f"{vocabulary} is not a readable text file: {error}.") from error
    if len(items) != count:
        raise VocabularyMismatch(
            f"{vocabulary} lists {len(items)} items, the checkpoint has {count}.",
            hint="Give one external id per line for the ids 1, 2, …; id 0 (UNK) has no line.",
        )
    first_line: dict[str, int] = {}
    for line, item in enumerate(items, start=1):
        if not item.strip():
            raise VocabularyMismatch(f"{vocabulary}, line {line}: the id is empty.")
        if first_line.setdefault(item, line) != line:
            raise VocabularyMismatch(
                f"{vocabulary}, line {line}: {item} is already on line {first_line[item]}."
            )
    return items


def _pad_row(pad_item: str | None, items: list[str]) -> int:
    """The reference id of the row that padding uses."""
    if pad_item is None:
        return 0
    if pad_item not in items:
        raise VocabularyMismatch(
            f"the padding item {pad_item!r} is not an item of the vocabulary.",
            hint="Give the id as the vocabulary file spells it; without a file, the numeric id.",
        )
    return items.index(pad_item) + 1


def _embedding(rows: Tensor, pad_row: int) -> Tensor:
    """Our table [FIRST_ITEM + N - 1, C] from the reference's [N, C]."""
    special = rows[:1].expand(FIRST_ITEM, -1).clone()  # [1, C] -> [FIRST_ITEM, C]
    special[PAD] = rows[pad_row]
    return torch.cat([special, rows[1:]])
