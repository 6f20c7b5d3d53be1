"""The chunked loss is the plain cross-entropy; the sampled one is close to it and never lost."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from peterrec.model.spec import FIRST_ITEM
from peterrec.model.training.batches import seeded
from peterrec.model.training.products import chunk_rows
from peterrec.model.training.softmax import (
    FULL_SOFTMAX_LIMIT,
    OutputLayer,
    choose_loss,
    draw_log_uniform,
    draw_negatives,
    full_softmax_loss,
    sampled_softmax,
    sampled_softmax_loss,
    start_at_popularity,
)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    rows, items, channels = chunk_rows(50, torch.device("cpu")) + 7, 50, 6
    hidden = torch.randn(rows, channels, generator=generator, requires_grad=True)
    weight = torch.randn(items, channels, generator=generator, requires_grad=True)
    bias = torch.randn(items, generator=generator, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, items, (rows,), generator=generator)


def test_the_chunked_loss_and_its_gradients_are_those_of_plain_cross_entropy(problem):
    hidden, weight, bias, targets = problem
    plain = functional.cross_entropy(hidden @ weight.t() + bias, targets)
    chunked = full_softmax_loss(hidden, weight, bias, targets)
    expected = torch.autograd.grad(3 * plain, (hidden, weight, bias))
    found = torch.autograd.grad(3 * chunked, (hidden, weight, bias))
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_sampled_loss_has_finite_gradients_for_all_three(problem):
    hidden, weight, bias, targets = problem
    loss = sampled_softmax_loss(hidden, weight, bias, targets, seeded(0))
    grads = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_the_same_seed_draws_the_same_negatives(problem):
    hidden, weight, bias, targets = problem
    losses = [sampled_softmax_loss(hidden, weight, bias, targets, seeded(5)) for _ in range(2)]
    assert losses[0] == losses[1]


def test_frequent_items_are_drawn_more_often():
    drawn = draw_log_uniform(1000, 20_000, seeded(0))
    counts = torch.bincount(drawn, minlength=1000).float() / 20_000
    expected = torch.log1p(1 / (torch.arange(1000) + 1.0)) / torch.log(torch.tensor(1001.0))
    torch.testing.assert_close(counts[:5], expected[:5], rtol=0.1, atol=0.01)
    assert drawn.max() < 1000


def test_the_exact_loss_is_chosen_for_small_catalogs_and_by_name():
    assert choose_loss("auto", FULL_SOFTMAX_LIMIT) == "full"
    assert choose_loss("auto", FULL_SOFTMAX_LIMIT + 1) == "sampled"
    assert choose_loss("full", FULL_SOFTMAX_LIMIT + 1) == "full"


@pytest.mark.slow
def test_the_sampled_gradient_is_that_of_the_exact_loss_on_average(problem):
    hidden, weight, bias, targets = problem
    weight = (0.3 * torch.randn(9000, 6, generator=seeded(1))).requires_grad_(True)
    bias = torch.zeros(9000)
    exact = full_softmax_loss(hidden, weight, bias, targets)
    losses = [sampled_softmax_loss(hidden, weight, bias, targets, seeded(i)) for i in range(20)]
    mean = torch.stack(losses).mean()
    assert abs(mean - exact) < 0.01 * exact
    (expected,) = torch.autograd.grad(exact, hidden)
    (found,) = torch.autograd.grad(mean, hidden)
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_every_negative_drawn_is_there_once_and_a_row_never_meets_its_own_target(problem):
    _, _, _, targets = problem
    draw = draw_negatives(targets, 50, seeded(0))
    negatives = draw.items[draw.negatives]
    assert len(negatives.unique()) == len(negatives)
    assert torch.equal(draw.items[draw.own], targets)
    is_hit = draw.hits < len(negatives)
    assert torch.equal(negatives[draw.hits[is_hit]], targets[is_hit])
    assert not torch.isin(targets[~is_hit], negatives).any()


def test_with_every_item_drawn_the_sampled_loss_is_the_exact_one(problem):
    hidden, weight, bias, targets = problem
    sampled = sampled_softmax_loss(hidden, weight[:5], bias[:5], targets % 5, seeded(0))
    torch.testing.assert_close(
        sampled, full_softmax_loss(hidden, weight[:5], bias[:5], targets % 5)
    )


def test_biases_start_at_the_items_log_shares():
    output = OutputLayer(3, 2)
    rows = [np.array([FIRST_ITEM, FIRST_ITEM + 2]), np.array([FIRST_ITEM])]
    start_at_popularity(output, rows)
    shares = torch.tensor([2.5, 0.5, 1.5]) / 4.5
    torch.testing.assert_close(output.bias.exp(), shares)


@pytest.mark.parametrize("name", ["full", "sampled"])
def test_in_half_precision_losses_and_gradients_stay_close(problem, name):
    hidden, weight, bias, targets = problem
    draw = draw_negatives(targets, len(bias), seeded(0))
    losses = {
        "full": lambda dtype: full_softmax_loss(hidden, weight, bias, targets, dtype),
        "sampled": lambda dtype: sampled_softmax(
            hidden, weight[draw.items], bias[draw.items], draw, dtype
        ),
    }
    exact, half = losses[name](torch.float32), losses[name](torch.bfloat16)
    assert abs(half - exact) < 0.01 * exact
    expected = torch.autograd.grad(exact, (hidden, weight, bias))
    found = torch.autograd.grad(half, (hidden, weight, bias))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()
