"""TensorFlow's form of Adam, as the published code uses it."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from peterrec.model.parity.case import AdamSettings


class ReferenceAdam:
    """Adam as TensorFlow 1 computes it: ``p -= lr_t m / (sqrt(v) + eps)``.

    ``lr_t = lr sqrt(1 - b2^t) / (1 - b1^t)``, so eps is not bias-corrected. In torch's form it is,
    which moves single weights by up to 4e-3 in the first five steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: AdamSettings) -> None:
        self.parameters = list(parameters)
        self.settings = settings
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    def clear(self) -> None:
        """Clear the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Apply one step with the current gradients."""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        self.steps += 1
        rate = self.settings.lr * math.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
        for parameter, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if parameter.grad is None:
                continue
            m.lerp_(parameter.grad, 1 - beta1)
            v.lerp_(parameter.grad.square(), 1 - beta2)
            parameter.sub_(rate * m / (v.sqrt() + self.settings.eps))
