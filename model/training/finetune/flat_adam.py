"""Adam over the parameters of many tasks at once, each task at its own learning rates."""

from collections.abc import Sequence

import torch
from torch import nn

BETAS, EPSILON = (0.9, 0.999), 1e-8


class FlatAdam:
    """Moves modules' parameters, which become views into one vector.

    A task's modules take their steps together; a task that is left out of a step keeps its weights,
    moments and step count, as if it had an optimiser of its own.
    """

    def __init__(self, tasks: Sequence[Sequence[nn.Module]]) -> None:
        modules = [(task, part, m) for task, own in enumerate(tasks) for part, m in enumerate(own)]
        owned = [(task, part, p) for task, part, m in modules for p in m.parameters()]
        sizes = [parameter.numel() for _, _, parameter in owned]
        self._values = torch.cat([parameter.detach().flatten() for _, _, parameter in owned])
        self._slopes = torch.zeros_like(self._values)
        self._mean, self._square = torch.zeros_like(self._values), torch.zeros_like(self._values)
        self._parameters = [parameter for _, _, parameter in owned]
        self._steps = torch.zeros(len(tasks), dtype=torch.float64)
        self._rates = torch.zeros(len(tasks), max(len(own) for own in tasks), dtype=torch.float64)
        owners = torch.tensor([task * self._rates.shape[1] + part for task, part, _ in owned])
        self._owners = owners.repeat_interleave(torch.tensor(sizes)).to(self._values.device)
        views = zip(*(torch.split(x, sizes) for x in (self._values, self._slopes)), strict=True)
        for (_, _, parameter), (value, slope) in zip(owned, views, strict=True):
            parameter.data = value.view_as(parameter)
            parameter.grad = slope.view_as(parameter)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._slopes.zero_()

    def release(self) -> None:
        """Give every parameter its own memory back."""
        for parameter in self._parameters:
            parameter.data, parameter.grad = parameter.detach().clone(), None

    @torch.no_grad()
    def step(self, rates: dict[int, Sequence[float]]) -> None:
        """One step of the tasks named, with a learning rate for each of their modules."""
        tasks = torch.tensor(sorted(rates))
        self._steps[tasks] += 1
        self._rates.zero_()
        self._rates[tasks] = torch.tensor([rates[t] for t in tasks.tolist()], dtype=torch.float64)
        steps = self._steps.clamp(min=1)
        of_owner = (self._rates / (1 - BETAS[0] ** steps).unsqueeze(1)).float()  # [tasks, parts]
        spread = ((1 - BETAS[1] ** steps) ** -0.5).unsqueeze(1).expand_as(of_owner).float()
        takes_part = torch.zeros(len(steps), 1).index_fill_(0, tasks, 1.0).expand_as(of_owner)
        rate, correction, share = (
            per_owner.flatten().to(self._values.device)[self._owners]
            for per_owner in (of_owner, spread, takes_part)
        )
        self._mean.lerp_(self._slopes, share * (1 - BETAS[0]))
        self._square.lerp_(self._slopes.square(), share * (1 - BETAS[1]))
        denominator = self._square.sqrt().mul_(correction).add_(EPSILON)
        self._values.sub_(self._mean.mul(rate).div_(denominator))
