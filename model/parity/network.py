"""Our modules with a recorded case's variables, and the quantities that the recording has.

The equations are those of the published code: the paper's network with other token ids (row 0 is
UNK, [CLS], [MASK] and trailing padding) and without a padding mask. So rows are looked up in the
raw table, and the backbone reads every position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from peterrec.model.errors import GoldenCaseInvalid, ReferenceVariablesInvalid
from peterrec.model.network.backbone import Backbone, new_patch, pool
from peterrec.model.network.heads import Head
from peterrec.model.network.patch import Patch
from peterrec.model.parity.case import CaseKind, CaseMeta, GoldenCase
from peterrec.model.parity.tf_variables import (
    BLOCK,
    EMBEDDING,
    LAYER_NORM_EPS,
    PATCH_SCOPE,
    SOFTMAX_CONV,
    SOFTMAX_TABLE,
    TARGETS,
    Binding,
    Bindings,
    bind_blocks,
    bind_patch,
    bind_softmax_conv,
    bind_softmax_table,
    bind_targets,
    load_variables,
    read_variables,
)
from peterrec.model.spec import BackboneSpec, HeadSpec, PatchGeometry

LOG_FLOOR = 1e-24
"""Added to probabilities before the logarithm, as the published code does."""

TARGET_DECAY = 0.02 * 0.5
"""Weight of the squared target table in the published loss: 0.02 times TensorFlow's factor 1/2."""


@dataclass(frozen=True, slots=True)
class GoldenNetwork:
    """A case's backbone, raw item table [N, C], head and patch, with every variable by its name."""

    backbone: Backbone
    table: nn.Parameter
    head: Head
    patch: Patch | None
    bindings: Bindings

    def encode(self, ids: Tensor) -> Tensor:
        """Hidden states [B, T, C] of reference ids int64 [B, T]."""
        rows = functional.embedding(ids, self.table)  # [B, T] -> [B, T, C]
        weights = None if self.patch is None else self.patch.weights()
        return self.backbone.encode(rows, None, weights)

    def widen(self) -> None:
        """Convert to float64, so that rounding noise at a ReLU's input flips no gradient."""
        for module in (self.backbone, self.head, self.patch):
            if module is not None:
                module.double()
        self.table.data = self.table.data.double()

    def scores(self, states: Tensor) -> Tensor:
        """Float32 scores [..., K] of states [..., C]. The published loss saturates in float32."""
        return self.head.logits(states).float()

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters: head and patch (with its norms) in fine-tuning, else all."""
        if self.patch is not None:
            return [*self.head.parameters(), *self.patch.parameters()]
        return [self.table, *self.backbone.blocks.parameters(), *self.head.parameters()]


def build_network(case: GoldenCase, folder: Path) -> GoldenNetwork:
    """Build our modules from the case's files. Missing and unknown variables are refused."""
    meta = case.meta
    variables = _read_files(meta, folder)
    backbone = Backbone(_spec(meta))
    table = nn.Parameter(torch.zeros(meta.item_size, meta.channels))
    bindings = {EMBEDDING: Binding(table), **bind_blocks(backbone)}
    patch = None
    load_variables(bindings, variables)
    if meta.kind == "finetune":
        patch = new_patch(backbone, _geometry(meta, variables))
        own = bind_patch(patch, meta.dilations)
        load_variables({name: own[name] for name in own if name not in bindings}, variables)
        bindings |= own
    head_name, has_bias, bind_head = HEADS[meta.kind]
    outputs = _output_count(variables, head_name)
    head = Head(HeadSpec("ranking", outputs, has_bias), meta.channels)
    load_variables(bind_head(head), variables)
    bindings |= bind_head(head)
    left_over = sorted(n for n in variables if BLOCK.match(n) and n not in bindings)
    if left_over:
        raise ReferenceVariablesInvalid(f"{', '.join(left_over)} belong to no block of the case.")
    return GoldenNetwork(backbone, table, head, patch, bindings)


HEADS: dict[CaseKind, tuple[str, bool, Callable[[Head], Bindings]]] = {
    "causal_pretrain": (SOFTMAX_CONV[1], True, bind_softmax_conv),
    "noncausal_pretrain": (SOFTMAX_TABLE[1], True, bind_softmax_table),
    "finetune": (TARGETS, False, bind_targets),
}
"""For each kind of case: a head variable whose first axis counts outputs, has bias, bindings."""


def _read_files(meta: CaseMeta, folder: Path) -> dict[str, Tensor]:
    variables: dict[str, Tensor] = {}
    for file in (meta.weights, meta.extra, meta.patch):
        if file is None:
            continue
        if not (folder / file).exists():
            raise GoldenCaseInvalid(f"file {file} is missing.")
        variables |= read_variables(folder / file)
    return variables


def _spec(meta: CaseMeta) -> BackboneSpec:
    return BackboneSpec(
        item_count=max(1, meta.item_size - 1),
        channels=meta.channels,
        dilations=meta.dilations,
        kernel_size=meta.kernel_size,
        is_causal=meta.is_causal,
        padding="embedded",
        layer_norm_eps=LAYER_NORM_EPS,
    )


def _geometry(meta: CaseMeta, variables: Mapping[str, Tensor]) -> PatchGeometry:
    found = [(m, variables[name]) for name in variables if (m := PATCH_SCOPE.fullmatch(name))]
    if not found:
        raise ReferenceVariablesInvalid(f"{meta.patch} has no bottleneck.")
    assert meta.insertion is not None
    width = found[0][1].shape[-1]
    return PatchGeometry(
        insertion=meta.insertion,
        bottleneck=width * meta.cardinality,
        blocks=tuple(sorted({int(match["index"]) for match, _ in found})),
        cardinality=meta.cardinality,
        has_inner_skip=meta.insertion == "parallel2",
        has_norms=True,
    )


def _output_count(variables: Mapping[str, Tensor], name: str) -> int:
    if name not in variables:
        raise ReferenceVariablesInvalid(f"{name} is missing.")
    return variables[name].shape[0] if variables[name].dim() else 0


Outputs = dict[str, Tensor]
"""The network's outputs for one input, by the names of the recorded arrays."""


def _pretrain_causally(network: GoldenNetwork, case: GoldenCase, number: int) -> Outputs:
    rows = case.ids(f"in{number}_itemseq", len(network.table), min_width=2)
    context, labels = rows[:, :-1], rows[:, 1:]
    hidden = network.encode(context)
    logits = network.scores(functional.relu(hidden))  # [B, T, C] -> [B, T, N]
    return {
        "hidden": hidden,
        "loss": functional.cross_entropy(logits.flatten(0, 1), labels.flatten()),
        "last_probs": torch.softmax(logits[:, -1], -1),
        "last_loss": functional.cross_entropy(logits[:, -1], labels[:, -1]),
    }


def _pretrain_both_ways(network: GoldenNetwork, case: GoldenCase, number: int) -> Outputs:
    hidden = network.encode(case.ids(f"in{number}_itemseq", len(network.table)))
    last = network.scores(hidden[:, -1])  # [B, T, C] -> [B, N]
    return {"hidden": hidden, "last_probs": torch.softmax(last, -1)}


def _finetune(network: GoldenNetwork, case: GoldenCase, number: int) -> Outputs:
    rows = case.ids(f"in{number}_itemseq", len(network.table), min_width=2)
    tokens = rows[:, :-1] if case.meta.is_causal else rows
    hidden = network.encode(tokens)
    user = pool(hidden, tokens, network.backbone.spec)
    logits = network.scores(user)  # [B, C] -> [B, K]
    ids = partial(case.ids, limit=len(network.head.weight))
    positive = logits.gather(1, ids(f"in{number}_pos"))
    negative = logits.gather(1, ids(f"in{number}_neg"))
    return {
        "hidden": hidden,
        "user": user,
        "logits": logits,
        "cand_scores": logits.gather(1, ids(f"in{number}_cand")),
        "loss_pair_ce": pair_cross_entropy(positive, negative),
        "loss_bpr": -functional.logsigmoid(positive - negative).mean(),
        "loss_reg": TARGET_DECAY * network.head.weight.square().sum(),
    }


def pair_cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """The published loss with one negative, including its saturation."""
    hit = (torch.sigmoid(positive) + LOG_FLOOR).log()
    rejected = (1 - torch.sigmoid(negative) + LOG_FLOOR).log()
    return -(hit + rejected).mean()


INPUTS: dict[CaseKind, tuple[str, ...]] = {
    "causal_pretrain": ("itemseq",),
    "noncausal_pretrain": ("itemseq",),
    "finetune": ("itemseq", "pos", "neg", "cand"),
}
"""Recorded arrays that are inputs of the network."""

RANKINGS: dict[CaseKind, dict[str, str]] = {
    "causal_pretrain": {"last_top5": "last_probs"},
    "noncausal_pretrain": {"last_top5": "last_probs"},
    "finetune": {"cand_top5": "cand_scores"},
}
"""Recorded best indices, and the scores that they rank."""

FORWARD: dict[CaseKind, Callable[[GoldenNetwork, GoldenCase, int], Outputs]] = {
    "causal_pretrain": _pretrain_causally,
    "noncausal_pretrain": _pretrain_both_ways,
    "finetune": _finetune,
}


def training_loss(network: GoldenNetwork, case: GoldenCase) -> Tensor:
    """The loss that the recorded Adam steps minimise."""
    settings = case.meta.adam
    outputs = FORWARD[case.meta.kind](network, case, settings.input if settings else 0)
    if case.meta.kind != "finetune":
        terms = ["loss"]
    else:
        names = settings.loss if settings else "pair_ce+reg"
        terms = [f"loss_{name}" for name in names.split("+")]
    unknown = [term for term in terms if term not in outputs]
    if unknown:
        raise GoldenCaseInvalid(f"{case.meta.kind} cases have no {', '.join(unknown)} to train on.")
    return torch.stack([outputs[term] for term in terms]).sum()
