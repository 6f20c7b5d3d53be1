"""The methods that are compared: what each one trains, its start, and its learning rates.

``docs/compare.md`` describes every method.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch

from peterrec.model.errors import MethodUnknown
from peterrec.model.insertions import INSERTIONS, InsertionName
from peterrec.model.kinds import KINDS
from peterrec.model.network.backbone import Backbone, new_patch
from peterrec.model.spec import BackboneSpec, HeadKind, PatchGeometry
from peterrec.model.study.baselines import BASELINES, POPULAR
from peterrec.model.study.networks import SidePatchedBackbone, TwoTower
from peterrec.model.study.settings import NONCAUSAL, Axes, Depth, Extras
from peterrec.model.training.finetune.encoders import (
    Encoder,
    FrozenBackbone,
    PatchedBackbone,
    TunedBackbone,
)
from peterrec.model.training.finetune.settings import LoopSettings

Start = Literal["pretrained", "random"]

DEFAULT_WIDTH = 8
"""Bottleneck of a patch if none is given; names in tables leave it out."""

DEFAULT_QUERIES = 8
"""Queries of a history reader if none are given."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of the encoder's trained part and of the head."""

    encoder: float
    head: float

    @property
    def order(self) -> tuple[float, ...]:
        """By what the rates of a method are sorted."""
        return (self.encoder, self.head)

    def to_json(self) -> dict[str, float]:
        """Both rates by their names."""
        return {"encoder": self.encoder, "head": self.head}


PATCH_RATES = (
    Rates(3e-3, 1e-2),
    Rates(1e-3, 3e-3),
    Rates(1e-2, 1e-2),
    Rates(3e-4, 1e-3),
    Rates(3e-2, 1e-2),
)
WHOLE_RATES = (
    Rates(1e-3, 1e-2),
    Rates(3e-4, 3e-3),
    Rates(3e-3, 1e-2),
    Rates(1e-4, 1e-3),
    Rates(1e-2, 1e-2),
)
LAST_RATES = PATCH_RATES
HEAD_RATES = (
    Rates(0.0, 1e-2),
    Rates(0.0, 3e-3),
    Rates(0.0, 3e-2),
    Rates(0.0, 1e-3),
    Rates(0.0, 1e-1),
)
"""Learning rates to try, from the middle of the grid outward: a budget of n tries the first n."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A method with the value of every property that is varied."""

    method: str
    is_causal: bool = True
    insertion: InsertionName | None = None
    bottleneck: int | None = None
    cardinality: int = 1
    depth: Depth = "all"
    extras: Extras = "auto"
    label_share: float = 1.0
    queries: int = 0

    @property
    def label(self) -> str:
        """The name in tables; properties at their defaults are left out."""
        name = self.method + (f"-{self.insertion}" if self.insertion else "")
        name += "" if self.is_causal else NONCAUSAL
        said = {
            "top": str(self.depth) if isinstance(self.depth, int) else "",
            "bottleneck": "" if self.bottleneck in (None, DEFAULT_WIDTH) else str(self.bottleneck),
            "cardinality": str(self.cardinality) if self.cardinality > 1 else "",
            "queries": str(self.queries or "") if not self._has_usual_queries else "",
            "trains": "" if self.extras == "auto" else self.extras,
            "labels": f"{self.label_share:.0%}" if self.label_share < 1 else "",
        }
        return " ".join([name, *(f"{key} {value}" for key, value in said.items() if value)])

    @property
    def _has_usual_queries(self) -> bool:
        return self.method == "reader" and self.queries == DEFAULT_QUERIES


@dataclass(frozen=True, slots=True)
class Material:
    """The arguments that build an encoder; the backbone is on the training device."""

    backbone: Backbone
    variant: Variant
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is built and trained; ``together`` trains all tasks of a corpus in one run."""

    build: Callable[[Material], Encoder]
    rates: tuple[Rates, ...]
    start: Start = "pretrained"
    together: bool = False


def _patched(material: Material) -> Encoder:
    variant, backbone = material.variant, material.backbone
    count = len(backbone.blocks)
    top = variant.depth if isinstance(variant.depth, int) else {"none": 0}.get(variant.depth, count)
    blocks = tuple(range(max(0, count - top), count))
    geometry = PatchGeometry(
        insertion=variant.insertion or "serial2",
        bottleneck=variant.bottleneck or DEFAULT_WIDTH,
        blocks=blocks,
        cardinality=variant.cardinality,
        has_norms=variant.extras in ("auto", "norms", "both") and bool(blocks),
        has_cls=variant.extras in ("cls", "both") or (variant.extras == "auto" and 0 in blocks),
        queries=variant.queries,
    )
    return PatchedBackbone(backbone, new_patch(backbone, geometry, material.generator))


def _side(material: Material) -> Encoder:
    return SidePatchedBackbone(
        material.backbone, material.variant.bottleneck or DEFAULT_WIDTH, material.generator
    )


def _two_tower(material: Material) -> Encoder:
    backbone = material.backbone
    return TwoTower(backbone.spec, backbone.embedding.weight.device, material.generator)


METHODS: dict[str, Method] = {
    "peterrec": Method(_patched, PATCH_RATES),
    "reader": Method(_patched, PATCH_RATES),
    "side": Method(_side, PATCH_RATES),
    "fineall": Method(lambda given: TunedBackbone(given.backbone), WHOLE_RATES),
    "finelast": Method(
        lambda given: TunedBackbone(given.backbone, lambda whole: whole.blocks[-1:]),
        LAST_RATES,
    ),
    "fineblocks": Method(
        lambda given: TunedBackbone(given.backbone, lambda whole: whole.blocks),
        WHOLE_RATES,
    ),
    "fineitems": Method(
        lambda given: TunedBackbone(given.backbone, lambda whole: whole.embedding),
        WHOLE_RATES,
    ),
    "finecls": Method(
        lambda given: FrozenBackbone(given.backbone),
        HEAD_RATES,
    ),
    "peterzero": Method(_patched, PATCH_RATES, start="random"),
    "random": Method(
        lambda given: FrozenBackbone(given.backbone),
        HEAD_RATES,
        start="random",
    ),
    "scratch": Method(
        lambda given: TunedBackbone(given.backbone),
        WHOLE_RATES,
        start="random",
    ),
    "mtl": Method(
        lambda given: TunedBackbone(given.backbone),
        WHOLE_RATES,
        together=True,
    ),
    "dssm": Method(_two_tower, WHOLE_RATES),
}


FINETUNED = ("auto", "table")
"""Methods that are ``peterrec finetune`` itself, by the value of its option ``--parts``.

They have its default learning rates and item dropout: nothing is tuned, as for a new user.
"""

CATALOG_LESS = ("table",)
"""Methods of ``FINETUNED`` that no task with a catalog has."""


def is_trained(name: str) -> bool:
    """Whether a method needs a backbone and is trained with several seeds."""
    return name in METHODS or name in FINETUNED


def fits(name: str, kind: HeadKind) -> bool:
    """Whether a trained method is there for a kind of task."""
    return name not in CATALOG_LESS or not KINDS[kind].has_catalog


def rates_of(name: str) -> tuple[Rates, ...]:
    """The learning rates that a trained method tries."""
    if name not in FINETUNED:
        return METHODS[name].rates
    defaults = LoopSettings()
    return (Rates(defaults.learning_rate, defaults.head_learning_rate),)


def is_joint(name: str) -> bool:
    """Whether a trained method learns all tasks of a data set in one run."""
    return name in METHODS and METHODS[name].together


def choose_variants(names: tuple[str, ...], axes: Axes, shares: tuple[float, ...]) -> list[Variant]:
    """Every variant of the named methods, in the order of the names.

    A name that ends in ``-noncausal`` selects the non-causal backbone. ``peterrec`` is varied along
    all axes; with an insertion in its name (``peterrec-serial2``) the insertion is fixed. A depth
    of ``side`` adds the side network of each width. ``popular`` adds nothing: every table of
    recommendations has it.
    """
    plain = [variant for name in names for variant in _variants(name, axes)]
    shared = [replace(variant, label_share=share) for share in shares for variant in plain]
    return list(dict.fromkeys(shared))


def _variants(name: str, axes: Axes) -> list[Variant]:
    if name in BASELINES:
        return [Variant(name)]
    if name == POPULAR:
        return []
    is_causal = not name.endswith(NONCAUSAL)
    method, _, insertion = name.removesuffix(NONCAUSAL).partition("-")
    if not is_trained(method) or insertion not in ("", *INSERTIONS):
        known = ", ".join([*BASELINES, POPULAR, *FINETUNED, *METHODS])
        raise MethodUnknown(
            f"there is no method {name!r}.",
            hint=f"Methods are {known}. {NONCAUSAL} may follow each that has a backbone, and an "
            "insertion peterrec.",
        )
    if method == "side":
        return [Variant(method, is_causal, bottleneck=width) for width in axes.bottlenecks]
    if method == "reader":
        asked = [queries for queries in axes.queries if queries] or [DEFAULT_QUERIES]
        return [
            Variant(method, is_causal, bottleneck=width, depth="none", queries=queries)
            for width, queries in product(axes.bottlenecks, asked)
        ]
    if method == "peterzero":
        return [Variant(method, is_causal, "serial2", axes.bottlenecks[0])]
    if method != "peterrec":
        return [Variant(method, is_causal)]
    insertions = [one for one in axes.insertions if insertion in ("", one)]
    patches = product(insertions, axes.depths, axes.bottlenecks, axes.cardinalities, axes.extras)
    grid = product(patches, axes.queries)
    variants = [
        Variant("side", is_causal, bottleneck=width, depth="side")
        if depth == "side"
        else Variant(method, is_causal, one, width, branches, depth, extras, queries=queries)
        for (one, depth, width, branches, extras), queries in grid
        if width % branches == 0
    ]
    return list(dict.fromkeys(variants))


def random_backbone(spec: BackboneSpec, seed: int) -> Backbone:
    """An untrained backbone; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(spec).requires_grad_(False).eval()
