"""One flat Adam moves many tasks' parameters as an Adam of their own would."""

import torch
from torch import nn

from peterrec.model.training.finetune.flat_adam import FlatAdam


def layers():
    torch.manual_seed(0)
    return [(nn.Linear(3, 2), nn.Linear(2, 1)) for _ in range(2)]


def test_each_task_moves_as_with_an_optimiser_of_its_own():
    ours, theirs = layers(), layers()
    flat = FlatAdam(ours)
    optimizers = [
        torch.optim.Adam([{"params": m.parameters()} for m in task], lr=0.1) for task in theirs
    ]
    schedule = [{0: (0.1, 0.2), 1: (0.3, 0.1)}, {1: (0.2, 0.2)}, {0: (0.05, 0.1), 1: (0.1, 0.3)}]
    for rates in schedule:
        flat.zero_grad()
        for task, own in rates.items():
            for network in (ours[task], theirs[task]):
                network[1](network[0](torch.ones(4, 3) * (task + 1))).square().sum().backward()
            for group, rate in zip(optimizers[task].param_groups, own, strict=True):
                group["lr"] = rate
            optimizers[task].step()
            optimizers[task].zero_grad()
        flat.step(rates)
    for one, other in zip(ours, theirs, strict=True):
        for module, expected in zip(one, other, strict=True):
            torch.testing.assert_close(module.weight, expected.weight)
            torch.testing.assert_close(module.bias, expected.bias)


def test_released_parameters_have_memory_of_their_own():
    (task, _) = layers()
    flat = FlatAdam([task])
    flat.release()
    before = task[1].weight.detach().clone()
    with torch.no_grad():
        task[0].weight.zero_()
    assert torch.equal(task[1].weight, before)
    assert task[0].weight.untyped_storage().nbytes() == 6 * 4
