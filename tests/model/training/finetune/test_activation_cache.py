"""Training on cached activations computes what training through the whole backbone computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.network.backbone import Backbone, new_patch
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import FIRST_ITEM, BackboneSpec, PatchGeometry
from peterrec.model.training.finetune.activation_cache import ActivationCache
from peterrec.model.training.finetune.encoders import (
    CachedPatchedBackbone,
    PatchedBackbone,
    UserRows,
    patch_encoder,
)
from peterrec.model.training.finetune.forward import FieldBlocks, user_vectors
from peterrec.model.training.finetune.patch_stack import PatchStack

SPEC = BackboneSpec(item_count=50, channels=12, dilations=(1, 4, 2, 1), max_len=30)
TOP = PatchGeometry("serial2", 4, (2, 3), has_norms=True)
GEOMETRIES = [
    TOP,
    replace(TOP, blocks=(3,), has_norms=False),
    replace(TOP, insertion="serial1", cardinality=2),
    replace(TOP, insertion="parallel2", blocks=(1, 3), has_inner_skip=True),
    replace(TOP, queries=3),
    PatchGeometry("serial2", 4, (), queries=2),
]
LENGTHS = (30, 1, 45, 7, 0, 18)


def trained_backbone(spec=SPEC):
    torch.manual_seed(0)
    backbone = Backbone(spec).requires_grad_(False).eval()
    for parameter in backbone.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


def trained_patch(backbone, geometry, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patch = new_patch(backbone, geometry, generator)
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return patch


def histories(lengths=LENGTHS, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(FIRST_ITEM, FIRST_ITEM + 50, length) for length in lengths]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_vectors_and_gradients_are_those_of_the_whole_backbone(geometry):
    backbone = trained_backbone()
    patch = trained_patch(backbone, geometry)
    encoder = patch_encoder(backbone, patch, histories=len(LENGTHS))
    assert isinstance(encoder, CachedPatchedBackbone)
    cached = encoder.user_vectors(UserRows(histories(), torch.arange(len(LENGTHS))))
    whole = user_vectors(backbone, frame_histories(histories(), SPEC), patch.weights())
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)
    parameters = tuple(p for p in patch.parameters() if p.numel())  # none at no block
    found = torch.autograd.grad((cached**2).sum(), parameters)
    expected = torch.autograd.grad((whole**2).sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_embedded_padding_is_read_as_the_whole_backbone_reads_it():
    backbone = trained_backbone(replace(SPEC, padding="embedded"))
    patch = trained_patch(backbone, TOP)
    encoder = patch_encoder(backbone, patch, histories=len(LENGTHS))
    cached = encoder.user_vectors(UserRows(histories(), torch.arange(len(LENGTHS))))
    whole = user_vectors(backbone, frame_histories(histories(), backbone.spec), patch.weights())
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)


def test_a_history_is_computed_once_however_often_it_is_read():
    backbone = trained_backbone()
    cache = ActivationCache(backbone, 2, capacity=len(LENGTHS))
    first = cache.slots(histories())
    again = cache.slots(histories()[::-1])
    assert torch.equal(again, first.flip(0))


@pytest.mark.parametrize(
    ("geometry", "first"), [(TOP, 2), (PatchGeometry("serial2", 4, (), queries=2), 4)]
)
def test_rows_of_several_tasks_each_pass_through_their_own_patch(geometry, first):
    backbone = trained_backbone()
    patches = [trained_patch(backbone, geometry, seed) for seed in range(3)]
    cache = ActivationCache(backbone, first, capacity=len(LENGTHS))
    names = [name for name, _ in patches[0].named_parameters()]
    stacked = {name: torch.stack([p.get_parameter(name) for p in patches]) for name in names}
    stack = PatchStack.of_branches(geometry, stacked)
    states = cache.states(cache.slots(histories()))  # two rows for each of the three tasks
    blocks = FieldBlocks(backbone, SPEC.max_input_len, first)
    together = blocks.user_vectors(states, stack)
    tokens = [frame_histories([row], SPEC) for row in histories()]
    alone = [
        user_vectors(backbone, row, patches[at // 2].weights()) for at, row in enumerate(tokens)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_activations_that_do_not_fit_in_float32_are_stored_in_half_of_it_or_not_at_all():
    backbone = trained_backbone()
    numbers = ActivationCache.numbers_per_history(backbone, 2)
    limit = 2 * 10 * numbers
    caches = [ActivationCache.within(backbone, 2, histories, limit) for histories in (5, 10, 11)]
    dtypes = [None if cache is None else cache.dtype for cache in caches]
    assert dtypes == [torch.float32, torch.bfloat16, None]


@pytest.mark.parametrize(
    ("spec", "geometry", "met"),
    [
        (SPEC, replace(TOP, blocks=(0, 3)), 6),
        (SPEC, replace(TOP, has_cls=True), 6),
        (replace(SPEC, is_causal=False), TOP, 6),
        (SPEC, TOP, 0),
    ],
)
def test_without_cacheable_activations_training_runs_the_whole_backbone(spec, geometry, met):
    backbone = trained_backbone(spec)
    encoder = patch_encoder(backbone, trained_patch(backbone, geometry), met)
    assert isinstance(encoder, PatchedBackbone)
