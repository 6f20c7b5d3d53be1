"""Backbone folders: weights, spec, ordered item vocabulary, fingerprint and training record."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from peterrec.model.disk import folder_in_one_step
from peterrec.model.documents import Document
from peterrec.model.errors import BackboneFolderInvalid
from peterrec.model.files.backbone_info import SPEC, VOCABULARY, read_info, read_json
from peterrec.model.files.tensors import (
    bytes_of,
    read_tensors,
    require_shapes,
    write_plainly,
)
from peterrec.model.network.backbone import Backbone
from peterrec.model.spec import BackboneSpec, vocabulary_digest

WEIGHTS = "backbone.safetensors"
RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class LoadedBackbone:
    """A backbone in evaluation mode, its items, fingerprint and training record."""

    backbone: Backbone
    items: list[str]
    fingerprint: str
    record: Document


def fingerprint_of(spec: BackboneSpec, items: list[str], weights: dict[str, Tensor]) -> str:
    """sha256 over architecture, ordered item vocabulary and every weight."""
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    digest.update(vocabulary_digest(items).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save_backbone(
    folder: Path,
    backbone: Backbone,
    items: list[str],
    record: Document,
    others: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> str:
    """Write the folder and return the backbone's fingerprint.

    ``others`` are further tensor files by name. All files get their names when all are complete,
    the spec last: without it a folder holds no backbone, and its fingerprint tells a mix.
    """
    if len(items) != backbone.spec.item_count or len(set(items)) != len(items):
        raise BackboneFolderInvalid(
            f"{len(items)} vocabulary items, {len(set(items))} of them distinct, do not fit a "
            f"backbone of {backbone.spec.item_count} items."
        )
    weights = backbone.state_dict()
    fingerprint = fingerprint_of(backbone.spec, items, weights)
    tensors = {WEIGHTS: weights, **others}
    documents = {
        VOCABULARY: items,
        RECORD: record,
        SPEC: {"fingerprint": fingerprint, "backbone": backbone.spec.to_json()},
    }
    wanted = sum(map(bytes_of, tensors.values()))
    with folder_in_one_step(folder, last=SPEC, wanted_bytes=wanted) as staging:
        for name, named in tensors.items():
            write_plainly(staging / name, named)
        for name, document in documents.items():
            text = json.dumps(document, ensure_ascii=False, indent=1)
            (staging / name).write_text(text, encoding="utf-8")
    return fingerprint


def load_backbone(folder: Path) -> LoadedBackbone:
    """Open a backbone folder, and check its fingerprint against what was read."""
    info = read_info(folder)
    weights = read_tensors(folder / WEIGHTS)
    require_shapes(folder / WEIGHTS, weights, _shapes(info.spec))
    found = fingerprint_of(info.spec, info.items, weights)
    if found != info.fingerprint:
        raise BackboneFolderInvalid(
            f"{folder} has fingerprint {found[:12]}…, its spec records {info.fingerprint[:12]}….",
            hint="A file of the folder was changed or mixed with another backbone's; restore it.",
        )
    backbone = Backbone(info.spec)
    backbone.load_state_dict(weights)
    backbone.requires_grad_(False).eval()
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    return LoadedBackbone(backbone, info.items, found, record)


def _shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights by name; no memory is allocated for the weights."""
    with torch.device("meta"):
        state = Backbone(spec).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
