"""Packed training computes what the plain backbone does, gradients included."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from peterrec.model.network.backbone import Backbone, pool
from peterrec.model.network.collate import frame_histories
from peterrec.model.spec import FIRST_ITEM, BackboneSpec
from peterrec.model.training.pretrain.packed_blocks import ZERO_ROW, Dropout, pack, packed_states
from peterrec.model.training.pretrain.step import packed_users
from peterrec.model.training.products import linear

SPEC = BackboneSpec(item_count=50, channels=16, dilations=(1, 4, 2), max_len=30)
LENGTHS = (3, 30, 12, 1, 0)
SHAPES = [
    SPEC,
    replace(SPEC, is_causal=False),
    replace(SPEC, padding="embedded"),
    replace(SPEC, is_causal=False, padding="embedded"),
    replace(SPEC, kernel_size=2),
]


def backbone_and_tokens(spec):
    torch.manual_seed(0)
    backbone = Backbone(spec)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    random = np.random.default_rng(0)
    items = [random.integers(FIRST_ITEM, FIRST_ITEM + 50, length) for length in LENGTHS]
    return backbone, frame_histories(items, spec)


def packed(backbone, tokens, dtype=torch.float32):
    packing = pack(tokens, backbone.spec)
    embedded = backbone.embedding(tokens.flatten()[packing.places])
    return packing, packed_states(backbone, embedded, packing, dtype)


@pytest.mark.parametrize("spec", SHAPES)
def test_packed_states_and_gradients_are_those_of_the_plain_backbone(spec):
    backbone, tokens = backbone_and_tokens(spec)
    packing, states = packed(backbone, tokens)
    plain = backbone.hidden(tokens).flatten(0, 1)[packing.places]
    torch.testing.assert_close(states[ZERO_ROW:], plain, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((states[ZERO_ROW:] * gradient).sum(), backbone.parameters())
    expected = torch.autograd.grad((plain * gradient).sum(), backbone.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SHAPES)
def test_packed_user_vectors_are_the_pooled_ones(spec):
    backbone, tokens = backbone_and_tokens(spec)
    packing, states = packed(backbone, tokens)
    torch.testing.assert_close(
        packed_users(states, packing, spec), pool(backbone.hidden(tokens), tokens, spec)
    )


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    ones = torch.ones(200, 50)
    dropped = Dropout(0.4, torch.Generator().manual_seed(0))(ones)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.4, abs=0.02)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert Dropout(0.0)(ones) is ones


def test_the_zero_row_stays_zero_with_dropout_too():
    backbone, tokens = backbone_and_tokens(SPEC)
    packing = pack(tokens, SPEC)
    embedded = backbone.embedding(tokens.flatten()[packing.places])
    dropout = Dropout(0.5, torch.Generator().manual_seed(0))
    states = packed_states(backbone, embedded, packing, dropout=dropout)
    assert not states[:ZERO_ROW].any()
    assert not torch.equal(states, packed_states(backbone, embedded, packing))


def test_the_zero_row_stays_zero():
    backbone, tokens = backbone_and_tokens(SPEC)
    assert not packed(backbone, tokens)[1][:ZERO_ROW].any()


def test_half_precision_stays_close_to_the_plain_backbone():
    backbone, tokens = backbone_and_tokens(SPEC)
    packing, states = packed(backbone, tokens, torch.bfloat16)
    plain = backbone.hidden(tokens).flatten(0, 1)[packing.places]
    assert (states[ZERO_ROW:] - plain).abs().max() < 0.03 * plain.abs().max()


def test_a_linear_layer_and_its_gradients_are_the_plain_ones():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((2, 5, 4), (3, 4), (3,))
    )
    plain, ours = functional.linear(x, weight, bias), linear(x, weight, bias)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad((ours**2).sum(), (x, weight, bias))
    expected = torch.autograd.grad((plain**2).sum(), (x, weight, bias))
    torch.testing.assert_close(found, expected)
