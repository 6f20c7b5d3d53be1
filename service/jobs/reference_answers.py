"""What a bundle answers by the plain reference forward: for looking at bundles, not for serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.heads import Head
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import PAD
from peterrec.patches.bundle.bundle import Catalog
from peterrec.patches.bundle.divergence import (
    OVERLAP_AT,
    class_divergence,
    ranking_divergence,
    tag_divergence,
    value_divergence,
)
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.service.device.slots import PROBE_TOLERANCES, SMALLEST_SCALE
from peterrec.service.errors import ProbeFailed

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How two bundles of one kind answer the same histories.

    ``divergence`` is the mean of each history's (class disagreement, share of tags, 1 - overlap@k,
    relative difference of values). ``largest_change``: of a logit, over the outputs both have.
    """

    kind: str
    histories: int
    divergence: float
    largest_change: float
    common_outputs: int


@torch.inference_mode()
def reference_logits(
    bundle: VerifiedBundle, backbone: Backbone, histories: Sequence[NDArray[np.int32]]
) -> Logits:
    """Logits float32 [n, K], before the temperature, of histories (token ids, oldest first)."""
    tensors = {
        name: torch.from_numpy(np.array(tensor))
        for name, tensor in bundle.tensors.items()
        if name.startswith(("patch.", "head."))
    }
    patch = PatchWeights.from_named(bundle.manifest.patch.geometry(), tensors)
    head = Head(bundle.manifest.head.spec(), backbone.spec.channels)
    weights = {name.removeprefix("head."): t for name, t in tensors.items() if "head." in name}
    head.load_state_dict(weights)
    users = backbone.user_vectors(frame_histories(histories, backbone.spec), patch)  # [n, C]
    logits: Logits = head.logits(users).numpy()
    return logits


def check_probes(bundle: VerifiedBundle, backbone: Backbone) -> None:
    """Run the bundle's probes by the reference; ProbeFailed if it gives other logits."""
    logits = reference_logits(bundle, backbone, probe_histories([bundle]))
    found = logits[:, bundle.tensors["probe.columns"]]
    expected = bundle.tensors["probe.logits"]
    scale = max(SMALLEST_SCALE, float(np.abs(expected).max()))
    error = float(np.abs(found - expected).max()) / scale
    tolerance = PROBE_TOLERANCES[torch.float32]
    if not error <= tolerance:
        raise ProbeFailed(error, tolerance)


def probe_histories(bundles: Sequence[VerifiedBundle]) -> list[NDArray[np.int32]]:
    """The histories of the bundles' probes without padding; of several bundles each only once."""
    rows = [row[row != PAD] for bundle in bundles for row in bundle.tensors["probe.histories"]]
    return rows if len(bundles) == 1 else list({row.tobytes(): row for row in rows}.values())


def disagreement(
    first: VerifiedBundle, second: VerifiedBundle, backbone: Backbone
) -> Disagreement | None:
    """How the two answer the histories of both bundles' probes; None if their kinds differ."""
    if first.manifest.kind != second.manifest.kind:
        return None
    histories = probe_histories([first, second])
    one, two = (_scaled(bundle, backbone, histories) for bundle in (first, second))
    names_one, names_two = _outputs(first), _outputs(second)
    common = [name for name in names_one if name in names_two]
    left = one[:, [names_one[name] for name in common]]
    right = two[:, [names_two[name] for name in common]]
    rows = zip(_decided(first, one), _decided(second, two), strict=True)
    tag_count = len(names_one.keys() | names_two.keys())
    return Disagreement(
        kind=first.manifest.kind,
        histories=len(histories),
        divergence=float(np.mean([_divergence(a, b, tag_count) for a, b in rows])),
        largest_change=float(np.abs(left - right).max()) if common else 0.0,
        common_outputs=len(common),
    )


Decided = str | frozenset[str] | tuple[str, ...] | float
"""What an answer comes down to: a class, tags, the best items, or a number."""


def _scaled(
    bundle: VerifiedBundle, backbone: Backbone, histories: Sequence[NDArray[np.int32]]
) -> Logits:
    return reference_logits(bundle, backbone, histories) / np.float32(
        bundle.manifest.head.temperature
    )


def _outputs(bundle: VerifiedBundle) -> Mapping[str, int]:
    """Column of each output by its name."""
    names = bundle.catalog or bundle.manifest.head.labels or ("value",)
    return {name: column for column, name in enumerate(names)}


def _decided(bundle: VerifiedBundle, logits: Logits) -> list[Decided]:
    """What each history's logits [n, K] come down to."""
    head, labels = bundle.manifest.head, bundle.manifest.head.labels or ()
    if head.kind == "classification":
        return [labels[int(row.argmax())] for row in logits]
    if head.kind == "tags":
        present = 1 / (1 + np.exp(-logits.astype(np.float64))) >= head.threshold
        return [frozenset(labels[int(at)] for at in np.flatnonzero(row)) for row in present]
    if head.kind == "ranking":
        catalog = bundle.catalog
        assert isinstance(catalog, Catalog)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :OVERLAP_AT]
        return [tuple(catalog[int(at)] for at in row) for row in best]
    return [float(row[0]) for row in logits]


def _divergence(first: Decided, second: Decided, tag_count: int) -> float:
    match first, second:
        case str(), str():
            return class_divergence(first, second)
        case frozenset(), frozenset():
            return tag_divergence(first, second, tag_count)
        case tuple(), tuple():
            return ranking_divergence(first, second)
        case float(), float():
            return value_divergence(first, second)
    raise AssertionError("two answers of one kind")
