"""Recorded cases of the published code: settings and arrays, read with errors that name them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from peterrec.model.documents import Document
from peterrec.model.errors import GoldenCaseInvalid
from peterrec.model.files.tensors import NumpyArray
from peterrec.model.insertions import INSERTIONS, InsertionName
from peterrec.model.parity.npz import read_npz

CaseKind = Literal["causal_pretrain", "noncausal_pretrain", "finetune"]

INPUT = re.compile(r"in(\d+)_(\w+)")
GRADIENT, AFTER, LOSS_CURVE = "grad:", "after:", "adam_losses"


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """The recorded training run: ``loss`` names the summed terms, ``batch`` the input."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    steps: int
    batch: str
    loss: str = "pair_ce+reg"

    @property
    def input(self) -> int:
        """The number of the input batch that was trained on."""
        return int(self.batch.removeprefix("in").partition("_")[0])


@dataclass(frozen=True, slots=True)
class CaseMeta:
    """A case's description of its network; only fine-tuning has ``insertion`` and ``patch``."""

    kind: CaseKind
    weights: str
    item_size: int
    channels: int
    dilations: tuple[int, ...]
    kernel_size: int
    is_causal: bool
    extra: str | None = None
    patch: str | None = None
    insertion: InsertionName | None = None
    cardinality: int = 1
    adam: AdamSettings | None = None


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """A case's settings and arrays; ids are int64, all other arrays float32."""

    name: str
    meta: CaseMeta
    arrays: Mapping[str, Tensor]

    def array(self, name: str) -> Tensor:
        """A recorded array."""
        if name not in self.arrays:
            raise GoldenCaseInvalid(f"array {name} is missing.")
        return self.arrays[name]

    def ids(self, name: str, limit: int, min_width: int = 1) -> Tensor:
        """A recorded array of ids int64 [B, T], with T >= ``min_width`` and ids below ``limit``."""
        ids = self.array(name)
        if ids.is_floating_point() or ids.dim() != 2 or ids.shape[1] < min_width or not len(ids):
            raise GoldenCaseInvalid(f"array {name} is not a table of ids: {describe(ids)}.")
        if ids.min() < 0 or ids.max() >= limit:
            raise GoldenCaseInvalid(f"array {name} holds ids outside 0 … {limit - 1}.")
        return ids

    @property
    def inputs(self) -> list[int]:
        """The numbers of the input batches."""
        found = {int(match[1]) for name in self.arrays if (match := INPUT.fullmatch(name))}
        if not found:
            raise GoldenCaseInvalid("array in0_itemseq is missing.")
        return sorted(found)

    def variables(self, prefix: str) -> list[str]:
        """The names of the variables recorded under ``grad:`` or ``after:``."""
        return [n.removeprefix(prefix) for n in self.arrays if n.startswith(prefix)]


def describe(tensor: Tensor) -> str:
    """Type and shape for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def read_case(path: Path) -> GoldenCase:
    """Read a ``case_*.npz``."""
    raw = read_npz(path)
    if "meta" not in raw:
        raise GoldenCaseInvalid("array meta is missing.")
    meta = _parse_meta(str(raw.pop("meta")))
    return GoldenCase(path.stem.removeprefix("case_"), meta, {n: _tensor(n, raw[n]) for n in raw})


def _tensor(name: str, array: NumpyArray) -> Tensor:
    if array.dtype.kind not in "iuf":
        raise GoldenCaseInvalid(f"array {name} holds {array.dtype}, not numbers.")
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def _parse_meta(text: str) -> CaseMeta:
    try:
        document = json.loads(text)
        meta = CaseMeta(
            kind=document["kind"],
            weights=str(document["weights"]),
            item_size=int(document["item_size"]),
            channels=int(document["channels"]),
            dilations=tuple(int(d) for d in document["dilations"]),
            kernel_size=int(document["kernel_size"]),
            is_causal=bool(document["causal"]),
            extra=_optional_name(document.get("extra")),
            patch=_optional_name(document.get("patch")),
            insertion=document.get("insertion"),
            cardinality=int(document.get("cardinality", 1)),
            adam=_parse_adam(document["adam"]) if document.get("adam") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GoldenCaseInvalid(f"meta is not a description of a case: {error!r}.") from error
    _require_known(meta)
    return meta


def _require_known(meta: CaseMeta) -> None:
    if meta.item_size < 1:
        raise GoldenCaseInvalid(f"meta: item_size is {meta.item_size}, at least 1 is needed.")
    if meta.kind not in get_args(CaseKind):
        raise GoldenCaseInvalid(f"meta: kind {meta.kind!r} is unknown.")
    if meta.kind == "finetune" and meta.insertion not in INSERTIONS:
        raise GoldenCaseInvalid(f"meta: insertion {meta.insertion!r} is unknown.")
    if meta.kind == "finetune" and meta.patch is None:
        raise GoldenCaseInvalid("meta: patch is missing.")
    for file in (meta.weights, meta.extra, meta.patch):
        if file is not None and Path(file).name != file:
            raise GoldenCaseInvalid(f"meta: {file!r} is not a file name.")


def _optional_name(value: object) -> str | None:
    return None if value is None else str(value)


def _parse_adam(document: Document) -> AdamSettings:
    settings = AdamSettings(
        lr=float(document["lr"]),
        beta1=float(document["beta1"]),
        beta2=float(document["beta2"]),
        eps=float(document["eps"]),
        steps=int(document["steps"]),
        batch=str(document["batch"]),
        loss=str(document.get("loss", "pair_ce+reg")),
    )
    if not re.fullmatch(r"in\d+(_itemseq)?", settings.batch) or settings.steps < 1:
        raise ValueError(f"adam batch {settings.batch!r}, steps {settings.steps}")
    return settings
