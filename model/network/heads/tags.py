"""Any number of labels: an independent sigmoid for each."""

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.heads.ranks import area_under_roc


class Tags:
    """Targets are 0/1 floats [B, K]."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy from logits, which does not saturate."""
        return functional.binary_cross_entropy_with_logits(logits, targets)

    def scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Probability of each tag [B, K]."""
        return torch.sigmoid(logits / temperature)

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        """Micro precision, recall and F1 at 0.5, and the area under the ROC over all pairs."""
        chosen, present = logits > 0, targets > 0.5
        hits = (chosen & present).sum().item()
        precision = hits / max(1, chosen.sum().item())
        recall = hits / max(1, present.sum().item())
        return {
            "micro_precision": precision,
            "micro_recall": recall,
            "micro_f1": 2 * precision * recall / max(1e-12, precision + recall),
            "micro_auc": area_under_roc(logits.flatten(), present.flatten()),
        }
