"""The patch: branches, folding and names."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from peterrec.model.insertions import INSERTIONS
from peterrec.model.network.patch import Bottleneck, Patch, PatchWeights
from peterrec.model.spec import PatchGeometry

CHANNELS = 8


def random_patch(insertion: str = "serial2", cardinality: int = 3) -> Patch:
    geometry = PatchGeometry(
        insertion=insertion,
        bottleneck=6,
        blocks=(0, 2),
        cardinality=cardinality,
        has_norms=True,
        has_cls=True,
    )
    patch = Patch(geometry, CHANNELS)
    for parameter in patch.parameters():
        torch.nn.init.normal_(parameter)
    return patch


def test_folding_the_branches_is_exact() -> None:
    patch = random_patch()
    source = torch.randn(4, 5, CHANNELS, dtype=torch.float64)
    patch.double()
    for block, conv in ((0, 0), (0, 1), (2, 0), (2, 1)):
        at = patch.geometry.conv_index(block, conv)
        assert at is not None
        branches = zip(
            patch.down[at], patch.down_bias[at], patch.up[at], patch.up_bias[at], strict=True
        )
        expected = sum(
            functional.gelu(source @ d + a, approximate="tanh") @ u + b for d, a, u, b in branches
        )
        folded = patch.weights().at(block, conv)
        assert folded is not None
        torch.testing.assert_close(folded(source), expected, rtol=1e-12, atol=1e-12)


def test_folded_weights_pass_gradients_to_each_branch() -> None:
    patch = random_patch()
    bottleneck = patch.weights().at(2, 1)
    assert bottleneck is not None
    torch.autograd.backward(bottleneck(torch.randn(3, CHANNELS)).square().sum())
    for parameter in (patch.down, patch.down_bias, patch.up, patch.up_bias):
        assert parameter.grad is not None
        assert parameter.grad[3].abs().min() > 0
        assert parameter.grad[:3].abs().max() == 0


def test_branches_start_different_from_each_other() -> None:
    patch = Patch(random_patch().geometry, CHANNELS)
    assert not torch.allclose(patch.down[0, 0], patch.down[0, 1])
    assert not torch.allclose(patch.down[0, 0], patch.down[1, 0])


def test_the_same_seed_starts_the_same_patch() -> None:
    geometry = random_patch().geometry
    one, two = (Patch(geometry, CHANNELS, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.down, two.down)


def test_the_bottleneck_uses_the_tanh_form_of_gelu() -> None:
    one = torch.ones(1, 1)
    bottleneck = Bottleneck(one, torch.zeros(1), one, torch.zeros(1))
    assert bottleneck(torch.tensor([[1.0]])).item() == pytest.approx(0.8411919906, abs=1e-7)


@pytest.mark.parametrize(
    ("insertion", "skips"),
    [("serial1", False), ("serial2", False), ("parallel2", False), ("parallel2", True)],
)
def test_joins_are_those_of_the_paper(insertion: str, skips: bool) -> None:
    geometry = replace(random_patch(insertion).geometry, has_inner_skip=skips)
    patch = Patch(geometry, CHANNELS)
    torch.nn.init.normal_(patch.up)
    weights, (conv_in, conv_out) = patch.weights(), torch.randn(2, 3, CHANNELS)
    bottleneck = weights.at(2, 1)
    assert bottleneck is not None
    expected = conv_out + bottleneck(conv_in if insertion == "parallel2" else conv_out)
    if skips:
        expected = expected + conv_in
    assert torch.equal(weights.join(conv_out, conv_in, 2, 1), expected)


@pytest.mark.parametrize("insertion", INSERTIONS)
def test_folded_tensors_have_the_shapes_of_the_geometry(insertion: str) -> None:
    patch = random_patch(insertion)
    folded = patch.folded()
    shapes = {name: tuple(tensor.shape) for name, tensor in folded.items()}
    assert shapes == patch.geometry.shapes(CHANNELS)
    assert all(t.is_contiguous() and not t.requires_grad for t in folded.values())


def test_named_tensors_make_the_same_weights_again() -> None:
    patch = random_patch()
    named = {**patch.folded(), "head.weight": torch.zeros(2)}
    again = PatchWeights.from_named(patch.geometry, named)
    assert again.named().keys() == patch.weights().named().keys()
    for name, tensor in again.named().items():
        assert torch.equal(tensor, patch.folded()[name])


def test_a_patch_without_norms_or_cls_names_neither() -> None:
    geometry = PatchGeometry(insertion="serial2", bottleneck=4, blocks=(0,))
    weights = Patch(geometry, CHANNELS).weights()
    assert weights.norm(0) is None
    assert set(weights.named()) == {
        "patch.down",
        "patch.down_bias",
        "patch.up",
        "patch.up_bias",
    }


def test_norms_belong_to_the_patched_blocks() -> None:
    patch = random_patch()
    norm = patch.weights().norm(2)
    assert norm is not None
    assert patch.norm_weight is not None
    assert torch.equal(norm[0], patch.norm_weight[1])
    assert patch.weights().norm(1) is None
