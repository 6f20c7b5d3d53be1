"""A straightforward NextItNet, with which our training is compared."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

DILATIONS = (1, 4, 1, 4, 1, 4, 1, 4)
CLASSES = 5


class PlainNextItNet(nn.Module):
    """NextItNet that computes every position of padded rows and a full softmax."""

    def __init__(self, items: int, channels: int) -> None:
        super().__init__()
        self.items = items
        self.embedding = nn.Embedding(items, channels)
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, dilation=dilation * factor)
            for dilation in DILATIONS
            for factor in (1, 2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.convs)
        self.output = nn.Linear(channels, items)
        self.classes = nn.Linear(channels, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute hidden states [B, T, C] of tokens [B, T]."""
        x: Tensor = self.embedding(tokens)
        for block in range(0, len(self.convs), 2):
            y = x
            for conv, norm in zip(
                self.convs[block : block + 2], self.norms[block : block + 2], strict=True
            ):
                reach = 2 * int(conv.dilation[0])  # type: ignore[index]  # a Conv1d's
                padded = functional.pad(y.transpose(1, 2), (reach, 0))
                y = torch.relu(norm(conv(padded).transpose(1, 2)))
            x = x + y
        return x

    def pretraining_loss(self, tokens: Tensor) -> Tensor:
        """Compute the mean cross-entropy of the next item at every position, over all items."""
        logits = self.output(self(tokens[:, :-1]))  # [B, T, N]
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def class_loss(self, tokens: Tensor) -> Tensor:
        """Compute the mean cross-entropy of classes at the last position; all weights train."""
        return functional.cross_entropy(self.classes(self(tokens)[:, -1]), tokens[:, 0] % CLASSES)


def plain_rate(
    network: PlainNextItNet, options: argparse.Namespace, loss_of: Callable[[Tensor], Tensor]
) -> float:
    """Measure the sequences per second of whole training steps, without the first step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.history + 1)
    seconds = []
    for _ in range(6):
        tokens = torch.randint(options.items, shape, generator=generator)
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(tokens))
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return float(options.batch / statistics.median(seconds[1:]))
