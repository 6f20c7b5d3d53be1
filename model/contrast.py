"""Contrastive pretraining: user vectors of one user's two views meet, others' part (CLUE, 2021)."""

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.1


def contrastive_loss(first: Tensor, second: Tensor, users: Tensor) -> Tensor:
    """InfoNCE over a batch: row i of first [B, C] belongs to row i of second [B, C].

    ``users`` int64 [B] says whose they are: another row of the same user is no rival.
    """
    similarity = functional.normalize(first) @ functional.normalize(second).t()  # [B, B]
    is_own = torch.eye(len(users), dtype=torch.bool, device=users.device)
    is_rival = users.unsqueeze(1) != users.unsqueeze(0)  # [B, B]
    similarity = (similarity / TEMPERATURE).masked_fill(~(is_rival | is_own), float("-inf"))
    return functional.cross_entropy(similarity, torch.arange(len(users), device=users.device))
