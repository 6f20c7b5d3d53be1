"""Bundles with a random ranking head, for measurements of ranking."""

import numpy as np
import torch
from torch import nn

from bench.random_fleet import FleetShape, make_bundles, make_patch
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.files.probes import probe_tensors
from peterrec.model.inference.heads import FLOAT_BYTES
from peterrec.model.inference.top_k import CatalogWeights
from peterrec.model.network.heads import Head
from peterrec.model.spec import FIRST_ITEM, HeadSpec
from peterrec.patches.bundle.bundle import Catalog, build_bundle, open_bundle
from peterrec.patches.bundle.manifest import ManifestHead, ManifestProbes


def random_catalog(items: int, channels: int) -> CatalogWeights:
    """Make the weights of a random ranking head."""
    weight, bias = torch.randn(items, channels) * channels**-0.5, torch.randn(items)
    return CatalogWeights(FLOAT_BYTES * (weight.numel() + bias.numel()), weight, bias)


def head_of(weights: CatalogWeights) -> Head:
    """Convert the weights to the head module that training produces."""
    assert weights.weight is not None
    assert weights.bias is not None
    items, channels = weights.weight.shape
    head = Head(HeadSpec("ranking", 1), channels).requires_grad_(False)
    head.spec = HeadSpec("ranking", items)
    head.weight = nn.Parameter(weights.weight, requires_grad=False)
    head.bias = nn.Parameter(weights.bias, requires_grad=False)
    return head


def ranking_bundle(shape: FleetShape, loaded: LoadedBackbone, head: Head) -> bytes:
    """Make a bundle of the fleet's first task with this head instead, with correct probes."""
    contents = open_bundle(next(make_bundles(shape, loaded)))
    histories = [np.arange(FIRST_ITEM, FIRST_ITEM + length) for length in (0, 7)]
    probes = probe_tensors(loaded.backbone, make_patch(shape, 0), head, histories)
    manifest = contents.manifest.model_copy(
        update={
            "head": ManifestHead(kind="ranking", outputs=head.spec.outputs),
            "probes": ManifestProbes(count=len(histories), columns=len(probes["probe.columns"])),
        }
    )
    catalog = Catalog.pack([str(item) for item in range(head.spec.outputs)]).tensors()
    named = {name: tensor.numpy() for name, tensor in head.named().items()}
    return build_bundle(manifest, {**contents.tensors, **named, **probes, **catalog})
